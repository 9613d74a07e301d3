"""Who may use a TURN server: named users, and credentials made of a shared secret; and its nonces.  No I/O.

*Shared secret* (draft-uberti-behave-turn-rest, which all servers know): the user name is ``EXPIRY`` or ``EXPIRY:NAME``,
EXPIRY in Unix seconds, and the password is the base64 of the user name's HMAC-SHA1 by the secret.  So whoever has the
secret makes credentials for itself or others, and the server keeps no list.

*Nonces* are not kept either (RFC 8489 §9.2 asks for none): a nonce is a time and a MAC over it and the client's
address, so it is good for `NONCE_LIFETIME` and for that address alone.
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
"""Seconds for which a nonce is good: an allocation's lifetime, so that a refresh mostly needs a new one, and no more
than one more round trip for it."""
_CONTEXT: Final = b"warpgate-trio turn shared secret"
_MAC_BYTES: Final = 12
_TIME_DIGITS: Final = 8  # hexadecimal
_EXPIRY_DIGITS: Final = 12  # decimal; more is no time


def shared_secret(token: str) -> str:
    """The shared secret of a server with this token: the same after each restart, and the token cannot be told from
    it."""
    return hmac.digest(token.encode(), _CONTEXT, "sha256").hex()


def shared_secret_password(secret: str, username: str) -> str:
    """The password of a user name by a shared secret."""
    return base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode()


@final
class TurnCredentials:
    """What users are known by.

    Args:
      realm: what the server calls itself in front of clients; it is in every key.
      users: passwords by name; texts are not prepared (RFC 8265).
      secret: a shared secret; None: there are named users alone.
    """

    def __init__(self, realm: str, users: Mapping[str, str] | None = None, secret: str | None = None) -> None:
        self.realm: Final = realm
        self._keys = {name: long_term_key(name, realm, password) for name, password in (users or {}).items()}
        self._secret = secret

    def key(self, username: str, wall_time: float) -> bytes | None:
        """The key of a user's MESSAGE-INTEGRITY; None where there is no such user, or no longer."""
        found = self._keys.get(username)
        if found is not None or self._secret is None:
            return found
        expiry = username.partition(":")[0]
        if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= _EXPIRY_DIGITS) or int(expiry) < wall_time:
            return None
        return long_term_key(username, self.realm, shared_secret_password(self._secret, username))

    def account(self, username: str) -> str:
        """Whose user name it is: of a shared secret's its NAME, whatever its expiry; empty where it has none."""
        return f"user {username}" if username in self._keys else username.partition(":")[2]


@final
class TurnNonces:
    """Nonces, by a key that lives as long as the server.  `now` is of any clock that does not jump."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, client: TransportAddress, now: float) -> str:
        """A nonce for a client."""
        time = f"{int(now) & 0xFFFFFFFF:0{_TIME_DIGITS}x}"
        return time + self._mac(time, client)

    def is_good(self, nonce: str, client: TransportAddress, now: float) -> bool:
        """Whether it is one of ours, for this client, and not stale."""
        time, mac = nonce[:_TIME_DIGITS], nonce[_TIME_DIGITS:]
        if not nonce.isascii() or not hmac.compare_digest(self._mac(time, client), mac):
            return False
        return (int(now) - int(time, 16)) & 0xFFFFFFFF <= NONCE_LIFETIME

    def _mac(self, time: str, client: TransportAddress) -> str:
        return hmac.digest(self._key, f"{time} {client[0]} {client[1]}".encode(), hashlib.sha256).hex()[
            : 2 * _MAC_BYTES
        ]
