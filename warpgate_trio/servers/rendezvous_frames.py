"""The rendezvous protocol: its frames, and the client's answers to a challenge.  No I/O.

A rendezvous server carries sealed signals between nodes that can both reach it.  A node proves that it owns its key and
thereby opens the *mailbox* of that key; any registered client may send to any mailbox.  The server sees keys, sizes and
times, never contents.  Delivery is best effort: a payload is handed to the connections that the mailbox has now, or the
sender learns that there is none.

One WebSocket binary message is one frame: a type byte and fixed-width fields, big-endian.

    S->C  0x01 CHALLENGE   version u8, nonce 32
    C->S  0x02 REGISTER    key 32, signature 64 over nonce + key (context ``warpgate-trio rendezvous v1``)
    S->C  0x03 REGISTERED
    C->S  0x04 SEND        id u32, receiver key 32, payload 1..16,384
    S->C  0x05 SENT        id u32, count u16: connections that it was handed to; 0xFFFF: there are some, but none has
                           room
    S->C  0x06 MESSAGE     payload
    S->C  0x07 ERROR       code u8, UTF-8 text of at most 200 bytes; then the server closes the connection
    C->S  0x08 REGISTER2   key 32, instance 8, signature 64 over nonce + key + instance + name (context
                           ``warpgate-trio rendezvous v2``), the server's name 1..261
    C->S  0x09 SEND2       id u32, receiver key 32, receiver's instance 8 or zeros for any, payload 1..16,384
    C->S  0x0a REGISTER3   key 32, instance 8, signature 64 over nonce + key + instance + capabilities + token proof +
                           name (context ``warpgate-trio rendezvous v3``), capabilities u16, token proof 32, name 1..261
    S->C  0x03 REGISTERED  in version 3 followed by capabilities u16
    both  0x40 .. 0x43     key records (`key_record_frames`), if the server has announced `Capability.KEY_RECORDS`
    both  0x0b .. 0x10     circuits (`relay_frames`), if both sides have announced `Capability.RELAY`
    both  0x11 .. 0x16     pairing (`mailbox_frames`), if the server has announced `Capability.PAIR`

*Version 1* does not bind a registration to a server.  A malicious server can forward the challenge of another server to
its client, and register there with the client's answer.  *Version 2* signs the name that the client has dialled
(`server_name`), and a server accepts its own names only.  It also names the client's *instance*, 8 random bytes per
process, so that each of several processes with one key can be addressed.

*Version 3* adds the capabilities of each side (`Capability`), and a proof that the client has the server's relay token:
an HMAC-SHA256 by the token over nonce, key and name, or zeros.  The token itself is never sent.

A client announces versions 2 and 3 as subprotocols in its upgrade request.  It receives a CHALLENGE of the newest of
these that the server knows, or else of version 1, the only version of older clients.  A hostile server can always claim
to know version 1 only.  There are two defences:

* On the server, version 1 cannot open a mailbox that is open by version 2 or 3, or was within the last hour; and a
  registration by version 2 or 3 ends those by version 1.
* A client that has seen version 2 or 3 at a server never accepts version 1 there again (`Registrant`).

A client need not wait for REGISTERED before it sends further frames.  The server processes frames in order, and none
after an ERROR.  SENT and REGISTERED may come in either order; no MESSAGE comes before REGISTERED.

A frame may be longer than its fixed width only if it ends in a payload, a text or a name.  Everything that a client can
make the server hold is bounded by `rendezvous_core.RendezvousLimits`.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections import Counter
from typing import Final, TypeAlias, final

import msgspec

from ..errors import RemoteProtocolError, SignalUnsupported
from ..identity import Identity
from ..sockaddr import parse_ip, show_address, unmapped
from .key_record_frames import Found, Lookup, Publish, Published
from .mailbox_frames import Claim, Claimed, Offer, Offered, Post, Settle
from .relay_frames import (
    MAX_PAYLOAD,
    MAX_RELAY_FRAME,
    Answer,
    Call,
    Relay,
    RelayCredit,
    RelayEnd,
    Ring,
    check_payload,
    check_width,
)

__all__ = [
    "ANY_INSTANCE",
    "CONTEXT_1",
    "CONTEXT_2",
    "CONTEXT_3",
    "INSTANCE_LENGTH",
    "KEY_RECORDS_SINCE",
    "MAX_FRAME",
    "MAX_NAME",
    "MAX_PAYLOAD",
    "NO_TOKEN",
    "QUEUE_FULL",
    "SUBPROTOCOL",
    "SUBPROTOCOLS",
    "VERSION",
    "Capability",
    "Challenge",
    "Error",
    "ErrorCode",
    "FromClient",
    "FromServer",
    "Message",
    "Register",
    "Register2",
    "Register3",
    "Registered",
    "Registrant",
    "Send",
    "Send2",
    "Sent",
    "decode_from_client",
    "decode_from_server",
    "register",
    "register_2",
    "register_3",
    "server_name",
    "token_proof",
]

VERSION: Final = 3
"""The newest version of the protocol; with a peer that announces no version, 1 is spoken."""
CIRCUITS_SINCE: Final = 3
"""The first version with circuits."""
KEY_RECORDS_SINCE: Final = 3
"""The first version in which a server says whether it keeps key records."""
SUBPROTOCOL: Final = "warpgate-rendezvous-2"
"""The WebSocket subprotocol by which a client announces that it understands version 2."""
SUBPROTOCOLS: Final = {"warpgate-rendezvous-3": 3, SUBPROTOCOL: 2}
"""Version by subprotocol, in the order in which a client announces them: the newest first."""
INSTANCE_LENGTH: Final = 8
"""Bytes of an instance, which tells the processes of one key apart."""
ANY_INSTANCE: Final = bytes(INSTANCE_LENGTH)
"""In SEND2 and CALL: any process of the key.  Also the instance of a client that registers by version 1."""
MAX_FRAME: Final = MAX_RELAY_FRAME
"""Bytes in the longest frame, a full RELAY."""
QUEUE_FULL: Final = 0xFFFF
MAX_ERROR_TEXT: Final = 200
"""Bytes of UTF-8 in the text of an ERROR."""
MAX_NAME: Final = 261
"""Bytes in a server's name: a DNS name of 255, a colon and a port of 5 digits."""

CONTEXT_1: Final = b"warpgate-trio rendezvous v1"
CONTEXT_2: Final = b"warpgate-trio rendezvous v2"
CONTEXT_3: Final = b"warpgate-trio rendezvous v3"
TOKEN_CONTEXT: Final = b"warpgate-trio relay token v1"
NO_TOKEN: Final = bytes(32)
"""The token proof of a client that has no relay token."""


class Capability(enum.IntFlag):
    """What one side can do, since version 3; readers ignore unknown bits."""

    RELAY = 1
    """It supports circuits (`relay_frames`)."""
    MAY_RELAY = 2
    """Of a server: this client may have circuits with anybody, because the server is open or the token is right."""
    PAIR = 4
    """Of a server: it supports pairing (`mailbox_frames`)."""
    KEY_RECORDS = 64
    """Of a server: it stores key records and answers lookups (`key_record_frames`)."""


class ErrorCode(enum.IntEnum):
    """Why the server closes the connection.  A client treats an unknown code like any other."""

    PROTOCOL = 1  # a frame that is malformed or not allowed now
    BAD_SIGNATURE = 2  # the registration is not signed by the key that it names
    SLOW = 3  # not registered in time, silent for too long, or not reading
    RATE = 4  # more SENDs, CALLs, or frames of pairing and key records, than allowed
    REPLACED = 5  # the same key opened more connections than a mailbox holds, or registered by a newer version
    UNKNOWN_NAME = 6  # the registration names a server, and this server does not know that name as its own
    OLD_VERSION = 7  # the key has registered by a newer version of the protocol within the last hour


# --- Frames -----------------------------------------------------------------------------------------------------------


@final
class Challenge(msgspec.Struct, frozen=True):
    """The nonce that a client has to sign, and the version of the protocol that the server has chosen."""

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
        check_width(data, 34, "CHALLENGE")
        return cls(data[2:], data[1])


@final
class Register(msgspec.Struct, frozen=True):
    """A client's answer to a challenge of version 1."""

    key: bytes
    signature: bytes

    def encode(self) -> bytes:
        return struct.pack("!B32s64s", 0x02, self.key, self.signature)

    @classmethod
    def decode(cls, data: bytes) -> Register:
        check_width(data, 97, "REGISTER")
        return cls(data[1:33], data[33:])


@final
class Registered(msgspec.Struct, frozen=True):
    """The registration succeeded; `capabilities`: the server's, in version 3; None in older versions."""

    capabilities: int | None = None

    def encode(self) -> bytes:
        return b"\x03" if self.capabilities is None else struct.pack("!BH", 0x03, self.capabilities)

    @classmethod
    def decode(cls, data: bytes) -> Registered:
        if len(data) == 3:
            return cls(int.from_bytes(data[1:], "big"))
        check_width(data, 1, "REGISTERED")
        return cls()


@final
class Send(msgspec.Struct, frozen=True):
    """A payload for all connections of a key; `id` is repeated in the SENT."""

    id: int
    receiver: bytes
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI32s", 0x04, self.id, self.receiver) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Send:
        check_payload(data, 37, "SEND")
        return cls(int.from_bytes(data[1:5], "big"), data[5:37], data[37:])


@final
class Sent(msgspec.Struct, frozen=True):
    """The result of a SEND; `count`: connections that it was handed to, or `QUEUE_FULL`."""

    id: int
    count: int

    def encode(self) -> bytes:
        return struct.pack("!BIH", 0x05, self.id, self.count)

    @classmethod
    def decode(cls, data: bytes) -> Sent:
        check_width(data, 7, "SENT")
        return cls(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:], "big"))


@final
class Message(msgspec.Struct, frozen=True):
    """A payload that another client has sent to this client's key."""

    payload: bytes

    def encode(self) -> bytes:
        return b"\x06" + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Message:
        check_payload(data, 1, "MESSAGE")
        return cls(data[1:])


@final
class Error(msgspec.Struct, frozen=True):
    """Why the server closes the connection; `code`: an `ErrorCode`, or one that this release does not know."""

    code: int
    text: str

    def encode(self) -> bytes:
        return struct.pack("!BB", 0x07, self.code) + self.text.encode()[:MAX_ERROR_TEXT]

    @classmethod
    def decode(cls, data: bytes) -> Error:
        if not 2 <= len(data) <= 2 + MAX_ERROR_TEXT:
            raise RemoteProtocolError(f"ERROR frame of {len(data)} bytes, not 2 to {2 + MAX_ERROR_TEXT}")
        # The text is for people and logs only, so bad UTF-8 is replaced rather than refused.  Control characters are
        # replaced because they could forge log lines.
        text = data[2:].decode("utf-8", "replace")
        return cls(data[1], "".join(c if c.isprintable() else "?" for c in text))


@final
class Register2(msgspec.Struct, frozen=True):
    """A client's answer to a challenge of version 2; `name`: see `server_name`."""

    key: bytes
    instance: bytes
    signature: bytes
    name: str

    def encode(self) -> bytes:
        return struct.pack("!B32s8s64s", 0x08, self.key, self.instance, self.signature) + self.name.encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Register2:
        return cls(data[1:33], data[33:41], data[41:105], _name(data, 105, "REGISTER2"))


@final
class Send2(msgspec.Struct, frozen=True):
    """A payload for one process of a key, or with `ANY_INSTANCE` for all of them."""

    id: int
    receiver: bytes
    instance: bytes
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI32s8s", 0x09, self.id, self.receiver, self.instance) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Send2:
        check_payload(data, 45, "SEND2")
        return cls(int.from_bytes(data[1:5], "big"), data[5:37], data[37:45], data[45:])


@final
class Register3(msgspec.Struct, frozen=True):
    """A client's answer to a challenge of version 3; `token`: its `token_proof`, or `NO_TOKEN`."""

    key: bytes
    instance: bytes
    signature: bytes
    capabilities: int
    token: bytes
    name: str

    def encode(self) -> bytes:
        fixed = struct.pack(
            "!B32s8s64sH32s", 0x0A, self.key, self.instance, self.signature, self.capabilities, self.token
        )
        return fixed + self.name.encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Register3:
        name = _name(data, 139, "REGISTER3")
        return cls(data[1:33], data[33:41], data[41:105], int.from_bytes(data[105:107], "big"), data[107:139], name)

    @property
    def signed(self) -> bytes:
        """The signed bytes, without the nonce in front of them."""
        return self.key + self.instance + self.capabilities.to_bytes(2, "big") + self.token + self.name.encode("ascii")


_Circuits: TypeAlias = Answer | Relay | RelayCredit | RelayEnd
_Basic: TypeAlias = Register | Send | Register2 | Send2 | Register3 | Call
FromServer: TypeAlias = (
    Challenge | Registered | Sent | Message | Error | Ring | _Circuits
    | Offered | Claimed | Post | Settle | Published | Found
)  # fmt: skip
FromClient: TypeAlias = _Basic | _Circuits | Offer | Claim | Post | Settle | Publish | Lookup

_FROM_SERVER: dict[int, type[FromServer]] = {
    0x01: Challenge,
    0x03: Registered,
    0x05: Sent,
    0x06: Message,
    0x07: Error,
    0x0C: Ring,
    0x0D: Answer,
    0x0E: Relay,
    0x0F: RelayCredit,
    0x10: RelayEnd,
    0x12: Offered,
    0x14: Claimed,
    0x15: Post,
    0x16: Settle,
    0x41: Published,
    0x43: Found,
}
_FROM_CLIENT: dict[int, type[FromClient]] = {
    0x02: Register,
    0x04: Send,
    0x08: Register2,
    0x09: Send2,
    0x0A: Register3,
    0x0B: Call,
    0x0D: Answer,
    0x0E: Relay,
    0x0F: RelayCredit,
    0x10: RelayEnd,
    0x11: Offer,
    0x13: Claim,
    0x15: Post,
    0x16: Settle,
    0x40: Publish,
    0x42: Lookup,
}


def decode_from_server(data: bytes) -> FromServer:
    """Decode what a server sent.

    Raises:
      RemoteProtocolError: it is not a valid frame of a server.
      SignalUnsupported: it is a CHALLENGE of a version that this release does not know.
    """
    frame = _FROM_SERVER.get(data[0]) if data else None
    if frame is None:
        raise RemoteProtocolError(f"not a frame of a rendezvous server: {data[:1].hex() or 'empty'}")
    return frame.decode(data)


def decode_from_client(data: bytes) -> FromClient:
    """Decode what a client sent; raises `RemoteProtocolError` if it is not a valid frame of a client."""
    frame = _FROM_CLIENT.get(data[0]) if data else None
    if frame is None:
        raise RemoteProtocolError(f"not a frame of a rendezvous client: {data[:1].hex() or 'empty'}")
    return frame.decode(data)


def _name(data: bytes, start: int, frame: str) -> str:
    name = data[start:]
    if not 1 <= len(name) <= MAX_NAME or not name.isascii() or not name.decode("ascii").isprintable():
        raise RemoteProtocolError(f"{frame} frame without a name of 1 to {MAX_NAME} printable characters")
    return name.decode("ascii")


# --- The client's side ------------------------------------------------------------------------------------------------


def server_name(host: str, port: int) -> str:
    """The name of a server as clients sign it since version 2: ``host:port``.

    The host is that of the URL: a DNS name in lower case without a final dot, or an IP address without a scope.  IPv6
    is written in brackets in the form of RFC 5952, an IPv4-mapped IPv6 address as the IPv4 address.  The port is always
    present, even if it is the scheme's default.  Scheme and path are not part of the name.
    """
    host = host.lower().removesuffix(".")
    try:
        ip = unmapped(parse_ip(host))
    except ValueError:
        return f"{host}:{port}"
    return show_address((str(ip), port))


def register(identity: Identity, challenge: Challenge) -> Register:
    """Answer a challenge by version 1: prove that we own our key, and thereby its mailbox."""
    return Register(identity.public_key, identity.sign(CONTEXT_1, challenge.nonce + identity.public_key))


def register_2(identity: Identity, challenge: Challenge, instance: bytes, name: str) -> Register2:
    """Answer a challenge by version 2: the same proof, valid only at the server of this name."""
    signed = challenge.nonce + identity.public_key + instance + name.encode("ascii")
    return Register2(identity.public_key, instance, identity.sign(CONTEXT_2, signed), name)


def register_3(
    identity: Identity, challenge: Challenge, instance: bytes, name: str, *, relay_token: str | None = None
) -> Register3:
    """Answer a challenge by version 3: like version 2, with our capabilities and the token proof."""
    token = NO_TOKEN if relay_token is None else token_proof(relay_token, challenge.nonce, identity.public_key, name)
    unsigned = Register3(identity.public_key, instance, bytes(64), Capability.RELAY, token, name)
    signature = identity.sign(CONTEXT_3, challenge.nonce + unsigned.signed)
    return msgspec.structs.replace(unsigned, signature=signature)


def token_proof(relay_token: str, nonce: bytes, key: bytes, name: str) -> bytes:
    """The proof that the client that registers with `key` at the server `name` has that server's relay token."""
    said = TOKEN_CONTEXT + nonce + key + name.encode("ascii")
    return hmac.digest(relay_token.encode(), said, hashlib.sha256)


class BrokerExtra(enum.Enum):
    """Optional requests to an MQTT broker, beside the subscription to the topic of our key.

    The value is the number of connections in a row that the broker has to close over a request before the request is
    left out once.  A restart of the broker looks the same, so `KEY_RECORD` takes two: a node without a published record
    cannot be found.
    """

    OWN_TOPIC = 1
    KEY_RECORD = 2


@final
class Registrant:
    """How one process registers at all of its servers.

    It remembers which servers have spoken version 2 or 3.  If such a server later claims to know version 1 only, it may
    be one that forwards another server's challenge.  The memory lasts as long as the process and is not kept on disk:
    an operator may go back to an older release, and a restart of the client then accepts that.

    Args:
      instance: 8 random bytes.
      listens: whether the process can be called.
      relay_token: the relay token of its servers; None if it has none.

    Attributes:
      has_token: whether it has a relay token.
    """

    def __init__(self, instance: bytes, *, listens: bool = True, relay_token: str | None = None) -> None:
        if len(instance) != INSTANCE_LENGTH or instance == ANY_INSTANCE:
            raise ValueError(f"an instance is {INSTANCE_LENGTH} random bytes")
        self.instance = instance
        self.listens = listens
        self._closed: Counter[tuple[str, BrokerExtra]] = Counter()
        self.has_token: Final = relay_token is not None
        self._relay_token = relay_token
        self._speak_2: set[str] = set()

    def spares(self, broker: str, extra: BrokerExtra) -> bool:
        """Whether the next connection to a broker (its URL) leaves the request out, see `BrokerExtra`."""
        return self._closed[broker, extra] >= extra.value

    def note_broker(self, broker: str, extra: BrokerExtra, *, closed: bool) -> None:
        """A connection to a broker has ended; `closed`: the broker closed it before it had fulfilled the request.

        After as many of these in a row as `BrokerExtra` says, one connection leaves the request out; the next one makes
        it again.
        """
        if closed and not self.spares(broker, extra):
            self._closed[broker, extra] += 1
        else:
            del self._closed[broker, extra]

    def answer(self, identity: Identity, challenge: Challenge, name: str) -> Register | Register2 | Register3:
        """Answer the challenge of the server that was dialled by `name` (`server_name`).

        Raises:
          RemoteProtocolError: the server spoke version 2 or 3 before, and claims version 1 now.
        """
        if challenge.version != 1:
            self._speak_2.add(name)
            if challenge.version == 3:
                return register_3(identity, challenge, self.instance, name, relay_token=self._relay_token)
            return register_2(identity, challenge, self.instance, name)
        if name in self._speak_2:
            raise RemoteProtocolError(
                "the server spoke version 2 before and claims version 1 now: it may be another server"
            )
        return register(identity, challenge)
