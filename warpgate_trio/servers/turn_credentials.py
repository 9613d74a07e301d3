"""The credentials of a TURN server's users, named or derived from a shared secret, and the server's nonces.  No I/O.

*Shared secret* (draft-uberti-behave-turn-rest, which all servers support): the user name is ``EXPIRY`` or
``EXPIRY:NAME``, with EXPIRY in Unix seconds.  The password is the base64 of the HMAC-SHA1 of the user name by the
secret.  So whoever has the secret can make credentials, and the server stores no list of them.

*Nonces* are not stored either (RFC 8489 §9.2 does not require it).  A nonce is a time, and a MAC over it and the
client's address, so it is valid for `NONCE_LIFETIME` and for that address only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Final, final

from ..sockaddr import TransportAddress
from ..stun.codec import long_term_key

__all__ = ["NONCE_LIFETIME", "TurnCredentials", "TurnNonces", "shared_secret", "shared_secret_password"]

NONCE_LIFETIME: Final = 600.0
"""Seconds for which a nonce is valid: the default lifetime of an allocation, so a refresh mostly needs a new nonce,
which costs one more round trip."""
_CONTEXT: Final = b"warpgate-trio turn shared secret"
_MAC_BYTES: Final = 12
_TIME_DIGITS: Final = 8  # hexadecimal
_EXPIRY_DIGITS: Final = 12  # decimal; more is no time


def shared_secret(token: str) -> str:
    """The shared secret of a server with this token.  It is the same after each restart, and does not reveal the
    token."""
    return hmac.digest(token.encode(), _CONTEXT, "sha256").hex()


def shared_secret_password(secret: str, username: str) -> str:
    """The password of a user name under a shared secret."""
    return base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode()


@final
class TurnCredentials:
    """The credentials of one server's users.

    Args:
      realm: the server's realm, which is part of every key.
      users: passwords by name; names and passwords are used as given, without the preparation of RFC 8265.
      secret: the shared secret; None: there are only named users.
    """

    def __init__(self, realm: str, users: Mapping[str, str] | None = None, secret: str | None = None) -> None:
        self.realm: Final = realm
        self._keys = {name: long_term_key(name, realm, password) for name, password in (users or {}).items()}
        self._secret = secret

    def key(self, username: str, wall_time: float) -> bytes | None:
        """The key of a user's MESSAGE-INTEGRITY; None if there is no such user, or its name has expired."""
        found = self._keys.get(username)
        if found is not None or self._secret is None:
            return found
        expiry = username.partition(":")[0]
        if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= _EXPIRY_DIGITS) or int(expiry) < wall_time:
            return None
        return long_term_key(username, self.realm, shared_secret_password(self._secret, username))

    def account(self, username: str) -> str:
        """The account of a user name: the named user, or the NAME of ``EXPIRY:NAME``; empty for ``EXPIRY`` alone."""
        return f"user {username}" if username in self._keys else username.partition(":")[2]


@final
class TurnNonces:
    """Makes and checks nonces, by a key that lives as long as the server.  `now` is any monotonic clock, in seconds."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, client: TransportAddress, now: float) -> str:
        """A nonce for a client."""
        time = f"{int(now) & 0xFFFFFFFF:0{_TIME_DIGITS}x}"
        return time + self._mac(time, client)

    def is_good(self, nonce: str, client: TransportAddress, now: float) -> bool:
        """Whether a nonce was made here for this client, and is not stale."""
        time, mac = nonce[:_TIME_DIGITS], nonce[_TIME_DIGITS:]
        if not nonce.isascii() or not hmac.compare_digest(self._mac(time, client), mac):
            return False
        return (int(now) - int(time, 16)) & 0xFFFFFFFF <= NONCE_LIFETIME

    def _mac(self, time: str, client: TransportAddress) -> str:
        return hmac.digest(self._key, f"{time} {client[0]} {client[1]}".encode(), hashlib.sha256).hex()[
            : 2 * _MAC_BYTES
        ]
