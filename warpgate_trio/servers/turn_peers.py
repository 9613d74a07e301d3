"""The peers that a TURN server may send to: hosts of the internet, and nothing near the server.  No I/O.

A relay is often inside a firewall that its clients are outside of.  So it refuses addresses whose meaning depends on
where the server is: private, shared, link-local and loopback addresses, and those that no host can have.  It also
refuses the metadata services of clouds, some of which have public addresses, and the server's own host, whose services
may trust local connections.  Its own relayed addresses are an exception (`warpgate_trio.servers.turn_allocations`):
datagrams for them never leave the server.

An operator may allow networks.  A metadata service or an address of the host itself is allowed only by its own ``/32``
or ``/128``: allowing a company's network is not meant for the server's own services.
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
        "168.63.129.16",  # Azure's, a public address
        "100.100.100.200",  # Alibaba's
        "192.0.0.192",  # Oracle's
        "fd00:ec2::254",  # Amazon's
        "fd20:ce::254",  # Google's
    )
)
"""Metadata services, from which hosts in clouds get credentials."""


@final
class PeerRules:
    """Decides which peers clients may have.

    Args:
      allowed: networks that are allowed though they are not public.
    """

    def __init__(self, allowed: Iterable[IpNetwork] = ()) -> None:
        self._allowed = tuple(allowed)
        self._exactly = frozenset(each[0] for each in self._allowed if each.prefixlen == each.max_prefixlen)
        self._own: frozenset[IpAddress] = frozenset()

    def set_own(self, addresses: Iterable[IpAddress]) -> None:
        """Set the addresses of this host, external ones included."""
        self._own = frozenset(map(unmapped, addresses))

    def permits(self, ip: IpAddress) -> bool:
        """Whether datagrams may be sent to an address."""
        if unmapped(ip) is not ip:  # an IPv4-mapped address is no IPv6 destination
            return False
        scope = scope_of(ip)
        if scope is AddressScope.NO_HOST:
            return False
        meant = {ip, *embedded_v4(ip)}
        if scope is AddressScope.LOOPBACK or meant & self._own or meant & METADATA:
            return ip in self._exactly
        return scope is AddressScope.PUBLIC or any(ip in network for network in self._allowed)
