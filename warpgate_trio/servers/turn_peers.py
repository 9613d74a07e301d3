"""Whom a TURN server sends to for its clients: hosts of the internet, and nobody near the server.  No I/O.

A relay stands inside of firewalls that its clients are outside of.  So it refuses every address that means something
else, or somebody else, where the server is: private and shared ones, a link's, loopback, and those that no host has.
Also refused are the metadata services of clouds, some of which have addresses of the internet, and the server's own
host, whose services may trust whoever comes from there.  Its own relayed addresses are another matter
(`warpgate_trio.servers.turn_core`): what is for them never leaves the server.

An operator may allow networks.  A metadata service, or an address of the host itself, is allowed by its own ``/32`` or
``/128`` alone: who allows a company's network does not mean the server's own services.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, TypeAlias, final

from ..address.scope import AddressScope, embedded_v4, scope_of
from ..sockaddr import IpAddress, unmapped

__all__ = ["METADATA", "IpNetwork", "PeerRules"]

IpNetwork: TypeAlias = IPv4Network | IPv6Network

METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # nearly all clouds
        "168.63.129.16",  # Azure's, which looks like any host of the internet
        "100.100.100.200",  # Alibaba's
        "192.0.0.192",  # Oracle's
        "fd00:ec2::254",  # Amazon's
        "fd20:ce::254",  # Google's
    )
)
"""Where machines in clouds get credentials from."""


@final
class PeerRules:
    """Which peers clients may have.

    Args:
      allowed: networks that are allowed though they are not public.
    """

    def __init__(self, allowed: Iterable[IpNetwork] = ()) -> None:
        self._allowed = tuple(allowed)
        self._exactly = frozenset(each[0] for each in self._allowed if each.prefixlen == each.max_prefixlen)
        self._own: frozenset[IpAddress] = frozenset()

    def set_own(self, addresses: Iterable[IpAddress]) -> None:
        """Say which addresses this host has, or is known by."""
        self._own = frozenset(map(unmapped, addresses))

    def permits(self, ip: IpAddress) -> bool:
        """Whether anything may be sent to an address."""
        if unmapped(ip) is not ip:  # nothing that a host of IPv6 could be sent
            return False
        scope = scope_of(ip)
        if scope is AddressScope.NO_HOST:
            return False
        meant = {ip, *embedded_v4(ip)}
        if scope is AddressScope.LOOPBACK or meant & self._own or meant & METADATA:
            return ip in self._exactly
        return scope is AddressScope.PUBLIC or any(ip in network for network in self._allowed)
