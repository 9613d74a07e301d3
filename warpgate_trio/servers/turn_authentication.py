"""The authentication of TURN requests (RFC 8489 §9.2.4), and the challenge for unauthenticated ones.  No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from ..errors import StunMalformed
from ..sockaddr import TransportAddress
from ..stun.codec import MESSAGE_INTEGRITY, NONCE, REALM, USERNAME, AttributeValue, Message
from ..turn.messages import Code
from .turn_credentials import TurnCredentials, TurnNonces

__all__ = ["Refusal", "TurnAuthentication"]


@final
class Refusal(Exception):
    """A request is answered with an error.  The exception is internal to the server.

    Attributes:
      code: of the error response.
      unknown: the types of attributes that are not understood.
    """

    def __init__(self, code: Code, unknown: tuple[int, ...] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.unknown = unknown


@final
class TurnAuthentication:
    """Checks the credentials of requests to one server.

    Args:
      wall_time: returns Unix seconds, by which credentials expire.
    """

    def __init__(self, credentials: TurnCredentials, nonces: TurnNonces, wall_time: Callable[[], float]) -> None:
        self._credentials = credentials
        self._nonces = nonces
        self._wall_time = wall_time

    def judge(
        self, message: Message, source: TransportAddress, now: float, known: tuple[str, bytes] | None
    ) -> tuple[str, bytes]:
        """Authenticate a request; returns its user name and key.

        Args:
          known: user name and key of the client's allocation; they stay valid as long as it exists, even if they have
            expired.

        Raises:
          Refusal: the credentials are missing or wrong, or the nonce is stale.
          StunMalformed: the credentials are incomplete or malformed.
        """
        if message.get(MESSAGE_INTEGRITY) is None:
            raise Refusal(Code.UNAUTHENTICATED)
        username, realm, nonce = message.get(USERNAME), message.get(REALM), message.get(NONCE)
        if username is None or realm is None or nonce is None:
            raise StunMalformed("a request with MESSAGE-INTEGRITY, but without USERNAME, REALM or NONCE")
        if not self._nonces.is_good(nonce, source, now):
            raise Refusal(Code.STALE_NONCE)
        if known is not None and known[0] == username:
            key: bytes | None = known[1]
        else:
            key = self._credentials.key(username, self._wall_time())
        if key is None or realm != self._credentials.realm or not message.verify(key):
            raise Refusal(Code.UNAUTHENTICATED)
        return username, key

    def challenge(self, source: TransportAddress, now: float) -> list[AttributeValue]:
        """The attributes that a client needs to send the request again: realm and nonce."""
        return [REALM(self._credentials.realm), NONCE(self._nonces.make(source, now))]
