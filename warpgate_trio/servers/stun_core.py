"""The STUN server without I/O: the answer to each request, the address it leaves from, and the rate limits.

Theory of operation.  The answer to a Binding request contains the source address of the request.  With one address this
is the Basic Server of RFC 8489.  With a second address there are four places, two addresses times two ports, and the
server supports RFC 5780: each answer names the place with the other address and port (OTHER-ADDRESS), and over UDP a
CHANGE-REQUEST makes it answer from another place.  Clients of RFC 3489, which have no cookie, are answered over UDP in
their format (`stun_classic`).

*Strangers.*  The source address of a UDP request may be forged.  So a request causes at most one answer of at most
`MAX_ANSWER` bytes, to the IP address that it came from, within the rates of the source, of the networks around it, and
of all sources together.  PADDING, which asks for long answers, is refused as an unknown attribute.  RESPONSE-PORT
(RFC 5780 §7.5), which moves the answer to another port of the same IP address, counts against the same rate.  RFC
3489's RESPONSE-ADDRESS, which moves the answer to any address, is refused as unknown.  Messages other than Binding
requests get no answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, final

from ..errors import StunMalformed
from ..limits import SubscriberRates, TokenBucket
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
"""Bytes of a request: a packet, plus a PADDING attribute (RFC 5780 §7.6) of one more packet."""
MAX_ANSWER: Final = 116
"""Bytes of an answer: the header and four IPv6 addresses, too little for amplification."""
_MAX_UNKNOWN = 8  # types named in UNKNOWN-ATTRIBUTES

_KNOWN: Final[frozenset[Attribute[Any]]] = frozenset(
    # Credentials are not required, so these attributes are accepted and ignored.
    {CHANGE_REQUEST, RESPONSE_PORT, USERNAME, USERHASH, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256}
)
_KNOWN_ALONE: Final = _KNOWN - {CHANGE_REQUEST, RESPONSE_PORT}  # RFC 5780 §6.1: without a second address


@dataclass(frozen=True, slots=True, kw_only=True)
class StunLimits:
    """What strangers can make the server do and hold.

    Attributes:
      rate: requests per second of one source (IPv4 address or IPv6 /64); each wider network may make four times as many
        as the one within it.  Measuring a NAT profile takes about thirty.
      burst: requests of one source at once, after silence; several nodes may be behind one address.
      total_rate: requests per second of all sources together, over UDP, where sources can be forged.
      total_burst: such requests of all sources at once.
      sources: sources and networks whose rate is remembered; beyond that the least recently seen one is forgotten.
      connections: connections over TCP; a node keeps one open per interface.
      connections_per_address: connections from one source; many nodes may be behind one carrier-grade NAT.
      silence: seconds without a request after which a connection is closed; keep-alives come far more often.
      write: seconds in which a client must accept an answer.
    """

    rate: float = 20.0
    burst: int = 100
    total_rate: float = 5000.0
    total_burst: int = 10_000
    sources: int = 8192
    connections: int = 4096
    connections_per_address: int = 64
    silence: float = 300.0
    write: float = 10.0


DEFAULT_LIMITS: Final = StunLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class StunStatistics:
    """Counts of what the server has done so far.

    Attributes:
      answered: requests that succeeded.
      refused: requests that were answered with an error.
      ignored: messages that are not Binding requests.
      limited: requests that exceeded a limit, and got no answer.
    """

    answered: int
    refused: int
    ignored: int
    limited: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A datagram to send to `to` from `place`: the index of the address and of the port, each 0 or 1."""

    data: bytes
    to: TransportAddress
    place: tuple[int, int]


@final
class StunCore:
    """Answers the requests to one server.

    A request is answered at once or never, so `receive` returns the answer, and there is no queue and no timer.

    Args:
      places: the addresses of the four places, by the index of the address and of the port, each 0 or 1; empty for a
        server with one address.
    """

    def __init__(
        self, places: dict[tuple[int, int], TransportAddress] | None = None, limits: StunLimits = DEFAULT_LIMITS
    ) -> None:
        self._places = places or {}
        self._limits = limits
        # UDP and TCP are counted apart: forged UDP sources must not use up the rate of a TCP client there.
        self._datagrams = SubscriberRates(limits.rate, limits.burst, limits.sources)
        self._streams = SubscriberRates(limits.rate, limits.burst, limits.sources)
        self._total = TokenBucket(limits.total_rate, limits.total_burst)
        self._answered = self._refused = self._ignored = self._limited = 0

    def statistics(self) -> StunStatistics:
        return StunStatistics(
            answered=self._answered, refused=self._refused, ignored=self._ignored, limited=self._limited
        )

    def receive(
        self, data: bytes, source: TransportAddress, now: float, *, place: tuple[int, int] = (0, 0)
    ) -> Answer | None:
        """The answer to a datagram that came to `place` from `source`, or None; never raises."""
        classic = classic_id(data)
        request = self._read(data if classic is None else replace_cookie(data, COOKIE))
        if request is None:
            return None
        # The source's limits first: a source that sends too much must not use up the limit of all.
        if not (self._datagrams.take(source[0], now) and self._total.take(now)):
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
        """The answer to a message that came over TCP, or None; call `admit` first.  Never raises."""
        request = self._read(data)
        if request is None:
            return None
        # Another place cannot answer on this connection (RFC 5780 §6.1).
        error = self._error(request, _KNOWN_ALONE)
        return self._success(request, source, place, place) if error is None else error

    def admit(self, source: TransportAddress, now: float) -> bool:
        """Whether the rate limits of a TCP client allow a request now; if so, the request is counted."""
        if self._streams.take(source[0], now):
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
            # For RFC 5780's clients too, which detect by it gateways that rewrite addresses in payloads (§6.1 there).
            attributes.append(MAPPED_ADDRESS(source))
        if self._places:
            origin, other = (SOURCE_ADDRESS, CHANGED_ADDRESS) if classic else (RESPONSE_ORIGIN, OTHER_ADDRESS)
            attributes += [origin(self._places[answering]), other(self._places[1 - place[0], 1 - place[1]])]
        return encode(BINDING, MessageClass.SUCCESS, request.transaction_id, attributes)
