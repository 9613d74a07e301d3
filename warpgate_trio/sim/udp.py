"""The queue behind a bound UDP socket."""

from __future__ import annotations

import errno
from collections import deque
from typing import Final, final

from .addr import BROADCAST, Endpoint
from .ip_layer import IpLayer
from .packet import Icmp, Packet
from .ports import Binding
from .slots import Slot

DEFAULT_BUFFER: Final = 212992  # net.core.rmem_default
_OVERHEAD: Final = 768  # bytes that the kernel charges for a small datagram besides its payload (skb truesize)

_ICMP_ERRNO: Final = {
    Icmp.PORT_UNREACHABLE: errno.ECONNREFUSED,
    Icmp.ADMIN_PROHIBITED: errno.EHOSTUNREACH,
    Icmp.HOST_UNREACHABLE: errno.EHOSTUNREACH,
}


@final
class UdpPort:
    """What a bound UDP socket has received.

    Attributes:
      peer: the endpoint to which it is connected.
      error: a pending errno, which is reported once.  Only a connected socket gets ICMP errors, and only hard ones
        (RFC 1122, 4.1.3.3; `icmp_err_convert` of Linux).
      groups: joined groups, as (group, index of the interface) pairs.
    """

    __slots__ = ("_used", "binding", "error", "groups", "host", "limit", "peer", "queue", "readable")

    def __init__(self, host: IpLayer, binding: Binding, readable: Slot, limit: int) -> None:
        self.host: IpLayer = host
        self.binding: Binding = binding
        self.readable: Slot = readable
        self.limit: int = limit
        self.peer: Endpoint | None = None
        self.error: int = 0
        self.groups: set[tuple[str, int]] = set()
        self.queue: deque[tuple[bytes, Endpoint]] = deque()
        self._used = 0

    def hears(self, group: str, interface: int | None) -> bool:
        """Whether this socket receives a packet to a group, or a broadcast."""
        if not (self.binding.wildcard or self.binding.address == group):
            return False
        if group == BROADCAST:
            return self.binding.any4
        return any(g == group and (interface is None or i == interface) for g, i in self.groups)

    def deliver(self, packet: Packet) -> None:
        """Queue a datagram, or drop it if the buffer is full."""
        cost = len(packet.payload) + _OVERHEAD
        if self._used + cost > self.limit and self.queue:
            self.host.drop(packet, "receive buffer full")
            return
        self._used += cost
        self.queue.append((packet.payload, packet.src))
        self.readable.wake()

    def take(self, *, peek: bool) -> tuple[bytes, Endpoint]:
        """The oldest datagram; IndexError without one."""
        if peek:
            return self.queue[0]
        payload, source = self.queue.popleft()
        self._used -= len(payload) + _OVERHEAD
        return payload, source

    def icmp(self, error: Icmp) -> None:
        """Process an ICMP error about a datagram to the peer."""
        if error in _ICMP_ERRNO:
            self.error = _ICMP_ERRNO[error]
            self.readable.wake()
