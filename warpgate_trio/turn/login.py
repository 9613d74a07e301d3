"""How a TURN client authenticates: the long-term credential mechanism (RFC 8489 §9.2) for one 5-tuple.  Pure.

Realm, nonce and password algorithms come with a 401, a new nonce with each 438.  If the server names password
algorithms, requests have MESSAGE-INTEGRITY-SHA256, with a SHA-256 key where the server offers that, else an MD5 key.
If it names none, they have MESSAGE-INTEGRITY (SHA-1) with an MD5 key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, final

from ..errors import StunMalformed
from ..stun.codec import (
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    REALM,
    USERNAME,
    AttributeValue,
    Message,
    MessageClass,
    encode,
    long_term_key,
)
from ..stun.credentials import (
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    PasswordAlgorithm,
    SecurityFeature,
    security_features,
)
from ..stun.transaction import Check

__all__ = ["Credentials", "Login"]


@final
@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and a password, already prepared (RFC 8265)."""

    username: str
    password: str


@final
class Login:
    """A client's credentials, and what its server has asked for.

    Attributes:
      credentials: None: requests are never signed.
      signing: requests are signed from now on.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self.credentials: Final = credentials
        self._realm = ""
        self._nonce = ""
        self._algorithms: tuple[int, ...] = ()
        self._key = b""

    @property
    def signing(self) -> bool:
        return bool(self._key)

    def learn(self, message: Message) -> None:
        """Learn realm, nonce and password algorithms from a 401 or a 438.

        Raises:
          StunMalformed: realm or nonce is missing, or the password algorithms that the nonce announces are.
        """
        realm, nonce = message.get(REALM), message.get(NONCE)
        algorithms = message.get(PASSWORD_ALGORITHMS) or ()
        if nonce is None or (realm is None and not self._realm):
            raise StunMalformed("the server's 401 or 438 has no realm or nonce")
        named = bool(security_features(nonce) & SecurityFeature.PASSWORD_ALGORITHMS)
        if named and not (algorithms or self._algorithms):
            raise StunMalformed(
                "the nonce announces PASSWORD-ALGORITHMS, but the answer has none: it may have been tampered with"
            )
        self._realm = realm if realm is not None else self._realm
        self._nonce = nonce
        self._algorithms = (algorithms or self._algorithms) if named else ()
        if self.credentials is not None:
            sha256 = PasswordAlgorithm.SHA256 in self._algorithms
            self._key = long_term_key(self.credentials.username, self._realm, self.credentials.password, sha256=sha256)

    def encode(self, method: int, transaction_id: bytes, attributes: tuple[AttributeValue, ...]) -> bytes:
        """A request, signed if realm and nonce are known."""
        if self.credentials is None or not self._key:
            return encode(method, MessageClass.REQUEST, transaction_id, attributes)
        attributes += (USERNAME(self.credentials.username), REALM(self._realm), NONCE(self._nonce))
        if not self._algorithms:
            return encode(method, MessageClass.REQUEST, transaction_id, attributes, integrity=self._key)
        known = PasswordAlgorithm.SHA256 in self._algorithms
        chosen = PasswordAlgorithm.SHA256 if known else PasswordAlgorithm.MD5
        attributes += (PASSWORD_ALGORITHMS(self._algorithms), PASSWORD_ALGORITHM(chosen))
        return encode(method, MessageClass.REQUEST, transaction_id, attributes, integrity_sha256=self._key)

    def check(self) -> Check | None:
        """The check for responses to what `encode` makes now; None: every response is accepted.

        A success needs the MAC of our password.  An error needs that MAC or none: whoever can read our transaction ids
        can disrupt the connection anyway.
        """
        if not self._key:
            return None
        return partial(_is_believed, self._key, bool(self._algorithms))


def _is_believed(key: bytes, sha256: bool, message: Message) -> bool:
    mac = MESSAGE_INTEGRITY_SHA256 if sha256 else MESSAGE_INTEGRITY
    if message.message_class is MessageClass.ERROR and all(type_ != mac.type for type_, _ in message.attributes):
        return True
    return message.verify_sha256(key) if sha256 else message.verify(key)
