"""Whom a request to a TURN server comes from (RFC 8489 §9.2.4), and what who has not shown it is told.  No I/O."""

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
    """A request gets an error; it never leaves the server.

    Attributes:
      code: of the error.
      unknown: types of attributes that are not understood.
    """

    def __init__(self, code: Code, unknown: tuple[int, ...] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.unknown = unknown


@final
class TurnAuthentication:
    """The credentials of one server's clients.

    Args:
      wall_time: gives Unix seconds, by which credentials expire.
    """

    def __init__(self, credentials: TurnCredentials, nonces: TurnNonces, wall_time: Callable[[], float]) -> None:
        self._credentials = credentials
        self._nonces = nonces
        self._wall_time = wall_time

    def judge(
        self, message: Message, source: TransportAddress, now: float, known: tuple[str, bytes] | None
    ) -> tuple[str, bytes]:
        """User name and key of a request.

        Args:
          known: those that made the client's allocation, good for as long as that is there.

        Raises:
          Refusal: it has none, wrong ones, or a stale nonce.
          StunMalformed: its credentials lack a part, or are no such thing.
        """
        if message.get(MESSAGE_INTEGRITY) is None:
            raise Refusal(Code.UNAUTHENTICATED)
        username, realm, nonce = message.get(USERNAME), message.get(REALM), message.get(NONCE)
        if username is None or realm is None or nonce is None:
            raise StunMalformed("credentials that lack a part")
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
        """What a client needs to ask again."""
        return [REALM(self._credentials.realm), NONCE(self._nonces.make(source, now))]
