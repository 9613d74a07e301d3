"""What TCP and UDP ask of the host below them: the interface between internet and transport layer (RFC 1122, 3.4)."""

from __future__ import annotations

from random import Random
from typing import Protocol

from .host_clock import HostClock
from .packet import Packet


class IpLayer(Protocol):
    """A host as its transports see it.

    Attributes:
      clock: tells the time, and calls when a timer is due.
      random: for ports and initial sequence numbers.
      path_mtu: the largest packet on the way to an address, for those of which an ICMP error has told it.
    """

    clock: HostClock
    random: Random
    path_mtu: dict[str, int]

    def mtu_to(self, dst: str) -> int:
        """The largest packet that is known to fit on the way to an address."""
        ...

    def reply(self, packet: Packet) -> None:
        """Send a packet if there is a route to its destination."""
        ...

    def drop(self, packet: Packet, why: str) -> None:
        """Note that a packet is dropped here, and why."""
        ...
