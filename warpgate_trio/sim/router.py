"""Routers: hosts that forward packets, with a NAT for IPv4 and a firewall for IPv6 between inside and outside.

The order of steps is that of Linux.  A packet from outside is translated before its TTL is decremented.  For a packet
from inside the TTL is decremented first, so a packet whose TTL ends at the NAT makes no mapping.  The sender of a
packet whose TTL is exceeded gets an ICMP error.  A packet to the router itself is not forwarded, and its TTL does not
matter.

A router is a host too: programs run on it (`router.run`), such as a port-mapping server, and the ports that they bind
are reachable from outside.
"""

from __future__ import annotations

from typing import final

from .addr import BROADCAST, Prefix, is_multicast, is_v6
from .host import Host, Interface, Medium
from .nat import Nat
from .nat_axes import NatConfig
from .nat_verdicts import Action, NatVerdict
from .network_base import NetworkBase
from .packet import ICMP, UDP, Icmp, Packet, icmp_error


@final
class Router(Host):
    """A router between an outer segment and a LAN.  Made by `Segment.lan`, not directly.

    Attributes:
      outside, inside: its two interfaces.
      nat: its IPv4 NAT, if it has one.
      firewall6: its IPv6 firewall, if it has one.
    """

    forwarding = True

    def __init__(self, net: NetworkBase[Host], name: str) -> None:
        super().__init__(net, name)
        self.nat: Nat | None = None
        self.firewall6: Nat | None = None

    def connect(self, outside: Interface, lan: Medium, nat: NatConfig | None, firewall6: NatConfig | None) -> None:
        """Connect the router's outside interface with a new LAN, through a NAT and a firewall."""
        self.outside = outside
        net = self.net
        inside_addresses = [prefix[-2] for prefix in (lan.prefix4, lan.prefix6) if prefix is not None]
        self.inside: Interface = lan.attach(self, addresses=inside_addresses)
        if nat is not None:
            own = [address for address, _ in outside.addresses if not is_v6(address)]
            self.nat = Nat(nat, own, net.rng(f"nat:{self.name}"), reserved=self._reserved)
        elif lan.prefix4 is not None:
            outside.segment.announce(lan.prefix4, outside)
        if lan.prefix6 is not None:
            outside.segment.announce(lan.prefix6, outside)
        if firewall6 is not None:
            self.firewall6 = Nat(firewall6, (), net.rng(f"firewall6:{self.name}"))

    def route_inwards(self, prefix: Prefix) -> None:
        """Note that a prefix is behind a router on the LAN, and therefore behind this one."""
        self.add_route(prefix, self.inside, None)
        if self.nat is None or prefix.v6:
            self.outside.segment.announce(prefix, self.outside)

    def joined(self, address: str) -> None:
        """Note that a host of the LAN has got an address: a 1:1 NAT assigns an outside address to it."""
        nat = self.nat
        if nat is not None and nat.config.one_to_one and not is_v6(address):
            nat.pair(address)
            while len(nat.addresses) < nat.addresses_wanted:
                segment = self.outside.segment
                nat.addresses.append(segment.give(self.outside, segment.free_address()))

    def _reserved(self, proto: int, port: int) -> bool:
        return (self.stack.udp_ports if proto == UDP else self.stack.tcp.bindings).is_used(port)

    def addresses_on(self, segment: Medium) -> list[str]:
        """Its addresses on a segment, at most one of each family: the gateways of the hosts there."""
        interface = next(interface for interface in self.interfaces if interface.segment is segment)
        found = [interface.address(v6=False), interface.address(v6=True)]
        return [address for address in found if address is not None]

    def _box(self, packet: Packet) -> Nat | None:
        return self.firewall6 if is_v6(packet.dst[0]) else self.nat

    # Packets

    def receive(self, packet: Packet, interface: Interface | None) -> None:
        box = self._box(packet)
        dst = packet.dst[0]
        if box is None or interface is None or is_multicast(dst) or dst == BROADCAST:
            super().receive(packet, interface)
        elif interface is self.outside:
            self._from_outside(packet, interface, box)
        elif dst in box.addresses and not self.stack.serves(packet):
            self._from_inside(packet, interface, box)  # to be hairpinned
        else:
            super().receive(packet, interface)

    def forward(self, packet: Packet, interface: Interface) -> None:
        box = self._box(packet)
        route = self.route(packet.dst[0])
        if box is not None and interface is self.inside and (route is None or route.interface is self.outside):
            self._from_inside(packet, interface, box)
        else:
            self._pass_on(packet, interface)

    def _from_outside(self, packet: Packet, interface: Interface, box: Nat) -> None:
        own, identity = packet.dst[0] in self.own, box.config.identity
        if own and (identity or self.stack.serves(packet)):
            super().receive(packet, interface)
            return
        if not own and not identity:
            self.drop(packet, "nothing is translated to that address")
            return
        verdict = box.inbound(packet, self.net.wire.now)
        self._note("in", packet, verdict)
        if verdict.action is Action.FORWARD:
            if packet.ttl <= 1:
                self._expired(packet)
            else:
                self._emit(verdict.packet, packet.ttl - 1)
        elif verdict.action is Action.LOCAL:
            super().receive(packet, interface)
        elif verdict.action is Action.REPLY:
            self._emit(verdict.packet, verdict.packet.ttl)
        elif verdict.held:
            self.net.wire.at(box.next_due, self._release, box)

    def _from_inside(self, packet: Packet, interface: Interface, box: Nat) -> None:
        if packet.ttl <= 1:
            self._expired(packet)
            return
        verdict = box.outbound(packet, self.net.wire.now)
        self._note("out", packet, verdict)
        if verdict.action in (Action.FORWARD, Action.HAIRPIN):
            self._emit(verdict.packet, packet.ttl - 1)
        elif verdict.action is Action.LOCAL:
            super().receive(packet, interface)
        elif verdict.action is Action.REPLY:
            self._emit(verdict.packet, verdict.packet.ttl)

    def _pass_on(self, packet: Packet, interface: Interface) -> None:
        if packet.ttl <= 1:
            self._expired(packet)
        else:
            self._emit(packet.rewritten(), packet.ttl - 1)

    def _emit(self, packet: Packet, ttl: int) -> None:
        """Send a packet of this router that its stack has not made towards its destination."""
        packet.ttl = ttl
        dst = packet.dst[0]
        if dst in self.own:
            self.net.wire.after(0, self.stack.receive, packet, None)
            return
        route = self.route(dst)
        if route is None:
            self.drop(packet, "no route")
            self._tell(packet, Icmp.NET_UNREACHABLE)
            return
        route.interface.send(packet, route.gateway or dst)

    def output(self, packet: Packet, interface: Interface | None = None) -> None:
        box = self._box(packet)
        if box is not None and not box.config.identity and packet.src[0] in box.addresses:
            box.own(packet, self.net.wire.now)
        super().output(packet, interface)

    def too_big(self, packet: Packet, interface: Interface) -> None:
        box = self._box(packet)
        if box is not None and packet.src[0] in box.addresses and packet.proto != ICMP:
            error = icmp_error(packet.src[0], Icmp.PACKET_TOO_BIG, packet, mtu=interface.tx.link.mtu)
            verdict = box.inbound(error, self.net.wire.now)
            if verdict.action is Action.FORWARD:
                self.drop(packet, "too big")
                self._emit(verdict.packet, verdict.packet.ttl)
                return
        if packet.src[0] in self.own:
            super().too_big(packet, interface)
            return
        self.drop(packet, "too big")
        self._tell(packet, Icmp.PACKET_TOO_BIG, mtu=interface.tx.link.mtu)

    def _expired(self, packet: Packet) -> None:
        self.drop(packet, "TTL expired")
        self._tell(packet, Icmp.TIME_EXCEEDED)

    def _tell(self, packet: Packet, error: Icmp, *, mtu: int = 0) -> None:
        """Send an ICMP error to a packet's sender, but not for an ICMP error (RFC 1122, section 3.2.2)."""
        source = self.source_for(packet.src[0])
        if source is not None and packet.proto != ICMP:
            self.reply(icmp_error(source, error, packet, mtu=mtu))

    def _release(self, box: Nat) -> None:
        for packet in box.release(self.net.wire.now):
            self.net.trace.add(self.net.wire.now, self.name, "in", packet, "held SYN refused")
            self._emit(packet, packet.ttl)

    def _note(self, way: str, packet: Packet, verdict: NatVerdict) -> None:
        net = self.net
        event = way if verdict.action in (Action.FORWARD, Action.LOCAL) else verdict.action.value
        changed = verdict.packet if verdict.packet is not packet else None
        net.trace.add(net.wire.now, self.name, event, packet, verdict.note, changed)

    # What may happen to a router

    def reboot(self) -> None:
        """Forget every mapping.  Forwarded ports stay, since they are configuration."""
        for box in (self.nat, self.firewall6):
            if box is not None:
                box.reset()

    def change_address(self, new: str | None = None) -> str:
        """Change the outside IPv4 address, by default to a free one, and forget every mapping; returns the address.

        Raises RuntimeError for a router without an IPv4 NAT.
        """
        if self.nat is None:
            raise RuntimeError(f"{self.name} has no IPv4 NAT whose address could change")
        segment = self.outside.segment
        address = segment.free_address() if new is None else new
        for old in [a for a, _ in self.outside.addresses if not is_v6(a)]:
            segment.take_away(old)
        more = [segment.free_address() for _ in range(self.nat.addresses_wanted - 1)]
        self.nat.reset([segment.give(self.outside, each) for each in (address, *more)])
        return address
