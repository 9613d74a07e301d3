"""TURN's methods, attributes and error codes (RFC 8656), as further numbers of the STUN codec.  Pure.

An address family is 4 or 6 here, as everywhere else; the wire has 0x01 and 0x02 (§18.7).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ..errors import StunMalformed
from ..sockaddr import Family
from ..stun.codec import Attribute, ErrorCode, opaque, xor_address

__all__ = [
    "ADDITIONAL_ADDRESS_FAMILY",
    "ADDRESS_ERROR_CODE",
    "CHANNEL_NUMBER",
    "DATA",
    "DEFAULT_LIFETIME",
    "DONT_FRAGMENT",
    "EVEN_PORT",
    "ICMP",
    "LIFETIME",
    "REQUESTED_ADDRESS_FAMILY",
    "REQUESTED_TRANSPORT",
    "RESERVATION_TOKEN",
    "UDP_PROTOCOL",
    "XOR_PEER_ADDRESS",
    "XOR_RELAYED_ADDRESS",
    "Code",
    "Method",
]


class Method(IntEnum):
    """§17; Send and Data exist as indications only."""

    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009


class Code(IntEnum):
    """Error codes (§19, and RFC 8489 §14.8)."""

    TRY_ALTERNATE = 300
    BAD_REQUEST = 400
    UNAUTHENTICATED = 401
    FORBIDDEN = 403
    UNKNOWN_ATTRIBUTE = 420
    ALLOCATION_MISMATCH = 437
    STALE_NONCE = 438
    FAMILY_NOT_SUPPORTED = 440
    WRONG_CREDENTIALS = 441
    TRANSPORT_NOT_SUPPORTED = 442
    PEER_FAMILY_MISMATCH = 443
    ALLOCATION_QUOTA_REACHED = 486
    INSUFFICIENT_CAPACITY = 508


# --- Attributes (§18) -------------------------------------------------------------------------------------------------

UDP_PROTOCOL: Final = 17
"""The only value of REQUESTED-TRANSPORT in RFC 8656: the IP protocol number of UDP."""
DEFAULT_LIFETIME: Final = 600
"""Seconds that an allocation lasts without a LIFETIME attribute (§3.2)."""

_FAMILY_CODES: Final[dict[Family, int]] = {4: 0x01, 6: 0x02}
_FAMILIES: Final[dict[int, Family]] = {code: family for family, code in _FAMILY_CODES.items()}


def _number(type_: int, name: str, used: int, padding: int) -> Attribute[int]:
    """An attribute whose value is a number of `used` bytes and `padding` reserved bytes, which are ignored."""

    def to_bytes(value: int, _: bytes) -> bytes:
        return value.to_bytes(used, "big") + bytes(padding)

    def from_bytes(data: bytes, _: bytes) -> int:
        if len(data) != used + padding:
            raise StunMalformed(f"{name} of {len(data)} bytes, not {used + padding}")
        return int.from_bytes(data[:used], "big")

    return Attribute(type_, name, to_bytes, from_bytes)


def _family(type_: int, name: str) -> Attribute[Family]:
    def to_bytes(value: Family, _: bytes) -> bytes:
        return bytes([_FAMILY_CODES[value], 0, 0, 0])

    def from_bytes(data: bytes, _: bytes) -> Family:
        if len(data) != 4 or data[0] not in _FAMILIES:
            raise StunMalformed(f"{name} without a known address family")
        return _FAMILIES[data[0]]

    return Attribute(type_, name, to_bytes, from_bytes)


def _even_port_to_bytes(value: bool, _: bytes) -> bytes:
    return bytes([0x80 if value else 0])


def _even_port_from_bytes(data: bytes, _: bytes) -> bool:
    if len(data) != 1:
        raise StunMalformed(f"EVEN-PORT of {len(data)} bytes, not 1")
    return bool(data[0] & 0x80)


def _address_error_to_bytes(value: tuple[Family, ErrorCode], _: bytes) -> bytes:
    family, error = value
    if not 300 <= error.code <= 699:
        raise ValueError(f"error code {error.code} is not one of 300 to 699")
    return bytes([_FAMILY_CODES[family], 0, error.code // 100, error.code % 100]) + error.reason.encode()[:763]


def _address_error_from_bytes(data: bytes, _: bytes) -> tuple[Family, ErrorCode]:
    if not 4 <= len(data) <= 4 + 763 or data[0] not in _FAMILIES or not 3 <= data[2] & 7 <= 6 or data[3] > 99:
        raise StunMalformed("ADDRESS-ERROR-CODE without a family, or a code of 300 to 699")
    reason = data[4:].decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else "?" for c in reason)
    return _FAMILIES[data[0]], ErrorCode((data[2] & 7) * 100 + data[3], shown)


def _icmp_to_bytes(value: tuple[int, int], _: bytes) -> bytes:
    kind, code = value
    return bytes([0, 0]) + (kind << 9 | code).to_bytes(2, "big") + bytes(4)


def _icmp_from_bytes(data: bytes, _: bytes) -> tuple[int, int]:
    if len(data) != 8:
        raise StunMalformed(f"ICMP of {len(data)} bytes, not 8")
    both = int.from_bytes(data[2:4], "big")
    return both >> 9, both & 0x1FF


CHANNEL_NUMBER: Final = _number(0x000C, "CHANNEL-NUMBER", 2, 2)
LIFETIME: Final = _number(0x000D, "LIFETIME", 4, 0)
XOR_PEER_ADDRESS: Final = xor_address(0x0012, "XOR-PEER-ADDRESS")
DATA: Final = opaque(0x0013, "DATA")
XOR_RELAYED_ADDRESS: Final = xor_address(0x0016, "XOR-RELAYED-ADDRESS")
REQUESTED_ADDRESS_FAMILY: Final = _family(0x0017, "REQUESTED-ADDRESS-FAMILY")
EVEN_PORT: Final = Attribute(0x0018, "EVEN-PORT", _even_port_to_bytes, _even_port_from_bytes)
REQUESTED_TRANSPORT: Final = _number(0x0019, "REQUESTED-TRANSPORT", 1, 3)
DONT_FRAGMENT: Final = opaque(0x001A, "DONT-FRAGMENT", 0)
"""Never sent: on some servers one oversized datagram with it ends the allocation."""
RESERVATION_TOKEN: Final = opaque(0x0022, "RESERVATION-TOKEN", 8)
ADDITIONAL_ADDRESS_FAMILY: Final = _family(0x8000, "ADDITIONAL-ADDRESS-FAMILY")
ADDRESS_ERROR_CODE: Final = Attribute(0x8001, "ADDRESS-ERROR-CODE", _address_error_to_bytes, _address_error_from_bytes)
ICMP: Final = Attribute(0x8004, "ICMP", _icmp_to_bytes, _icmp_from_bytes)
"""Type and code of an ICMP message about a relayed datagram (§18.13)."""
