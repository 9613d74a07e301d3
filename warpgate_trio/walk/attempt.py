"""One run of a plugin, on either side, from its start to a Pipe or a failure.

An attempt stands between a plugin and the node.  It gives the plugin its context, bounds it, turns the plugin's result
into a proven Link, and closes everything else.  This module has what both sides share.  `CallingAttempt`
(`walk.calling`) commits the Link and wins its session; `AnsweringAttempt` (`walk.answering`) receives the COMMIT.

An attempt lasts for one function call.  Everything that the plugin started in the attempt's nursery ends before that
call returns.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import trio

from ..address import PeerAddress
from ..carrier import Carrier
from ..combos import Combo, JudgedPath, RouteType
from ..errors import (
    AttemptFailed,
    CarrierError,
    PeerRefused,
    PluginError,
    ProtocolError,
    SignalError,
    WrongPeer,
)
from ..identity import Identity
from ..link import Link, PathInfo, RefuseReason, Terms
from ..nurseries import open_background_nursery
from ..plugin import AttemptContext, NodeView, Plugin
from ..signal import Circuit, ClockReply, Delivery, Failed, Message, RefusalReason, Refused
from ..signal.sender import AttemptKey, SignalSender
from .session import Reach

__all__ = ["EXPECTED", "Adopted", "Attempt", "AttemptHome", "Factory", "check_delivery", "is_final", "refusal"]

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
"""Exceptions that networks cause in an attempt, which are logged without a traceback."""

Factory = Callable[[AttemptContext], Plugin]
"""Makes a plugin's instance for one run."""
Adopted = list[Callable[[], Awaitable[object]]]
"""Tasks that live as long as the carrier that an attempt makes (`Plugin.adopt`)."""


class AttemptHome(Protocol):
    """What an attempt needs of its node."""

    @property
    def view(self) -> NodeView: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def signals(self) -> SignalSender: ...

    def register_attempt(self, key: AttemptKey, attempt: Attempt) -> None:
        """Deliver Links and messages for `key` to this attempt from now on."""

    def forget_attempt(self, key: AttemptKey) -> None: ...

    def terms(self) -> Terms | None:
        """The terms that we offer for a new Link; None where Links are to end with their path."""

    def adopt_link(self, link: Link, tasks: Adopted, *, dead_after: float | None, reach: Reach | None) -> None:
        """Drive an accepted Link and its tasks in the node.  Synchronous.

        Args:
          dead_after: seconds within which a dead path is to be detected; None takes the configuration's.
          reach: what searches for further carriers may use; None for a Link by a peer's call, which does not tell.
        """

    def plan(
        self,
        peer: PeerAddress,
        plugins: Sequence[str],
        afs: Collection[int] | None = None,
        route_types: Collection[RouteType] | None = None,
    ) -> Sequence[Combo]:
        """The valid combos of these plugins with a peer."""

    async def circuit(self, server: str) -> Circuit:
        """Open a circuit by one of our servers, once it is connected; `CircuitRefused` where it does not relay."""

    def factory(self, plugin: str) -> Factory:
        """The factory of a plugin's instances."""

    def learn_address(self, address: PeerAddress) -> None:
        """Store the address that an authorized peer sent."""

    def say_goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task for at most ``budgets.goodbye``, even while the node closes."""


_FINAL_REFUSALS: Final = {
    RefusalReason.NOT_AUTHORIZED: RefuseReason.UNAUTHORIZED,
    RefusalReason.NOT_ACCEPTING: RefuseReason.NOT_ACCEPTING,
}
"""Refusals that every other attempt would receive too; a missing plugin or a rate limit is none."""


class Attempt(ABC):
    """One run of a plugin; it is the `AttemptContext` that the plugin sees.

    Args:
      plugin, phase: the plugin's name and phase, for reports.
      path: the judged path; None for a plugin that makes no path, such as `get_addr`.
    """

    inbound: bool
    """Whether this is the responder's side."""

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
    ) -> None:
        self._home: Final = home
        self._plugin: Final = plugin
        self._phase: Final = phase
        self._judged: Final = path
        self._arrivals, self._inbox = trio.open_memory_channel[Link | Message](16)
        self._adopted: Adopted = []
        self._nursery: trio.Nursery | None = None
        self._last_sent: Message | None = None
        self._given_up = False  # the peer has sent a refusal or a failure
        self._sent_again = False  # the last message, after the peer told its time
        self._told_time = False  # the peer has told its time since the attempt began
        self.node: Final = home.view
        self.peer: Final = peer
        self.session_id: Final = session_id
        self.attempt_id: Final = attempt_id

    @property
    def key(self) -> AttemptKey:
        """The key that messages and Links for this attempt carry."""
        return (self.peer.public_key, self.session_id, self.attempt_id)

    # -- what the plugin sees ------------------------------------------------------------------------------------------

    @property
    def path(self) -> JudgedPath:
        """See `AttemptContext.path`."""
        if self._judged is None:
            raise PluginError(f"{self._plugin} makes no path, so it has no address family, route or target")
        return self._judged

    @property
    def nursery(self) -> trio.Nursery:
        """See `Plugin.nursery`."""
        if self._nursery is None:
            raise RuntimeError("an attempt has its nursery while it runs")
        return self._nursery

    @abstractmethod
    async def send_signal(self, message: Message) -> None:
        """See `Plugin.send_signal`."""

    async def receive_signal(self) -> Message:
        """See `Plugin.receive_signal`."""
        while True:
            arrival = await self._receive()
            if not isinstance(arrival, Link):
                return arrival
            arrival.close_nowait()  # a plugin that waits for messages has no use for a Link

    async def wait_inbound(self) -> Link:
        """See `Plugin.wait_inbound`."""
        while True:
            arrival = await self._receive()
            if isinstance(arrival, Link):
                return arrival

    async def receive_proof(self, carrier: Carrier) -> Link:
        """See `Plugin.receive_proof`."""
        link = await Link.receive_proof(carrier)
        if link.peer_key != self.peer.public_key or link.session_id != self.session_id:
            link.close_nowait()
            raise WrongPeer("another node or session dialled on this path")
        link.set_role(initiator=not self.inbound)
        return link

    @abstractmethod
    async def circuit(self) -> Circuit:
        """See `Plugin.circuit`."""

    @abstractmethod
    async def call(self, circuit: Circuit, message: Message) -> Message:
        """See `Plugin.call`."""

    @abstractmethod
    async def answer_call(self, message: Message) -> None:
        """See `Plugin.answer_call`."""

    @abstractmethod
    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        """See `Plugin.race`."""

    @abstractmethod
    def hold_phase(self) -> None:
        """See `Plugin.hold_phase`."""

    def has_room(self) -> bool:
        """See `Plugin.has_room`."""
        return False

    @abstractmethod
    def expect_accept(self) -> None:
        """See `Plugin.expect_accept`."""

    def adopt(self, task: Callable[[], Awaitable[object]]) -> None:
        """See `Plugin.adopt`."""
        self._adopted.append(task)

    def goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """See `Plugin.goodbye`."""
        self._home.say_goodbye(task)

    # -- the run -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        """Register the attempt and run its nursery, which is cancelled at the end; Links that come late are closed."""
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

    async def _prove(self, made: object) -> Link:
        """Turn the plugin's result into a proven Link."""
        if isinstance(made, Link):
            return made
        if not isinstance(made, Carrier):
            raise PluginError(f"{self._plugin}.run() returned {made!r}, which is neither a Carrier nor a Link")
        if not made.dialler:
            return await self.receive_proof(made)
        return await Link.prove(
            made,
            self._home.identity,
            peer_key=self.peer.public_key,
            session_id=self.session_id,
            attempt_id=self.attempt_id,
            initiator=not self.inbound,
        )

    def _path_info(self, carrier: Carrier) -> PathInfo:
        return PathInfo(
            phase=self._phase,
            plugin=self._plugin,
            af=self.path.af,
            route_type=self.path.route_type.name,
            carrier=carrier.name,
            local=carrier.local,
            remote=carrier.remote,
        )

    # -- arrivals ------------------------------------------------------------------------------------------------------

    def deliver(self, arrival: Link | Message) -> None:
        """Take a Link or a message for this attempt.  Where the queue is full, a Link is closed, a message dropped."""
        try:
            self._arrivals.send_nowait(arrival)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            if isinstance(arrival, Link):
                arrival.close_nowait()

    async def _receive(self) -> Link | Message:
        """The next arrival.  Refusals and failures are raised; after a clock reply the last message is sent again."""
        while True:
            arrival = await self._inbox.receive()
            if isinstance(arrival, ClockReply):
                await self._send_again(arrival)
                continue
            if isinstance(arrival, Link):
                return arrival
            self._note_answer(arrival)
            if isinstance(arrival, Refused):
                self._given_up = True
                raise refusal(arrival)
            if isinstance(arrival, Failed):
                self._given_up = True
                raise AttemptFailed("the peer's side of the attempt failed")
            return arrival

    @abstractmethod
    def _note_answer(self, message: Message) -> None:
        """Note a message of the peer that is not a clock reply."""

    async def _send_again(self, reply: ClockReply) -> None:
        """Send the last message again, once: the peer refused it for its time, and its own time is known now."""
        self._told_time = True
        if self._sent_again or self._last_sent is None:
            return
        self._sent_again = True
        self._note_clock(reply)
        await self.send_signal(self._last_sent)

    @abstractmethod
    def _note_clock(self, reply: ClockReply) -> None:
        """Note that the peer's clock differs from ours, and the last message is sent again by its time."""


def is_final(refused: Refused) -> bool:
    """Whether every other attempt would receive the same refusal."""
    return refused.reason in _FINAL_REFUSALS


def refusal(refused: Refused) -> Exception:
    """The exception for a refusal by signal: a refusal of this node ends the walk, of the request only the attempt."""
    text = f"the peer refused by signal: {refused.reason.value.replace('_', ' ')}"
    return PeerRefused(_FINAL_REFUSALS[refused.reason], text) if is_final(refused) else AttemptFailed(text)


def check_delivery(delivery: Delivery) -> None:
    """Raise `AttemptFailed` where a signal did not reach the peer."""
    if delivery is Delivery.NOBODY_HOME:
        raise AttemptFailed("the signal servers know no such peer: it is not connected to them")
    if delivery is Delivery.FULL:
        raise AttemptFailed("the peer's mailbox is full: it does not read its signals")
