"""Which addresses lead to this host, whatever network they belong to.

A connection to one of a host's own addresses never leaves the host.  It comes in through the loopback interface, where
firewalls let everything in, and may reach services that are meant for this host alone.  So each own address counts as
loopback where a peer names it, including public addresses and those of interfaces that are not published.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, final

from .scope import AddressScope, embedded_v4, scope_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..host import Host, Interface

__all__ = ["OwnAddresses"]


@final
class OwnAddresses:
    """The addresses that lead to `host`, including loopback; use it as ``ip in OwnAddresses(host)``.

    The interfaces are the given ones, or those at the time of creation.  The routing table is asked too: only packets
    to an own address have that address as their source.  This finds addresses of no interface (``ip route add local``).
    """

    def __init__(self, host: Host, interfaces: Sequence[Interface] | None = None) -> None:
        self._host = host
        known = host.interfaces() if interfaces is None else interfaces
        listed = (address.ip for interface in known for address in interface.addresses)
        self._known: dict[IPv4Address | IPv6Address, bool] = dict.fromkeys(listed, True)

    def __contains__(self, ip: object) -> bool:
        if not isinstance(ip, IPv4Address | IPv6Address):
            return False
        return any(self._leads_here(each) for each in (ip, *embedded_v4(ip)))

    def _leads_here(self, ip: IPv4Address | IPv6Address) -> bool:
        if ip not in self._known:
            self._known[ip] = scope_of(ip) is AddressScope.LOOPBACK or self._host.source_address(ip) == ip
        return self._known[ip]
