"""RFC 3489's Binding ("classic STUN") in terms of RFC 8489's messages.  No I/O.

Theory of operation.  Both have one header; where the cookie stands today there were four more bytes of the transaction
id, which the answer has to repeat.  So a classic request is read as one of today with those bytes taken out, and they
are put into the answer in place of the cookie.  Three differences are left (RFC 5389 §12.2, RFC 3489 §11.2): the answer
says MAPPED-ADDRESS, and nothing XORed; the server's own two addresses are called SOURCE-ADDRESS and
CHANGED-ADDRESS; and the values in an error are filled up to four bytes, since nothing was padded between attributes.
"""

from __future__ import annotations

from typing import Final

from ..stun.codec import (
    ERROR_CODE,
    HEADER_LENGTH,
    MAGIC_COOKIE,
    UNKNOWN_ATTRIBUTES,
    AttributeValue,
    ErrorCode,
    looks_like_stun,
    transport_address,
)

__all__ = [
    "CHANGED_ADDRESS",
    "COOKIE",
    "SOURCE_ADDRESS",
    "classic_error",
    "classic_id",
    "replace_cookie",
]

SOURCE_ADDRESS: Final = transport_address(0x0004, "SOURCE-ADDRESS")
CHANGED_ADDRESS: Final = transport_address(0x0005, "CHANGED-ADDRESS")
COOKIE: Final = MAGIC_COOKIE.to_bytes(4, "big")
_BINDING_REQUEST: Final = b"\x00\x01"


def classic_id(data: bytes) -> bytes | None:
    """The first four bytes of a classic Binding request's transaction id; None where it is none."""
    if len(data) < HEADER_LENGTH or data[:2] != _BINDING_REQUEST or looks_like_stun(data):
        return None
    return bytes(data[4:8])


def replace_cookie(data: bytes, four: bytes) -> bytes:
    """A message with these four bytes in the cookie's place."""
    return data[:4] + four + data[8:]


def classic_error(code: int, reason: str, unknown: tuple[int, ...]) -> list[AttributeValue]:
    """An error's attributes, each value a multiple of four bytes long (RFC 3489 §11.2.9, §11.2.10)."""
    attributes: list[AttributeValue] = [ERROR_CODE(ErrorCode(code, reason + " " * (-len(reason) % 4)))]
    if unknown:
        attributes.append(UNKNOWN_ATTRIBUTES(unknown if len(unknown) % 2 == 0 else (*unknown, unknown[-1])))
    return attributes
