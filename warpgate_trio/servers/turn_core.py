"""The TURN server without I/O (RFC 8656): relayed addresses for clients behind NATs and firewalls.

Theory of operation.  The shell passes messages of clients to `receive`, and datagrams that arrive at a relayed address
to `receive_from_peer`.  `transmit` returns the messages to send, each with its sink (`turn_allocations`).  The core
opens no sockets.  It requests relay sockets in `wanted`; the shell reports the result by `opened` or `not_opened`.  The
shell closes the sockets that `take_ended` returns at once, before its next checkpoint.

Every request needs credentials (`turn_credentials`); a request without any gets the realm and a nonce.  Over UDP, where
source addresses can be forged, a stranger can cause one answer of at most `MAX_CHALLENGE` bytes per request, within the
rate limits.  Quotas bound what a client can make the server hold, and `PeerRules` to which peers it can send.

Not implemented: TCP allocations (RFC 6062), port reservation, DONT-FRAGMENT, and two families in one allocation.
A request for one of them gets an error, or an answer without it where RFC 8656 lets servers ignore it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final, Generic, TypeVar, final

from ..errors import StunMalformed
from ..limits import SubscriberRates, TokenBucket
from ..sockaddr import FAMILIES, Family, TransportAddress
from ..stun.codec import (
    BINDING,
    ERROR_CODE,
    HEADER_LENGTH,
    TRANSACTION_ID_LENGTH,
    UNKNOWN_ATTRIBUTES,
    Attribute,
    AttributeValue,
    ErrorCode,
    Message,
    MessageClass,
    decode,
    encode,
)
from ..turn import messages as turn
from ..turn.framing import CHANNEL_HEADER_LENGTH
from ..turn.messages import Code, Method
from .turn_allocations import Allocation, Allocations, Outgoing, TurnSink
from .turn_authentication import Refusal, TurnAuthentication
from .turn_credentials import TurnCredentials, TurnNonces
from .turn_limits import DEFAULT_LIMITS, TurnLimits, TurnStatistics
from .turn_peers import PeerRules
from .turn_requests import CHANNEL_NUMBERS, UNDERSTOOD, TurnRequest, TurnRequests, allocated

__all__ = [
    "MAX_CHALLENGE",
    "MAX_MESSAGE",
    "TurnCore",
]

MAX_MESSAGE: Final = 2048
"""Bytes of a client's message, ChannelData included: an Ethernet packet, and what a stream adds to it."""
MAX_CHALLENGE: Final = 200
"""Bytes of the answer to an unauthenticated request: error, realm and nonce.  A request has at least 28."""
REMINDERS: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds after the start of the shutdown at which clients that have not refreshed since get a Binding indication; it
is repeated because datagrams get lost."""
MAX_REALM: Final = 60
"""Characters of a realm, which every challenge contains."""
_FIRST_BYTE: Final = CHANNEL_NUMBERS[0] >> 8  # of ChannelData
_LAST_BYTE: Final = CHANNEL_NUMBERS[-1] >> 8
_SEND_UNDERSTOOD: Final[frozenset[Attribute[Any]]] = frozenset({turn.XOR_PEER_ADDRESS, turn.DATA})
_REASONS: Final[dict[int, str]] = {
    Code.BAD_REQUEST: "Bad Request",
    Code.UNAUTHENTICATED: "Unauthorized",
    Code.FORBIDDEN: "Forbidden",
    Code.UNKNOWN_ATTRIBUTE: "Unknown Attribute",
    Code.ALLOCATION_MISMATCH: "Allocation Mismatch",
    Code.STALE_NONCE: "Stale Nonce",
    Code.FAMILY_NOT_SUPPORTED: "Address Family not Supported",
    Code.WRONG_CREDENTIALS: "Wrong Credentials",
    Code.TRANSPORT_NOT_SUPPORTED: "Unsupported Transport Protocol",
    Code.PEER_FAMILY_MISMATCH: "Peer Address Family Mismatch",
    Code.ALLOCATION_QUOTA_REACHED: "Allocation Quota Reached",
    Code.INSUFFICIENT_CAPACITY: "Insufficient Capacity",
}


Sink = TypeVar("Sink", bound=TurnSink)


@final
class TurnCore(Generic[Sink]):
    """All clients of one server.

    Args:
      credentials: the users that are served.
      rules: the peers that they may send to.
      entropy: ``entropy(n)`` returns n unpredictable bytes.
      wall_time: returns Unix seconds, by which credentials expire.
      families: the families of relayed addresses that the shell can open.

    Attributes:
      wanted: allocations whose relay sockets are to be opened.

    Raises:
      ValueError: the realm is too long, or not ASCII.
    """

    def __init__(
        self,
        credentials: TurnCredentials,
        rules: PeerRules,
        *,
        entropy: Callable[[int], bytes],
        wall_time: Callable[[], float],
        families: Collection[Family] = FAMILIES,
        limits: TurnLimits = DEFAULT_LIMITS,
    ) -> None:
        if len(credentials.realm) > MAX_REALM or not credentials.realm.isascii():
            raise ValueError(f"a realm is ASCII of at most {MAX_REALM} characters")
        self._authentication = TurnAuthentication(credentials, TurnNonces(entropy(32)), wall_time)
        # UDP and streams are counted apart: forged UDP sources must not use up the rate of a TCP client there.
        self._datagrams = SubscriberRates(limits.rate, limits.burst, limits.sources)
        self._streams = SubscriberRates(limits.rate, limits.burst, limits.sources)
        self._strangers = TokenBucket(limits.total_rate, limits.total_burst)
        self._allocations: Allocations[Sink] = Allocations(entropy)
        self._requests = TurnRequests(self._allocations, credentials, rules, families, limits)
        self.wanted: Final = self._requests.wanted
        self._entropy = entropy
        self._reminders: deque[float] = deque()
        self._answered = self._challenged = self._refused = self._limited = self._ignored = 0

    def statistics(self) -> TurnStatistics:
        """See `TurnStatistics`."""
        return TurnStatistics(
            allocations=len(self._allocations),
            permissions=sum(len(each.permissions) for each in self._allocations),
            channels=sum(len(each.channels) for each in self._allocations),
            answered=self._answered,
            challenged=self._challenged,
            refused=self._refused,
            limited=self._limited,
            ignored=self._ignored,
            relayed=self._allocations.relayed,
            relayed_bytes=self._allocations.relayed_bytes,
            dropped=self._allocations.dropped,
        )

    # -- Input, output and time ----------------------------------------------------------------------------------------

    def receive(self, data: bytes, sink: Sink, source: TransportAddress, now: float) -> None:
        """Process one message of a client: a datagram, or a message from a stream.  Never raises."""
        if len(data) >= CHANNEL_HEADER_LENGTH and _FIRST_BYTE <= data[0] <= _LAST_BYTE:
            self._allocations.from_channel(data, sink, source)
        else:
            self._receive_message(data, sink, source, now)

    def receive_from_peer(self, allocation: Allocation[Sink], data: bytes, peer: TransportAddress) -> None:
        """Process a datagram that arrived at a relayed address.  Never raises."""
        self._allocations.from_peer(allocation, data, peer)

    def transmit(self, now: float) -> list[Outgoing[Sink]]:
        """The messages that are to be sent now, in order; they count as sent."""
        found, self._allocations.out = self._allocations.out, []
        return found

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity if no timer runs."""
        return min(self._allocations.deadline, self._reminders[0] if self._reminders else math.inf)

    def handle_timer(self, now: float) -> None:
        """End what has expired, and send reminders that are due."""
        self._remind(now)
        for allocation in self._allocations.take_due(now):
            self._requests.end(allocation)

    # -- Shutdown ------------------------------------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """Shut down: refuse new allocations, and make clients that have one refresh it.  Idempotent."""
        if not self.draining:
            self._requests.draining = True
            self._reminders.extend(now + each for each in REMINDERS)
            self._remind(now)

    def _remind(self, now: float) -> None:
        """Send the reminders that are due: Binding indications to clients that do not know of the shutdown yet.

        TURN has no message that announces a shutdown.  A server can only answer a Refresh with a short lifetime
        (`LAST_LIFETIME`).  A Binding indication makes a client of this package refresh; other clients ignore it (RFC
        8489 §3).
        """
        while self._reminders and self._reminders[0] <= now:
            self._reminders.popleft()
            for allocation in self._allocations:
                if not allocation.told:
                    data = encode(BINDING, MessageClass.INDICATION, self._entropy(TRANSACTION_ID_LENGTH), ())
                    self._allocations.out.append((allocation.sink, data, allocation.source))

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._requests.draining

    @property
    def is_over(self) -> bool:
        """Whether the server drains and has no allocation left."""
        return self.draining and not self._requests.held

    # -- Relays --------------------------------------------------------------------------------------------------------

    def take_wanted(self) -> list[Allocation[Sink]]:
        """Take the allocations in `wanted`.

        The shell opens their relay sockets before it processes more from that client, and calls `opened` or
        `not_opened` for each.
        """
        found = self.wanted.copy()
        self.wanted.clear()
        return found

    def opened(self, allocation: Allocation[Sink], relay: Sink, relayed: TransportAddress, now: float) -> bool:
        """A relay socket is open, with its relayed address.

        Returns False if the allocation has ended meanwhile; the shell then closes the socket.
        """
        if allocation.ended:
            return False
        self._allocations.open(allocation, relay, relayed)
        self._allocations.renew(allocation, now + allocation.lifetime)
        self._say(Method.ALLOCATE, allocation.transaction_id, allocation.client, allocated(allocation), allocation.key)
        return True

    def not_opened(self, allocation: Allocation[Sink], now: float) -> None:
        """A relay socket could not be opened, for lack of a port, a file descriptor or an address."""
        if not allocation.ended:
            self._requests.end(allocation)
            refusal = Refusal(Code.INSUFFICIENT_CAPACITY)
            self._say_error(Method.ALLOCATE, allocation.transaction_id, allocation.client, refusal, allocation.key, now)

    def lost(self, allocation: Allocation[Sink]) -> None:
        """The relay socket of an allocation is closed, for whatever reason.  Idempotent."""
        if not allocation.ended:
            self._requests.end(allocation)

    def take_ended(self) -> list[Sink]:
        """Take the relay sockets of ended allocations, which the shell has to close at once."""
        found, self._allocations.ended = self._allocations.ended, []
        return found

    def has_allocation(self, sink: Sink, source: TransportAddress) -> bool:
        """Whether a client has an allocation, or one that is being opened."""
        return self._allocations.of(sink, source) is not None

    def disconnect(self, sink: Sink, source: TransportAddress) -> None:
        """A client's connection has ended, and so does its allocation (RFC 8656 §3.1)."""
        allocation = self._allocations.of(sink, source)
        if allocation is not None:
            self._requests.end(allocation)

    # -- Messages ------------------------------------------------------------------------------------------------------

    def _receive_message(self, data: bytes, sink: Sink, source: TransportAddress, now: float) -> None:
        try:
            message = decode(data) if HEADER_LENGTH <= len(data) <= MAX_MESSAGE else None
        except StunMalformed:
            message = None
        if message is None:
            self._ignored += 1
        elif message.message_class is MessageClass.INDICATION and message.method == Method.SEND:
            self._send(message, sink, source)
        elif message.message_class is not MessageClass.REQUEST or message.method not in UNDERSTOOD:
            self._ignored += 1
        elif not (self._streams if sink.is_stream else self._datagrams).take(source[0], now):
            self._limited += 1
        else:
            self._answer(message, sink, source, now)

    def _send(self, message: Message, sink: Sink, source: TransportAddress) -> None:
        """Process a Send indication (RFC 8656 §11.2); a bad one is dropped."""
        allocation = self._allocations.of(sink, source)
        try:
            peer, data = message.get(turn.XOR_PEER_ADDRESS), message.get(turn.DATA)
        except StunMalformed:
            peer = data = None
        permission = None if allocation is None or peer is None else allocation.permissions.get(peer[0])
        if peer is None or data is None or permission is None or message.unknown_required(_SEND_UNDERSTOOD):
            self._allocations.dropped += 1
        else:
            self._allocations.to_peer(permission.allocation, peer, data, relays_only=permission.relays_only)

    def _answer(self, message: Message, sink: Sink, source: TransportAddress, now: float) -> None:
        key: bytes | None = None
        try:
            allocation = self._allocations.of(sink, source)
            known = None if allocation is None else (allocation.username, allocation.key)
            username, key = self._authentication.judge(message, source, now, known)
            attributes = self._requests.handle(TurnRequest(message, sink, source, username, key, now))
            if attributes is not None:
                self._say(message.method, message.transaction_id, (sink, source), attributes, key)
        except (StunMalformed, Refusal) as error:
            refusal = error if isinstance(error, Refusal) else Refusal(Code.BAD_REQUEST)
            if key is not None or self._may_answer_stranger(sink, now):
                self._say_error(message.method, message.transaction_id, (sink, source), refusal, key, now)

    def _may_answer_stranger(self, sink: Sink, now: float) -> bool:
        """Whether an unauthenticated request may be answered; over a stream always, as its source is not forged."""
        if sink.is_stream or self._strangers.take(now):
            return True
        self._limited += 1
        return False

    # -- Answers -------------------------------------------------------------------------------------------------------

    def _say(
        self,
        method: int,
        transaction_id: bytes,
        client: tuple[Sink, TransportAddress],
        attributes: list[AttributeValue],
        key: bytes,
    ) -> None:
        self._answered += 1
        data = encode(method, MessageClass.SUCCESS, transaction_id, attributes, integrity=key)
        self._allocations.out.append((client[0], data, client[1]))

    def _say_error(
        self,
        method: int,
        transaction_id: bytes,
        client: tuple[Sink, TransportAddress],
        refusal: Refusal,
        key: bytes | None,
        now: float,
    ) -> None:
        attributes = [ERROR_CODE(ErrorCode(refusal.code, _REASONS[refusal.code]))]
        if refusal.code in (Code.UNAUTHENTICATED, Code.STALE_NONCE):
            self._challenged += 1
            attributes += self._authentication.challenge(client[1], now)
        else:
            self._refused += 1
        if refusal.unknown:
            attributes.append(UNKNOWN_ATTRIBUTES(refusal.unknown))
        data = encode(method, MessageClass.ERROR, transaction_id, attributes, integrity=key)
        self._allocations.out.append((client[0], data, client[1]))
