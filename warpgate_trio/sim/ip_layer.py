"""What TCP and UDP need of their host: the interface between internet and transport layer (RFC 1122, 3.4)."""

from __future__ import annotations

from random import Random
from typing import Protocol

from .host_clock import HostClock
from .packet import Packet


class IpLayer(Protocol):
    """A host as its transports see it.

    Attributes:
      clock: the time and the timers.
      random: for ports and initial sequence numbers.
      path_mtu: path MTU in bytes by address, for addresses for which an ICMP error has reported it.
    """

    clock: HostClock
    random: Random
    path_mtu: dict[str, int]

    def mtu_to(self, dst: str) -> int:
        """The path MTU to an address as far as it is known, in bytes."""
        ...

    def reply(self, packet: Packet) -> None:
        """Send a packet if there is a route to its destination."""
        ...

    def drop(self, packet: Packet, why: str) -> None:
        """Record that a packet is dropped here, and why."""
        ...
