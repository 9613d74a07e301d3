"""Which addresses lead to this machine, whatever network they are of.

A connection to an address of one's own never leaves the machine: it comes in through the loopback interface, where
firewalls let everything in, and at services that meant to talk to this machine alone.  So an address of the machine is
loopback as far as a peer is concerned, public ones included, and those of interfaces that are not published.
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
    """The addresses that lead to `host`, loopback among them; ``ip in OwnAddresses(host)`` asks.

    The interfaces are those of the moment in which this was made, or the given ones.  Beside them the routing table is
    asked: only an address of the machine's own is its own source, also one of no interface (``ip route add local``).
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
