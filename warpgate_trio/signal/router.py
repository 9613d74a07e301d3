"""Passes each received signal to its addressee.

A blob passes the checks of `warpgate_trio.signal` in order of their cost.  Then exactly one of these happens:

* A ``core`` message about the clock or the end of a session takes effect.
* A message that is meant for another listening process of our key is dropped (`signal.instances`).
* The attempt that waits for it gets it: same peer, same session, same attempt.
* An answer to an attempt that is over is dropped.
* A plugin's first message makes a new attempt on the responder's side.
* A message of an unknown type is answered with ``Refused(unsupported)``, if the sender may be answered.

An invalid message of a stranger has no effect but on a counter: it is logged at debug level and dropped.  Every signal
of ours carries our present address.  So a message that nobody waits for is answered only if the node lets its sender in
(`on_reply_wanted`).

The rate at which signals are opened is bounded, to about a tenth of a core.  Further ones wait in the hub, where every
channel has a queue of its own and takes its turn.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, final

import trio

from ..address import PeerAddress
from ..errors import SignalError, panics_as_errors
from ..identity import Identity
from ..limits import TokenBucket
from .circuits import Circuit, Incoming
from .core import CORE_MESSAGES, AddressUpdate, Cancel, ClockReply, Failed, Here, RefusalReason, Refused
from .hub import SignalHub
from .inbox import Accepted, Inbox, OutsideWindow, TooOld
from .message import Envelope, Message, decode_payload, open_message
from .presence import HERE, Presence
from .replays import Moment
from .sender import SignalSender

__all__ = ["Request", "SignalRouter"]

logger: logging.Logger = logging.getLogger(__name__)


@final
class Request:
    """A message that no attempt waits for, by which a peer starts one.  `circuit` is set if it came as a call."""

    __slots__ = ("circuit", "envelope", "message", "via")

    def __init__(self, envelope: Envelope, message: Message, via: str, circuit: Circuit | None = None) -> None:
        self.envelope: Final = envelope
        self.message: Final = message
        self.via: Final = via
        self.circuit: Final = circuit


@final
class SignalRouter:
    """See the module's page.

    Args:
      sender: sends the messages of our own attempts, and has the mailboxes for the answers.
      presence: the other processes of our key.
      messages: wire name -> message type, of every plugin of the node.
      on_request: takes a plugin's first message; must not block.
      on_cancel: called when a peer (key) ends a session (id), or one attempt of it (id); must not block.
      on_address: takes the address of a peer that has answered an attempt, or has sent `AddressUpdate` on a Link.
      on_reply_wanted: takes a request, its channel, and a reply to send if the peer may know our address; must not
        block.
      knows: whether the node has dealings with a peer (its key).
      is_linked: whether the node has a Link with a peer (its key).

    Attributes:
      counters: how many messages had which outcome; the keys are outcomes, never names of peers.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        hub: SignalHub,
        sender: SignalSender,
        presence: Presence,
        messages: Mapping[str, type[Message]],
        on_request: Callable[[Request], None],
        on_cancel: Callable[[bytes, bytes, bytes | None], None],
        on_address: Callable[[PeerAddress], None],
        on_reply_wanted: Callable[[Envelope, str, Message], None],
        knows: Callable[[bytes], bool],
        is_linked: Callable[[bytes], bool],
    ) -> None:
        self._identity = identity
        self._hub = hub
        self._sender = sender
        self._presence = presence
        self._types: Mapping[str, type[Message]] = {**messages, **CORE_MESSAGES}
        self._on_request = on_request
        self._on_cancel = on_cancel
        self._on_address = on_address
        self._reply_wanted = on_reply_wanted
        self._knows = knows
        self._is_linked = is_linked
        self._inbox: Final = Inbox(sender.moment(), clocks=sender.clocks)
        limits = self._inbox.limits
        self._pace: Final = TokenBucket(limits.rate, limits.burst)
        self.counters: Final[Counter[str]] = Counter()

    async def run(self) -> NoReturn:
        """Receive signals from the hub and handle them, until cancelled."""
        while True:
            wait = self._pace.seconds_until(trio.current_time())
            if wait:
                await trio.sleep(wait)  # pacing; only after it is the next signal chosen
            incoming = await self._hub.receive()
            self._pace.take(trio.current_time())
            self.handle(incoming)

    def handle(self, incoming: Incoming) -> None:
        """Check and route one blob.  Never raises, whatever the blob contains, not even when a library panics."""
        try:
            with panics_as_errors():
                self._handle(incoming)
        except Exception:  # strangers choose these bytes: a bug must not end the node
            self.counters["unhandled"] += 1
            logger.exception("a signal could not be handled")
        if incoming.circuit is not None and not incoming.circuit.claimed:
            incoming.circuit.close()

    def _handle(self, incoming: Incoming) -> None:
        now = self._sender.moment()
        try:
            envelope = open_message(self._identity, incoming.payload)
        except SignalError as error:
            self.counters[type(error).__name__] += 1
            logger.debug("a signal received by %s is dropped: %s", incoming.via, error)
            return
        ours = envelope.header.sender == self._identity.public_key
        if ours and envelope.sender_address.instance == self._hub.instance:
            return
        if self._presence.is_there(envelope.header.instance):
            self.counters["for_another_process"] += 1
            return
        known = self._knows(envelope.header.sender)
        verdict = self._inbox.check(envelope.header, now, known=known, via=incoming.via)
        self.counters[type(verdict).__name__] += 1
        if isinstance(verdict, OutsideWindow | TooOld) and verdict.needs_clock_reply and not ours:
            self._reply_wanted(envelope, incoming.via, ClockReply(time_ms=max(0, int(self._inbox.time(now) * 1000))))
        if not isinstance(verdict, Accepted):
            logger.debug("a signal from %s is dropped: %s", envelope.sender_address.peer_id[:8], verdict)
            return
        if ours:  # of another process of our key; `Here` is the only message between the two
            if envelope.header.type == HERE:
                self._presence.hear(envelope.sender_address.instance)
            return
        self._sender.correspondents.hear(envelope.header.sender, envelope.sender_address.instance)
        self._route(envelope, incoming.via, now, incoming.circuit)

    def _route(self, envelope: Envelope, via: str, now: Moment, circuit: Circuit | None) -> None:
        header = envelope.header
        kind = self._types.get(header.type)
        if kind is None:
            self.counters["unknown_type"] += 1
            self._reply_wanted(envelope, via, Refused(reason=RefusalReason.UNSUPPORTED))
            return
        try:
            message = decode_payload(envelope, kind)
        except SignalError as error:
            self.counters[type(error).__name__] += 1
            logger.debug("a %s from %s is dropped: %s", header.type, envelope.sender_address.peer_id[:8], error)
            return
        if isinstance(message, ClockReply):
            offset = self._inbox.clocks.on_clock_reply(header.sender, header.in_reply_to, message.time_ms, now)
            if offset is None:
                return
            logger.info("the clock of %s differs from ours by %.1f s", envelope.sender_address.peer_id[:8], offset)
        if isinstance(message, Cancel):
            self._on_cancel(header.sender, header.session, header.attempt)
            return
        if isinstance(message, AddressUpdate):
            if self._is_linked(header.sender):
                self._on_address(envelope.sender_address)
            return
        key = (header.sender, header.session, header.attempt or b"")
        mailbox = self._sender.mailbox(key)
        if mailbox is not None:
            self._on_address(envelope.sender_address)
            self._sender.note_answer(key, envelope.sender_address)
            mailbox.deliver(message)
        elif isinstance(message, ClockReply | Refused | Failed | Here):
            return
        elif header.in_reply_to is not None:  # a reply starts nothing: two nodes could answer each other for ever
            self.counters["late"] += 1
        else:
            self._on_request(Request(envelope, message, via, circuit))
