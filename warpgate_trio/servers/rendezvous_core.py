"""The rendezvous protocol without I/O: its frames, what each side may say when, and the mailboxes between them.

A rendezvous server carries sealed signals between nodes that can both reach it.  A node proves that it owns its key and
so opens the *mailbox* of that key; whoever is registered may send to any mailbox.  The server sees keys, sizes and
times, never
contents, and promises nothing: a payload is handed to the connections that are there, or the sender is told that none
is.

One WebSocket binary message is one frame, a type byte and fixed-width fields, big-endian:

    S->C  0x01 CHALLENGE   version u8, nonce 32
    C->S  0x02 REGISTER    key 32, signature 64 over nonce + key (context ``warpgate-trio rendezvous v1``)
    S->C  0x03 REGISTERED
    C->S  0x04 SEND        id u32, receiver key 32, payload 1..16,384
    S->C  0x05 SENT        id u32, count u16: connections that it was handed to; 0xFFFF: there are some, all with a full
    queue S->C  0x06 MESSAGE     payload
    S->C  0x07 ERROR       code u8, UTF-8 text of at most 200 bytes; the server closes behind it

A frame may be longer than its fixed width only where a payload or text ends it: a later version that needs more fields
says so in CHALLENGE.  Everything a client can make the server hold is bounded by `RendezvousLimits`.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from ..errors import RemoteProtocolError, SignalUnsupported
from ..identity import Identity, verify

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_FRAME",
    "MAX_PAYLOAD",
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

VERSION: Final = 1
MAX_PAYLOAD: Final = 16_384
"""Bytes in a payload, the size limit of a signal (`warpgate_trio.signal.MAX_SIGNAL`)."""
MAX_FRAME: Final = 1 + 4 + 32 + MAX_PAYLOAD
"""Bytes in the longest frame, a full SEND."""
QUEUE_FULL: Final = 0xFFFF
MAX_ERROR_TEXT: Final = 200

_CONTEXT = b"warpgate-trio rendezvous v1"


class ErrorCode(enum.IntEnum):
    """Why the server closes.  A client treats a code that it does not know as any other."""

    PROTOCOL = 1  # a frame that is malformed or not allowed now
    BAD_SIGNATURE = 2  # the registration is not by the key that it names
    SLOW = 3  # not registered in time, silent for too long, or not reading
    RATE = 4  # more SENDs than allowed
    REPLACED = 5  # the same key opened more connections than a mailbox holds; the oldest goes


# --- Frames -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Challenge:
    nonce: bytes
    version: int = VERSION

    def encode(self) -> bytes:
        return struct.pack("!BB32s", 0x01, self.version, self.nonce)

    @classmethod
    def decode(cls, data: bytes) -> Challenge:
        if len(data) >= 2 and data[1] != VERSION:
            raise SignalUnsupported(f"the rendezvous server speaks version {data[1]}, this release speaks {VERSION}")
        _check_width(data, 34, "CHALLENGE")
        return cls(data[2:])


@final
@dataclass(frozen=True, slots=True)
class Register:
    key: bytes
    signature: bytes

    def encode(self) -> bytes:
        return struct.pack("!B32s64s", 0x02, self.key, self.signature)

    @classmethod
    def decode(cls, data: bytes) -> Register:
        _check_width(data, 97, "REGISTER")
        return cls(data[1:33], data[33:])


@final
@dataclass(frozen=True, slots=True)
class Registered:
    def encode(self) -> bytes:
        return b"\x03"

    @classmethod
    def decode(cls, data: bytes) -> Registered:
        _check_width(data, 1, "REGISTERED")
        return cls()


@final
@dataclass(frozen=True, slots=True)
class Send:
    id: int
    receiver: bytes
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI32s", 0x04, self.id, self.receiver) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Send:
        _check_payload(data, 37, "SEND")
        return cls(int.from_bytes(data[1:5], "big"), data[5:37], data[37:])


@final
@dataclass(frozen=True, slots=True)
class Sent:
    id: int
    count: int

    def encode(self) -> bytes:
        return struct.pack("!BIH", 0x05, self.id, self.count)

    @classmethod
    def decode(cls, data: bytes) -> Sent:
        _check_width(data, 7, "SENT")
        return cls(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:], "big"))


@final
@dataclass(frozen=True, slots=True)
class Message:
    payload: bytes

    def encode(self) -> bytes:
        return b"\x06" + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Message:
        _check_payload(data, 1, "MESSAGE")
        return cls(data[1:])


@final
@dataclass(frozen=True, slots=True)
class Error:
    code: int
    text: str

    def encode(self) -> bytes:
        return struct.pack("!BB", 0x07, self.code) + self.text.encode()[:MAX_ERROR_TEXT]

    @classmethod
    def decode(cls, data: bytes) -> Error:
        if not 2 <= len(data) <= 2 + MAX_ERROR_TEXT:
            raise RemoteProtocolError(f"ERROR frame of {len(data)} bytes, not 2 to {2 + MAX_ERROR_TEXT}")
        # For people and logs only, so damage is shown, not raised; control characters would let it forge log lines.
        text = data[2:].decode("utf-8", "replace")
        return cls(data[1], "".join(c if c.isprintable() else "?" for c in text))


FromServer: TypeAlias = Challenge | Registered | Sent | Message | Error
FromClient: TypeAlias = Register | Send

_FROM_SERVER: dict[int, type[FromServer]] = {0x01: Challenge, 0x03: Registered, 0x05: Sent, 0x06: Message, 0x07: Error}
_FROM_CLIENT: dict[int, type[FromClient]] = {0x02: Register, 0x04: Send}


def decode_from_server(data: bytes) -> FromServer:
    """Decode what a server sent.

    Raises:
      RemoteProtocolError: it is no frame that a server sends.
      SignalUnsupported: it is a CHALLENGE of a version that this release does not know.
    """
    frame = _FROM_SERVER.get(data[0]) if data else None
    if frame is None:
        raise RemoteProtocolError(f"no frame of a rendezvous server: {data[:1].hex() or 'empty'}")
    return frame.decode(data)


def decode_from_client(data: bytes) -> FromClient:
    """Decode what a client sent; raises `RemoteProtocolError` when it is no frame that a client sends."""
    frame = _FROM_CLIENT.get(data[0]) if data else None
    if frame is None:
        raise RemoteProtocolError(f"no frame of a rendezvous client: {data[:1].hex() or 'empty'}")
    return frame.decode(data)


def _check_width(data: bytes, width: int, name: str) -> None:
    if len(data) != width:
        raise RemoteProtocolError(f"{name} frame of {len(data)} bytes, not {width}")


def _check_payload(data: bytes, start: int, name: str) -> None:
    if not 1 <= len(data) - start <= MAX_PAYLOAD:
        raise RemoteProtocolError(f"{name} frame with a payload of {len(data) - start} bytes, not 1 to {MAX_PAYLOAD}")


# --- The client's side ------------------------------------------------------------------------------------------------


def register(identity: Identity, challenge: Challenge) -> Register:
    """Answer the server's challenge: proof that we own the mailbox of our key."""
    return Register(identity.public_key, identity.sign(_CONTEXT, challenge.nonce + identity.public_key))


# --- The server's side ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousLimits:
    """What one server allows; the defaults hold an idle node's cost to one connection and a ping every 30 s.

    Attributes:
      connections: connections in all.
      connections_per_address: from one IPv4 address or IPv6 /64; many nodes may sit behind one carrier-grade NAT.
      connections_per_key: connections that one mailbox holds; one more closes the oldest (a node that roams leaves
        ghosts).
      queue: payloads that wait for one connection; a receiver that does not read gets no more.
      sends_per_second: SENDs per connection, sustained; over it the connection is closed.
      send_burst: SENDs per connection at once.
      registration: seconds from the TCP connection to the end of the WebSocket handshake, and again to a good REGISTER.
      silence: seconds without any byte, after which a connection is closed; clients ping every 30 s.
      write: seconds in which a client must take what is written to it.
    """

    connections: int = 16_384
    connections_per_address: int = 256
    connections_per_key: int = 8
    queue: int = 64
    sends_per_second: float = 50.0
    send_burst: int = 200
    registration: float = 10.0
    silence: float = 90.0
    write: float = 30.0


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
class ServerConnection:
    """One client's state on the server.  Made by `RendezvousCore.connect`; `queue` is what waits to be written to it.

    The shell writes `queue` from the left, and closes the connection once `closing` is set and the queue is written.
    `key` is None until it is registered; the rest is the core's own.
    """

    __slots__ = ("closing", "key", "nonce", "queue", "tokens", "tokens_at")

    def __init__(self, nonce: bytes, tokens: float, now: float) -> None:
        self.nonce: bytes | None = nonce
        self.tokens: float = tokens
        self.tokens_at: float = now
        self.key: bytes | None = None
        self.queue: deque[bytes] = deque()
        self.closing: bool = False


@final
class RendezvousCore:
    """All mailboxes of one server.  Frames and `now` (monotonic seconds) in, answers and fuller queues out."""

    def __init__(self, limits: RendezvousLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._connections: set[ServerConnection] = set()
        self._mailboxes: dict[bytes, list[ServerConnection]] = {}
        self._registrations = 0
        self._sends = 0
        self._handed_over = 0
        self._errors = 0

    def connect(self, nonce: bytes, now: float) -> tuple[ServerConnection, bytes]:
        """A client came: return its state and the CHALLENGE to write.  `nonce`: 32 fresh random bytes."""
        connection = ServerConnection(nonce, float(self.limits.send_burst), now)
        self._connections.add(connection)
        return connection, Challenge(nonce).encode()

    def disconnect(self, connection: ServerConnection) -> None:
        """The connection is gone; its mailbox closes unless another connection keeps it open.  Idempotent."""
        self._connections.discard(connection)
        connection.closing = True
        connection.queue.clear()
        self._leave_mailbox(connection)

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
            return self.fail(connection, ErrorCode.PROTOCOL, str(exc)), []
        if isinstance(frame, Register):
            return self._register(connection, frame)
        return self._send(connection, frame, now)

    def fail(self, connection: ServerConnection, code: ErrorCode, text: str) -> bytes:
        """End a connection for the reason given: returns the ERROR frame to write before it is closed."""
        self._errors += 1
        connection.closing = True
        self._leave_mailbox(connection)
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

    def _register(self, connection: ServerConnection, frame: Register) -> tuple[bytes | None, list[ServerConnection]]:
        nonce, connection.nonce = connection.nonce, None  # one try per challenge
        if nonce is None:
            return self.fail(connection, ErrorCode.PROTOCOL, "REGISTER a second time"), []
        if not verify(frame.key, frame.signature, _CONTEXT, nonce + frame.key):
            return self.fail(
                connection, ErrorCode.BAD_SIGNATURE, "the signature is not by the key that wants the mailbox"
            ), []
        mailbox = self._mailboxes.setdefault(frame.key, [])
        connection.key = frame.key
        mailbox.append(connection)
        self._registrations += 1
        # Through the queue, so that no MESSAGE can get ahead of it.
        connection.queue.append(Registered().encode())
        woken = [connection]
        if len(mailbox) > self.limits.connections_per_key:
            oldest = mailbox[0]
            oldest.queue.append(
                self.fail(oldest, ErrorCode.REPLACED, "the key opened more connections than a mailbox holds")
            )
            woken.append(oldest)
        return None, woken

    def _send(self, connection: ServerConnection, frame: Send, now: float) -> tuple[bytes, list[ServerConnection]]:
        if connection.key is None:
            return self.fail(connection, ErrorCode.PROTOCOL, "SEND before REGISTER"), []
        if not self._take_token(connection, now):
            return self.fail(connection, ErrorCode.RATE, "more SENDs than this server allows"), []
        self._sends += 1
        mailbox = self._mailboxes.get(frame.receiver, [])
        took = [receiver for receiver in mailbox if len(receiver.queue) < self.limits.queue]
        message = Message(frame.payload).encode()
        for receiver in took:
            receiver.queue.append(message)
        self._handed_over += len(took)
        count = QUEUE_FULL if mailbox and not took else len(took)
        return Sent(frame.id, count).encode(), took

    def _take_token(self, connection: ServerConnection, now: float) -> bool:
        earned = max(0.0, now - connection.tokens_at) * self.limits.sends_per_second
        connection.tokens = min(float(self.limits.send_burst), connection.tokens + earned)
        connection.tokens_at = now
        if connection.tokens < 1.0:
            return False
        connection.tokens -= 1.0
        return True

    def _leave_mailbox(self, connection: ServerConnection) -> None:
        if connection.key is None:
            return
        mailbox = self._mailboxes[connection.key]
        mailbox.remove(connection)
        if not mailbox:
            del self._mailboxes[connection.key]
        connection.key = None
