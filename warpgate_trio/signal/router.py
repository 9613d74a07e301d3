"""Signals of one node: what it says to peers, and who gets what they say.

Outward, a message is stamped (on the receiver's clock, as far as that is known), signed, sealed and given to the hub.
Inward, a blob passes the checks of `warpgate_trio.signal` in order of their cost, and then belongs to exactly one of:

* ``core`` messages about the clock or the end of a session;
* nobody, where it is meant for another process of our key that listens (`warpgate_trio.signal.instances`);
* the attempt that waits for it: same peer, same session, same attempt;
* the plugin whose first message it is, which makes a new attempt on the responder's side;
* nobody: the sender hears ``Refused(unsupported)``, if it may hear anything.

Nothing that a stranger sends can do more than be counted: each fault is logged at debug level and dropped.  Every
signal of ours carries our present address, so what nobody waits for is answered only if the node lets its sender in
(`on_reply_wanted`).

How much is opened a second is bounded, to about a tenth of a core: what is beyond waits in the hub, where every channel
has a queue and a turn of its own.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, final

import trio

from ..errors import SealError, SignalError, SignalMalformed, panics_as_errors
from ..limits import TokenBucket
from . import (
    Accepted,
    Cancel,
    Delivery,
    Envelope,
    Failed,
    Here,
    Inbox,
    Incoming,
    Message,
    Moment,
    OutsideWindow,
    RefusalReason,
    Refused,
    SignalHub,
    TooOld,
    check_blob,
    decode_payload,
    open_message,
    seal_message,
    wire_name,
)
from . import Clock as ClockReply
from .core import CORE_MESSAGES, OWNER
from .instances import HERE_INTERVAL, Correspondents, Siblings
from .message import MAX_TIME_MS

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..clock.wall import Clock
    from ..host import Host
    from ..identity import Identity
    from ..sockaddr import IpAddress

__all__ = ["AttemptKey", "Mailbox", "Request", "Signals"]

logger: logging.Logger = logging.getLogger(__name__)

AttemptKey = tuple[bytes, bytes, bytes]
"""Peer's key, session id, attempt id: what a reply must match to reach an attempt."""


class Mailbox(Protocol):
    """An attempt, as far as incoming messages are concerned."""

    def deliver(self, message: Message) -> None:
        """Take a message of the peer; must not block or raise."""


@final
class Request:
    """A message that no attempt waits for: somebody starts something here."""

    __slots__ = ("envelope", "message", "via")

    def __init__(self, envelope: Envelope, message: Message, via: str) -> None:
        self.envelope: Final = envelope
        self.message: Final = message
        self.via: Final = via


@final
class Signals:
    """See the module's page.

    Args:
      messages: wire name -> message type, of every plugin of the node.
      own_address: what to put into the next message.
      on_request: takes a plugin's first message; must not block.
      on_cancel: the peer (key) ends a session (id), or one attempt of it (id); must not block.
      on_address: told the address of a peer that answers something we asked.
      on_reply_wanted: a peer could be told something by `reply_soon`, if it may know where we are; must not block.
      knows: whether the node has dealings with a peer (its key).
      hints_of: where a peer hears signals: URLs of servers.
      may_visit: whether a connection to an address may be opened because a peer's address names a server there.
      listening: whether the node can be called, which it tells other processes of its key.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        host: Host,
        hub: SignalHub,
        clock: Clock,
        messages: Mapping[str, type[Message]],
        own_address: Callable[[], PeerAddress],
        on_request: Callable[[Request], None],
        on_cancel: Callable[[bytes, bytes, bytes | None], None],
        on_address: Callable[[PeerAddress], None],
        on_reply_wanted: Callable[[Envelope, str, Message], None],
        knows: Callable[[bytes], bool],
        hints_of: Callable[[PeerAddress], Sequence[str]],
        may_visit: Callable[[PeerAddress, IpAddress], bool],
        listening: bool,
    ) -> None:
        self._identity = identity
        self._host = host
        self._hub = hub
        self._clock = clock
        self._types: Mapping[str, type[Message]] = {**messages, **CORE_MESSAGES}
        self._own_address = own_address
        self._on_request = on_request
        self._on_cancel = on_cancel
        self._on_address = on_address
        self._reply_wanted = on_reply_wanted
        self._knows = knows
        self._hints_of = hints_of
        self._may_visit = may_visit
        self._listening = listening
        self._siblings: Final = Siblings(hub.instance)
        self._correspondents: Final = Correspondents()
        self._answered_by: dict[AttemptKey, bytes | None] = {}
        self._warned = False
        self._here: bytes | None = None
        self._news = trio.Event()
        self._inbox: Final = Inbox(self._moment())
        limits = self._inbox.limits
        self._pace: Final = TokenBucket(limits.rate, limits.burst)
        self._mailboxes: dict[AttemptKey, Mailbox] = {}
        self._replies, self._due = trio.open_memory_channel[Callable[[], Awaitable[None]]](64)
        self.counters: Final[Counter[str]] = Counter()
        """How many messages ended how; the keys are outcomes, never names of peers."""

    # -- outward -----------------------------------------------------------------------------------------------------

    async def send(
        self,
        peer: PeerAddress,
        message: Message,
        *,
        owner: str,
        session: bytes,
        attempt: bytes | None,
        in_reply_to: bytes | None = None,
        generation: int = 0,
        via: str | None = None,
        visit: bool = False,
    ) -> Delivery:
        """Say something to a peer, by every server that reaches it: to the process that it answered from in this
        attempt, else to the one that has published the address.

        Args:
          owner: the plugin's name, or ``"core"``.
          via: the channel that the request came in by, for replies.
          visit: whether the servers that the peer's address names may be visited; only for peers that the
            application asked for.

        Raises:
          SignalUnavailable: no server could take it.
          SignalMalformed: nothing can be sealed to the peer's address.
        """
        message_id = self._host.entropy(16)
        now = self._moment()
        instance = self._answered_by.get((peer.public_key, session, attempt or b""), peer.instance)
        stamp = int(self._inbox.clocks.time_of(peer.public_key, now) * 1000)
        try:
            blob = seal_message(
                self._identity,
                peer,
                self._own_address(),
                wire_name=wire_name(owner, type(message)),
                payload=message,
                message_id=message_id,
                session=session,
                attempt=attempt,
                in_reply_to=in_reply_to,
                generation=generation,
                instance=instance,
                time_ms=min(max(stamp, 0), MAX_TIME_MS),  # the peer told us its time, and may have lied
            )
        except SealError as error:  # the peer chose the key, too
            raise SignalMalformed(f"nothing can be sealed to {peer.peer_id[:8]}…: {error}") from error
        self._inbox.clocks.note_sent(message_id, peer.public_key, now)
        self.counters["sent"] += 1
        return await self._hub.send(
            peer.public_key,
            blob,
            instance=self._correspondents.ask(peer.public_key, instance, now.monotonic),
            hints=self._hints_of(peer) if visit else (),
            may_visit=partial(self._may_visit, peer) if visit else None,
            via=via,
        )

    def reply_soon(self, request: Envelope, via: str, message: Message) -> None:
        """Answer a request from a task of our own; dropped when 64 answers wait already.

        The answer carries our address: only for who may know it.
        """

        async def reply() -> None:
            try:
                with panics_as_errors():
                    await self.send(
                        request.sender_address,
                        message,
                        owner=OWNER,
                        session=request.header.session,
                        attempt=request.header.attempt,
                        in_reply_to=request.header.message_id,
                        via=via,
                    )
            except SignalError as error:
                logger.debug("no reply to %s: %s", request.sender_address.peer_id[:8], error)
            except Exception:  # strangers make us answer: whatever comes of that must not end the node
                logger.exception("an answer could not be sent")

        try:
            self._replies.send_nowait(reply)
        except trio.WouldBlock:
            self.counters["replies_dropped"] += 1

    def attach(self, key: AttemptKey, mailbox: Mailbox) -> None:
        """From now on messages of this peer, session and attempt go to `mailbox`."""
        self._mailboxes[key] = mailbox

    def detach(self, key: AttemptKey) -> None:
        """Forget a mailbox."""
        self._mailboxes.pop(key, None)
        self._answered_by.pop(key, None)

    def time_at(self, peer_key: bytes) -> float:
        """Unix seconds on the clock of a peer, as far as it has told; on ours else."""
        return self._inbox.clocks.time_of(peer_key, self._moment())

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), trio.current_time())

    # -- inward ------------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Take what the hub receives, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_REPLIERS):
                nursery.start_soon(self._reply_loop)
            if self._listening:
                nursery.start_soon(self._watch_servers)
                nursery.start_soon(self._say_here)
            while True:
                wait = self._pace.seconds_until(trio.current_time())
                if wait:
                    await trio.sleep(wait)  # pacing: which signal is next is decided after it
                incoming = await self._hub.receive()
                self._pace.take(trio.current_time())
                self.handle(incoming)

    async def _reply_loop(self) -> None:
        async for reply in self._due:
            with trio.move_on_after(_REPLY_PATIENCE):
                await reply()

    async def _watch_servers(self) -> NoReturn:
        opened = 0
        while True:
            opened = await self._hub.wait_opened(opened)
            self._news.set()

    async def _say_here(self) -> NoReturn:
        """Tell other processes of our key that this one listens: when a server is connected, when another one says so,
        and now and then while there is one."""
        while True:
            pause = HERE_INTERVAL if self._siblings.any_there(trio.current_time()) else math.inf
            with trio.move_on_after(pause):
                await self._news.wait()
            self._news = trio.Event()
            ours = self._own_address()
            self._here = seal_message(
                self._identity,
                ours,
                ours,
                wire_name=_HERE,
                payload=Here(),
                message_id=self._host.entropy(16),
                session=bytes(16),
                time_ms=min(max(int(self._clock.now() * 1000), 0), MAX_TIME_MS),
            )
            with trio.move_on_after(_REPLY_PATIENCE):
                try:
                    await self._hub.send(ours.public_key, self._here)
                except SignalError as error:
                    logger.debug("other processes of this key do not hear of this one: %s", error)

    def _hear_here(self, instance: bytes | None) -> None:
        """Another process of our key listens."""
        if instance is None or not self._listening or not self._siblings.hear(instance, trio.current_time()):
            return
        self._news.set()
        if not self._warned:
            self._warned = True
            logger.warning(
                "another process listens with this key, %s: who has an address of it calls that one, and who has one "
                "of an older release, or no present one, either of the two; give each process a key of its own",
                self._identity.peer_id,
            )

    def is_worth_a_place(self, payload: bytes) -> bool:
        """Whether a blob may be a signal, as far as can be told at a glance: others get no place in a queue."""
        if payload == self._here:
            return False  # what this process says to all of its key comes back to it
        try:
            check_blob(payload)
        except SignalError as error:
            self.counters[type(error).__name__] += 1
            return False
        return True

    def handle(self, incoming: Incoming) -> None:
        """Check and route one blob.  Raises nothing, whatever is in it, panics of a library included."""
        try:
            with panics_as_errors():
                self._handle(incoming)
        except Exception:  # strangers choose what comes here: a bug must not end the node
            self.counters["unhandled"] += 1
            logger.exception("a signal could not be handled")

    def _handle(self, incoming: Incoming) -> None:
        now = self._moment()
        try:
            envelope = open_message(self._identity, incoming.payload)
        except SignalError as error:
            self.counters[type(error).__name__] += 1
            logger.debug("a signal by %s is dropped: %s", incoming.via, error)
            return
        ours = envelope.header.sender == self._identity.public_key
        if ours and envelope.sender_address.instance == self._hub.instance:
            return
        if self._siblings.is_there(envelope.header.instance, now.monotonic):
            self.counters["for_another_process"] += 1
            return
        known = self._knows(envelope.header.sender)
        verdict = self._inbox.check(envelope.header, now, known=known, via=incoming.via)
        self.counters[type(verdict).__name__] += 1
        if isinstance(verdict, OutsideWindow | TooOld) and verdict.needs_clock_reply and not ours:
            self._reply_wanted(envelope, incoming.via, ClockReply(time_ms=max(0, int(self._inbox.time(now) * 1000))))
        if not isinstance(verdict, Accepted):
            logger.debug("a signal of %s is dropped: %s", envelope.sender_address.peer_id[:8], verdict)
            return
        if ours:  # another process; there is nothing else that the two could want of each other
            if envelope.header.type == _HERE:
                self._hear_here(envelope.sender_address.instance)
            return
        self._correspondents.hear(envelope.header.sender, envelope.sender_address.instance)
        self._route(envelope, incoming.via, now)

    def _route(self, envelope: Envelope, via: str, now: Moment) -> None:
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
            logger.debug("a %s of %s is dropped: %s", header.type, envelope.sender_address.peer_id[:8], error)
            return
        if isinstance(message, ClockReply):
            offset = self._inbox.clocks.on_clock_reply(header.sender, header.in_reply_to, message.time_ms, now)
            if offset is None:
                return
            logger.info("the clock of %s differs from ours by %.1f s", envelope.sender_address.peer_id[:8], offset)
        if isinstance(message, Cancel):
            self._on_cancel(header.sender, header.session, header.attempt)
            return
        mailbox = self._mailboxes.get((header.sender, header.session, header.attempt or b""))
        if mailbox is not None:
            self._on_address(envelope.sender_address)
            self._answered_by[header.sender, header.session, header.attempt or b""] = envelope.sender_address.instance
            mailbox.deliver(message)
        elif not isinstance(message, ClockReply | Refused | Failed | Here):
            self._on_request(Request(envelope, message, via))


_HERE: Final = wire_name(OWNER, Here)
_REPLIERS: Final = 4
"""Tasks that send answers: a slow server must not hold up the answers to others."""
_REPLY_PATIENCE: Final = 5.0
"""Seconds for one answer: after that whoever asked has given up (``budgets.signal``)."""
