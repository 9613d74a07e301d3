"""IP addresses and ports as sockets name them: of which family they are, without what is not part of them, and shown.

Pure functions over the tuples that sockets take and give, and one name for each of the types.  What an address *means*,
and who can be met there, is `warpgate_trio.address`'s.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, Literal, TypeAlias

__all__ = [
    "FAMILIES",
    "Family",
    "IpAddress",
    "TransportAddress",
    "bracketed",
    "family_of",
    "parse_ip",
    "plain_address",
    "show_address",
    "socket_address",
    "socket_family",
    "unmapped",
]

IpAddress: TypeAlias = IPv4Address | IPv6Address
TransportAddress: TypeAlias = tuple[str, int]
"""An IP literal and a port: RFC 8489's word for it.  An IPv6 literal has its scope (``fe80::1%2``) where a socket of
ours is meant, or whom it has heard; never where somebody else is told of it."""

Family: TypeAlias = Literal[4, 6]
FAMILIES: Final[tuple[Family, Family]] = (4, 6)


def family_of(ip: str) -> Family:
    """Which one an IP literal is of."""
    return 6 if ":" in ip else 4


def socket_family(ip: str) -> socket.AddressFamily:
    """The same, as `trio.socket.socket` wants to know it."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def parse_ip(text: str) -> IpAddress:
    """An IP literal, whose scope is left out.

    Raises:
      ValueError: it is none.
    """
    return ip_address(text.partition("%")[0])


def unmapped(ip: IpAddress) -> IpAddress:
    """An IPv4 address in IPv6 form (``::ffff:192.0.2.1``) as what it is."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def socket_address(name: Sequence[Any]) -> TransportAddress:
    """What a socket of either family calls an address, with the scope in the literal where there is one."""
    if len(name) == 4 and name[3] and "%" not in name[0]:
        return f"{name[0]}%{name[3]}", name[1]
    return name[0], name[1]


def plain_address(name: Sequence[Any]) -> TransportAddress:
    """The same without flow and scope, and IPv4 out of its IPv6 form."""
    return str(unmapped(parse_ip(name[0]))), name[1]


def bracketed(host: str) -> str:
    """A host as URLs have it (RFC 3986 §3.2.2): an IPv6 literal in brackets, all else as it is."""
    return f"[{host}]" if ":" in host else host


def show_address(address: TransportAddress) -> str:
    """``192.0.2.1:443`` or ``[2001:db8::1]:443``; a name may stand in the literal's place."""
    return f"{bracketed(address[0])}:{address[1]}"
