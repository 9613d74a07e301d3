"""What walks and attempts need of their node: the `WalkHome` of `warpgate_trio.walk`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, final

import trio

from ..address import PeerAddress
from ..combos import Combo, RouteType
from ..config import Servers
from ..identity import Identity
from ..link import Link, Terms
from ..nat.service import NatService
from ..plugin import NodeView
from ..report import Verdict
from ..signal import Circuit, ServerState, SignalHub
from ..signal.sender import AttemptKey, SignalSender
from ..walk.attempt import Adopted, Attempt, Factory
from ..walk.session import Reach
from ..walk.verdicts import ThisSide, Unresolved
from .address_book import AddressBook
from .links import Links
from .planning import Factories, Planning

__all__ = ["Home"]


@final
class Home:
    """See the module's docstring.

    Attributes:
      view: what plugins see.
      signals: sends the signals of attempts.
      strict: whether a plugin's unexpected exception reaches the caller.
      closing: whether the node is being closed, or was.
      walks: ended calls, by verdict.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        view: NodeView,
        servers: Servers,
        hub: SignalHub,
        nat: NatService,
        signals: SignalSender,
        book: AddressBook,
        links: Links,
        planning: Planning,
        factories: Factories,
        strict: bool,
    ) -> None:
        self.identity: Final = identity
        self.view: Final = view
        self.signals: Final = signals
        self.strict: Final = strict
        self.closing: bool = False
        self.walks: Final[Counter[str]] = Counter()
        self._servers: Final = servers
        self._hub: Final = hub
        self._nat: Final = nat
        self._book: Final = book
        self._links: Final = links
        self._planning: Final = planning
        self._factories: Final = factories
        self._attempts: Final[dict[AttemptKey, Attempt]] = {}
        self._calls: Final[set[trio.CancelScope]] = set()
        self._calls_over = trio.Event()

    # -- attempts ------------------------------------------------------------------------------------------------------

    @property
    def attempts(self) -> int:
        """The number of attempts under way, inbound and outbound."""
        return len(self._attempts)

    def factory(self, plugin: str) -> Factory:
        """The maker of a plugin's instances."""
        return self._factories[plugin][1]

    def register_attempt(self, key: AttemptKey, attempt: Attempt) -> None:
        """Deliver Links and messages for `key` to this attempt from now on."""
        self._attempts[key] = attempt
        self.signals.attach(key, attempt)

    def forget_attempt(self, key: AttemptKey) -> None:
        """Deliver nothing more to the attempt: it is over."""
        self._attempts.pop(key, None)
        self.signals.detach(key)

    def take_link(self, link: Link) -> bool:
        """Give a Link whose peer is proven to the attempt that it names; False where there is no such attempt."""
        attempt = self._attempts.get((link.peer_key, link.session_id, link.attempt_id))
        if attempt is None:
            return False
        link.set_role(initiator=not attempt.inbound)
        attempt.deliver(link)
        return True

    def terms(self) -> Terms | None:
        """See `Links.terms`."""
        return self._links.terms()

    def adopt_link(self, link: Link, tasks: Adopted, *, dead_after: float | None, reach: Reach | None) -> None:
        """See `Links.adopt`."""
        self._links.adopt(link, tasks, dead_after=dead_after, reach=reach)

    def say_goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task for at most ``budgets.goodbye``, even while the node closes."""
        self._links.say_goodbye(task)

    # -- peers ---------------------------------------------------------------------------------------------------------

    def learn_address(self, address: PeerAddress) -> None:
        """Store the address that an authorized peer sent."""
        self._book.hear(address)

    def plan(
        self,
        peer: PeerAddress,
        plugins: Sequence[str],
        afs: Collection[int] | None = None,
        route_types: Collection[RouteType] | None = None,
    ) -> Sequence[Combo]:
        """See `Planning.plan`."""
        return self._planning.plan(peer, plugins, afs, route_types)

    async def circuit(self, server: str) -> Circuit:
        """Open a circuit by one of our servers, once it is connected; `CircuitRefused` where it does not relay."""
        return await self._hub.circuit(server)

    # -- this side -----------------------------------------------------------------------------------------------------

    async def wait_signals(self) -> None:
        """See `Node.wait_signals`."""
        await self._hub.wait_connected()

    def has_signals(self) -> bool:
        """Whether a signal server is connected."""
        return any(server.state is ServerState.CONNECTED for server in self._hub.status())

    def this_side(self) -> ThisSide:
        """What this side has for walks: signal servers, STUN servers, and why no signal server is connected."""
        own = [server for server in self._hub.status() if not server.visiting]
        connected = any(server.state is ServerState.CONNECTED for server in own)
        return ThisSide(
            signal=bool(own),
            stun=bool(self._nat.servers),
            silent=() if connected else [f"{server.url}: {server.last_error or 'no answer yet'}" for server in own],
        )

    def unresolved(self) -> Unresolved:
        """The host names of servers that DNS does not resolve now."""
        signal, stun = self._hub.unresolved, self._nat.unresolved
        gone = {name for name, failure in stun.items() if not failure.remembered}
        return Unresolved(
            names=signal | stun,
            no_signal=bool(self._servers.signal) and all(url.host in signal for url in self._servers.signal),
            no_stun=bool(stun) and all(url.host in gone for url in self._nat.servers),
        )

    def count_walk(self, verdict: Verdict) -> None:
        """Count a walk that ended with this verdict."""
        self.walks[verdict.value] += 1

    # -- calls ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def call(self) -> Iterator[None]:
        """Scope of one call of the application.  Closing the node cancels it, whichever task makes the call.

        Raises:
          trio.ClosedResourceError: the node was closed, before or meanwhile.
        """
        if self.closing:
            raise trio.ClosedResourceError("this node was closed")
        with trio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                yield
            finally:
                self._calls.discard(scope)
                if self.closing and not self._calls:
                    self._calls_over.set()
        if scope.cancelled_caught:
            raise trio.ClosedResourceError("this node was closed")

    def end_calls(self) -> None:
        """Cancel all calls: the node is being closed."""
        self.closing = True
        for scope in list(self._calls):
            scope.cancel(reason="the node was left")

    async def wait_calls(self) -> None:
        """Wait for the cancelled calls, ``budgets.goodbye`` at most: they still use plugins, and may have to send
        their last messages.
        """
        if self._calls:
            with trio.move_on_after(self.view.budgets.goodbye, shield=True):
                await self._calls_over.wait()
