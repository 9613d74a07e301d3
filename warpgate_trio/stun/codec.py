"""The STUN codec (RFC 8489, RFC 5780): messages as bytes, attributes as typed values, the two MACs and the fingerprint.

Theory of operation.  A message is a 20-byte header (type, length, magic cookie, 96-bit transaction id) and attributes
of type, length and value, padded to four bytes.  `decode` checks only this framing, and keeps values as bytes.  An
`Attribute` knows the format of one type: `message.get(XOR_MAPPED_ADDRESS)` returns the typed value, or raises
`StunMalformed` if it is malformed.  A malformed value of a comprehension-optional type (0x8000 and up) counts as
absent.  So a hostile attribute does no harm unless it is needed.

TURN (RFC 8656) adds its methods as numbers and its attributes as `Attribute`s, without changes here: `encode` takes any
method and any `AttributeValue`.  The upper four of a method's 12 bits are always 0 (IANA reserves those methods).  The
first byte of every message is then 0 to 3, so that STUN can share a socket with QUIC (RFC 7983, RFC 9443).

A MAC covers everything in front of it, with the header's length as if the MAC were the last attribute (RFC 8489 §14.5,
§14.6).  Attributes behind a MAC are not authenticated, so `decode` drops them, except for a stronger MAC and the
fingerprint, as those sections say.  `decode` refuses a message with a wrong fingerprint.

Texts are used as given, without the preparation of RFC 8265.  Passwords enter as keys, see `long_term_key`.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, Generic, TypeVar, final

from ..errors import StunMalformed
from ..sockaddr import TransportAddress

__all__ = [
    "ALTERNATE_SERVER",
    "BINDING",
    "CHANGE_REQUEST",
    "ERROR_CODE",
    "FINGERPRINT",
    "HEADER_LENGTH",
    "MAGIC_COOKIE",
    "MAPPED_ADDRESS",
    "MESSAGE_INTEGRITY",
    "MESSAGE_INTEGRITY_SHA256",
    "NONCE",
    "OTHER_ADDRESS",
    "PADDING",
    "REALM",
    "RESPONSE_ORIGIN",
    "RESPONSE_PORT",
    "SOFTWARE",
    "TRANSACTION_ID_LENGTH",
    "UNKNOWN_ATTRIBUTES",
    "USERHASH",
    "USERNAME",
    "XOR_MAPPED_ADDRESS",
    "Attribute",
    "AttributeValue",
    "ChangeRequest",
    "ErrorCode",
    "Message",
    "MessageClass",
    "StreamReader",
    "decode",
    "encode",
    "long_term_key",
    "looks_like_stun",
    "opaque",
    "text",
    "transport_address",
    "xor_address",
]

T = TypeVar("T")

BINDING: Final = 0x001
"""The only method of RFC 8489; TURN adds its own."""
MAGIC_COOKIE: Final = 0x2112A442
HEADER_LENGTH: Final = 20
TRANSACTION_ID_LENGTH: Final = 12
MAX_ATTRIBUTES: Final = 64
"""Attributes of a message that is decoded; real messages have at most about fifteen (TURN's Allocate with
credentials)."""

_OPTIONAL: Final = 0x8000  # from here on types are comprehension-optional
_FINGERPRINT_XOR: Final = 0x5354554E  # RFC 8489 §14.7
_SHA1_LENGTH: Final = 20
_SHA256_LENGTH: Final = 32
_MAX_LENGTH: Final = 0xFFFC  # the length field has 16 bits, and lengths are multiples of four


class MessageClass(IntEnum):
    """RFC 8489 §5."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


# --- Attributes -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class AttributeValue:
    """An attribute and its value, ready for `encode`; made by calling an `Attribute`."""

    attribute: Attribute[Any]
    value: Any


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Attribute(Generic[T]):
    """One attribute type and the format of its value.

    Attributes:
      type: its number; below 0x8000 a receiver must understand it (comprehension-required).
      name: as in the RFC, for errors.
      to_bytes, from_bytes: encode and decode the value.  They also get the transaction id, for XORed addresses.
        `from_bytes` raises `StunMalformed`, or ValueError, which `Message.get` converts.
    """

    type: int
    name: str
    to_bytes: Callable[[T, bytes], bytes]
    from_bytes: Callable[[bytes, bytes], T]

    def __call__(self, value: T) -> AttributeValue:
        return AttributeValue(self, value)

    def __repr__(self) -> str:
        return f"<Attribute {self.name} {self.type:#06x}>"


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """RFC 8489 §14.8: a code of 300 to 699, and a text for people."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRequest:
    """RFC 5780 §7.2: answer from the other address, the other port, or both."""

    ip: bool = False
    port: bool = False


def _address_to_bytes(value: TransportAddress, _: bytes) -> bytes:
    ip = ip_address(value[0])
    return b"\0" + (b"\x01" if ip.version == 4 else b"\x02") + value[1].to_bytes(2, "big") + ip.packed


def _address_from_bytes(data: bytes, _: bytes) -> TransportAddress:
    ip: IPv4Address | IPv6Address
    if len(data) == 8 and data[1] == 0x01:
        ip = IPv4Address(data[4:])
    elif len(data) == 20 and data[1] == 0x02:
        ip = IPv6Address(data[4:])
    else:
        raise StunMalformed(f"not an address: {len(data)} bytes of family {data[1:2].hex() or 'missing'}")
    return str(ip), int.from_bytes(data[2:4], "big")


def _xor(data: bytes, transaction_id: bytes) -> bytes:
    """Port and address XORed with cookie and transaction id (§14.2); the same both ways."""
    mask = MAGIC_COOKIE.to_bytes(4, "big") + transaction_id
    pairs = (a ^ b for a, b in zip(data[2:], mask[:2] + mask, strict=False))
    return data[:2] + bytes(pairs)


def _xor_to_bytes(value: TransportAddress, transaction_id: bytes) -> bytes:
    return _xor(_address_to_bytes(value, b""), transaction_id)


def _xor_from_bytes(data: bytes, transaction_id: bytes) -> TransportAddress:
    if len(data) not in (8, 20):
        raise StunMalformed(f"not an address: {len(data)} bytes, not 8 or 20")
    return _address_from_bytes(_xor(data, transaction_id), b"")


def transport_address(type_: int, name: str) -> Attribute[TransportAddress]:
    """An attribute in the format of MAPPED-ADDRESS."""
    return Attribute(type_, name, _address_to_bytes, _address_from_bytes)


def xor_address(type_: int, name: str) -> Attribute[TransportAddress]:
    """An attribute in the format of XOR-MAPPED-ADDRESS."""
    return Attribute(type_, name, _xor_to_bytes, _xor_from_bytes)


def text(type_: int, name: str, most: int) -> Attribute[str]:
    """An attribute of at most `most` bytes of UTF-8."""

    def to_bytes(value: str, _: bytes) -> bytes:
        data = value.encode()
        if len(data) > most:
            raise ValueError(f"{name} of {len(data)} bytes; the most is {most}")
        return data

    def from_bytes(data: bytes, _: bytes) -> str:
        if len(data) > most:
            raise StunMalformed(f"{name} of {len(data)} bytes; the most is {most}")
        return data.decode()

    return Attribute(type_, name, to_bytes, from_bytes)


def opaque(type_: int, name: str, *lengths: int) -> Attribute[bytes]:
    """An attribute of bytes, of one of these lengths; of any length if none is given."""

    def check(data: bytes) -> bytes:
        if lengths and len(data) not in lengths:
            raise StunMalformed(f"{name} of {len(data)} bytes, not {' or '.join(map(str, lengths))}")
        return bytes(data)

    return Attribute(type_, name, lambda value, _: check(value), lambda data, _: check(data))


def _error_to_bytes(value: ErrorCode, _: bytes) -> bytes:
    if not 300 <= value.code <= 699:
        raise ValueError(f"error code {value.code} is not one of 300 to 699")
    return bytes([0, 0, value.code // 100, value.code % 100]) + value.reason.encode()[:763]


def _error_from_bytes(data: bytes, _: bytes) -> ErrorCode:
    if len(data) < 4 or not 3 <= data[2] & 7 <= 6 or data[3] > 99 or len(data) > 4 + 763:
        raise StunMalformed("ERROR-CODE without a code of 300 to 699")
    # The text is for people and logs only, so bad UTF-8 is replaced rather than refused.  Control characters are
    # replaced because they could forge log lines.
    reason = data[4:].decode("utf-8", "replace")
    return ErrorCode((data[2] & 7) * 100 + data[3], "".join(c if c.isprintable() else "?" for c in reason))


def _unknown_to_bytes(value: tuple[int, ...], _: bytes) -> bytes:
    return b"".join(each.to_bytes(2, "big") for each in value)


def _unknown_from_bytes(data: bytes, _: bytes) -> tuple[int, ...]:
    if len(data) % 2:
        raise StunMalformed("UNKNOWN-ATTRIBUTES of odd length")
    return tuple(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))


def _change_to_bytes(value: ChangeRequest, _: bytes) -> bytes:
    return bytes([0, 0, 0, 4 * value.ip + 2 * value.port])


def _change_from_bytes(data: bytes, _: bytes) -> ChangeRequest:
    if len(data) != 4:
        raise StunMalformed(f"CHANGE-REQUEST of {len(data)} bytes, not 4")
    return ChangeRequest(ip=bool(data[3] & 4), port=bool(data[3] & 2))


def _port_to_bytes(value: int, _: bytes) -> bytes:
    return value.to_bytes(2, "big") + b"\0\0"


def _port_from_bytes(data: bytes, _: bytes) -> int:
    if len(data) not in (2, 4):  # some implementations count the two bytes of padding (RFC 5780 §7.5), some do not
        raise StunMalformed(f"RESPONSE-PORT of {len(data)} bytes, not 2 or 4")
    return int.from_bytes(data[:2], "big")


MAPPED_ADDRESS: Final = transport_address(0x0001, "MAPPED-ADDRESS")
CHANGE_REQUEST: Final = Attribute(0x0003, "CHANGE-REQUEST", _change_to_bytes, _change_from_bytes)
USERNAME: Final = text(0x0006, "USERNAME", 508)
MESSAGE_INTEGRITY: Final = opaque(0x0008, "MESSAGE-INTEGRITY", _SHA1_LENGTH)
ERROR_CODE: Final = Attribute(0x0009, "ERROR-CODE", _error_to_bytes, _error_from_bytes)
UNKNOWN_ATTRIBUTES: Final = Attribute(0x000A, "UNKNOWN-ATTRIBUTES", _unknown_to_bytes, _unknown_from_bytes)
REALM: Final = text(0x0014, "REALM", 763)
NONCE: Final = text(0x0015, "NONCE", 763)
MESSAGE_INTEGRITY_SHA256: Final = opaque(0x001C, "MESSAGE-INTEGRITY-SHA256", 16, 20, 24, 28, 32)
USERHASH: Final = opaque(0x001E, "USERHASH", 32)
XOR_MAPPED_ADDRESS: Final = xor_address(0x0020, "XOR-MAPPED-ADDRESS")
PADDING: Final = opaque(0x0026, "PADDING")
RESPONSE_PORT: Final = Attribute(0x0027, "RESPONSE-PORT", _port_to_bytes, _port_from_bytes)
SOFTWARE: Final = text(0x8022, "SOFTWARE", 763)
ALTERNATE_SERVER: Final = transport_address(0x8023, "ALTERNATE-SERVER")
FINGERPRINT: Final = opaque(0x8028, "FINGERPRINT", 4)
RESPONSE_ORIGIN: Final = transport_address(0x802B, "RESPONSE-ORIGIN")
OTHER_ADDRESS: Final = transport_address(0x802C, "OTHER-ADDRESS")

# The types that may follow a MAC; others behind one are dropped.  Nothing may follow the fingerprint.
_BEHIND: Final = {
    MESSAGE_INTEGRITY.type: frozenset({MESSAGE_INTEGRITY_SHA256.type, FINGERPRINT.type}),
    MESSAGE_INTEGRITY_SHA256.type: frozenset({FINGERPRINT.type}),
}


# --- Messages ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message.

    Attributes:
      method: `BINDING`, or another one of 8 bits.
      message_class: request, indication, success or error.
      transaction_id: 12 bytes.
      attributes: type and value of each, in order.
      raw: the bytes that it was decoded from.
    """

    method: int
    message_class: MessageClass
    transaction_id: bytes
    attributes: tuple[tuple[int, bytes], ...]
    raw: bytes = field(repr=False)
    _offsets: dict[int, int] = field(repr=False, compare=False)

    def get(self, attribute: Attribute[T]) -> T | None:
        """The value of the first attribute of this type, or None; further ones are ignored (RFC 8489 §14).

        Raises:
          StunMalformed: the value is malformed, and its type is comprehension-required.  Malformed values of other
            types count as absent.
        """
        for type_, data in self.attributes:
            if type_ == attribute.type:
                return self._value(attribute, data)
        return None

    def get_all(self, attribute: Attribute[T]) -> list[T]:
        """The values of all attributes of this type, in order, for a type that may occur more than once.

        Raises:
          StunMalformed: as for `get`, for any of them.
        """
        values = [self._value(attribute, data) for type_, data in self.attributes if type_ == attribute.type]
        return [value for value in values if value is not None]

    def _value(self, attribute: Attribute[T], data: bytes) -> T | None:
        try:
            return attribute.from_bytes(data, self.transaction_id)
        except (StunMalformed, ValueError) as error:
            if attribute.type >= _OPTIONAL:
                return None
            if isinstance(error, StunMalformed):
                raise
            raise StunMalformed(f"{attribute.name}: {error}") from None

    def unknown_required(self, known: Collection[Attribute[Any]]) -> tuple[int, ...]:
        """The types of comprehension-required attributes that are not among `known`, in order, each once."""
        types = {each.type for each in known}
        return tuple(dict.fromkeys(type_ for type_, _ in self.attributes if type_ < _OPTIONAL and type_ not in types))

    def verify(self, key: bytes) -> bool:
        """Whether there is a valid MESSAGE-INTEGRITY by `key`."""
        return self._verify(MESSAGE_INTEGRITY.type, key, "sha1", _SHA1_LENGTH)

    def verify_sha256(self, key: bytes, *, at_least: int = _SHA256_LENGTH) -> bool:
        """Whether there is a valid MESSAGE-INTEGRITY-SHA256 by `key`, of `at_least` bytes (16 to 32) or more."""
        return self._verify(MESSAGE_INTEGRITY_SHA256.type, key, "sha256", max(at_least, 16))

    def _verify(self, type_: int, key: bytes, digest: str, at_least: int) -> bool:
        offset = self._offsets.get(type_)
        if offset is None:
            return False
        length = int.from_bytes(self.raw[offset + 2 : offset + 4], "big")
        found = self.raw[offset + 4 : offset + 4 + length]
        if len(found) < at_least:
            return False
        return hmac.compare_digest(_mac(self.raw[:offset], length, key, digest), found)


def _with_length(data: bytes, length: int) -> bytes:
    """A message with another value in its header's length field."""
    return data[:2] + length.to_bytes(2, "big") + data[4:]


def _mac(data: bytes, length: int, key: bytes, digest: str) -> bytes:
    covered = _with_length(data, len(data) - HEADER_LENGTH + 4 + length)
    return hmac.digest(key, covered, digest)[:length]


def _tlv(type_: int, value: bytes) -> bytes:
    return type_.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) % 4)


def encode(
    method: int,
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: Iterable[AttributeValue] = (),
    *,
    integrity: bytes | None = None,
    integrity_sha256: bytes | None = None,
    sha256_length: int = _SHA256_LENGTH,
    fingerprint: bool = False,
) -> bytes:
    """The bytes of a message.

    Args:
      integrity, integrity_sha256: the keys of a MESSAGE-INTEGRITY and a MESSAGE-INTEGRITY-SHA256 to add.
      sha256_length: bytes of the latter: 16 to 32, a multiple of four (RFC 8489 §14.6).
      fingerprint: add a FINGERPRINT.

    Raises:
      ValueError: a value does not fit its field.
    """
    if len(transaction_id) != TRANSACTION_ID_LENGTH or not 0 <= method <= 0xFF:
        raise ValueError("a transaction id has 12 bytes, a method 8 bits")
    if sha256_length not in range(16, 33, 4):
        raise ValueError(f"a SHA-256 MAC of {sha256_length} bytes, not 16, 20, 24, 28 or 32")
    kind = (method & 0x0F) | (method & 0x70) << 1 | (method & 0x80) << 2
    kind |= (message_class & 1) << 4 | (message_class & 2) << 7
    data = kind.to_bytes(2, "big") + bytes(2) + MAGIC_COOKIE.to_bytes(4, "big") + transaction_id
    data += b"".join(
        _tlv(each.attribute.type, each.attribute.to_bytes(each.value, transaction_id)) for each in attributes
    )
    if integrity is not None:
        data += _tlv(MESSAGE_INTEGRITY.type, _mac(data, _SHA1_LENGTH, integrity, "sha1"))
    if integrity_sha256 is not None:
        mac = _mac(data, sha256_length, integrity_sha256, "sha256")
        data += _tlv(MESSAGE_INTEGRITY_SHA256.type, mac)
    length = len(data) - HEADER_LENGTH + (8 if fingerprint else 0)
    if length > _MAX_LENGTH:
        raise ValueError(f"a message of {length} bytes; the most is {_MAX_LENGTH}")
    data = _with_length(data, length)
    return data + _tlv(FINGERPRINT.type, _crc(data)) if fingerprint else data


def _crc(data: bytes) -> bytes:
    return (zlib.crc32(data) ^ _FINGERPRINT_XOR).to_bytes(4, "big")


def looks_like_stun(data: bytes) -> bool:
    """Whether `data` begins like a STUN message: first byte 0 to 3 (RFC 9443), and the magic cookie in its place."""
    return len(data) >= HEADER_LENGTH and data[0] < 4 and data[4:8] == b"\x21\x12\xa4\x42"


def decode(data: bytes) -> Message:
    """Decode a whole message.

    Raises:
      StunMalformed: it is not a STUN message, has more than `MAX_ATTRIBUTES` attributes, or a wrong fingerprint.
    """
    if not looks_like_stun(data):
        raise StunMalformed("no STUN header")
    if len(data) != HEADER_LENGTH + int.from_bytes(data[2:4], "big") or len(data) % 4:
        raise StunMalformed(f"a STUN message of {len(data)} bytes whose length field does not match")
    data = bytes(data)
    kind = int.from_bytes(data[:2], "big")
    method = (kind & 0x000F) | (kind & 0x00E0) >> 1 | (kind & 0x0200) >> 2
    message_class = MessageClass((kind & 0x0010) >> 4 | (kind & 0x0100) >> 7)
    attributes: list[tuple[int, bytes]] = []
    offsets: dict[int, int] = {}
    at, may_follow, count = HEADER_LENGTH, None, 0
    while at < len(data):
        type_, length = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 4 + length
        count += 1
        if end > len(data):
            raise StunMalformed(f"attribute {type_:#06x} is longer than its message")
        if count > MAX_ATTRIBUTES:
            raise StunMalformed(f"more than {MAX_ATTRIBUTES} attributes")
        if may_follow is None or type_ in may_follow:
            attributes.append((type_, data[at + 4 : end]))
            offsets.setdefault(type_, at)
            may_follow = _BEHIND.get(type_, may_follow)
        if type_ == FINGERPRINT.type and (end != len(data) or data[at + 4 :] != _crc(data[:at])):
            raise StunMalformed("FINGERPRINT is wrong, or not the last attribute")
        at = end + -length % 4
    return Message(method, message_class, data[8:HEADER_LENGTH], tuple(attributes), data, offsets)


def long_term_key(username: str, realm: str, password: str, *, sha256: bool = False) -> bytes:
    """The key of RFC 8489 §9.2.2, by MD5 or SHA-256 (§18.5.1); the texts are already prepared (RFC 8265)."""
    plain = f"{username}:{realm}:{password}".encode()
    return hashlib.sha256(plain).digest() if sha256 else hashlib.md5(plain, usedforsecurity=False).digest()


@final
class StreamReader:
    """Cuts a TCP byte stream into messages (RFC 8489 §6.2.2: the length field frames them).

    Args:
      most: the longest message in bytes.

    Raises:
      StunMalformed: by `feed`, for bytes that begin no message, or one that is too long.  The next message cannot be
        found then, so the connection is unusable.
    """

    def __init__(self, *, most: int = HEADER_LENGTH + _MAX_LENGTH) -> None:
        self._most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now, undecoded; at most one incomplete message is kept."""
        self._buffer += data
        found: list[bytes] = []
        while len(self._buffer) >= HEADER_LENGTH:
            length = HEADER_LENGTH + int.from_bytes(self._buffer[2:4], "big")
            if not looks_like_stun(bytes(self._buffer[:HEADER_LENGTH])) or length % 4 or length > self._most:
                raise StunMalformed("the stream does not carry STUN messages")
            if len(self._buffer) < length:
                break
            found.append(bytes(self._buffer[:length]))
            del self._buffer[:length]
        return found
