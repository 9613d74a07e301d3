"""A STUN client's request and its response without I/O: retransmission, and which responses are accepted.

Theory of operation.  A `StunTransaction` is one request.  Its owner sends what `transmit` returns, passes received data
to `receive`, and calls `handle_timer` at `deadline`, until it is `done`; then `response` returns or raises.  Over a
datagram socket the request is retransmitted after RTO, 3 RTO, 7 RTO, ... (RFC 8489 §6.2.1); over a stream it is sent
once (§6.2.2).

A response is accepted if it has the method and the 96-bit random transaction id of the request, and comes from the
address that was asked, or the one that the request asked the server to answer from.  Anything else is ignored
(`receive` returns False), since anybody may send anything to a UDP port.  A mapped address is checked even so, because
peers will be told to reach this node there: one that no host can have, or of another family, is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Protocol, final

from ..address.scope import AddressScope, scope_of
from ..errors import StunError, StunMalformed, StunRefused, StunTimeout
from ..sockaddr import TransportAddress, show_address, unmapped
from .codec import (
    BINDING,
    CHANGE_REQUEST,
    ERROR_CODE,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    TRANSACTION_ID_LENGTH,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    Attribute,
    AttributeValue,
    ChangeRequest,
    Message,
    MessageClass,
    decode,
    encode,
    transport_address,
)

__all__ = [
    "DEFAULT_RTO",
    "LAST_WAIT",
    "STREAM_TIMEOUT",
    "TRIES",
    "StunAnswer",
    "StunTransaction",
    "binding_request",
    "plausible",
    "read_binding_answer",
]

DEFAULT_RTO: Final = 0.5
"""Seconds until the first retransmission (RTO, RFC 8489 §6.2.1)."""
TRIES: Final = 7
"""Requests in all (Rc, RFC 8489 §6.2.1)."""
LAST_WAIT: Final = 16
"""RTOs from the last request until giving up (Rm, RFC 8489 §6.2.1): 39.5 s in all with the default RTO."""
STREAM_TIMEOUT: Final = 39.5
"""Seconds for an answer over a stream (Ti, RFC 8489 §6.2.2)."""

_KNOWN: Final[frozenset[Attribute[Any]]] = frozenset(
    {
        MAPPED_ADDRESS,
        XOR_MAPPED_ADDRESS,
        ERROR_CODE,
        UNKNOWN_ATTRIBUTES,
        MESSAGE_INTEGRITY,
        MESSAGE_INTEGRITY_SHA256,
        # RFC 3489's SOURCE-ADDRESS and CHANGED-ADDRESS, which servers add for its clients, are comprehension-required.
        transport_address(0x0004, "SOURCE-ADDRESS"),
        transport_address(0x0005, "CHANGED-ADDRESS"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StunAnswer:
    """The answer of a server to a Binding request.

    Attributes:
      mapped: the server-reflexive address: where the server saw the request come from.
      server: the address that was asked.
      source: the address that the answer came from; other than `server` only if the request asked for that.
      rtt: seconds from the last request to the answer.
      retransmitted: the request was sent more than once, so the answer may be to an earlier one and `rtt` too short.
      other_address: the server's other address and port (RFC 5780); None if it has none, or an implausible one.
      response_origin: the address that the server says it answered from.
      software: the server's SOFTWARE text.
    """

    mapped: TransportAddress
    server: TransportAddress
    source: TransportAddress
    rtt: float
    retransmitted: bool = False
    other_address: TransportAddress | None = None
    response_origin: TransportAddress | None = None
    software: str | None = None


def plausible(mapped: TransportAddress, server: TransportAddress) -> str | None:
    """Why `server` cannot have received a packet from `mapped`; None if it can.

    Private addresses are plausible: the server may be in our network, or inside the carrier's NAT.  Loopback addresses
    are plausible only if the server is on loopback.
    """
    ip, at = ip_address(mapped[0]), ip_address(server[0])
    if mapped[1] == 0:
        return "port 0"
    if ip.version != at.version:
        return f"an IPv{ip.version} address, asked over IPv{at.version}"
    if scope_of(ip) is AddressScope.LOOPBACK and not at.is_loopback:
        return "a loopback address"
    if scope_of(ip) is AddressScope.NO_HOST or unmapped(ip) is not ip:
        return "an address that no host can have"
    return None


@final
class StunTransaction:
    """One request and its response.

    Args:
      request: the encoded request; responses are matched by its method and transaction id.
      server: the address that it is sent to.
      source: the address that the response comes from, if the request asks for another one than `server`.
      rto, tries, last_wait: RFC 8489 §6.2.1's RTO (seconds), Rc, and Rm (in RTOs).
      check: a further condition for responses, such as a valid MAC; a response that fails it is ignored.

    Raises:
      ValueError: `rto`, `tries` or `last_wait` is not positive.
    """

    def __init__(
        self,
        request: bytes,
        server: TransportAddress,
        *,
        source: TransportAddress | None = None,
        rto: float = DEFAULT_RTO,
        tries: int = TRIES,
        last_wait: float = LAST_WAIT,
        check: Check | None = None,
    ) -> None:
        if not (rto > 0 and tries >= 1 and last_wait > 0):
            raise ValueError(f"rto {rto}, tries {tries}, last_wait {last_wait}: all of them have to be above zero")
        parsed = decode(request)
        self.request: Final = request
        self.server: Final = server
        self.source: Final = source or server
        self.transaction_id: Final = parsed.transaction_id
        self._method = parsed.method
        self._check = check
        self._rto = rto
        self._tries = tries
        self._last_wait = last_wait
        self._sent = 0
        self._sent_at = 0.0
        self._deadline = math.inf
        self._due = False
        self._answer: Message | None = None
        self._error: StunError | None = None
        self.rtt: float | None = None
        """Seconds from the last request to the answer; None before it."""

    @property
    def sent(self) -> int:
        """Requests handed out so far."""
        return self._sent

    @property
    def done(self) -> bool:
        return self._answer is not None or self._error is not None

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity if it is done, or `transmit` is to be called first."""
        return math.inf if self.done else self._deadline

    def start(self, now: float) -> None:
        """Make the first request due.  Idempotent."""
        if not self._sent:
            self._due = True

    def handle_timer(self, now: float) -> None:
        """If the deadline has passed, make a retransmission due, or give up after the last request."""
        if now < self.deadline:
            return
        self._deadline = math.inf
        if self._sent == self._tries:
            self._error = StunTimeout(
                f"no answer from STUN server {show_address(self.server)} to {self._sent} request(s)"
            )
        else:
            self._due = True

    def transmit(self, now: float) -> bytes | None:
        """The request if it is due, to be sent to `server` now; it counts as sent.  Otherwise None."""
        if not self._due or self.done:
            return None
        self._due = False
        self._sent += 1
        self._sent_at = now
        # Counted from now, not from the last deadline, so that a pause of this process causes no burst.
        self._deadline = now + self._rto * (self._last_wait if self._sent == self._tries else 2 ** (self._sent - 1))
        return self.request

    def fail(self, error: StunError) -> None:
        """End it from outside, because its socket is broken."""
        if not self.done:
            self._error = error

    def receive(self, data: bytes, address: TransportAddress, now: float) -> bool:
        """Process a datagram from `address`; returns whether it is a response to this request.  Never raises."""
        try:
            message = decode(data)
        except StunMalformed:
            return False
        return self.receive_message(message, address, now)

    def receive_message(self, message: Message, address: TransportAddress, now: float) -> bool:
        """The same for a decoded message."""
        if (
            message.transaction_id != self.transaction_id
            or message.method != self._method
            or message.message_class not in (MessageClass.SUCCESS, MessageClass.ERROR)
            or address != self.source
            or not self._sent
            or (self._check is not None and not self._check(message))
        ):
            return False
        if not self.done:
            self.rtt = now - self._sent_at
            self._answer = message
        return True

    @property
    def answer(self) -> Message | None:
        """The response, a success or an error; None if none has come."""
        return self._answer

    def response(self) -> Message:
        """The success response.

        Raises:
          StunRefused: the response is an error.
          StunMalformed: the response is an error without a valid error code.
          StunTimeout: there was no response.
          StunError: `fail` was called with it.
          RuntimeError: the transaction is not done.
        """
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise RuntimeError("the transaction is not done")
        if self._answer.message_class is MessageClass.ERROR:
            error = self._answer.get(ERROR_CODE)
            if error is None:
                raise StunMalformed(f"an error response of {show_address(self.server)} without an error code")
            raise StunRefused(error.code, f"STUN server {show_address(self.server)}: {error.code} {error.reason}")
        return self._answer


class Check(Protocol):
    def __call__(self, message: Message, /) -> bool: ...


def binding_request(
    transaction_id: bytes, *, change: ChangeRequest | None = None, response_port: int | None = None
) -> bytes:
    """A Binding request.

    Args:
      change: request an answer from another address or port of the server (RFC 5780).
      response_port: request an answer to this port of our address (RFC 5780).
    """
    assert len(transaction_id) == TRANSACTION_ID_LENGTH
    attributes: list[AttributeValue] = []
    if change is not None:
        attributes.append(CHANGE_REQUEST(change))
    if response_port is not None:
        attributes.append(RESPONSE_PORT(response_port))
    return encode(BINDING, MessageClass.REQUEST, transaction_id, attributes)


def read_binding_answer(transaction: StunTransaction) -> StunAnswer:
    """The answer of a Binding transaction that is done.

    Raises:
      StunError: as `StunTransaction.response`.
      StunMalformed: the response has no mapped address, an implausible one, or an unknown required attribute.
    """
    message = transaction.response()
    if unknown := message.unknown_required(_KNOWN):
        raise StunMalformed(
            f"the answer of {show_address(transaction.server)} needs attributes that this release does not know: "
            + ", ".join(f"{each:#06x}" for each in unknown[:8])
        )
    mapped = message.get(XOR_MAPPED_ADDRESS)
    if mapped is None:
        mapped = message.get(MAPPED_ADDRESS)  # servers of RFC 3489 that copy the cookie
    if mapped is None:
        raise StunMalformed(f"the answer of {show_address(transaction.server)} has no mapped address")
    if reason := plausible(mapped, transaction.server):
        raise StunMalformed(
            f"STUN server {show_address(transaction.server)} reports the implausible mapped address "
            f"{show_address(mapped)}: {reason}"
        )
    other = message.get(OTHER_ADDRESS)
    if other is not None and not _may_be_asked(other, transaction.server):
        other = None
    assert transaction.rtt is not None
    return StunAnswer(
        mapped=mapped,
        server=transaction.server,
        source=transaction.source,
        rtt=transaction.rtt,
        retransmitted=transaction.sent > 1,
        other_address=other,
        response_origin=message.get(RESPONSE_ORIGIN),
        software=message.get(SOFTWARE),
    )


def _may_be_asked(other: TransportAddress, server: TransportAddress) -> bool:
    """Whether `other` can be another address of `server`; a public server must not direct requests to private ones."""
    there, here = ip_address(other[0]), ip_address(server[0])
    return (
        plausible(other, server) is None and there != here and scope_of(there) in (AddressScope.PUBLIC, scope_of(here))
    )
