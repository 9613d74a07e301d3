"""The rendezvous protocol: its frames, and what a client answers.  No I/O.

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
    S->C  0x05 SENT        id u32, count u16: connections that it was handed to; 0xFFFF: there are some, and none has
                           room
    S->C  0x06 MESSAGE     payload
    S->C  0x07 ERROR       code u8, UTF-8 text of at most 200 bytes; the server closes behind it
    C->S  0x08 REGISTER2   key 32, instance 8, signature 64 over nonce + key + instance + name (context
                           ``warpgate-trio rendezvous v2``), the server's name 1..261
    C->S  0x09 SEND2       id u32, receiver key 32, receiver's instance 8 or zeros for any, payload 1..16,384

Version 1 signs nothing of the server, so whoever is asked to register can pass the challenge of another server on, and
so register there as its client.  *Version 2* signs the name that the client has dialled (`server_name`), and a server
takes its own names alone; a registration that was made for another server is worth nothing to it.  It also names the
client's *instance*, 8 random bytes of its process, so that of two processes with one key each can be written to.

A client announces version 2 as a subprotocol in its upgrade request; it gets a CHALLENGE of version 2 then, and else of
version 1, the only one that older clients take.  A hostile server may always claim version 1.  So, on the server, a
mailbox that version 2 has opened is closed to version 1 while it is open and for an hour after, and a registration of
version 2 ends those of version 1; and a client that has seen version 2 at a server never takes 1 there again
(`Registrant`).

A client does not wait for REGISTERED before it sends: its frames are taken in their order, and after an ERROR none is.
SENT and REGISTERED may come in either order; no MESSAGE comes before REGISTERED.

A frame may be longer than its fixed width only where a payload, a text or a name ends it.  Everything a client can make
the server hold is bounded by `rendezvous_core.RendezvousLimits`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from ..errors import RemoteProtocolError, SignalUnsupported
from ..identity import Identity
from ..sockaddr import parse_ip, show_address, unmapped

__all__ = [
    "ANY_INSTANCE",
    "CONTEXT_1",
    "CONTEXT_2",
    "INSTANCE_LENGTH",
    "MAX_FRAME",
    "MAX_NAME",
    "MAX_PAYLOAD",
    "QUEUE_FULL",
    "SUBPROTOCOL",
    "VERSION",
    "Challenge",
    "Error",
    "ErrorCode",
    "FromClient",
    "FromServer",
    "Message",
    "Register",
    "Register2",
    "Registered",
    "Registrant",
    "Send",
    "Send2",
    "Sent",
    "decode_from_client",
    "decode_from_server",
    "register",
    "register_2",
    "server_name",
]

VERSION: Final = 2
"""The newest version of the protocol; 1 is spoken with who does not announce it."""
SUBPROTOCOL: Final = "warpgate-rendezvous-2"
"""The WebSocket subprotocol by which a client announces that it understands version 2."""
INSTANCE_LENGTH: Final = 8
"""Bytes that name one process among all that have the same key."""
ANY_INSTANCE: Final = bytes(INSTANCE_LENGTH)
"""In SEND2: whoever has the key.  The instance of who registers by version 1."""
MAX_PAYLOAD: Final = 16_384
"""Bytes in a payload, the size limit of a signal (`warpgate_trio.signal.MAX_SIGNAL`)."""
MAX_FRAME: Final = 1 + 4 + 32 + INSTANCE_LENGTH + MAX_PAYLOAD
"""Bytes in the longest frame, a full SEND2."""
QUEUE_FULL: Final = 0xFFFF
MAX_ERROR_TEXT: Final = 200
"""Bytes of UTF-8 in the text of an ERROR."""
MAX_NAME: Final = 261
"""Bytes in a server's name: a DNS name of 255, a colon and a port of 5 digits."""

CONTEXT_1: Final = b"warpgate-trio rendezvous v1"
CONTEXT_2: Final = b"warpgate-trio rendezvous v2"


class ErrorCode(enum.IntEnum):
    """Why the server closes.  A client treats a code that it does not know as any other."""

    PROTOCOL = 1  # a frame that is malformed or not allowed now
    BAD_SIGNATURE = 2  # the registration is not by the key that it names
    SLOW = 3  # not registered in time, silent for too long, or not reading
    RATE = 4  # more SENDs than allowed
    REPLACED = 5  # the same key opened more connections than a mailbox holds, or registered by a newer version
    UNKNOWN_NAME = 6  # the registration names a server that this one does not know to be itself
    OLD_VERSION = 7  # the key has registered by a newer version of the protocol


# --- Frames -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Challenge:
    nonce: bytes
    version: int = 1

    def encode(self) -> bytes:
        return struct.pack("!BB32s", 0x01, self.version, self.nonce)

    @classmethod
    def decode(cls, data: bytes) -> Challenge:
        if len(data) >= 2 and not 1 <= data[1] <= VERSION:
            raise SignalUnsupported(
                f"the rendezvous server speaks version {data[1]}, this release speaks 1 to {VERSION}"
            )
        _check_width(data, 34, "CHALLENGE")
        return cls(data[2:], data[1])


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


@final
@dataclass(frozen=True, slots=True)
class Register2:
    key: bytes
    instance: bytes
    signature: bytes
    name: str

    def encode(self) -> bytes:
        return struct.pack("!B32s8s64s", 0x08, self.key, self.instance, self.signature) + self.name.encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Register2:
        name = data[105:]
        if not 1 <= len(name) <= MAX_NAME or not name.isascii() or not name.decode("ascii").isprintable():
            raise RemoteProtocolError(f"REGISTER2 frame without a name of 1 to {MAX_NAME} printable characters")
        return cls(data[1:33], data[33:41], data[41:105], name.decode("ascii"))


@final
@dataclass(frozen=True, slots=True)
class Send2:
    id: int
    receiver: bytes
    instance: bytes
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI32s8s", 0x09, self.id, self.receiver, self.instance) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Send2:
        _check_payload(data, 45, "SEND2")
        return cls(int.from_bytes(data[1:5], "big"), data[5:37], data[37:45], data[45:])


FromServer: TypeAlias = Challenge | Registered | Sent | Message | Error
FromClient: TypeAlias = Register | Send | Register2 | Send2

_FROM_SERVER: dict[int, type[FromServer]] = {0x01: Challenge, 0x03: Registered, 0x05: Sent, 0x06: Message, 0x07: Error}
_FROM_CLIENT: dict[int, type[FromClient]] = {0x02: Register, 0x04: Send, 0x08: Register2, 0x09: Send2}


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


def server_name(host: str, port: int) -> str:
    """The name of a server as version 2 signs it: ``host:port``.

    The host is the URL's: a DNS name in lower case, without a dot at its end; or an IP address, IPv6 in brackets in the
    form of RFC 5952, an IPv4 address in IPv6 form as what it is, without a scope.  The port is always there, the
    scheme's own too.  Neither scheme nor path count.
    """
    host = host.lower().removesuffix(".")
    try:
        ip = unmapped(parse_ip(host))
    except ValueError:
        return f"{host}:{port}"
    return show_address((str(ip), port))


def register(identity: Identity, challenge: Challenge) -> Register:
    """Answer the server's challenge by version 1: proof that we own the mailbox of our key."""
    return Register(identity.public_key, identity.sign(CONTEXT_1, challenge.nonce + identity.public_key))


def register_2(identity: Identity, challenge: Challenge, instance: bytes, name: str) -> Register2:
    """Answer the server's challenge by version 2: the same, to the server of this name alone."""
    signed = challenge.nonce + identity.public_key + instance + name.encode("ascii")
    return Register2(identity.public_key, instance, identity.sign(CONTEXT_2, signed), name)


@final
class Registrant:
    """What one process registers as, at all of its servers.

    It remembers which of them have spoken version 2, since a server that is asked for it and claims to know version 1
    alone may be one that passes another server's challenge on.  It remembers for its life and not on disk: after a
    restart an operator may have gone back to an older release, and nobody else would tell the client so.

    Args:
      instance: 8 random bytes.
    """

    def __init__(self, instance: bytes) -> None:
        if len(instance) != INSTANCE_LENGTH or instance == ANY_INSTANCE:
            raise ValueError(f"an instance is {INSTANCE_LENGTH} random bytes")
        self.instance = instance
        self._speak_2: set[str] = set()

    def answer(self, identity: Identity, challenge: Challenge, name: str) -> Register | Register2:
        """Answer the challenge of the server that was dialled by `name` (`server_name`).

        Raises:
          RemoteProtocolError: it went back to version 1.
        """
        if challenge.version != 1:
            self._speak_2.add(name)
            return register_2(identity, challenge, self.instance, name)
        if name in self._speak_2:
            raise RemoteProtocolError(
                "the server spoke version 2 before and claims version 1 now: it may be another one"
            )
        return register(identity, challenge)
