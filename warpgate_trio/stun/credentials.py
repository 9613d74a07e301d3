"""The long-term credential mechanism beyond its key (RFC 8489 §9.2): password algorithms, and what a nonce says.  Pure.

A server that knows more than MD5 names its algorithms in PASSWORD-ALGORITHMS, and says in the nonce that it does: the
nonce is under the MAC of the next request, so nobody on the way can take the list away.
"""

from __future__ import annotations

import base64
import hashlib
from enum import IntEnum, IntFlag
from typing import Final

from ..errors import StunMalformed
from .codec import Attribute

__all__ = [
    "NONCE_COOKIE",
    "PASSWORD_ALGORITHM",
    "PASSWORD_ALGORITHMS",
    "PasswordAlgorithm",
    "SecurityFeature",
    "nonce_cookie",
    "security_features",
    "user_hash",
]


class PasswordAlgorithm(IntEnum):
    """§18.5.1; both have no parameters, so those of others are not kept."""

    MD5 = 1
    SHA256 = 2


class SecurityFeature(IntFlag):
    """§18.1."""

    PASSWORD_ALGORITHMS = 0x800000
    USERHASH = 0x400000


NONCE_COOKIE: Final = "obMatJos2"
"""What a nonce begins with that says what its server can do, in four more characters of base64 (§9.2)."""


def _algorithm_to_bytes(value: int, _: bytes) -> bytes:
    return value.to_bytes(2, "big") + b"\0\0"


def _algorithm_from_bytes(data: bytes, _: bytes) -> int:
    algorithms = _algorithms_from_bytes(data, b"")
    if len(algorithms) != 1:
        raise StunMalformed(f"PASSWORD-ALGORITHM that names {len(algorithms)}")
    return algorithms[0]


def _algorithms_to_bytes(value: tuple[int, ...], _: bytes) -> bytes:
    return b"".join(_algorithm_to_bytes(each, b"") for each in value)


def _algorithms_from_bytes(data: bytes, _: bytes) -> tuple[int, ...]:
    found: list[int] = []
    at = 0
    while at < len(data):
        parameters = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(int.from_bytes(data[at : at + 2], "big"))
        at += 4 + parameters + -parameters % 4
    if at != len(data):
        raise StunMalformed("password algorithms that end in the middle of one")
    return tuple(found)


PASSWORD_ALGORITHM: Final = Attribute(0x001D, "PASSWORD-ALGORITHM", _algorithm_to_bytes, _algorithm_from_bytes)
PASSWORD_ALGORITHMS: Final = Attribute(0x8002, "PASSWORD-ALGORITHMS", _algorithms_to_bytes, _algorithms_from_bytes)


def security_features(nonce: str) -> SecurityFeature:
    """What a nonce says that its server can do: 24 bits; 0 where it says nothing."""
    if not nonce.startswith(NONCE_COOKIE):
        return SecurityFeature(0)
    try:
        found = base64.b64decode(nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + 4], validate=True)
    except ValueError:
        return SecurityFeature(0)
    return SecurityFeature(int.from_bytes(found, "big") if len(found) == 3 else 0)


def nonce_cookie(features: SecurityFeature) -> str:
    """What a nonce begins with whose server can do `features`."""
    return NONCE_COOKIE + base64.b64encode(features.to_bytes(3, "big")).decode()


def user_hash(username: str, realm: str) -> bytes:
    """What stands in USERHASH in place of the name (§14.4), of texts that are already prepared."""
    return hashlib.sha256(f"{username}:{realm}".encode()).digest()
