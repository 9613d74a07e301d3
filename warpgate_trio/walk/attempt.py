"""One plugin's run, on either side, from its start to a Pipe or to nothing left.

An attempt is what stands between a plugin and the node: it gives the plugin its context, bounds it, turns what the
plugin made into a committed Pipe, and closes everything else.  Its life is one function call, `make_pipe` for the
initiator's side and `answer` for the responder's; whatever the plugin opened in the attempt's nursery ends before
that call returns.

The winner's way out (DESIGN §5): on ACCEPT the Link's driver moves to the node's nursery, the session records the
Pipe, and the phase is cancelled, in one synchronous step.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from ..carrier import Carrier
from ..errors import (
    AttemptFailed,
    CarrierError,
    PeerRefused,
    PluginError,
    ProtocolError,
    SignalError,
    WrongPeer,
    panics_as_errors,
)
from ..link import Link, PathInfo, Pipe, RefuseReason
from ..nurseries import open_background_nursery
from ..signal import Cancel, Clock, Delivery, Failed, Message, RefusalReason, Refused
from ..signal.core import OWNER

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..combos import Combo, JudgedPath
    from ..identity import Identity
    from ..plugin import NodeView, Plugin
    from ..signal.router import AttemptKey, Signals
    from .session import Session

__all__ = ["EXPECTED", "Attempt", "AttemptHome"]

logger: logging.Logger = logging.getLogger(__name__)

EXPECTED: Final = (
    AttemptFailed,
    CarrierError,
    PeerRefused,
    ProtocolError,
    SignalError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)
"""What an attempt may end with without a traceback in the log: networks do that."""


class AttemptHome(Protocol):
    """What an attempt needs of its node."""

    @property
    def view(self) -> NodeView: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def signals(self) -> Signals: ...

    def register_attempt(self, key: AttemptKey, attempt: Attempt) -> None:
        """Links and messages for `key` go to this attempt from now on."""

    def forget_attempt(self, key: AttemptKey) -> None: ...

    def adopt_link(self, link: Link, tasks: list[Callable[[], Awaitable[object]]]) -> None:
        """Drive an accepted Link, and what belongs to it, in the node.  Synchronous."""

    def plan(self, peer: PeerAddress, plugins: Sequence[str]) -> Sequence[Combo]:
        """The valid combos of these plugins with a peer."""

    async def wait_signals(self) -> None:
        """Wait until a signal server is connected; `SignalUnavailable` when there is none to wait for."""

    def factory(self, plugin: str) -> Callable[[Attempt], Plugin]:
        """The maker of a plugin's instances."""

    def learn_address(self, address: PeerAddress) -> None:
        """Remember where a peer is, if that is news."""

    def say_goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task for at most ``budgets.goodbye``, even while the node closes."""


_FINAL_REFUSALS: Final = {
    RefusalReason.NOT_AUTHORIZED: RefuseReason.UNAUTHORIZED,
    RefusalReason.NOT_ACCEPTING: RefuseReason.NOT_ACCEPTING,
}
"""What every other attempt would hear too; a plugin that the peer lacks, or a limit on requests, is no such answer."""


@final
class Attempt:
    """One run of a plugin; its fields are what `warpgate_trio.plugin.Plugin` shows to it.

    Args:
      path: None for a plugin that makes no path, such as `get_addr`.
      session: the walk that this attempt is part of; None where it belongs to none.
      inbound: on the responder's side.
      via, request_id: there, the channel that the request came in by, and its message id.
    """

    def __init__(
        self,
        home: AttemptHome,
        *,
        peer: PeerAddress,
        session_id: bytes,
        attempt_id: bytes,
        plugin: str,
        phase: str | None,
        path: JudgedPath | None,
        session: Session | None = None,
        inbound: bool = False,
        via: str | None = None,
        request_id: bytes | None = None,
    ) -> None:
        self._home = home
        self._session = session
        self._plugin = plugin
        self._phase = phase
        self._judged = path
        self._via = via
        self._request_id = request_id
        self._arrivals, self._inbox = trio.open_memory_channel[Link | Message](16)
        self._adopted: list[Callable[[], Awaitable[object]]] = []
        self._nursery: trio.Nursery | None = None
        self._last_sent: Message | None = None
        self._given_up = False  # by the peer, which has said so
        self._corrected = False
        self.won: bool = False
        self.met: bool = False  # what the plugin made led to the peer
        self.node: Final = home.view
        self.peer = peer
        self.session_id: Final = session_id
        self.attempt_id: Final = attempt_id
        self.inbound: Final = inbound

    @classmethod
    def of_combo(cls, home: AttemptHome, session: Session, combo: Combo, attempt_id: bytes) -> Attempt:
        """The initiator's attempt at one combo."""
        return cls(
            home,
            peer=session.peer,
            session_id=session.id,
            attempt_id=attempt_id,
            plugin=combo.plugin,
            phase=combo.phase,
            path=combo.path,
            session=session,
        )

    @property
    def key(self) -> AttemptKey:
        return (self.peer.public_key, self.session_id, self.attempt_id)

    @property
    def path(self) -> JudgedPath:
        if self._judged is None:
            raise PluginError(f"{self._plugin} makes no path, so it has no address family, route or target")
        return self._judged

    @property
    def nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("an attempt has its nursery while it runs")
        return self._nursery

    # -- the initiator's side ----------------------------------------------------------------------------------------

    async def make_pipe(self, factory: Callable[[Attempt], Plugin]) -> Pipe:
        """Run the plugin, commit what it makes, and win the session.

        Raises whatever ended the attempt, bare.
        """
        session = self._session
        assert session is not None
        link: Link | None = None
        session.attempts.add(self)
        try:
            async with self._running():
                link = await self._proven(await factory(self).run())
                return await self._commit(link, session)
        except PeerRefused as refusal:
            session.learn_refusal(refusal)
            raise
        except WrongPeer:
            session.wrong_peer = True
            raise
        finally:
            session.attempts.discard(self)
            if link is not None and not self.won:
                link.close_nowait()
            self._end_at_the_peer(session)

    def _end_at_the_peer(self, session: Session) -> None:
        """Spare the peer what is left of its part, where the walk goes on without this attempt.

        What ends the walk ends it there too, with a Pipe or with what the node says about the whole session.
        """
        heard = self._last_sent is not None and not self._given_up
        goes_on = session.over_at is None and trio.current_time() >= session.phase_deadline
        if heard and goes_on and not self.won:
            self._home.say_goodbye(self._say_that_it_is_over)

    async def _say_that_it_is_over(self) -> None:
        try:
            await self._home.signals.send(
                self.peer, Cancel(), owner=OWNER, session=self.session_id, attempt=self.attempt_id, visit=False
            )
        except SignalError as error:
            logger.debug("the peer could not be told that %s is over: %s", self._plugin, error)

    async def ask(self, factory: Callable[[Attempt], Plugin]) -> object:
        """Run an auxiliary plugin, which makes no path, and return what it returns; errors come out bare."""
        async with self._running():
            return await factory(self).run()

    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        """See `Plugin.race`."""
        session = self._session
        assert session is not None
        found: list[Link] = []
        errors: list[Exception] = []

        async def one(combo: Combo, delay: float) -> None:
            await trio.sleep(delay)  # pacing: a quick candidate spares the others their work
            attempt = Attempt.of_combo(self._home, session, combo, self.node.host.entropy(16))
            try:
                with panics_as_errors():
                    link = await attempt.make_link(self._home.factory(combo.plugin))
            except Exception as error:
                if not isinstance(error, EXPECTED):
                    logger.warning("%s failed", combo.plugin, exc_info=True)
                session.wrong_peer = session.wrong_peer or isinstance(error, WrongPeer)
                errors.append(error)
                return
            if found:
                link.close_nowait()
            else:
                found.append(link)
                self._adopted += attempt._adopted
                nursery.cancel_scope.cancel(reason="another plugin was first")

        try:
            async with trio.open_nursery() as nursery:
                for combo in self._home.plan(self.peer, plugins):
                    nursery.start_soon(one, combo, combo.delay + stagger * plugins.index(combo.plugin))
        except BaseException:
            for link in found:  # cancelled from outside, in the moment of the win
                link.close_nowait()
            raise
        if found:
            return found[0]
        for error in errors:
            if isinstance(error, PeerRefused):
                raise error
        raise AttemptFailed("none of them made a path: " + "; ".join(str(error) for error in errors))

    async def make_link(self, factory: Callable[[Attempt], Plugin]) -> Link:
        """Run the plugin up to a proven Link, for somebody else to commit."""
        link: Link | None = None
        try:
            async with self._running():
                link = await self._proven(await factory(self).run())
                link.path = self._path(link.carrier)
            return link
        except BaseException:
            if link is not None:
                link.close_nowait()
            raise

    async def _proven(self, made: object) -> Link:
        if isinstance(made, Link):
            return made
        if not isinstance(made, Carrier):
            raise PluginError(f"{self._plugin}.run() returned {made!r}, which is neither a Carrier nor a Link")
        identity = self._home.identity
        if made.dialer:
            return await Link.prove(
                made,
                identity,
                peer_key=self.peer.public_key,
                session_id=self.session_id,
                attempt_id=self.attempt_id,
                initiator=not self.inbound,
            )
        return await self.hear_proof(made)

    async def hear_proof(self, carrier: Carrier) -> Link:
        """See `Plugin.hear_proof`."""
        link = await Link.hear_proof(carrier)
        if link.peer_key != self.peer.public_key or link.session_id != self.session_id:
            link.close_nowait()
            raise WrongPeer("somebody else dialled on this path")
        link.become(initiator=not self.inbound)
        return link

    async def _commit(self, link: Link, session: Session) -> Pipe:
        async with session.commit_lock:
            session.epoch += 1
            try:
                with session.budget_suspended():
                    pipe = await link.commit(
                        epoch=session.epoch,
                        link_id=session.id[:8] + session.epoch.to_bytes(8, "big"),
                        early_data=session.early_data,
                        patience=self.node.budgets.commit,
                    )
            except (trio.BrokenResourceError, ProtocolError):
                session.broke_off = True
                raise
            except PeerRefused as refusal:
                session.learn_refusal(refusal)  # before the lock passes on, to a carrier that would hear the same
                raise
            # No checkpoint from the ACCEPT to here: the lock's release is none either.
            link.path = link.path or self._path(link.carrier)
            self.won = True
            self._home.adopt_link(link, self._adopted)
            session.win(pipe)
        return pipe

    def _path(self, carrier: Carrier) -> PathInfo:
        return PathInfo(
            phase=self._phase,
            plugin=self._plugin,
            af=self.path.af,
            route_type=self.path.route_type.name,
            carrier=carrier.name,
            local=carrier.local,
            remote=carrier.remote,
        )

    # -- the responder's side ----------------------------------------------------------------------------------------

    async def answer(
        self,
        factory: Callable[[Attempt], Plugin],
        request: Message,
        decide: Callable[[Link, list[Callable[[], Awaitable[object]]]], Awaitable[bool]],
    ) -> None:
        """Run the plugin for a peer's request; one without a path (an auxiliary plugin's) ends with its run.

        `decide` hears the COMMIT on the Link that came of it; when it returns True it has accepted and adopted the
        Link, and the tasks that the plugin gave for it.
        """
        accepted = False
        link: Link | None = None
        try:
            async with self._running():
                made = await factory(self).run(request)
                if self._judged is None:
                    return
                link = await self._proven(made)
                self.met = True
                link.path = self._path(link.carrier)
                accepted = await decide(link, self._adopted)
        finally:
            if link is not None and not accepted:
                link.close_nowait()

    # -- both sides --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        """Registered, with a nursery that is cancelled at the end; Links that came too late are closed."""
        self._home.register_attempt(self.key, self)
        try:
            async with open_background_nursery() as self._nursery:
                yield
        finally:
            self._home.forget_attempt(self.key)
            self._arrivals.close()
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    late = self._inbox.receive_nowait()
                    if isinstance(late, Link):
                        late.close_nowait()

    def deliver(self, arrival: Link | Message) -> None:
        """A Link or a message for this attempt; a Link that finds no room is closed, a message is dropped."""
        try:
            self._arrivals.send_nowait(arrival)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            if isinstance(arrival, Link):
                arrival.close_nowait()

    async def send_signal(self, message: Message) -> None:
        """See `Plugin.send_signal`."""
        session = self._session
        self._last_sent = message
        if session is not None:
            session.signalled = True  # before it is: cancelled in between, it may have been heard all the same
        delivery = await self._home.signals.send(
            self.peer,
            message,
            owner=self._plugin,
            session=self.session_id,
            attempt=self.attempt_id,
            in_reply_to=self._request_id,
            via=self._via,
            visit=not self.inbound,
        )
        if session is not None and (session.best_delivery is None or delivery > session.best_delivery):
            session.best_delivery = delivery
        if delivery is Delivery.NOBODY_HOME:
            raise AttemptFailed("the signal servers know no such peer: it is not connected to them")
        if delivery is Delivery.FULL:
            raise AttemptFailed("the peer's mailbox is full: it does not read its signals")

    async def _receive(self) -> Link | Message:
        """The next arrival; core messages become exceptions, a clock reply makes us send again."""
        session = self._session
        while True:
            arrival = await self._inbox.receive()
            if isinstance(arrival, Link):
                return arrival
            if session is not None and not isinstance(arrival, Clock):
                session.answered = True
            if isinstance(arrival, Clock):
                await self._correct_clock(arrival)
            elif isinstance(arrival, Refused):
                self._given_up = True
                raise self._refused(arrival)
            elif isinstance(arrival, Failed):
                self._given_up = True
                raise AttemptFailed("the peer tried, and it did not work there")
            else:
                return arrival

    def _refused(self, refused: Refused) -> Exception:
        """What a refusal by signal means: no to us ends the walk, no to this request only the attempt."""
        text = f"the peer refused by signal: {refused.reason.value.replace('_', ' ')}"
        final = _FINAL_REFUSALS.get(refused.reason)
        if final is not None:
            return PeerRefused(final, text)
        if self._session is not None:
            self._session.turned_down = refused.reason
        return AttemptFailed(text)

    async def _correct_clock(self, reply: Clock) -> None:
        """The peer says what time it is there; `Signals` has noted it, so what was refused can be said again, once.

        The peer answers one message in ten seconds so, whatever it refuses: the session's other attempts hear of it
        here.
        """
        session = self._session
        if self._corrected or self._last_sent is None:
            return
        self._corrected = True
        if session is not None and not session.clock_corrected:
            session.clock_corrected = True
            session.recorder.note("our clock and the peer's differ; the signals were corrected", trio.current_time())
            for other in session.attempts - {self}:
                other.deliver(reply)
        await self.send_signal(self._last_sent)

    async def receive_signal(self) -> Message:
        """See `Plugin.receive_signal`."""
        while True:
            arrival = await self._receive()
            if not isinstance(arrival, Link):
                return arrival
            arrival.close_nowait()  # a plugin that waits for messages has no use for it

    async def wait_inbound(self) -> Link:
        """See `Plugin.wait_inbound`."""
        while True:
            arrival = await self._receive()
            if isinstance(arrival, Link):
                return arrival

    def hold_phase(self) -> None:
        """See `Plugin.hold_phase`."""
        if self._session is not None:
            self._session.hold_phase()

    def adopt(self, task: Callable[[], Awaitable[object]]) -> None:
        """See `Plugin.adopt`."""
        self._adopted.append(task)

    def goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """See `Plugin.goodbye`."""
        self._home.say_goodbye(task)
