"""The TURN server without I/O (RFC 8656): relayed addresses for clients behind NATs and firewalls.

Theory of operation.  The shell gives what clients sent to `receive`, and what came to a relayed address to
`receive_from_peer`; `transmit` hands out what is to be sent, and by which sink (`turn_allocations`).  The core opens no
sockets: it asks for relays in `wanted`, is told of them by `opened` or `not_opened`, and hands out those that are
over in `take_ended`, in the same step as what ended them.

Every request but the first needs credentials (`turn_credentials`); the first gets the realm and a nonce.  What a
stranger can make the server do over UDP, where sources are forged, is one answer of `MAX_CHALLENGE` bytes at most to a
request, within the rates.  What a client can make it hold is bounded by quotas, and whom it can send to by `PeerRules`.

Left out: TCP allocations (RFC 6062), reserved ports, DONT-FRAGMENT, two families in one allocation.  Who needs one of
them is told so, or gets an answer without it where RFC 8656 has servers ignore it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final, Generic, TypeVar, final

from ..errors import StunMalformed
from ..limits import TokenBucket, TokenBuckets, subscriber
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
"""Bytes of a message of a client, ChannelData included: a packet of an Ethernet, and what a stream adds to it."""
MAX_CHALLENGE: Final = 200
"""Bytes of an answer to who has shown no credentials: error, realm and nonce; a request has 28 at least."""
REMINDERS: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds after which a server that is shut down has its clients ask, those that have not: datagrams get lost."""
MAX_REALM: Final = 60
"""Characters of a realm, which every challenge repeats."""
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
      credentials: whose users are served.
      rules: whom they may send to.
      entropy: gives unpredictable bytes, as many as are asked for.
      wall_time: gives Unix seconds, by which credentials expire.
      families: of the relayed addresses that the shell can open.

    Attributes:
      wanted: allocations whose relays are to be opened.

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
        # Those of streams apart: who forges a source over UDP does not use up what its owner has there.
        self._sources: TokenBuckets[tuple[bool, str]] = TokenBuckets(limits.rate, limits.burst, limits.sources)
        self._strangers = TokenBucket(limits.total_rate, limits.total_burst)
        self._allocations: Allocations[Sink] = Allocations(entropy)
        self._requests = TurnRequests(self._allocations, credentials, rules, families, limits)
        self.wanted: Final = self._requests.wanted
        self._entropy = entropy
        self._reminders: deque[float] = deque()
        self._answered = self._challenged = self._refused = self._limited = self._ignored = 0

    def statistics(self) -> TurnStatistics:
        """What it holds, and what it has done."""
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

    # -- The dialect ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, sink: Sink, source: TransportAddress, now: float) -> None:
        """Take one message of a client: a datagram, or what a stream's reader cut off.  Never raises."""
        if len(data) >= CHANNEL_HEADER_LENGTH and _FIRST_BYTE <= data[0] <= _LAST_BYTE:
            self._allocations.from_channel(data, sink, source)
        else:
            self._receive_message(data, sink, source, now)

    def receive_from_peer(self, allocation: Allocation[Sink], data: bytes, peer: TransportAddress) -> None:
        """Take a datagram that came to a relayed address.  Never raises."""
        self._allocations.from_peer(allocation, data, peer)

    def transmit(self, now: float) -> list[Outgoing[Sink]]:
        """What is to be sent now, in order; it counts as sent."""
        found, self._allocations.out = self._allocations.out, []
        return found

    @property
    def deadline(self) -> float:
        """When `handle_timer` wants to be called; infinity when nothing is held."""
        return min(self._allocations.deadline, self._reminders[0] if self._reminders else math.inf)

    def handle_timer(self, now: float) -> None:
        """End what is over, and tell whom there is something to tell."""
        self._remind(now)
        for allocation in self._allocations.take_due(now):
            self._requests.end(allocation)

    # -- Its end -------------------------------------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """The server is shut down: it makes no allocations any more, and has the clients that have some ask."""
        if not self.draining:
            self._requests.draining = True
            self._reminders.extend(now + each for each in REMINDERS)
            self._remind(now)

    def _remind(self, now: float) -> None:
        """TURN has no word by which clients could be told, but when they ask (`LAST_LIFETIME`).

        So they get a Binding indication, which means nothing to others (RFC 8489 §3); a client of ours asks then.
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
        """Whether the server drains, and has no allocation left."""
        return self.draining and not self._requests.held

    # -- Relays --------------------------------------------------------------------------------------------------------

    def take_wanted(self) -> list[Allocation[Sink]]:
        """What is `wanted`: the shell opens their relays before it goes on with that client, and says `opened` or
        `not_opened`.
        """
        found = self.wanted.copy()
        self.wanted.clear()
        return found

    def opened(self, allocation: Allocation[Sink], relay: Sink, relayed: TransportAddress, now: float) -> bool:
        """A relay is open, and is reached at an address.  False: nobody wants it any more, and the shell closes it."""
        if allocation.ended:
            return False
        self._allocations.open(allocation, relay, relayed)
        self._allocations.renew(allocation, now + allocation.lifetime)
        self._say(Method.ALLOCATE, allocation.transaction_id, allocation.client, allocated(allocation), allocation.key)
        return True

    def not_opened(self, allocation: Allocation[Sink], now: float) -> None:
        """There is no port, no descriptor or no address for a relay."""
        if not allocation.ended:
            self._requests.end(allocation)
            refusal = Refusal(Code.INSUFFICIENT_CAPACITY)
            self._say_error(Method.ALLOCATE, allocation.transaction_id, allocation.client, refusal, allocation.key, now)

    def lost(self, allocation: Allocation[Sink]) -> None:
        """Its relay is closed, for whatever reason; again, it does nothing."""
        if not allocation.ended:
            self._requests.end(allocation)

    def take_ended(self) -> list[Sink]:
        """Relays that are over, for the shell to close before anything else happens."""
        found, self._allocations.ended = self._allocations.ended, []
        return found

    def has_allocation(self, sink: Sink, source: TransportAddress) -> bool:
        """Whether a client has one, or will."""
        return self._allocations.of(sink, source) is not None

    def disconnect(self, sink: Sink, source: TransportAddress) -> None:
        """A client's connection is over, and so is its allocation (RFC 8656 §3.1)."""
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
        elif not self._sources.take((sink.is_stream, subscriber(source[0])), now):
            self._limited += 1
        else:
            self._answer(message, sink, source, now)

    def _send(self, message: Message, sink: Sink, source: TransportAddress) -> None:
        """A Send indication (RFC 8656 §11.2): whatever is wrong with one, it is dropped."""
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
        """Whether there is an answer for who has shown no credentials; over a stream no source is forged."""
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
