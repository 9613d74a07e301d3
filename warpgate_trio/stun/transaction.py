"""A STUN client's request and its answer without I/O: when to send it again, which answer is believed.

Theory of operation.  A `StunTransaction` is one request: its owner sends what `transmit` hands out, gives `receive`
what came in, and calls `handle_timer` at `deadline`, until `done`; then `response` returns or raises.  Over a datagram
socket the request is repeated after RTO, 3 RTO, 7 RTO, ... (RFC 8489 §6.2.1); over a stream it is sent once (§6.2.2).

What is believed: a response to our method with our transaction id, 96 random bits, from where we asked, or from the
one place that we asked the server to answer from.  Anything else is not ours (`receive` says False) and ends nothing,
since anybody may send anything to a UDP port.  What does come from the server can still be a lie: a mapped address
that no host can have, or one of another family, is refused, for it ends up in front of peers as where we can be
reached.
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
"""Seconds to the first repetition: RFC 8489 §6.2.1."""
TRIES: Final = 7
"""Requests in all (Rc there)."""
LAST_WAIT: Final = 16
"""RTOs from the last request to giving up (Rm there): 39.5 s in all with the default RTO."""
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
        # RFC 3489's SOURCE-ADDRESS and CHANGED-ADDRESS: servers add them for its clients, and in its number range.
        transport_address(0x0004, "SOURCE-ADDRESS"),
        transport_address(0x0005, "CHANGED-ADDRESS"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StunAnswer:
    """What a server said about one socket.

    Attributes:
      mapped: from where the server saw the request come.
      server: whom we asked.
      source: from where the answer came; another than `server` only where that was asked for.
      rtt: seconds from the last request to the answer.
      retransmitted: the request was sent more than once, so the answer may be to an earlier one and `rtt` too short.
      other_address: the server's other address and port (RFC 5780), None where it has none.
      response_origin: from where the server says that it answered.
      software: what it calls itself.
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
    """Why `server` cannot have seen a packet from `mapped`, or None.

    Private addresses pass: the server may be in our network, or inside of the carrier's NAT.  Loopback is for servers
    on loopback.
    """
    ip, at = ip_address(mapped[0]), ip_address(server[0])
    if mapped[1] == 0:
        return "port 0"
    if ip.version != at.version:
        return f"an IPv{ip.version} address, asked over IPv{at.version}"
    if scope_of(ip) is AddressScope.LOOPBACK and not at.is_loopback:
        return "a loopback address"
    if scope_of(ip) is AddressScope.NO_HOST or unmapped(ip) is not ip:
        return "an address that no host has"
    return None


@final
class StunTransaction:
    """One request and what comes of it.

    Args:
      request: the encoded request; answers are matched with its method and transaction id.
      server: whom it goes to.
      source: from where the answer comes, when the request asks for another place than `server`.
      rto, tries, last_wait: RFC 8489 §6.2.1's RTO (seconds), Rc, and Rm (in RTOs).
      check: what else an answer must fulfil to be ours, such as a MAC; one that does not is as if it had not come.
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
            raise ValueError(f"rto {rto}, tries {tries}, last_wait {last_wait}: all of them are above zero")
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
        """When `handle_timer` wants to be called; infinity when it is done, or has a request to be sent."""
        return math.inf if self.done else self._deadline

    def start(self, now: float) -> None:
        """Make the first request due; again, it does nothing."""
        if not self._sent:
            self._due = True

    def handle_timer(self, now: float) -> None:
        """Repeat the request, or give up: no answer has come in time."""
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
        """The request, if it is to be sent to `server` now; then it counts as sent."""
        if not self._due or self.done:
            return None
        self._due = False
        self._sent += 1
        self._sent_at = now
        # From now, not from the last deadline: after a pause of this process there is no burst.
        self._deadline = now + self._rto * (self._last_wait if self._sent == self._tries else 2 ** (self._sent - 1))
        return self.request

    def fail(self, error: StunError) -> None:
        """End it from outside: what it was to be sent by is broken."""
        if not self.done:
            self._error = error

    def receive(self, data: bytes, address: TransportAddress, now: float) -> bool:
        """Whether `data`, which came from `address`, is an answer to this request; never raises."""
        try:
            message = decode(data)
        except StunMalformed:
            return False
        return self.receive_message(message, address, now)

    def receive_message(self, message: Message, address: TransportAddress, now: float) -> bool:
        """The same for a message that is decoded already."""
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
        """The response, a success or an error; None where none has come."""
        return self._answer

    def response(self) -> Message:
        """The success response.

        Raises:
          StunRefused: it was an error response.
          StunMalformed: it breaks its format, or must not be understood in part (RFC 8489 §6.3.3).
          StunTimeout: there was none.
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
    """A Binding request; with `change` or `response_port`, RFC 5780's, answered from or to elsewhere."""
    assert len(transaction_id) == TRANSACTION_ID_LENGTH
    attributes: list[AttributeValue] = []
    if change is not None:
        attributes.append(CHANGE_REQUEST(change))
    if response_port is not None:
        attributes.append(RESPONSE_PORT(response_port))
    return encode(BINDING, MessageClass.REQUEST, transaction_id, attributes)


def read_binding_answer(transaction: StunTransaction) -> StunAnswer:
    """What a Binding transaction, which is done, found out.

    Raises:
      StunError: of `StunTransaction.response`; and StunMalformed when the answer says nothing, or what cannot be.
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
        raise StunMalformed(f"the answer of {show_address(transaction.server)} names no mapped address")
    if reason := plausible(mapped, transaction.server):
        raise StunMalformed(f"STUN server {show_address(transaction.server)} says {show_address(mapped)}: {reason}")
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
    """Whether `other` can be another address of `server`; one outside must not have us ask inside."""
    there, here = ip_address(other[0]), ip_address(server[0])
    return (
        plausible(other, server) is None and there != here and scope_of(there) in (AddressScope.PUBLIC, scope_of(here))
    )
