"""Segments, to which interfaces are attached, and which carry packets between them.

A segment is a LAN, or a cloud such as the internet: a number of routers, `hops`, that are not simulated one by one.
Together they decrement the TTL by their number, and send the ICMP errors for packets that are dropped on the way.  A
packet crosses the sender's link, the segment and the receiver's link.  If the receiver's link is only a delay, this
takes one event of the wire instead of two.

The segment knows which interface has which address (instead of ARP), and which prefix is behind which router (instead
of BGP).  On a cloud, packets to an unassigned address are dropped.  On a LAN, their sender gets HOST_UNREACHABLE after
three seconds, as when ARP fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from .addr import BROADCAST, Prefix, canonical, is_multicast, is_v6
from .host import DEFAULT4, DEFAULT6, Host, Interface
from .link import PERFECT, Direction, Links
from .nat_axes import NatConfig
from .network_base import NetworkBase
from .packet import ICMP, Icmp, Packet, icmp_error
from .router import Router

ARP_TIMEOUT: Final = 3.0  # mcast_solicit 3, retrans_time 1 s


@final
class Segment:
    """A LAN or a cloud.  Made by `Network` and by `lan`, not directly.

    Attributes:
      router: the router between it and the segment above; None for the topmost.
      hops: number of routers between two neighbours.
    """

    def __init__(
        self,
        net: NetworkBase[Host],
        name: str,
        *,
        prefix4: str | None,
        prefix6: str | None,
        link: Links = PERFECT,
        hops: int = 0,
        cloud: bool = False,
    ) -> None:
        self.net = net
        self.name = name
        self.prefix4: Prefix | None = None if prefix4 is None else Prefix(prefix4)
        self.prefix6: Prefix | None = None if prefix6 is None else Prefix(prefix6)
        self.hops = hops
        self.cloud = cloud
        self.router: Router | None = None
        self.children: list[Segment] = []
        self.hosts: list[Host] = []
        self.interfaces: list[Interface] = []
        self._link = link
        self._by_address: dict[str, Interface] = {}
        self._behind: list[tuple[Prefix, Interface]] = []
        self._next4 = 1
        self._next6 = 1
        self._delegated = 0

    def __repr__(self) -> str:
        return f"<Segment {self.name} {self.prefix4 or ''} {self.prefix6 or ''}>"

    # Building

    def host(
        self,
        name: str,
        *,
        address: str | Sequence[str] | None = None,
        link: Links | None = None,
        ipv6: bool = True,
        clock_offset: float = 0.0,
        clock_drift: float = 0.0,
    ) -> Host:
        """Attach a new host.

        Args:
          name: unique in the network; it is also a DNS name for the host's addresses.
          address: its address or addresses; by default the next free one of each family that the segment has.
          link: the link between the host and the segment; by default the segment's.
          ipv6: whether it gets an IPv6 address by default.
          clock_offset, clock_drift: errors of its wall clock, in seconds and in seconds per second.

        ValueError for a name or an address that is taken, or an address that does not belong to this segment.
        """
        host = Host(self.net, name, clock_offset=clock_offset, clock_drift=clock_drift)
        wanted = [address] if isinstance(address, str) else None if address is None else list(address)
        self._enter(host, wanted, link, ipv6)
        self.hosts.append(host)
        self.net.add_name(name, *host.addresses)
        return host

    def lan(
        self,
        name: str,
        *,
        nat: NatConfig | None = None,
        firewall6: NatConfig | None = None,
        prefix4: str | None = None,
        prefix6: str | None = None,
        ipv6: bool = True,
        addresses: int | Sequence[str] = 1,
        uplink: Links | None = None,
        link: Links = PERFECT,
    ) -> Segment:
        """Attach a router with a new LAN behind it.  Returns the LAN, whose `router` is the router.

        Args:
          nat: the NAT for IPv4; without one the LAN has public addresses.
          firewall6: the firewall for the LAN's IPv6 addresses; None lets everything through.
          prefix4, prefix6: the LAN's prefixes; by default new blocks.  For IPv6 the segment must have IPv6.
          ipv6: whether the LAN has IPv6 if the segment has it.
          addresses: outside addresses of the router: their number, or the addresses.
          uplink: the link between the router and this segment.
          link: the default link of hosts on the LAN.
        """
        if prefix4 is None:
            prefix4 = str(self.net.private_prefix() if nat is not None else self._delegate4())
        if prefix6 is None and ipv6 and self.prefix6 is not None:
            prefix6 = str(self._delegate6())
        router = Router(self.net, name)
        named = None if isinstance(addresses, int) else addresses
        outside = self._enter(router, named, uplink, ipv6)
        if isinstance(addresses, int):
            for _ in range(addresses - 1):
                self.give(outside, self._free(v6=False))
        inside = Segment(self.net, name, prefix4=prefix4, prefix6=prefix6, link=link)
        router.connect(outside, inside, nat, firewall6)
        inside.router = router
        self.children.append(inside)
        return inside

    def _enter(self, host: Host, addresses: Sequence[str] | None, link: Links | None, ipv6: bool) -> Interface:
        """Attach a new host; if that fails, the network is as before."""
        self.net.register(host)
        try:
            return self.attach(host, addresses=addresses, link=link, ipv6=ipv6)
        except ValueError:
            del self.net.hosts[host.name]
            raise

    def attach(
        self, host: Host, *, addresses: Sequence[str] | None = None, link: Links | None = None, ipv6: bool = True
    ) -> Interface:
        """Give a host an additional interface here.  ValueError, without an effect, for an address it cannot have."""
        for address in addresses or ():
            self._check(address)
        chosen = self._link if link is None else link
        tx, rx = chosen if isinstance(chosen, tuple) else (chosen, chosen)
        number = host.attached
        host.attached += 1
        label = f"{host.name}:eth{number}"
        rng = self.net.rng
        interface = Interface(
            host,
            self,
            f"eth{number}",
            number + 2,
            Direction(f"{label}:tx", tx, rng(f"link:{label}:tx")),
            Direction(f"{label}:rx", rx, rng(f"link:{label}:rx")),
        )
        host.interfaces.append(interface)
        self.interfaces.append(interface)
        if addresses is None:
            addresses = [self._free(v6=False)] if self.prefix4 is not None else []
            if ipv6 and self.prefix6 is not None:
                addresses = [*addresses, self._free(v6=True)]
        for address in addresses:
            self.give(interface, address)
        if self.cloud:
            for everything in (DEFAULT4, DEFAULT6):
                host.add_route(everything, interface, None)
        elif self.router is not None:
            for gateway in self.router.addresses_on(self):
                host.default_route(interface, gateway)
        return interface

    def detach(self, interface: Interface) -> None:
        """Remove an interface and its addresses from this segment and from its host."""
        for address, _ in list(interface.addresses):
            self.take_away(address)
        self.interfaces.remove(interface)
        self.hosts = [host for host in self.hosts if host is not interface.host]
        interface.host.remove_interface(interface)

    def give(self, interface: Interface, address: str) -> str:
        """Add an address to an interface; ValueError if it is taken or belongs to another network."""
        address, prefix = self._check(address)
        self._by_address[address] = interface
        interface.host.add_address(interface, address, prefix)
        if self.router is not None:
            self.router.joined(address)
        return address

    def _check(self, address: str) -> tuple[str, Prefix]:
        address = canonical(address)
        prefix = self.prefix6 if is_v6(address) else self.prefix4
        if prefix is None or address not in prefix:
            raise ValueError(f"{address} does not belong to {self.name} ({self.prefix4}, {self.prefix6})")
        if address in self._by_address:
            raise ValueError(f"{address} is taken by {self._by_address[address].host.name}")
        return address, prefix

    def take_away(self, address: str) -> None:
        """Remove an address from the interface that has it."""
        self._by_address.pop(address).host.remove_address(address)

    def announce(self, prefix: Prefix, interface: Interface) -> None:
        """Route packets for a prefix to an interface's host, on this segment and on those above."""
        self._behind.append((prefix, interface))
        self._behind.sort(key=lambda pair: -pair[0].bits)
        if self.router is not None:
            self.router.route_inwards(prefix)

    def _free(self, *, v6: bool) -> str:
        prefix = self.prefix6 if v6 else self.prefix4
        if prefix is None:
            raise ValueError(f"{self.name} has no IPv{6 if v6 else 4}")
        while True:
            index = self._next6 if v6 else self._next4
            address = prefix[index]
            if v6:
                self._next6 += 1
            else:
                self._next4 += 1
            if address not in self._by_address:
                return address

    def free_address(self, *, v6: bool = False) -> str:
        """An unassigned address of this segment; ValueError if the segment has no prefix of the family."""
        return self._free(v6=v6)

    def _delegate4(self) -> Prefix:
        if self.prefix4 is None or self.prefix4.bits > 16:
            raise ValueError(f"{self.name} has no IPv4 block to give to a LAN: name prefix4, or put a NAT before it")
        self._delegated += 1
        # Delegated from the end; the last block contains the address of the cloud's own router.
        return self.prefix4.subnet(24, (1 << (24 - self.prefix4.bits)) - 1 - self._delegated)

    def _delegate6(self) -> Prefix:
        assert self.prefix6 is not None
        root = self.net.prefix6
        assert root is not None
        return root.subnet(64, self.net.next_number())

    # Carrying

    def neighbour(self, address: str) -> Interface | None:
        """The interface to which packets for an address go."""
        found = self._by_address.get(address)
        if found is not None or not self._behind:
            return found
        return next((interface for prefix, interface in self._behind if address in prefix), None)

    def carry(self, sender: Interface, packet: Packet, hop: str) -> None:
        """Carry a packet over an interface's link to the neighbour `hop`."""
        wire = self.net.wire
        size = packet.size
        times = sender.tx.carry(size, wire.now, packet.dst[0])
        if isinstance(times, str):
            sender.host.drop(packet, times)
            return
        target = self._by_address.get(hop)
        if target is None:
            if is_multicast(hop) or hop == BROADCAST:
                for time in times:
                    for other in self.interfaces:
                        if other is not sender:
                            wire.at(time, self._cross, other, packet)
                return
            target = self.neighbour(hop)
            if target is None:
                self._nobody(sender, packet, hop)
                return
        hops = self.hops
        if hops and target is not sender:
            if packet.ttl <= hops:
                self._expired(sender, packet, times[0])
                return
            packet = packet.rewritten(ttl=packet.ttl - hops)
        rx = target.rx
        for time in times:
            if rx.plain and size <= rx.link.mtu:
                wire.at(time + rx.link.latency, target.deliver, packet)
            else:
                wire.at(time, self._cross, target, packet)

    def _cross(self, target: Interface, packet: Packet) -> None:
        size = packet.size
        if size > target.rx.link.mtu and not packet.fragments:
            self.net.trace.add(self.net.wire.now, self.name, "drop", packet, "too big")
            if packet.proto != ICMP:
                self._answer(packet, Icmp.PACKET_TOO_BIG, mtu=target.rx.link.mtu)
            return
        times = target.rx.carry(size, self.net.wire.now, packet.src[0])
        if isinstance(times, str):
            target.host.drop(packet, times)
            return
        for time in times:
            self.net.wire.at(time, target.deliver, packet)

    def _expired(self, sender: Interface, packet: Packet, time: float) -> None:
        self.net.trace.add(self.net.wire.now, self.name, "drop", packet, "TTL expired")
        if packet.proto != ICMP:
            self.net.wire.at(time, self._answer, packet, Icmp.TIME_EXCEEDED)

    def _answer(self, packet: Packet, error: Icmp, *, mtu: int = 0) -> None:
        """Send an ICMP error from a router of the cloud to a packet's sender."""
        sender = self.neighbour(packet.src[0])
        prefix = self.prefix6 if is_v6(packet.src[0]) else self.prefix4
        if sender is not None and prefix is not None:
            answer = icmp_error(prefix[-2], error, packet, mtu=mtu)
            self._cross(sender, answer)

    def _nobody(self, sender: Interface, packet: Packet, hop: str) -> None:
        sender.host.drop(packet, f"nobody has {hop}")
        if not self.cloud and packet.proto != ICMP:
            host = sender.host
            answer = icmp_error(sender.address(v6=is_v6(hop)) or hop, Icmp.HOST_UNREACHABLE, packet)
            if packet.src[0] in host.own:
                self.net.wire.after(ARP_TIMEOUT, host.stack.receive, answer, None)
            else:
                self.net.wire.after(ARP_TIMEOUT, host.reply, answer)
