"""The ports of a host and who has bound them, by the rules of Linux (net/ipv4/inet_connection_sock.c and udp.c).

Two bindings of one transport to one port clash if their addresses overlap, unless both sockets have set one of these
options *before* binding:

* TCP: both SO_REUSEADDR, and the existing one does not listen; or both SO_REUSEPORT;
* UDP: both SO_REUSEADDR, or both SO_REUSEPORT.

A wildcard overlaps every address of its families; the IPv6 wildcard covers IPv4 too, unless IPV6_V6ONLY is set.
"""

from __future__ import annotations

import errno
import os
from random import Random
from typing import Final, final

from .addr import ANY4, ANY6, is_v6

EPHEMERAL: Final = range(32768, 61000)  # ip_local_port_range
_TRIES: Final = 64


def os_error(code: int) -> OSError:
    """The OSError that Python raises for an errno."""
    return OSError(code, os.strerror(code))


@final
class Binding:
    """A socket's claim to a port; `address` is canonical, and "0.0.0.0" and "::" are wildcards."""

    __slots__ = ("address", "any4", "any6", "listening", "port", "reuse_address", "reuse_port")

    def __init__(
        self, address: str, port: int, *, v6only: bool = False, reuse_address: bool = False, reuse_port: bool = False
    ) -> None:
        self.address: str = address
        self.port: int = port
        self.any6: bool = address == ANY6
        self.any4: bool = address == ANY4 or (self.any6 and not v6only)
        self.reuse_address: bool = reuse_address
        self.reuse_port: bool = reuse_port
        self.listening: bool = False

    def covers(self, address: str) -> bool:
        """Whether the binding receives packets to an address."""
        return address == self.address or (self.any6 if is_v6(address) else self.any4)

    @property
    def wildcard(self) -> bool:
        return self.any4 or self.any6

    def overlaps(self, other: Binding) -> bool:
        if other.wildcard:
            if self.wildcard:
                return (self.any4 and other.any4) or (self.any6 and other.any6)
            return other.covers(self.address)
        return self.covers(other.address)


@final
class PortTable:
    """The bindings of one transport on one host."""

    def __init__(self, random: Random, *, stream: bool) -> None:
        self._random = random
        self._stream = stream
        self._ports: dict[int, list[Binding]] = {}

    def is_used(self, port: int) -> bool:
        return port in self._ports

    def add(self, binding: Binding) -> None:
        """Add a binding without a check, for accepted connections, which share their listener's port."""
        self._ports.setdefault(binding.port, []).append(binding)

    def bind(self, binding: Binding) -> None:
        """Add a binding; port 0 is replaced by a free one.  OSError(EADDRINUSE) if it clashes or no port is free."""
        if binding.port == 0:
            binding.port = self._free_port()
        elif any(self._clash(binding, other) for other in self._ports.get(binding.port, ())):
            raise os_error(errno.EADDRINUSE)
        self.add(binding)

    def listen(self, binding: Binding) -> None:
        """Mark a binding as listening; OSError(EADDRINUSE) if another socket already listens there."""
        for other in self._ports[binding.port]:
            if other is not binding and self._clash(binding, other):
                raise os_error(errno.EADDRINUSE)
        binding.listening = True

    def remove(self, binding: Binding) -> None:
        """Remove a binding; removing it twice is no error."""
        bindings = self._ports.get(binding.port)
        if bindings is not None and binding in bindings:
            bindings.remove(binding)
            if not bindings:
                del self._ports[binding.port]

    def _clash(self, new: Binding, other: Binding) -> bool:
        if not new.overlaps(other):
            return False
        if new.reuse_port and other.reuse_port:
            return False
        return not (new.reuse_address and other.reuse_address and not (self._stream and other.listening))

    def _free_port(self) -> int:
        for _ in range(_TRIES):
            port = self._random.randrange(EPHEMERAL.start, EPHEMERAL.stop)
            if port not in self._ports:
                return port
        for port in EPHEMERAL:
            if port not in self._ports:
                return port
        raise os_error(errno.EADDRINUSE)
