"""The long-term credential mechanism (RFC 8489 §9.2), except its key: password algorithms and nonce cookies.  Pure.

A server that supports more than MD5 names its algorithms in PASSWORD-ALGORITHMS, and announces that in the nonce.  The
MAC of the next request covers the nonce, so nobody on the path can remove the list unnoticed.
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
    """§18.5.1; neither has parameters, so parameters of other algorithms are dropped."""

    MD5 = 1
    SHA256 = 2


class SecurityFeature(IntFlag):
    """§18.1."""

    PASSWORD_ALGORITHMS = 0x800000
    USERHASH = 0x400000


NONCE_COOKIE: Final = "obMatJos2"
"""The start of a nonce that announces security features, as the next four characters in base64 (§9.2)."""


def _algorithm_to_bytes(value: int, _: bytes) -> bytes:
    return value.to_bytes(2, "big") + b"\0\0"


def _algorithm_from_bytes(data: bytes, _: bytes) -> int:
    algorithms = _algorithms_from_bytes(data, b"")
    if len(algorithms) != 1:
        raise StunMalformed(f"PASSWORD-ALGORITHM with {len(algorithms)} algorithms, not one")
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
        raise StunMalformed("truncated PASSWORD-ALGORITHM or PASSWORD-ALGORITHMS")
    return tuple(found)


PASSWORD_ALGORITHM: Final = Attribute(0x001D, "PASSWORD-ALGORITHM", _algorithm_to_bytes, _algorithm_from_bytes)
PASSWORD_ALGORITHMS: Final = Attribute(0x8002, "PASSWORD-ALGORITHMS", _algorithms_to_bytes, _algorithms_from_bytes)


def security_features(nonce: str) -> SecurityFeature:
    """The security features that a nonce announces (24 bits); none where it has no valid cookie."""
    if not nonce.startswith(NONCE_COOKIE):
        return SecurityFeature(0)
    try:
        found = base64.b64decode(nonce[len(NONCE_COOKIE) : len(NONCE_COOKIE) + 4], validate=True)
    except ValueError:
        return SecurityFeature(0)
    return SecurityFeature(int.from_bytes(found, "big") if len(found) == 3 else 0)


def nonce_cookie(features: SecurityFeature) -> str:
    """The start of a nonce that announces `features`."""
    return NONCE_COOKIE + base64.b64encode(features.to_bytes(3, "big")).decode()


def user_hash(username: str, realm: str) -> bytes:
    """The value of USERHASH (§14.4), which replaces the name; both texts are already prepared (RFC 8265)."""
    return hashlib.sha256(f"{username}:{realm}".encode()).digest()
