"""The processing of authenticated TURN requests (RFC 8656 §7 to §12).  No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Generic, NamedTuple, final

from ..sockaddr import Family, TransportAddress, parse_ip, plain_address
from ..stun.codec import (
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    REALM,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    AttributeValue,
    Message,
)
from ..turn import messages as turn
from ..turn.messages import Code, Method
from .turn_allocations import Allocation, Allocations, Channel, Permission, Sink
from .turn_authentication import Refusal
from .turn_credentials import TurnCredentials
from .turn_limits import TurnLimits, TurnQuotas
from .turn_peers import PeerRules

__all__ = [
    "CHANNEL_LIFETIME",
    "CHANNEL_NUMBERS",
    "LAST_LIFETIME",
    "MAX_LIFETIME",
    "PERMISSION_LIFETIME",
    "UNDERSTOOD",
    "TurnRequest",
    "TurnRequests",
    "allocated",
]

PERMISSION_LIFETIME: Final = 300.0
"""Seconds that a permission lasts (RFC 8656 §9); only a request renews it."""
CHANNEL_LIFETIME: Final = 600.0
"""Seconds that a channel lasts (RFC 8656 §12); until then datagrams from its peer need no permission."""
MAX_LIFETIME: Final = 3600
"""Seconds that an allocation is granted at most (RFC 8656 §7.2)."""
LAST_LIFETIME: Final = 20
"""Seconds that a Refresh is granted during the shutdown.  A server in normal operation grants the default at least (RFC
8656 §7.2), so this tells the client; and a client of this package refreshes again in half of the time."""
CHANNEL_NUMBERS: Final = range(0x4000, 0x7FFF)
"""Channel numbers, those of RFC 5766 because many clients still use it; RFC 8656 has only the first 4,096 of them."""

_KNOWN: Final[frozenset[Attribute[Any]]] = frozenset(
    {USERNAME, USERHASH, REALM, NONCE, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256}
)
UNDERSTOOD: Final[dict[int, frozenset[Attribute[Any]]]] = {
    Method.ALLOCATE: _KNOWN
    | {turn.LIFETIME, turn.REQUESTED_TRANSPORT, turn.REQUESTED_ADDRESS_FAMILY, turn.EVEN_PORT, turn.RESERVATION_TOKEN},
    Method.REFRESH: _KNOWN | {turn.LIFETIME, turn.REQUESTED_ADDRESS_FAMILY},
    Method.CREATE_PERMISSION: _KNOWN | {turn.XOR_PEER_ADDRESS},
    Method.CHANNEL_BIND: _KNOWN | {turn.XOR_PEER_ADDRESS, turn.CHANNEL_NUMBER},
}
"""The attributes that are understood in a request, by method."""
_MAX_UNKNOWN: Final = 8


@final
class TurnRequest(NamedTuple, Generic[Sink]):
    """An authenticated request."""

    message: Message
    sink: Sink
    source: TransportAddress
    username: str
    key: bytes
    now: float


@final
class TurnRequests(Generic[Sink]):
    """Handles authenticated requests.

    Attributes:
      wanted: allocations whose relay sockets are to be opened.
      draining: the server is being shut down: new allocations are refused.
    """

    def __init__(
        self,
        allocations: Allocations[Sink],
        credentials: TurnCredentials,
        rules: PeerRules,
        families: Collection[Family],
        limits: TurnLimits,
    ) -> None:
        self._allocations = allocations
        self._credentials = credentials
        self._rules = rules
        self._families = families
        self._limits = limits
        self._quotas = TurnQuotas(limits)
        self._handlers: Final[dict[int, Callable[[TurnRequest[Sink]], list[AttributeValue] | None]]] = {
            Method.ALLOCATE: self._allocate,
            Method.REFRESH: self._refresh,
            Method.CREATE_PERMISSION: self._create_permission,
            Method.CHANNEL_BIND: self._channel_bind,
        }
        self.wanted: Final[list[Allocation[Sink]]] = []
        self.draining: bool = False

    @property
    def held(self) -> int:
        """The number of allocations."""
        return self._quotas.held

    def handle(self, request: TurnRequest[Sink]) -> list[AttributeValue] | None:
        """Handle a request; returns the attributes of the success response.

        None: an allocation is in `wanted`, or its relay is being opened; the answer follows when it is open.

        Raises:
          Refusal: the response is an error.
          StunMalformed: an attribute is malformed.
        """
        if unknown := request.message.unknown_required(UNDERSTOOD[request.message.method]):
            raise Refusal(Code.UNKNOWN_ATTRIBUTE, unknown[:_MAX_UNKNOWN])
        return self._handlers[request.message.method](request)

    def end(self, allocation: Allocation[Sink]) -> None:
        """End an allocation at once."""
        self._allocations.end(allocation)
        self._quotas.give_back(allocation.host, allocation.account)

    def _allocate(self, request: TurnRequest[Sink]) -> list[AttributeValue] | None:
        """RFC 8656 §7.2."""
        message, sink, source = request.message, request.sink, request.source
        allocation = self._allocations.of(sink, source)
        if allocation is not None:
            if allocation.transaction_id != message.transaction_id:
                raise Refusal(Code.ALLOCATION_MISMATCH)
            # A retransmission: its answer was lost, or is still to come.
            return None if allocation.relayed is None else allocated(allocation)
        if self.draining:
            raise Refusal(Code.INSUFFICIENT_CAPACITY)
        transport = message.get(turn.REQUESTED_TRANSPORT)
        if transport is None:
            raise Refusal(Code.BAD_REQUEST)
        if transport != turn.UDP_PROTOCOL:
            raise Refusal(Code.TRANSPORT_NOT_SUPPORTED)
        family = message.get(turn.REQUESTED_ADDRESS_FAMILY) or 4
        if family not in self._families:
            raise Refusal(Code.FAMILY_NOT_SUPPORTED)
        even_port = message.get(turn.EVEN_PORT)
        if even_port or message.get(turn.RESERVATION_TOKEN) is not None:  # True: reserve the next port too
            raise Refusal(Code.INSUFFICIENT_CAPACITY)
        lifetime = _granted(message.get(turn.LIFETIME))
        account = self._credentials.account(request.username)
        if not self._quotas.take(source[0], account):
            raise Refusal(Code.ALLOCATION_QUOTA_REACHED)
        allocation = Allocation(
            sink=sink,
            source=source,
            family=family,
            username=request.username,
            account=account,
            key=request.key,
            transaction_id=message.transaction_id,
            lifetime=lifetime,
            even_port=even_port is not None,
        )
        self._allocations.add(allocation)
        self.wanted.append(allocation)
        return None

    def _refresh(self, request: TurnRequest[Sink]) -> list[AttributeValue]:
        """RFC 8656 §8.2."""
        allocation = self._own(request)
        family = request.message.get(turn.REQUESTED_ADDRESS_FAMILY)
        if family is not None and family != allocation.family:
            raise Refusal(Code.PEER_FAMILY_MISMATCH)
        lifetime = request.message.get(turn.LIFETIME)
        if lifetime == 0:
            self.end(allocation)
            return [turn.LIFETIME(0)]
        allocation.lifetime = LAST_LIFETIME if self.draining else _granted(lifetime)
        allocation.told = self.draining
        self._allocations.renew(allocation, request.now + allocation.lifetime)
        return [turn.LIFETIME(allocation.lifetime)]

    def _create_permission(self, request: TurnRequest[Sink]) -> list[AttributeValue]:
        """RFC 8656 §10.2; permissions for all of the peers are installed, or none."""
        allocation = self._own(request)
        peers = request.message.get_all(turn.XOR_PEER_ADDRESS)
        if not peers:
            raise Refusal(Code.BAD_REQUEST)
        judged = {peer[0]: self._judge(allocation, peer) for peer in peers}
        if len(allocation.permissions.keys() | judged.keys()) > self._limits.permissions:
            raise Refusal(Code.INSUFFICIENT_CAPACITY)
        for ip, relays_only in judged.items():
            self._permit(allocation, ip, relays_only, request.now)
        return []

    def _channel_bind(self, request: TurnRequest[Sink]) -> list[AttributeValue]:
        """RFC 8656 §12.2."""
        allocation = self._own(request)
        number, peer = request.message.get(turn.CHANNEL_NUMBER), request.message.get(turn.XOR_PEER_ADDRESS)
        if number is None or number not in CHANNEL_NUMBERS or peer is None or not peer[1]:
            raise Refusal(Code.BAD_REQUEST)
        channel = allocation.channels.get(number)
        if channel is not allocation.channel_of.get(peer):
            raise Refusal(Code.BAD_REQUEST)  # the number is bound to another peer, or the peer to another number
        relays_only = self._judge(allocation, peer)
        if channel is None and len(allocation.channels) >= self._limits.channels:
            raise Refusal(Code.INSUFFICIENT_CAPACITY)
        if peer[0] not in allocation.permissions and len(allocation.permissions) >= self._limits.permissions:
            raise Refusal(Code.INSUFFICIENT_CAPACITY)
        if channel is None:
            channel = Channel(allocation, number, peer)
            allocation.channels[number] = allocation.channel_of[peer] = channel
        channel.is_relay, channel.relays_only = self._allocations.is_relay(peer), relays_only
        self._allocations.renew(channel, request.now + CHANNEL_LIFETIME)
        self._permit(allocation, peer[0], relays_only, request.now)
        return []

    def _own(self, request: TurnRequest[Sink]) -> Allocation[Sink]:
        """The allocation of the request's client, if its user may use it."""
        allocation = self._allocations.of(request.sink, request.source)
        if allocation is None or allocation.relay is None:
            raise Refusal(Code.ALLOCATION_MISMATCH)
        if request.username != allocation.username and (
            not allocation.account or self._credentials.account(request.username) != allocation.account
        ):
            raise Refusal(Code.WRONG_CREDENTIALS)
        return allocation

    def _judge(self, allocation: Allocation[Sink], peer: TransportAddress) -> bool:
        """Check a peer; returns whether it is permitted only because it is a relayed address of this server.

        Raises:
          Refusal: the peer is forbidden, or of another address family.
        """
        ip = parse_ip(peer[0])
        if ip.version != allocation.family:
            raise Refusal(Code.PEER_FAMILY_MISMATCH)
        if self._rules.permits(ip):
            return False
        if self._allocations.is_relay(peer):
            return True
        raise Refusal(Code.FORBIDDEN)

    def _permit(self, allocation: Allocation[Sink], ip: str, relays_only: bool, now: float) -> None:
        permission = allocation.permissions.get(ip)
        if permission is None:
            permission = allocation.permissions[ip] = Permission(allocation, ip)
        permission.relays_only = relays_only
        self._allocations.renew(permission, now + PERMISSION_LIFETIME)


def allocated(allocation: Allocation[Any]) -> list[AttributeValue]:
    """The attributes of a success response for an allocation whose relay socket is open."""
    assert allocation.relayed is not None
    return [
        turn.XOR_RELAYED_ADDRESS(allocation.relayed),
        turn.LIFETIME(allocation.lifetime),
        XOR_MAPPED_ADDRESS(plain_address(allocation.source)),
    ]


def _granted(wanted: int | None) -> int:
    """The lifetime to grant (RFC 8656 §7.2): at least the default, at most `MAX_LIFETIME`."""
    return min(max(wanted or 0, turn.DEFAULT_LIFETIME), MAX_LIFETIME)
