"""The transport layer of one host: it finds the socket for a packet, or the answer if there is none.

A UDP packet goes to the best match, as in Linux's `compute_score`: a connected socket before an unconnected one, a
specific address before a wildcard, and the socket bound last among equals.  In a SO_REUSEPORT group a hash of the
sender decides.  A TCP segment goes to the connection with exactly its two endpoints, *even one that is still opening*,
so that a SYN meets a connecting socket before a listener on the same port.  Otherwise it goes to a listener, or is
answered with a RST.
"""

from __future__ import annotations

import zlib
from typing import final

from .addr import BROADCAST, is_multicast
from .connection import Listener, TcpPorts
from .ip_layer import IpLayer
from .packet import ACK, ICMP, RST, SYN, TCP, UDP, Icmp, Packet, icmp_error, reset_for
from .ports import PortTable
from .tcp_states import State
from .udp import UdpPort


def _spread(packet: Packet) -> int:
    """A hash of a packet's sender that is the same in every process."""
    return zlib.crc32(repr((packet.src, packet.dst)).encode())


@final
class Stack:
    """The sockets of one host.

    Attributes:
      udp_ports: which UDP ports are bound.
      udp: the bound UDP sockets by port.
      tcp: TCP ports, listeners and connections.
    """

    def __init__(self, host: IpLayer) -> None:
        self.host = host
        self.udp_ports: PortTable = PortTable(host.random, stream=False)
        self.udp: dict[int, list[UdpPort]] = {}
        self.tcp: TcpPorts = TcpPorts(host)

    def serves(self, packet: Packet) -> bool:
        """Whether a socket of this host would receive a packet."""
        if packet.proto == UDP:
            return bool(self._udp_matches(packet))
        if packet.proto == TCP:
            known = (packet.dst, packet.src) in self.tcp.connections
            return known or self._listener(packet) is not None
        return False

    def receive(self, packet: Packet, interface: int | None) -> None:
        """Process a packet for this host.

        Args:
          interface: index of the interface on which it arrived; None for a packet of the host itself.
        """
        if packet.proto == UDP:
            self._receive_udp(packet, interface)
        elif packet.proto == TCP:
            self._receive_tcp(packet)
        elif packet.proto == ICMP:
            self._receive_icmp(packet)

    # UDP

    def _udp_matches(self, packet: Packet) -> list[UdpPort]:
        address = packet.dst[0]
        found: list[UdpPort] = []
        best = -1
        for port in self.udp.get(packet.dst[1], ()):
            if not port.binding.covers(address):
                continue
            if port.peer is not None and port.peer != packet.src:
                continue
            score = 2 * (port.peer is not None) + (not port.binding.wildcard)
            if score > best:
                best, found = score, [port]
            elif score == best:
                found.append(port)
        return found

    def _receive_udp(self, packet: Packet, interface: int | None) -> None:
        address = packet.dst[0]
        if is_multicast(address) or address == BROADCAST:
            for port in list(self.udp.get(packet.dst[1], ())):
                if port.hears(address, interface) and (port.peer is None or port.peer == packet.src):
                    port.deliver(packet)
            return
        found = self._udp_matches(packet)
        if not found:
            self.host.drop(packet, "no socket")
            self.host.reply(icmp_error(address, Icmp.PORT_UNREACHABLE, packet))
        elif len(found) > 1 and all(port.binding.reuse_port for port in found):
            found[_spread(packet) % len(found)].deliver(packet)
        else:
            found[-1].deliver(packet)

    # TCP

    def _listener(self, packet: Packet) -> Listener | None:
        found = [one for one in self.tcp.listeners.get(packet.dst[1], ()) if one.binding.covers(packet.dst[0])]
        specific = [one for one in found if not one.binding.wildcard] or found
        if not specific:
            return None
        return specific[_spread(packet) % len(specific)] if len(specific) > 1 else specific[0]

    def _receive_tcp(self, packet: Packet) -> None:
        connection = self.tcp.connections.get((packet.dst, packet.src))
        opening = packet.flags & (SYN | ACK | RST) == SYN
        if connection is not None:
            if not (opening and connection.endpoint.state is State.TIME_WAIT):
                connection.receive(packet)
                return
            listener = self._listener(packet)
            if listener is None:
                connection.receive(packet)
                return
            connection.forget()  # a new connection replaces one in TIME-WAIT (RFC 6191)
        if opening:
            listener = self._listener(packet)
            if listener is not None:
                listener.receive(packet)
                return
        if packet.flags & RST:
            self.host.drop(packet, "no connection")
        else:
            self.host.drop(packet, "no socket" if opening else "no connection")
            self.host.reply(reset_for(packet))

    # ICMP

    def _receive_icmp(self, packet: Packet) -> None:
        about, error = packet.about, packet.error
        if about is None or error is None:
            return
        if error is Icmp.PACKET_TOO_BIG:
            known = self.host.path_mtu.get(about.dst[0], packet.mtu)
            self.host.path_mtu[about.dst[0]] = min(known, packet.mtu)
        if about.proto == TCP:
            connection = self.tcp.connections.get((about.src, about.dst))
            if connection is not None:
                connection.icmp(error, packet.mtu)
        elif about.proto == UDP:
            for port in self.udp.get(about.src[1], ()):
                if port.peer == about.dst and port.binding.covers(about.src[0]):
                    port.icmp(error)

    def add_udp(self, port: UdpPort) -> None:
        self.udp_ports.bind(port.binding)
        self.udp.setdefault(port.binding.port, []).append(port)

    def remove_udp(self, port: UdpPort) -> None:
        self.udp_ports.remove(port.binding)
        ports = self.udp.get(port.binding.port)
        if ports is not None and port in ports:
            ports.remove(port)
            if not ports:
                del self.udp[port.binding.port]
