"""The mailboxes of a rendezvous server, without I/O: who may open one, who may write to it, and how much.

`rendezvous_frames` has the protocol; its names can be had from here too, where they stood before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

from ..errors import RemoteProtocolError
from ..identity import verify
from ..limits import BoundedMap, Budget, TokenBucket
from .rendezvous_frames import (
    ANY_INSTANCE,
    CONTEXT_1,
    CONTEXT_2,
    MAX_FRAME,
    MAX_PAYLOAD,
    QUEUE_FULL,
    VERSION,
    Challenge,
    Error,
    ErrorCode,
    Message,
    Register,
    Register2,
    Registered,
    Send,
    Send2,
    Sent,
    decode_from_client,
    decode_from_server,
    register,
)

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_FRAME",
    "MAX_PAYLOAD",
    "QUEUED_OVERHEAD",
    "QUEUE_FULL",
    "VERSION",
    "Challenge",
    "Error",
    "ErrorCode",
    "Message",
    "Register",
    "Registered",
    "RendezvousCore",
    "RendezvousLimits",
    "RendezvousStatistics",
    "Send",
    "Sent",
    "ServerConnection",
    "decode_from_client",
    "decode_from_server",
    "register",
]

QUEUED_OVERHEAD: Final = 128
"""Bytes that a queued payload is counted as beside its own: objects, and its place in the queue."""
_SHOWN_NAME = 60  # characters of an unknown name in an ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousLimits:
    """What one server allows; the defaults hold an idle node's cost to one connection and a ping every 30 s.

    Attributes:
      connections: connections in all; ``serve`` makes it what the limit of open files allows.
      connections_per_address: from one IPv4 address or IPv6 /64; many nodes may sit behind one carrier-grade NAT.
      connections_per_key: connections that one mailbox holds; one more closes the oldest (a node that roams leaves
        ghosts).
      queue: payloads that wait for one connection; a receiver that does not read gets no more.
      queued_bytes: bytes that wait in all queues together; one /48 or IPv4 /24 gets half of what is free at most.
      queued_bytes_per_address: bytes of these, for the connections of one IPv4 address or IPv6 /64, and from them.
      sends_per_second: SENDs per connection, sustained; over it the connection is closed.
      send_burst: SENDs per connection at once.
      registration: seconds from the TCP connection to the end of the WebSocket handshake, and again to a good REGISTER.
      silence: seconds without any byte, after which a connection is closed; clients ping every 30 s.
      write: seconds in which a client must take what is written to it.
      keys: keys that were here by version 2, and have left, that are remembered, at 200 bytes each; beyond, the first
        one is forgotten.
      key_memory: seconds for which they are, and version 1 does not get their mailboxes: longer than a reconnection
        takes, and no lasting harm to who goes back to an older release.
    """

    connections: int = 16_384
    connections_per_address: int = 256
    connections_per_key: int = 8
    queue: int = 64
    queued_bytes: int = 64 * 1024 * 1024
    queued_bytes_per_address: int = 4 * 1024 * 1024
    sends_per_second: float = 50.0
    send_burst: int = 200
    registration: float = 10.0
    silence: float = 90.0
    write: float = 30.0
    keys: int = 16_384
    key_memory: float = 3600.0


DEFAULT_LIMITS: Final = RendezvousLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousStatistics:
    """A count of what a server holds now (first three) and has done so far."""

    connections: int
    mailboxes: int
    queued: int
    registrations: int
    sends: int
    handed_over: int
    errors: int


@final
@dataclass(frozen=True, slots=True)
class _Queued:
    """A frame that waits for a connection; `host`: of whom it came from, None where it costs nobody anything."""

    frame: bytes
    host: str | None = None

    @property
    def cost(self) -> int:
        return len(self.frame) + QUEUED_OVERHEAD


@final
class ServerConnection:
    """One client's state on the server.  Made by `RendezvousCore.connect`; `queue` is what waits to be written to it.

    The shell writes what `RendezvousCore.transmit` hands out, calls `RendezvousCore.written`, and so on, and closes the
    connection once `closing` is set and the queue is empty.  `key` is None until it is registered; the rest is the
    core's own.
    """

    __slots__ = ("closing", "host", "instance", "key", "names", "nonce", "queue", "sends", "version")

    def __init__(self, nonce: bytes, sends: TokenBucket, *, host: str, version: int, names: Collection[str]) -> None:
        self.nonce: bytes | None = nonce
        self.sends: TokenBucket = sends
        self.host: str = host
        self.version: int = version
        self.names: Collection[str] = names
        self.key: bytes | None = None
        self.instance: bytes = ANY_INSTANCE
        self.queue: deque[_Queued] = deque()
        self.closing: bool = False


@final
class RendezvousCore:
    """All mailboxes of one server.  Frames and `now` (monotonic seconds) in, answers and fuller queues out.

    `receive` returns the answer to a frame, since whoever does not read his answers is not to be read from either.  No
    timer runs here: how long a client may be silent is counted where its bytes come in, pings among them, which never
    get this far.
    """

    def __init__(self, limits: RendezvousLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._connections: set[ServerConnection] = set()
        self._mailboxes: dict[bytes, list[ServerConnection]] = {}
        self._left_2: BoundedMap[bytes, float] = BoundedMap(limits.keys)  # key -> when version 2 last left its mailbox
        self._for = Budget(total=limits.queued_bytes, per_address=limits.queued_bytes_per_address)
        self._from = Budget(total=limits.queued_bytes, per_address=limits.queued_bytes_per_address)
        self._registrations = 0
        self._sends = 0
        self._handed_over = 0
        self._errors = 0

    def connect(
        self, nonce: bytes, now: float, *, host: str, version: int, names: Collection[str]
    ) -> tuple[ServerConnection, bytes]:
        """A client came: return its state and the CHALLENGE to write.

        Args:
          nonce: 32 fresh random bytes.
          host: the client's IP address, for the limits.
          version: 2 if it has announced that, else 1.
          names: of this server, as far as this connection may have been dialled by them (`server_name`).
        """
        sends = TokenBucket(self.limits.sends_per_second, self.limits.send_burst)
        connection = ServerConnection(nonce, sends, host=host, version=version, names=names)
        self._connections.add(connection)
        return connection, Challenge(nonce, version).encode()

    def disconnect(self, connection: ServerConnection, now: float) -> None:
        """The connection is gone; its mailbox closes unless another connection keeps it open.  Idempotent."""
        self._connections.discard(connection)
        connection.closing = True
        while connection.queue:
            self.written(connection)
        self._leave_mailbox(connection, now)

    def receive(
        self, connection: ServerConnection, data: bytes, now: float
    ) -> tuple[bytes | None, list[ServerConnection]]:
        """Process one frame.

        Returns the frame to answer with, if there is one, and the connections whose `queue` got longer.  With an ERROR
        for an answer, `connection.closing` is set.
        """
        try:
            frame = decode_from_client(data)
        except RemoteProtocolError as exc:
            return self.fail(connection, ErrorCode.PROTOCOL, str(exc), now), []
        if isinstance(frame, Register | Register2):
            return self._register(connection, frame, now)
        return self._send(connection, frame, now)

    def transmit(self, connection: ServerConnection, now: float) -> bytes | None:
        """The frame that is to be written to a connection next, None for nothing; the same one until `written`."""
        return connection.queue[0].frame if connection.queue else None

    def written(self, connection: ServerConnection) -> None:
        """What `transmit` has handed out was written, or never will be."""
        if not connection.queue:
            return  # disconnected while it was being written
        queued = connection.queue.popleft()
        if queued.host is not None:
            self._for.give_back(connection.host, queued.cost)
            self._from.give_back(queued.host, queued.cost)

    def fail(self, connection: ServerConnection, code: ErrorCode, text: str, now: float) -> bytes:
        """End a connection for the reason given: returns the ERROR frame to write before it is closed."""
        self._errors += 1
        connection.closing = True
        self._leave_mailbox(connection, now)
        return Error(code, text).encode()

    def statistics(self) -> RendezvousStatistics:
        return RendezvousStatistics(
            connections=len(self._connections),
            mailboxes=len(self._mailboxes),
            queued=sum(len(connection.queue) for connection in self._connections),
            registrations=self._registrations,
            sends=self._sends,
            handed_over=self._handed_over,
            errors=self._errors,
        )

    def _register(
        self, connection: ServerConnection, frame: Register | Register2, now: float
    ) -> tuple[bytes | None, list[ServerConnection]]:
        nonce, connection.nonce = connection.nonce, None  # one try per challenge
        if nonce is None:
            return self.fail(connection, ErrorCode.PROTOCOL, "REGISTER a second time", now), []
        refusal = self._refusal(connection, frame, nonce, now)
        if refusal is not None:
            return self.fail(connection, *refusal, now), []
        woken = [connection]
        mailbox = self._mailboxes.setdefault(frame.key, [])
        connection.key = frame.key
        mailbox.append(connection)
        if isinstance(frame, Register2):
            connection.instance = frame.instance
            for other in [each for each in mailbox if each.version == 1]:
                woken.append(self._replace(other, "the key has registered by version 2", now))
        self._registrations += 1
        # Through the queue, so that no MESSAGE can get ahead of it.
        connection.queue.append(_Queued(Registered().encode()))
        if len(mailbox) > self.limits.connections_per_key:
            woken.append(self._replace(mailbox[0], "the key opened more connections than a mailbox holds", now))
        return None, woken

    def _refusal(
        self, connection: ServerConnection, frame: Register | Register2, nonce: bytes, now: float
    ) -> tuple[ErrorCode, str] | None:
        """Why not; None: it may."""
        if (connection.version == 1) != isinstance(frame, Register):
            return ErrorCode.PROTOCOL, f"a registration that is not of version {connection.version}"
        if isinstance(frame, Register):
            good = verify(frame.key, frame.signature, CONTEXT_1, nonce + frame.key)
        else:
            signed = nonce + frame.key + frame.instance + frame.name.encode("ascii")
            good = verify(frame.key, frame.signature, CONTEXT_2, signed)
        if not good:
            return ErrorCode.BAD_SIGNATURE, "the signature is not by the key that wants the mailbox"
        if isinstance(frame, Register2):
            if frame.name in connection.names:
                return None
            return ErrorCode.UNKNOWN_NAME, (
                f"this server does not know that it is {frame.name[:_SHOWN_NAME]!r}: "
                "its operator has to start `serve` with --public-url and the URL that you use"
            )
        if self._belongs_to_2(frame.key, now):
            return ErrorCode.OLD_VERSION, "this key has registered by version 2 lately: version 1 is refused"
        return None

    def _replace(self, connection: ServerConnection, why: str, now: float) -> ServerConnection:
        connection.queue.append(_Queued(self.fail(connection, ErrorCode.REPLACED, why, now)))
        return connection

    def _belongs_to_2(self, key: bytes, now: float) -> bool:
        """Whether version 2 has the mailbox open, or had it a while ago."""
        left_at = self._left_2.get(key)
        if left_at is not None and now - left_at < self.limits.key_memory:
            return True
        return any(connection.version != 1 for connection in self._mailboxes.get(key, []))

    def _send(
        self, connection: ServerConnection, frame: Send | Send2, now: float
    ) -> tuple[bytes, list[ServerConnection]]:
        if connection.key is None:
            return self.fail(connection, ErrorCode.PROTOCOL, "SEND before REGISTER", now), []
        if not connection.sends.take(now):
            return self.fail(connection, ErrorCode.RATE, "more SENDs than this server allows", now), []
        self._sends += 1
        mailbox = self._mailboxes.get(frame.receiver, [])
        if isinstance(frame, Send2) and frame.instance != ANY_INSTANCE:
            mailbox = [receiver for receiver in mailbox if receiver.instance == frame.instance]
        message = _Queued(Message(frame.payload).encode(), connection.host)
        took = [receiver for receiver in mailbox if self._put(receiver, message)]
        self._handed_over += len(took)
        count = QUEUE_FULL if mailbox and not took else len(took)
        return Sent(frame.id, count).encode(), took

    def _put(self, receiver: ServerConnection, message: _Queued) -> bool:
        """Queue a payload; False where there is no room for it: of the connection, of its or the sender's subscriber,
        or in all.
        """
        assert message.host is not None
        if len(receiver.queue) >= self.limits.queue or not self._for.take(receiver.host, message.cost):
            return False
        if not self._from.take(message.host, message.cost):
            self._for.give_back(receiver.host, message.cost)
            return False
        receiver.queue.append(message)
        return True

    def _leave_mailbox(self, connection: ServerConnection, now: float) -> None:
        if connection.key is None:
            return
        if connection.version != 1:
            self._left_2.put(connection.key, now)
        mailbox = self._mailboxes[connection.key]
        mailbox.remove(connection)
        if not mailbox:
            del self._mailboxes[connection.key]
        connection.key = None
