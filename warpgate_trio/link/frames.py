"""The Link's wire format: frames of a fixed 12-byte header and a bounded payload, all integers big-endian.

    0        1        2                 4                          8                         12
    | type   | flags  | reserved        | channel                  | payload length          | payload ...

Channel 0 is the Pipe that the COMMIT made; the session's initiator opens odd channels, its responder even ones.
Flags and reserved bytes are sent as zero and ignored; a payload may be longer than this release expects (within its
bound) and the rest is ignored: that is how the format grows, and why texts carry their length.  An unknown frame type
below 0x80 is an error, one from 0x80 on is skipped.

A COMMIT and an ACCEPT of it may be longer by `Terms`.  Where both are, each side acknowledges what it takes in
(`warpgate_trio.link.stream`), with ACK; a peer that does not know them sees nothing of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from ..errors import RemoteProtocolError

__all__ = [
    "HEADER_SIZE",
    "LINK_VERSION",
    "MAX_DATA",
    "MAX_LABEL",
    "MAX_NEWS",
    "MAX_REASON_TEXT",
    "Accept",
    "Ack",
    "At",
    "Attach",
    "Attached",
    "Commit",
    "Credit",
    "Data",
    "Drop",
    "Fin",
    "Frame",
    "FrameType",
    "GoAway",
    "Item",
    "News",
    "Open",
    "Ping",
    "Pong",
    "Proof",
    "Refuse",
    "RefuseReason",
    "Reset",
    "ResetCode",
    "Terms",
    "data_header",
    "decode",
    "encode",
    "kind_of",
    "padding",
    "parse_header",
]

LINK_VERSION: Final = 1
HEADER: Final = struct.Struct("!BBHII")
HEADER_SIZE: Final = HEADER.size
MAX_DATA: Final = 256 * 1024
"""Bytes of payload in one DATA frame that is read: room for a sender that finds larger frames better than we do."""
MAX_CONTROL: Final = 1024
"""Bytes of payload in any other frame; the largest real one (a REFUSE with its text) is a quarter of it."""
MAX_NEWS: Final = 16 * 1024
"""Bytes of a signal that comes on a Link: those that a server would pass on (`warpgate_trio.signal.MAX_SIGNAL`)."""
MAX_LABEL: Final = 255
"""Bytes of UTF-8 in an OPEN label."""
MAX_REASON_TEXT: Final = 200
"""Bytes of UTF-8 in a REFUSE text."""


class FrameType(IntEnum):
    """What a frame says; who may send it and when stands in `warpgate_trio.link.states`."""

    PROOF = 0x01
    COMMIT = 0x02
    ACCEPT = 0x03
    REFUSE = 0x04
    OPEN = 0x05
    DATA = 0x06
    CREDIT = 0x07
    FIN = 0x08
    RESET = 0x09
    PING = 0x0A
    PONG = 0x0B
    GOAWAY = 0x0C
    ATTACH = 0x20
    ATTACHED = 0x21
    ACK = 0x22
    AT = 0x23
    DROP = 0x24
    NEWS = 0x25


class RefuseReason(IntEnum):
    """Why a COMMIT or an OPEN got no Pipe."""

    UNAUTHORIZED = 1
    """The peer's ``authorize`` said no: this ends the walk."""
    NOT_ACCEPTING = 2
    """The peer does not listen (any more)."""
    BUSY = 3
    """The peer's queue of Pipes, or its budget for channels or for a Link's carriers, is used up: try later."""
    SESSION_SPENT = 4
    """The session already gave the peer's application its one Pipe."""
    UNSUPPORTED = 5
    """A protocol version that the peer does not know."""
    TAKEN = 6
    """The peer serves one Pipe, and has it.  A release that does not know the number reads NOT_ACCEPTING."""
    UNKNOWN_LINK = 7
    """An ATTACH names a Link that the peer does not have, or is not let into it."""
    TOO_MANY_LANES = 8
    """The Link has as many carriers as it may."""


class ResetCode(IntEnum):
    """Why a channel ended before its FIN."""

    CLOSED = 0
    """The application closed the Pipe: it reads no more."""
    OVERRUN = 1
    """More bytes came than credit was given."""
    ABORTED = 2
    """The application gave the Pipe up: what it has sent is not all that it meant to send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The dialler says who it is: `signature` is `warpgate_trio.identity.prove` over the server's key and the session.

    `attempt_id` tells the listener which of its attempts this carrier answers; nothing is decided by it.
    """

    client_key: bytes
    session_id: bytes
    attempt_id: bytes
    signature: bytes
    version: int = LINK_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a side offers; it counts where both sides do: each acknowledges what it takes in.

    Attributes:
      resume_timeout: seconds for which it keeps a Link without a path; the lesser one of the two counts.
      secret: its half, 16 random bytes, of what later carriers of the Link are proven with.
      instance: 8 random bytes that name its process.
      hears_news: it takes signals on the Link (`News`).
    """

    resume_timeout: int
    secret: bytes
    instance: bytes
    hears_news: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The initiator chooses this carrier; `epoch` counts the session's commits, `credit` is its first window."""

    session_id: bytes
    link_id: bytes
    epoch: int
    credit: int
    terms: Terms | None = None
    version: int = LINK_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The responder takes the COMMIT (channel 0) or the OPEN; `credit` is its window as an absolute offset."""

    channel: int
    credit: int
    terms: Terms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The responder does not; `text` is for people."""

    channel: int
    reason: int
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A further Pipe on this Link."""

    channel: int
    credit: int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """The receiver lets the sender go up to this absolute offset of the channel."""

    channel: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fin:
    """No byte of this channel comes after `final_offset`."""

    channel: int
    final_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The sender of this frame reads no more of the channel, and without a FIN before it will write no more either."""

    channel: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The last frame of its sender."""

    code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The sender of this frame has taken in all units of the other side's stream before `position`."""

    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """The sender offers this carrier to a Link that there is.

    `lane` names it there, `received` is how far the sender has taken in the other side's stream, `turn` the highest one
    that it knows, `mac` proves that it made the Link (`warpgate_trio.link.attaching`).
    """

    link_id: bytes
    lane: int
    received: int
    turn: int
    mac: bytes
    version: int = LINK_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The other side takes the ATTACH; fields as there."""

    lane: int
    received: int
    turn: int
    mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """What the sender says on this lane from here on begins at `position` of its stream; `turn` counts its switches.

    `graceful`: it comes from a lane that is well, so there is time to try this one before it is followed.
    """

    position: int
    turn: int
    graceful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A lane of the Link, said on another one, that is no good to the sender: both sides close it."""

    lane: int
    reason: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """A sealed signal to the peer, as a server would pass it on (`warpgate_trio.signal.message`)."""

    payload: bytes


OfCarrier = Proof | Commit | Refuse | Ping | Pong | Ack | Attach | Attached | At | Drop | News
OfChannels = Accept | Open | Credit | Fin | Reset | GoAway
Frame = OfCarrier | OfChannels

_PROOF = struct.Struct("!H32s16s16s64s")
_COMMIT = struct.Struct("!H16s16sIQ")
_TERMS = struct.Struct("!HI16s8s")
_ATTACH = struct.Struct("!H16sIQI16s")
_ATTACHED = struct.Struct("!IQI16s")
_AT = struct.Struct("!QIB")
_DROP = struct.Struct("!IH")
_ACKNOWLEDGES: Final = 1
"""The bit among a side's capabilities that says that it says ACK, and wants to hear it."""
_HEARS_NEWS: Final = 2
"""That it takes NEWS."""
_U64 = struct.Struct("!Q")
_U16 = struct.Struct("!H")
_REFUSE = struct.Struct("!HB")
_OPEN = struct.Struct("!QB")


def data_header(channel: int, size: int) -> bytes:
    """The header of a DATA frame; the payload follows it on the carrier without being copied into one buffer first."""
    return HEADER.pack(FrameType.DATA, 0, 0, channel, size)


def encode(frame: Frame) -> bytes:
    """One whole frame, header and payload."""
    kind, contents = _ENCODERS[type(frame)]
    channel, payload = contents(frame)
    return HEADER.pack(kind, 0, 0, channel, len(payload)) + payload


def kind_of(frame: Frame) -> FrameType:
    """A frame's type."""
    return _ENCODERS[type(frame)][0]


def padding(size: int) -> bytes:
    """So many bytes, or a little more, of frames that say nothing (PAD, 0x80, which is skipped)."""
    return -(-size // MAX_CONTROL) * (HEADER.pack(_PAD, 0, 0, 0, MAX_CONTROL) + bytes(MAX_CONTROL))


_PAD: Final = 0x80


def _encode_terms(terms: Terms | None) -> bytes:
    if terms is None:
        return b""
    capabilities = _ACKNOWLEDGES | (_HEARS_NEWS if terms.hears_news else 0)
    return _TERMS.pack(capabilities, terms.resume_timeout, terms.secret, terms.instance)


def _decode_terms(payload: bytes, offset: int) -> Terms | None:
    """None from a release that knows no terms, or offers none."""
    if len(payload) == offset:
        return None
    capabilities, timeout, secret, instance = _TERMS.unpack_from(payload, offset)
    if not capabilities & _ACKNOWLEDGES:
        return None
    hears_news = bool(capabilities & _HEARS_NEWS)
    return Terms(resume_timeout=timeout, secret=secret, instance=instance, hears_news=hears_news)


def _with_text(head: struct.Struct, value: int, text: str, limit: int) -> bytes:
    """A number, a text's length, and the text in UTF-8, cut at a character boundary within `limit` bytes."""
    data = text.encode()[:limit].decode(errors="ignore").encode()
    return head.pack(value, len(data)) + data


_ENCODERS: Final[Mapping[type, tuple[FrameType, Callable[..., tuple[int, bytes]]]]] = {
    Proof: (
        FrameType.PROOF,
        lambda f: (0, _PROOF.pack(f.version, f.client_key, f.session_id, f.attempt_id, f.signature)),
    ),
    Commit: (
        FrameType.COMMIT,
        lambda f: (0, _COMMIT.pack(f.version, f.session_id, f.link_id, f.epoch, f.credit) + _encode_terms(f.terms)),
    ),
    Accept: (FrameType.ACCEPT, lambda f: (f.channel, _U64.pack(f.credit) + _encode_terms(f.terms))),
    Refuse: (FrameType.REFUSE, lambda f: (f.channel, _with_text(_REFUSE, f.reason, f.text, MAX_REASON_TEXT))),
    Open: (FrameType.OPEN, lambda f: (f.channel, _with_text(_OPEN, f.credit, f.label, MAX_LABEL))),
    Credit: (FrameType.CREDIT, lambda f: (f.channel, _U64.pack(f.limit))),
    Fin: (FrameType.FIN, lambda f: (f.channel, _U64.pack(f.final_offset))),
    Reset: (FrameType.RESET, lambda f: (f.channel, _U16.pack(f.code))),
    Ping: (FrameType.PING, lambda f: (0, _U64.pack(f.token))),
    Pong: (FrameType.PONG, lambda f: (0, _U64.pack(f.token))),
    GoAway: (FrameType.GOAWAY, lambda f: (0, _U16.pack(f.code))),
    Ack: (FrameType.ACK, lambda f: (0, _U64.pack(f.position))),
    Attach: (
        FrameType.ATTACH,
        lambda f: (0, _ATTACH.pack(f.version, f.link_id, f.lane, f.received, f.turn, f.mac)),
    ),
    Attached: (FrameType.ATTACHED, lambda f: (0, _ATTACHED.pack(f.lane, f.received, f.turn, f.mac))),
    At: (FrameType.AT, lambda f: (0, _AT.pack(f.position, f.turn, f.graceful))),
    Drop: (FrameType.DROP, lambda f: (0, _DROP.pack(f.lane, f.reason))),
    News: (FrameType.NEWS, lambda f: (0, _U16.pack(len(f.payload)) + f.payload)),
}
"""How each frame goes out: its type, and its channel and payload."""


def parse_header(header: bytes | bytearray) -> tuple[int, int, int]:
    """``(type, channel, payload length)`` of the 12 header bytes, the length already within its bound.

    Raises:
      RemoteProtocolError: a length over the bound of its type, or an unknown type below 0x80.
    """
    kind, _flags, _reserved, channel, length = HEADER.unpack(header)
    if length > _MOST.get(kind, MAX_CONTROL):
        raise RemoteProtocolError(f"a frame of type 0x{kind:02x} announces {length} bytes")
    if kind not in _KNOWN and kind < 0x80:
        raise RemoteProtocolError(f"unknown frame type 0x{kind:02x}")
    return kind, channel, length


_KNOWN: Final = frozenset(FrameType)
_MOST: Final[Mapping[int, int]] = {FrameType.DATA: MAX_DATA, FrameType.NEWS: MAX_NEWS + _U16.size}


def decode(kind: int, channel: int, payload: bytes) -> Frame | None:
    """The frame of a header and its payload (never DATA); ``None`` for a type that is to be skipped.

    Raises:
      RemoteProtocolError: the payload is shorter than its type needs, or its text is not UTF-8.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return None
    try:
        return decoder(channel, payload)
    except (struct.error, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"a malformed {FrameType(kind).name} frame: {error}") from error


def _decode_proof(_channel: int, payload: bytes) -> Proof:
    version, key, session, attempt, signature = _PROOF.unpack_from(payload)
    return Proof(version=version, client_key=key, session_id=session, attempt_id=attempt, signature=signature)


def _decode_commit(_channel: int, payload: bytes) -> Commit:
    version, session, link, epoch, credit = _COMMIT.unpack_from(payload)
    terms = _decode_terms(payload, _COMMIT.size)
    return Commit(version=version, session_id=session, link_id=link, epoch=epoch, credit=credit, terms=terms)


def _u64(payload: bytes) -> int:
    value: int = _U64.unpack_from(payload)[0]
    return value


def _u16(payload: bytes) -> int:
    value: int = _U16.unpack_from(payload)[0]
    return value


def _value_and_text(head: struct.Struct, payload: bytes) -> tuple[int, str]:
    value, length = head.unpack_from(payload)
    text = payload[head.size : head.size + length]
    if len(text) < length:
        raise struct.error(f"a text of {length} bytes has {len(text)}")
    return value, text.decode()


def _decode_refuse(channel: int, payload: bytes) -> Refuse:
    reason, text = _value_and_text(_REFUSE, payload)
    return Refuse(channel=channel, reason=reason, text=text)


def _decode_open(channel: int, payload: bytes) -> Open:
    credit, label = _value_and_text(_OPEN, payload)
    return Open(channel=channel, credit=credit, label=label)


def _check_count(*counts: int) -> None:
    if max(counts) >= 2**31:
        raise struct.error("a count leaves no room to count on")


def _decode_attach(payload: bytes) -> Attach:
    version, link_id, lane, received, turn, mac = _ATTACH.unpack_from(payload)
    _check_count(lane, turn)
    return Attach(version=version, link_id=link_id, lane=lane, received=received, turn=turn, mac=mac)


def _decode_attached(payload: bytes) -> Attached:
    lane, received, turn, mac = _ATTACHED.unpack_from(payload)
    _check_count(lane, turn)
    return Attached(lane=lane, received=received, turn=turn, mac=mac)


def _decode_at(payload: bytes) -> At:
    position, turn, flags = _AT.unpack_from(payload)
    _check_count(turn)
    return At(position=position, turn=turn, graceful=bool(flags & 1))


def _decode_drop(payload: bytes) -> Drop:
    lane, reason = _DROP.unpack_from(payload)
    return Drop(lane=lane, reason=reason)


def _decode_news(payload: bytes) -> News:
    length = _u16(payload)
    news = payload[_U16.size : _U16.size + length]
    if len(news) < length:
        raise struct.error(f"a signal of {length} bytes has {len(news)}")
    return News(payload=news)


_DECODERS: Final[Mapping[int, Callable[[int, bytes], Frame]]] = {
    FrameType.PROOF: _decode_proof,
    FrameType.COMMIT: _decode_commit,
    FrameType.ACCEPT: lambda c, p: Accept(channel=c, credit=_u64(p), terms=None if c else _decode_terms(p, _U64.size)),
    FrameType.REFUSE: _decode_refuse,
    FrameType.OPEN: _decode_open,
    FrameType.CREDIT: lambda c, p: Credit(channel=c, limit=_u64(p)),
    FrameType.FIN: lambda c, p: Fin(channel=c, final_offset=_u64(p)),
    FrameType.RESET: lambda c, p: Reset(channel=c, code=_u16(p)),
    FrameType.PING: lambda _, p: Ping(token=_u64(p)),
    FrameType.PONG: lambda _, p: Pong(token=_u64(p)),
    FrameType.GOAWAY: lambda _, p: GoAway(code=_u16(p)),
    FrameType.ACK: lambda _, p: Ack(position=_u64(p)),
    FrameType.ATTACH: lambda _, p: _decode_attach(p),
    FrameType.ATTACHED: lambda _, p: _decode_attached(p),
    FrameType.AT: lambda _, p: _decode_at(p),
    FrameType.DROP: lambda _, p: _decode_drop(p),
    FrameType.NEWS: lambda _, p: _decode_news(p),
}


@dataclass(frozen=True, slots=True)
class Data:
    """Payload of consecutive DATA frames of one channel, in the pieces it came in."""

    channel: int
    pieces: list[bytes | memoryview]
    size: int
    frames: int = field(default=1, compare=False)


Item = Frame | Data
"""What a `FrameReader` finds."""
