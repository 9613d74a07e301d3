"""The STUN server without I/O: what is answered to which request, from which of its addresses, and how often.

Theory of operation.  The server tells whoever sends a Binding request from where it came.  With one address it is
RFC 8489's Basic server; with a second address there are four places, two addresses times two ports, and it is RFC
5780's: every answer names the place opposite (OTHER-ADDRESS), and over UDP a CHANGE-REQUEST has it answer from another
place.  Clients of RFC 3489, which know no cookie, are answered over UDP in its format (`stun_classic`).

What a stranger can make it do: to a UDP request, whose source may be forged, it says at most one answer of at most
`MAX_ANSWER` bytes, to the address that the request came from and no other, as often as the source's rate allows, and
all sources together theirs.  So PADDING, which asks for long answers, is refused as not understood; of RESPONSE-PORT
(§7.5 there), which moves the answer to another port of the same address, the same rate is paid.  RFC 3489's
RESPONSE-ADDRESS, which moves it to anybody, is not understood either.  What is no STUN request gets no answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, final

from ..errors import StunMalformed
from ..limits import TokenBucket, TokenBuckets, subscriber
from ..sockaddr import TransportAddress
from ..stun.codec import (
    BINDING,
    CHANGE_REQUEST,
    ERROR_CODE,
    HEADER_LENGTH,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    AttributeValue,
    ChangeRequest,
    ErrorCode,
    Message,
    MessageClass,
    decode,
    encode,
)
from .stun_classic import CHANGED_ADDRESS, COOKIE, SOURCE_ADDRESS, classic_error, classic_id, replace_cookie

__all__ = ["DEFAULT_LIMITS", "MAX_ANSWER", "MAX_REQUEST", "Answer", "StunCore", "StunLimits", "StunStatistics"]

MAX_REQUEST: Final = 2048
"""Bytes of a request: a packet, and what a PADDING of RFC 5780 §7.6, itself a packet long, adds to it."""
MAX_ANSWER: Final = 116
"""Bytes of an answer: the header, and four addresses of IPv6; nothing to amplify with."""
_MAX_UNKNOWN = 8  # types named in UNKNOWN-ATTRIBUTES

_KNOWN: Final[frozenset[Attribute[Any]]] = frozenset(
    # Credentials are not asked for, so they are understood and mean nothing.
    {CHANGE_REQUEST, RESPONSE_PORT, USERNAME, USERHASH, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256}
)
_KNOWN_ALONE: Final = _KNOWN - {CHANGE_REQUEST, RESPONSE_PORT}  # RFC 5780 §6.1: without a second address


@dataclass(frozen=True, slots=True, kw_only=True)
class StunLimits:
    """What strangers can make the server do and hold.

    Attributes:
      rate: requests per second of one source (IPv4 address or IPv6 /64); a profile takes about thirty.
      burst: requests of one source at once, after silence: several nodes behind one address.
      total_rate: requests per second of all sources together, over UDP, where sources can be forged.
      total_burst: requests of all sources at once.
      sources: sources whose rate is remembered; beyond, the longest silent one is forgotten.
      connections: connections over TCP; a node keeps one open per interface.
      connections_per_address: of these, from one source: many nodes may sit behind one carrier-grade NAT.
      silence: seconds without a request until a connection is closed; keepalives come far more often.
      write: seconds for a client to take an answer.
    """

    rate: float = 20.0
    burst: int = 100
    total_rate: float = 5000.0
    total_burst: int = 10_000
    sources: int = 4096
    connections: int = 4096
    connections_per_address: int = 64
    silence: float = 300.0
    write: float = 10.0


DEFAULT_LIMITS: Final = StunLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class StunStatistics:
    """What the server has done so far."""

    answered: int
    refused: int
    ignored: int
    limited: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A datagram to send: from the place `(address, port)`, each 0 or 1, to `to`."""

    data: bytes
    to: TransportAddress
    place: tuple[int, int]


@final
class StunCore:
    """What to answer.  A request is answered at once or never, so `receive` returns the answer: nothing is left to be
    handed out later, and no timer runs.

    Args:
      places: the addresses of the four places by address and port, each 0 or 1; empty for a server with one address.
    """

    def __init__(
        self, places: dict[tuple[int, int], TransportAddress] | None = None, limits: StunLimits = DEFAULT_LIMITS
    ) -> None:
        self._places = places or {}
        self._limits = limits
        self._sources: TokenBuckets[str] = TokenBuckets(limits.rate, limits.burst, limits.sources)
        self._total = TokenBucket(limits.total_rate, limits.total_burst)
        self._answered = self._refused = self._ignored = self._limited = 0

    def statistics(self) -> StunStatistics:
        return StunStatistics(
            answered=self._answered, refused=self._refused, ignored=self._ignored, limited=self._limited
        )

    def receive(
        self, data: bytes, source: TransportAddress, now: float, *, place: tuple[int, int] = (0, 0)
    ) -> Answer | None:
        """What to say to a datagram that came to `place` from `source`; never raises."""
        classic = classic_id(data)
        request = self._read(data if classic is None else replace_cookie(data, COOKIE))
        if request is None:
            return None
        # The source first: one that sends too much must not use up what all share.
        if not self.admit(source, now):
            return None
        if not self._total.take(now):
            self._limited += 1
            return None
        answer = self._answer(request, source, place, classic=classic is not None)
        return answer if classic is None else replace(answer, data=replace_cookie(answer.data, classic))

    def _answer(self, request: Message, source: TransportAddress, place: tuple[int, int], *, classic: bool) -> Answer:
        known = _KNOWN if self._places else _KNOWN_ALONE
        try:
            error = self._error(request, known - {RESPONSE_PORT} if classic else known, classic=classic)
            change = request.get(CHANGE_REQUEST) or ChangeRequest()
            port = request.get(RESPONSE_PORT)
        except StunMalformed:
            return Answer(self._refuse(request, 400, "Bad Request", classic=classic), source, place)
        if error is not None:
            return Answer(error, source, place)
        if port == 0:
            return Answer(self._refuse(request, 400, "Bad Request"), source, place)
        answering = (place[0] ^ change.ip, place[1] ^ change.port) if self._places else place
        return Answer(
            self._success(request, source, place, answering, classic=classic),
            (source[0], source[1] if port is None else port),
            answering,
        )

    def receive_message(
        self, data: bytes, source: TransportAddress, *, place: tuple[int, int] = (0, 0)
    ) -> bytes | None:
        """What to say to a message that came over TCP; the shell has asked `admit` first.  Never raises."""
        request = self._read(data)
        if request is None:
            return None
        # There is no connection in which another place could answer (RFC 5780 §6.1).
        error = self._error(request, _KNOWN_ALONE)
        return self._success(request, source, place, place) if error is None else error

    def admit(self, source: TransportAddress, now: float) -> bool:
        """Whether a source may ask now, which uses up one of its requests."""
        if self._sources.take(subscriber(source[0]), now):
            return True
        self._limited += 1
        return False

    def _read(self, data: bytes) -> Message | None:
        try:
            message = decode(data) if HEADER_LENGTH <= len(data) <= MAX_REQUEST else None
        except StunMalformed:
            message = None
        if message is None or message.method != BINDING or message.message_class is not MessageClass.REQUEST:
            self._ignored += 1
            return None
        return message

    def _error(self, request: Message, known: frozenset[Attribute[Any]], *, classic: bool = False) -> bytes | None:
        unknown = request.unknown_required(known)
        if not unknown:
            return None
        return self._refuse(request, 420, "Unknown Attribute", unknown[:_MAX_UNKNOWN], classic=classic)

    def _refuse(
        self, request: Message, code: int, reason: str, unknown: tuple[int, ...] = (), *, classic: bool = False
    ) -> bytes:
        self._refused += 1
        attributes: list[AttributeValue]
        if classic:
            attributes = classic_error(code, reason, unknown)
        else:
            attributes = [ERROR_CODE(ErrorCode(code, reason)), *([UNKNOWN_ATTRIBUTES(unknown)] if unknown else [])]
        return encode(BINDING, MessageClass.ERROR, request.transaction_id, attributes)

    def _success(
        self,
        request: Message,
        source: TransportAddress,
        place: tuple[int, int],
        answering: tuple[int, int],
        *,
        classic: bool = False,
    ) -> bytes:
        self._answered += 1
        attributes = [] if classic else [XOR_MAPPED_ADDRESS(source)]
        if classic or self._places:
            # For RFC 5780's clients too, which tell gateways by it that rewrite addresses in payloads (§6.1 there).
            attributes.append(MAPPED_ADDRESS(source))
        if self._places:
            origin, other = (SOURCE_ADDRESS, CHANGED_ADDRESS) if classic else (RESPONSE_ORIGIN, OTHER_ADDRESS)
            attributes += [origin(self._places[answering]), other(self._places[1 - place[0], 1 - place[1]])]
        return encode(BINDING, MessageClass.SUCCESS, request.transaction_id, attributes)
