"""Targets of forwarded connections, and the lists of those that a side allows.  Pure.

The exposing side looks up a name once, checks the addresses found against its list, and dials these same addresses.  A
name that resolves differently the second time (DNS rebinding) gains nothing.  A name on the list allows any address to
which it resolves, except loopback and link-local ones: otherwise whoever controls the name would choose among the
services of this machine and the metadata servers of its cloud.  Those have to be listed as addresses, or as
``localhost``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self, final

from ..address.scope import AddressScope, scope_of
from ..sockaddr import IpAddress, bracketed, unmapped

__all__ = ["LOCALHOST", "Bindable", "Exposed", "Target"]

LOCALHOST: Final = "127.0.0.1"
"""The host of a target that is given as a port alone."""
MAX_HOST: Final = 200
"""Characters of a host: the most for which a label has room.  RFC 1035 §2.3.4 allows 255, but few names are as long."""
_MAX_PORT: Final = 65535
_NAME: Final = re.compile("[a-z0-9_-]{1,63}([.][a-z0-9_-]{1,63})*")  # RFC 1035 §2.3.4; or an IPv4 address
_BY_ADDRESS_ALONE: Final = (AddressScope.LOOPBACK, AddressScope.LINK_LOCAL, AddressScope.NO_HOST)


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A host and a TCP port: ``22``, ``db.example.org:5432``, ``[2001:db8::1]:443``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @classmethod
    def parse(cls, text: str, *, least: int = 1) -> Self:
        """Parse a target.

        Args:
          least: the lowest valid port; 0 if the port may be left to the system.

        Raises:
          ValueError: says what is wrong with `text`.
        """
        host, port = _split(text)
        number = int(port) if port.isascii() and port.isdigit() else -1
        if not least <= number <= _MAX_PORT:
            raise ValueError(f"{text!r} has no port from {least} to {_MAX_PORT}")
        return cls(host, number)

    @property
    def ip(self) -> IpAddress | None:
        """The host as an address; None if it is a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def _split(text: str) -> tuple[str, str]:
    """Split ``HOST:PORT`` or ``PORT``; the host is in lower case and without brackets."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return LOCALHOST, port
    host = host.lower()
    if host.startswith("[") and host.endswith("]"):
        try:
            ip = IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"{text!r} names no host: {host[1:-1]!r} is no IPv6 address") from None
        if ip.scope_id is not None:
            raise ValueError(f"{text!r} names no host: a scope id is valid on one machine only")
        return str(ip), port
    if ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets")
    host = host.removesuffix(".")
    if len(host) > MAX_HOST or _NAME.fullmatch(host) is None:
        raise ValueError(f"{text!r} names no host")
    return host, port


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a list: a name or a network, and a port; port 0 stands for all."""

    host: str
    network: IPv4Network | IPv6Network | None
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        address, colon, port = text.rpartition(":")
        every = port == "*" and colon
        network: IPv4Network | IPv6Network | None = None
        plain, _, prefix = address.partition("/")
        target = Target.parse(f"{plain}:1" if every else f"{plain}{colon}{port}")
        try:
            network = ip_network(f"{target.host}/{prefix}" if prefix else target.host, strict=False)
        except ValueError:
            if prefix:
                raise ValueError(f"{text!r} names no network") from None
        return cls(target.host, network, 0 if every else target.port)

    def allows(self, target: Target, ip: IpAddress) -> bool:
        if self.port not in (0, target.port):
            return False
        if self.network is not None:
            return ip.version == self.network.version and ip in self.network
        if self.host == "localhost" == target.host:
            return ip.is_loopback
        return self.host == target.host and scope_of(ip) not in _BY_ADDRESS_ALONE


@final
class Exposed:
    """The targets to which a side forwards connections.

    Args:
      texts: ``HOST:PORT``, ``PORT`` (of 127.0.0.1) or ``NETWORK/BITS:PORT``; with a host, the port may be ``*``.

    Raises:
      ValueError: says what is wrong with an entry.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._entries: Final = tuple(map(_Entry.parse, texts))

    def __bool__(self) -> bool:
        return bool(self._entries)

    def may_name(self, target: Target) -> bool:
        """Whether to look up a target's name: it is on the list, or may resolve to an address on the list."""
        return any(
            entry.port in (0, target.port) and (entry.network is not None or entry.host == target.host)
            for entry in self._entries
        )

    def choose(self, target: Target, addresses: Iterable[IpAddress]) -> list[IpAddress]:
        """Those addresses of a target's host that may be dialled, with IPv4-mapped ones as IPv4."""
        plain = dict.fromkeys(map(unmapped, addresses))
        return [ip for ip in plain if any(entry.allows(target, ip) for entry in self._entries)]


@final
class Bindable:
    """The ports on which this side listens for a peer.

    Args:
      texts: ``ADDRESS:PORT`` or ``PORT`` (of 127.0.0.1); with an address, the port may be ``*``.

    Raises:
      ValueError: says what is wrong with an entry.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._entries: Final = tuple(map(_Entry.parse, texts))
        for entry in self._entries:
            if entry.network is None:
                raise ValueError(f"{entry.host!r} is not an address to listen on")

    def __bool__(self) -> bool:
        return bool(self._entries)

    def allows(self, target: Target) -> bool:
        """Whether this side listens there for a peer."""
        ip = target.ip
        return ip is not None and any(entry.allows(target, ip) for entry in self._entries)
