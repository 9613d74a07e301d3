"""Allocations of a TURN server, their permissions and channels, and the relaying of datagrams.  No I/O.

A *sink* is the object that the shell sends with: a UDP socket of the server, a client's TCP connection, or the socket
of a relayed address.  The core knows only whether it is a stream.  A client is identified by its sink and its source
address.

**Relay to relay stays inside.**  A datagram for a relayed address of this server is passed to its allocation directly
and not sent.  So the NAT in front need not support hairpinning, which those of many clouds do not.  And if a peer was
permitted only because it is such an address (`relays_only`), nothing is sent to other ports of the host.

Everything that expires has one entry in `Expiries`, which sorts by whole seconds.  The entry is moved by a renewal, and
removed when the item ends early.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar, final

from ..sockaddr import Family, TransportAddress
from ..stun.codec import MessageClass, encode
from ..turn.framing import CHANNEL_HEADER_LENGTH
from ..turn.messages import DATA, XOR_PEER_ADDRESS, Method

__all__ = ["Allocation", "Allocations", "Channel", "Outgoing", "Permission", "TurnSink"]


_header = struct.Struct("!HH")  # of ChannelData: number and length
_pack_header, _unpack_header = _header.pack, _header.unpack_from


class TurnSink(Protocol):
    """What the shell sends with, see the module's docstring.

    Attributes:
      is_stream: it is a byte stream, on which ChannelData is padded.
    """

    @property
    def is_stream(self) -> bool: ...


Sink = TypeVar("Sink", bound=TurnSink)


Outgoing: TypeAlias = tuple[Sink, bytes, TransportAddress]
"""A message to send: its sink, the bytes, and the destination."""


@final
@dataclass(slots=True, eq=False)
class Permission(Generic[Sink]):
    """A permission for all peers at one IP address.

    Attributes:
      ip: the peers' IP address.
      relays_only: it is an address of this server, permitted only for the relayed addresses that are there.
      due: the second at which it expires; see `Expiries`.
    """

    allocation: Allocation[Sink]
    ip: str
    relays_only: bool = True
    due: int = 0

    def end(self) -> None:
        """Forget it."""
        del self.allocation.permissions[self.ip]


@final
@dataclass(slots=True, eq=False)
class Channel(Generic[Sink]):
    """A channel that is bound to a peer.

    Attributes:
      is_relay: the peer was a relayed address of this server when the channel was bound or renewed.
      relays_only, due: as for a `Permission`.
    """

    allocation: Allocation[Sink]
    number: int
    peer: TransportAddress
    is_relay: bool = True
    relays_only: bool = True
    due: int = 0

    def end(self) -> None:
        """Forget it."""
        del self.allocation.channels[self.number]
        del self.allocation.channel_of[self.peer]


@final
@dataclass(slots=True, eq=False)
class Allocation(Generic[Sink]):
    """An allocation, from its accepted request on; its relay socket may not be open yet.

    Attributes:
      sink, source: its client.
      family: of the relayed address.
      username, account: the user, and the account that it counts for (`TurnCredentials.account`).
      key: of the MACs of its client.
      transaction_id: of the Allocate request that made it.
      lifetime: the seconds granted last.
      even_port: the port of the relayed address has to be even (RFC 8656 §7.2).
      relay, relayed: the sink and the relayed address; None before the socket is open.
      ended: it has ended, and the server has forgotten it.
      told: its client has got a short lifetime because of the shutdown.
      due: the second at which it expires; see `Expiries`.
    """

    sink: Sink
    source: TransportAddress
    family: Family
    username: str
    account: str
    key: bytes
    transaction_id: bytes
    lifetime: int
    even_port: bool = False
    relay: Sink | None = None
    relayed: TransportAddress | None = None
    ended: bool = False
    told: bool = False
    due: int = 0
    permissions: dict[str, Permission[Sink]] = field(default_factory=dict)
    channels: dict[int, Channel[Sink]] = field(default_factory=dict)
    channel_of: dict[TransportAddress, Channel[Sink]] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The IP address of its client, which it counts for."""
        return self.source[0]

    @property
    def client(self) -> tuple[Sink, TransportAddress]:
        """Its client's identity."""
        return self.sink, self.source

    def parts(self) -> Iterator[Permission[Sink] | Channel[Sink]]:
        """Its permissions and channels."""
        yield from self.permissions.values()
        yield from self.channels.values()


Expiring: TypeAlias = Allocation[Sink] | Permission[Sink] | Channel[Sink]


@final
class Expiries(Generic[Sink]):
    """Expiry times, rounded up to whole seconds."""

    def __init__(self) -> None:
        self._at: dict[int, dict[Expiring[Sink], None]] = {}
        self._seconds: list[int] = []  # a heap of the keys of `_at`, each once

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))

    @property
    def deadline(self) -> float:
        """When the next item expires; infinity if there is none."""
        while self._seconds and not self._at[self._seconds[0]]:
            del self._at[heapq.heappop(self._seconds)]
        return self._seconds[0] if self._seconds else math.inf

    def put(self, item: Expiring[Sink], when: float) -> None:
        """Set the expiry time of an item, replacing an earlier one."""
        self.remove(item)
        item.due = math.ceil(when)
        if item.due not in self._at:
            self._at[item.due] = {}
            heapq.heappush(self._seconds, item.due)
        self._at[item.due][item] = None

    def remove(self, item: Expiring[Sink]) -> None:
        """Remove an item, if it is there."""
        self._at.get(item.due, {}).pop(item, None)

    def take(self, now: float) -> list[Expiring[Sink]]:
        """Remove and return the expired items."""
        found: list[Expiring[Sink]] = []
        while self._seconds and self._seconds[0] <= now:
            found += self._at.pop(heapq.heappop(self._seconds))
        return found


@final
class Allocations(Generic[Sink]):
    """All allocations of a server.

    Attributes:
      out: messages to send.
      ended: sockets of ended relays, to be closed.
      relayed, relayed_bytes: datagrams relayed to peers and to clients, and the bytes in them.
      dropped: datagrams without an allocation, a permission or an open relay, and malformed ones.
    """

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._clients: dict[tuple[Sink, TransportAddress], Allocation[Sink]] = {}
        self._relays: dict[TransportAddress, Allocation[Sink]] = {}
        self._relay_ips: Counter[str] = Counter()
        self._expiries: Expiries[Sink] = Expiries()
        self.out: list[Outgoing[Sink]] = []
        self.ended: list[Sink] = []
        self.relayed: int = 0
        self.relayed_bytes: int = 0
        self.dropped: int = 0

    def __iter__(self) -> Iterator[Allocation[Sink]]:
        return iter(self._clients.values())

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def deadline(self) -> float:
        """When the next item expires."""
        return self._expiries.deadline

    def of(self, sink: Sink, source: TransportAddress) -> Allocation[Sink] | None:
        """The allocation of a client, or None."""
        return self._clients.get((sink, source))

    def is_relay(self, address: TransportAddress) -> bool:
        """Whether an address is a relayed address now; with port 0, whether there is one at that IP address."""
        return address in self._relays if address[1] else address[0] in self._relay_ips

    # -- Creation and expiry -------------------------------------------------------------------------------------------

    def add(self, allocation: Allocation[Sink]) -> None:
        """Add an allocation whose relay socket is not open yet."""
        self._clients[allocation.client] = allocation

    def open(self, allocation: Allocation[Sink], relay: Sink, relayed: TransportAddress) -> None:
        """The relay socket of an allocation is open."""
        allocation.relay, allocation.relayed = relay, relayed
        self._relays[relayed] = allocation
        self._relay_ips[relayed[0]] += 1

    def renew(self, item: Expiring[Sink], when: float) -> None:
        """Let an item expire at `when`, unless it is renewed again."""
        self._expiries.put(item, when)

    def end(self, allocation: Allocation[Sink]) -> None:
        """End an allocation at once, with its permissions and channels."""
        allocation.ended = True
        del self._clients[allocation.client]
        for part in list(allocation.parts()):
            self._expiries.remove(part)
            part.end()
        self._expiries.remove(allocation)
        if allocation.relay is not None and allocation.relayed is not None:
            ip = allocation.relayed[0]
            del self._relays[allocation.relayed]
            self._relay_ips[ip] -= 1
            if not self._relay_ips[ip]:
                del self._relay_ips[ip]
            self.ended.append(allocation.relay)

    def take_due(self, now: float) -> list[Allocation[Sink]]:
        """End expired permissions and channels; returns the expired allocations."""
        due: list[Allocation[Sink]] = []
        for item in self._expiries.take(now):
            if isinstance(item, Allocation):
                due.append(item)
            else:
                item.end()
        return due

    # -- Datagrams -----------------------------------------------------------------------------------------------------

    def from_channel(self, data: bytes, sink: Sink, source: TransportAddress) -> None:
        """Relay ChannelData of a client, given with its header."""
        allocation = self._clients.get((sink, source))
        number, length = _unpack_header(data)
        channel = None if allocation is None else allocation.channels.get(number)
        end = CHANNEL_HEADER_LENGTH + length
        if channel is None or end > len(data):
            self.dropped += 1
        elif channel.is_relay:
            self.to_peer(
                channel.allocation, channel.peer, data[CHANNEL_HEADER_LENGTH:end], relays_only=channel.relays_only
            )
        else:
            self.relayed += 1
            self.relayed_bytes += length
            # A channel exists only while its relay socket is open.
            self.out.append((channel.allocation.relay, data[CHANNEL_HEADER_LENGTH:end], channel.peer))  # type: ignore[arg-type]

    def to_peer(self, allocation: Allocation[Sink], peer: TransportAddress, data: bytes, *, relays_only: bool) -> None:
        """Relay a client's datagram to a peer that it may send to."""
        other = self._relays.get(peer)
        if other is not None and allocation.relayed is not None:
            self.from_peer(other, data, allocation.relayed)
        elif relays_only or allocation.relay is None:
            self.dropped += 1
        else:
            self.relayed += 1
            self.relayed_bytes += len(data)
            self.out.append((allocation.relay, data, peer))

    def from_peer(self, allocation: Allocation[Sink], data: bytes, peer: TransportAddress) -> None:
        """Relay a datagram that arrived at a relayed address to its client."""
        channel = allocation.channel_of.get(peer)
        if channel is not None:
            message = _pack_header(channel.number, len(data)) + data
            if allocation.sink.is_stream:
                message += bytes(-len(data) % 4)
        elif peer[0] in allocation.permissions:
            attributes = [XOR_PEER_ADDRESS(peer), DATA(data)]
            message = encode(Method.DATA, MessageClass.INDICATION, self._entropy(12), attributes)
        else:
            self.dropped += 1
            return
        self.relayed += 1
        self.relayed_bytes += len(data)
        self.out.append((allocation.sink, message, allocation.source))
