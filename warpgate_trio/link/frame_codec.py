"""The Link's wire format: frames of a fixed 12-byte header and a bounded payload, all integers big-endian.

    0        1        2                 4                          8                         12
    | type   | flags  | reserved        | channel                  | payload length          | payload ...

Flags and reserved bytes are sent as zero and ignored.  A payload may be longer than this release expects, within its
bound; the rest is ignored.  That lets the format grow, and is why texts carry their length.  An unknown frame type
below 0x80 is an error; one from 0x80 on is skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from ..errors import RemoteProtocolError
from .frames import (
    MAX_LABEL,
    MAX_REASON_TEXT,
    Accept,
    Ack,
    At,
    Attach,
    Attached,
    Commit,
    Credit,
    Drop,
    Fin,
    Frame,
    FrameType,
    GoAway,
    News,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    Reset,
    Terms,
)

__all__ = [
    "HEADER_SIZE",
    "MAX_CONTROL",
    "MAX_DATA",
    "MAX_NEWS",
    "data_header",
    "decode",
    "encode",
    "kind_of",
    "padding",
    "parse_header",
]

HEADER: Final = struct.Struct("!BBHII")
HEADER_SIZE: Final = HEADER.size
MAX_DATA: Final = 256 * 1024
"""Bytes of payload accepted in one DATA frame: other implementations may send larger frames than we do."""
MAX_CONTROL: Final = 1024
"""Bytes of payload accepted in any other frame; the largest real one (a REFUSE with its text) has a quarter of that."""
MAX_NEWS: Final = 16 * 1024
"""Bytes of a signal on a Link: as many as a server would forward (`warpgate_trio.signal.MAX_SIGNAL`)."""

_PROOF = struct.Struct("!H32s16s16s64s")
_COMMIT = struct.Struct("!H16s16sIQ")
_TERMS = struct.Struct("!HI16s8s")
_ATTACH = struct.Struct("!H16sIQI16s")
_ATTACHED = struct.Struct("!IQI16s")
_AT = struct.Struct("!QIB")
_DROP = struct.Struct("!IH")
_GRACEFUL: Final = 1
_HURRIED: Final = 2
_ACKNOWLEDGES: Final = 1
"""Capability bit of a side that sends ACKs and expects them."""
_HEARS_NEWS: Final = 2
"""Capability bit of a side that takes NEWS."""
_KEEPS_AHEAD: Final = 4
"""Capability bit: an AT may name a position whose preceding data has yet to come on another carrier."""
_TAKES_EARLY_DATA: Final = 8
"""Capability bit: DATA may follow an OPEN at once."""
_U64 = struct.Struct("!Q")
_U16 = struct.Struct("!H")
_REFUSE = struct.Struct("!HB")
_OPEN = struct.Struct("!QB")


def data_header(channel: int, size: int) -> bytes:
    """The header of a DATA frame; the payload is put on the carrier behind it, without a copy into one buffer."""
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
    """At least `size` bytes of PAD frames (type 0x80, which receivers skip)."""
    return -(-size // MAX_CONTROL) * (HEADER.pack(_PAD, 0, 0, 0, MAX_CONTROL) + bytes(MAX_CONTROL))


_PAD: Final = 0x80


def _encode_terms(terms: Terms | None) -> bytes:
    if terms is None:
        return b""
    capabilities = _ACKNOWLEDGES
    capabilities |= _HEARS_NEWS if terms.hears_news else 0
    capabilities |= _KEEPS_AHEAD if terms.keeps_ahead else 0
    capabilities |= _TAKES_EARLY_DATA if terms.takes_early_data else 0
    return _TERMS.pack(capabilities, terms.resume_timeout, terms.secret, terms.instance)


def _decode_terms(payload: bytes, offset: int) -> Terms | None:
    """The terms behind `offset`; None from a release that does not know terms or offers none."""
    if len(payload) == offset:
        return None
    capabilities, timeout, secret, instance = _TERMS.unpack_from(payload, offset)
    if not capabilities & _ACKNOWLEDGES:
        return None
    return Terms(
        resume_timeout=timeout,
        secret=secret,
        instance=instance,
        hears_news=bool(capabilities & _HEARS_NEWS),
        keeps_ahead=bool(capabilities & _KEEPS_AHEAD),
        takes_early_data=bool(capabilities & _TAKES_EARLY_DATA),
    )


def _with_text(head: struct.Struct, value: int, text: str, limit: int) -> bytes:
    """Encode a number, a text's length, and the text in UTF-8, cut at a character boundary within `limit` bytes."""
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
        lambda f: (
            0,
            _ATTACH.pack(f.version, f.link_id, f.lane, f.received, f.turn, f.mac)
            + bytes([f.graceful * _GRACEFUL | f.hurried * _HURRIED]),
        ),
    ),
    Attached: (FrameType.ATTACHED, lambda f: (0, _ATTACHED.pack(f.lane, f.received, f.turn, f.mac))),
    At: (FrameType.AT, lambda f: (0, _AT.pack(f.position, f.turn, f.graceful))),
    Drop: (FrameType.DROP, lambda f: (0, _DROP.pack(f.lane, f.reason))),
    News: (FrameType.NEWS, lambda f: (0, _U16.pack(len(f.payload)) + f.payload)),
}
"""How each frame class is encoded: its type, and a function that returns its channel and payload."""


def parse_header(header: bytes | bytearray) -> tuple[int, int, int]:
    """``(type, channel, payload length)`` of the 12 header bytes; the length is within its bound.

    Raises:
      RemoteProtocolError: a length over the bound of its type, or an unknown type below 0x80.
    """
    kind, _flags, _reserved, channel, length = HEADER.unpack(header)
    if length > _MOST.get(kind, MAX_CONTROL):
        raise RemoteProtocolError(f"a frame of type 0x{kind:02x} announces {length} bytes, which is too long")
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
        raise struct.error(f"its text of {length} bytes is cut off after {len(text)}")
    return value, text.decode()


def _decode_refuse(channel: int, payload: bytes) -> Refuse:
    reason, text = _value_and_text(_REFUSE, payload)
    return Refuse(channel=channel, reason=reason, text=text)


def _decode_open(channel: int, payload: bytes) -> Open:
    credit, label = _value_and_text(_OPEN, payload)
    return Open(channel=channel, credit=credit, label=label)


def _check_count(*counts: int) -> None:
    if max(counts) >= 2**31:
        raise struct.error("its lane or turn number is 2**31 or more")


def _decode_attach(payload: bytes) -> Attach:
    version, link_id, lane, received, turn, mac = _ATTACH.unpack_from(payload)
    _check_count(lane, turn)
    flags = payload[_ATTACH.size] if len(payload) > _ATTACH.size else 0  # an older release sends none
    return Attach(
        version=version,
        link_id=link_id,
        lane=lane,
        received=received,
        turn=turn,
        mac=mac,
        graceful=bool(flags & _GRACEFUL),
        hurried=bool(flags & _HURRIED),
    )


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
        raise struct.error(f"its signal of {length} bytes is cut off after {len(news)}")
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
