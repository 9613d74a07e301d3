"""Sends a node's signals to its peers.

A message is stamped (on the receiver's clock, as far as that is known), signed, sealed and given to the hub.  Every
message carries our present address.  Replies to requests go out from separate tasks (`SignalSender.run`): a slow server
must not hold up incoming messages.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NoReturn, Protocol, final

import trio

from ..address import PeerAddress, Recipient
from ..clock.wall import Clock
from ..errors import SealError, SignalError, SignalMalformed, panics_as_errors
from ..host import Host
from ..identity import Identity
from ..servers.rendezvous_frames import ANY_INSTANCE
from ..sockaddr import IpAddress
from .channel import Delivery
from .circuits import Circuit
from .core import OWNER, ClockReply
from .hub import SignalHub
from .inbox import PeerClocks
from .instances import Correspondents, topic_of
from .message import MAX_TIME_MS, Envelope, Message, seal_message, wire_name
from .replays import Moment

__all__ = ["AttemptKey", "Mailbox", "SignalSender"]

logger: logging.Logger = logging.getLogger(__name__)

AttemptKey = tuple[bytes, bytes, bytes]
"""Peer's key, session id, attempt id: a message must match all three to reach an attempt."""

REPLIERS: Final = 4
"""Tasks that send replies: a slow server must not hold up the replies to others."""
REPLY_PATIENCE: Final = 5.0
"""Seconds for sending one reply: after that the requester has given up (``budgets.signal``)."""
MAX_REPLIES: Final = 64
"""Replies that wait for one of those tasks."""


class Mailbox(Protocol):
    """Where messages for an attempt are delivered."""

    def deliver(self, message: Message) -> None:
        """Take a message of the peer; must not block or raise."""


@final
class SignalSender:
    """See the module's page.

    Args:
      own_address: returns the address that the next message carries.
      hints_of: URLs of the servers at which a peer receives signals.
      may_connect: whether a connection to an address may be opened because a peer's address names a server there.

    Attributes:
      clocks: the peers' clocks, as known from their clock replies.
      correspondents: processes of peers that were sent something and have not answered yet.
      counters: how many messages were sent, and how many replies were dropped for want of room.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        host: Host,
        hub: SignalHub,
        clock: Clock,
        own_address: Callable[[], PeerAddress],
        hints_of: Callable[[Recipient], Sequence[str]],
        may_connect: Callable[[Recipient, IpAddress], bool],
    ) -> None:
        self._identity = identity
        self._host = host
        self._hub = hub
        self._clock = clock
        self._own_address = own_address
        self._hints_of = hints_of
        self._may_connect = may_connect
        self._mailboxes: dict[AttemptKey, Mailbox] = {}
        self._answered_by: dict[AttemptKey, PeerAddress] = {}
        self._replies, self._due = trio.open_memory_channel[Callable[[], Awaitable[None]]](MAX_REPLIES)
        self.clocks: Final = PeerClocks()
        self.correspondents: Final = Correspondents()
        self.counters: Final[Counter[str]] = Counter()

    async def send(
        self,
        peer: Recipient,
        message: Message,
        *,
        owner: str,
        session: bytes,
        attempt: bytes | None,
        in_reply_to: bytes | None = None,
        generation: int = 0,
        via: str | None = None,
        to_peers_servers: bool = False,
    ) -> Delivery:
        """Send a message to a peer, by every server that reaches it.

        It is meant for the process that has answered in this attempt, else for the one that published the address.

        Args:
          peer: its address, or its key record if no address of it is known.
          owner: the plugin's name, or ``"core"``.
          via: the channel that the request came in by, for replies.
          to_peers_servers: whether the servers that the peer's address names may be connected to; only for peers that
            the application asked for.

        Raises:
          SignalUnavailable: no server could take it.
          SignalMalformed: nothing can be sealed to the peer's address.
        """
        now = self.moment()
        meant = self._meant(peer, session, attempt)
        instance = self.correspondents.ask(peer.public_key, meant.instance, now.monotonic)
        blob = self.seal(
            peer,
            message,
            owner=owner,
            session=session,
            attempt=attempt,
            in_reply_to=in_reply_to,
            generation=generation,
        )
        return await self._hub.send(
            peer.public_key,
            blob,
            instance=instance,
            topic=topic_of(meant, instance),
            hints=self._hints_of(peer) if to_peers_servers else (),
            may_connect=partial(self._may_connect, peer) if to_peers_servers else None,
            via=via,
        )

    async def call(
        self, circuit: Circuit, peer: PeerAddress, message: Message, *, owner: str, session: bytes, attempt: bytes
    ) -> None:
        """Call a peer by a circuit.  All processes of its key are called; the one that the message is meant for answers
        or refuses.

        Raises:
          CircuitRefused: the connection to the server has ended.
          SignalMalformed: nothing can be sealed to the peer's address.
        """
        blob = self.seal(peer, message, owner=owner, session=session, attempt=attempt)
        await circuit.call(peer.public_key, ANY_INSTANCE, blob)

    async def answer(
        self,
        circuit: Circuit,
        peer: PeerAddress,
        message: Message,
        *,
        owner: str,
        session: bytes,
        attempt: bytes,
        in_reply_to: bytes,
    ) -> None:
        """Take a peer's call.

        Raises:
          CircuitRefused: the caller has ended the circuit, or the connection to the server has ended.
          SignalMalformed: nothing can be sealed to the peer's address.
        """
        await circuit.answer(
            self.seal(peer, message, owner=owner, session=session, attempt=attempt, in_reply_to=in_reply_to)
        )

    def _meant(self, peer: Recipient, session: bytes, attempt: bytes | None) -> Recipient:
        """The address of the process that the message is meant for."""
        return self._answered_by.get((peer.public_key, session, attempt or b""), peer)

    def seal(
        self,
        peer: Recipient,
        message: Message,
        *,
        owner: str,
        session: bytes,
        attempt: bytes | None,
        in_reply_to: bytes | None = None,
        generation: int = 0,
    ) -> bytes:
        """Stamp, sign and seal a message for a peer, without sending it; arguments and errors as in `send`."""
        message_id = self._host.entropy(16)
        now = self.moment()
        stamp = int(self.clocks.time_of(peer.public_key, now) * 1000)
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
                instance=self._meant(peer, session, attempt).instance,
                time_ms=min(max(stamp, 0), MAX_TIME_MS),  # the peer told us its time, and may have lied
            )
        except SealError as error:  # the peer has chosen its sealing key
            raise SignalMalformed(f"no message can be encrypted to {peer.peer_id[:8]}…: {error}") from error
        self.clocks.note_sent(message_id, peer.public_key, now)
        self.counters["sent"] += 1
        return blob

    def reply_soon(self, request: Envelope, via: str, message: Message) -> None:
        """Have a background task reply to a request; the reply is dropped if 64 wait already.

        The reply carries our address: use it only for peers that may know it.
        """

        async def reply() -> None:
            try:
                with panics_as_errors():
                    delivery = await self.send(
                        request.sender_address,
                        message,
                        owner=OWNER,
                        session=request.header.session,
                        attempt=request.header.attempt,
                        in_reply_to=request.header.message_id,
                        via=via,
                    )
                if delivery is Delivery.NOBODY_HOME and isinstance(message, ClockReply):
                    self.clocks.note_unheard(request.header.sender)
            except SignalError as error:
                logger.debug("a reply to %s could not be sent: %s", request.sender_address.peer_id[:8], error)
            except Exception:  # strangers can make us reply: no failure of that may end the node
                logger.exception("a reply could not be sent")

        try:
            self._replies.send_nowait(reply)
        except trio.WouldBlock:
            self.counters["replies_dropped"] += 1

    async def run(self) -> NoReturn:
        """Send the queued replies, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(REPLIERS):
                nursery.start_soon(self._reply_loop)
            await trio.sleep_forever()

    async def _reply_loop(self) -> None:
        async for reply in self._due:
            with trio.move_on_after(REPLY_PATIENCE):
                await reply()

    # -- attempts that wait for messages of their peers ----------------------------------------------------------------

    def attach(self, key: AttemptKey, mailbox: Mailbox) -> None:
        """From now on messages of this peer, session and attempt go to `mailbox`."""
        self._mailboxes[key] = mailbox

    def detach(self, key: AttemptKey) -> None:
        """Forget a mailbox."""
        self._mailboxes.pop(key, None)
        self._answered_by.pop(key, None)

    def mailbox(self, key: AttemptKey) -> Mailbox | None:
        """The mailbox for messages of this peer, session and attempt."""
        return self._mailboxes.get(key)

    def note_answer(self, key: AttemptKey, address: PeerAddress) -> None:
        """A process of the peer has answered in an attempt: further messages of the attempt go to that process."""
        self._answered_by[key] = address

    # -- time ----------------------------------------------------------------------------------------------------------

    def time_at(self, peer_key: bytes) -> float:
        """Unix seconds on the clock of a peer if it is known, else on ours."""
        return self.clocks.time_of(peer_key, self.moment())

    def moment(self) -> Moment:
        """The present time, on our corrected wall clock and on Trio's clock."""
        return Moment(self._clock.now(), trio.current_time())
