"""RFC 3489's Binding ("classic STUN") in terms of RFC 8489's messages.  No I/O.

Theory of operation.  Both formats have the same header, but where RFC 8489 has the magic cookie, RFC 3489 has the first
four bytes of the transaction id, which the answer has to repeat.  So those bytes of a classic request are replaced by
the cookie before it is decoded, and put back into the encoded answer.  Three differences are left (RFC 5389 §12.2, RFC
3489 §11.2):

* The answer has MAPPED-ADDRESS, and no XORed address.
* The server's own two addresses are called SOURCE-ADDRESS and CHANGED-ADDRESS.
* RFC 3489 has no padding between attributes, so the values in an error are filled up to a multiple of four bytes.
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
    """The first four bytes of a classic Binding request's transaction id; None for any other message."""
    if len(data) < HEADER_LENGTH or data[:2] != _BINDING_REQUEST or looks_like_stun(data):
        return None
    return bytes(data[4:8])


def replace_cookie(data: bytes, four: bytes) -> bytes:
    """The message with these four bytes in place of the cookie."""
    return data[:4] + four + data[8:]


def classic_error(code: int, reason: str, unknown: tuple[int, ...]) -> list[AttributeValue]:
    """An error's attributes, each value a multiple of four bytes long (RFC 3489 §11.2.9, §11.2.10)."""
    attributes: list[AttributeValue] = [ERROR_CODE(ErrorCode(code, reason + " " * (-len(reason) % 4)))]
    if unknown:
        attributes.append(UNKNOWN_ATTRIBUTES(unknown if len(unknown) % 2 == 0 else (*unknown, unknown[-1])))
    return attributes
