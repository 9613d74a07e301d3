"""IP addresses and ports as sockets use them: their family, their plain form, and their text form.

Pure functions over the address tuples of sockets, and one name for each of the types.  What an address *means* is the
subject of `warpgate_trio.address`.
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
"""An IP literal and a port, a transport address in RFC 8489's terms.  An IPv6 literal has its scope (``fe80::1%2``) for
our own sockets and the sources of received packets, but never in messages to others."""

Family: TypeAlias = Literal[4, 6]
FAMILIES: Final[tuple[Family, Family]] = (4, 6)


def family_of(ip: str) -> Family:
    """The IP version of a literal."""
    return 6 if ":" in ip else 4


def socket_family(ip: str) -> socket.AddressFamily:
    """The address family of a literal, for `trio.socket.socket`."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def parse_ip(text: str) -> IpAddress:
    """Parse an IP literal; a scope is left out.

    Raises:
      ValueError: the text is not an IP literal.
    """
    return ip_address(text.partition("%")[0])


def unmapped(ip: IpAddress) -> IpAddress:
    """An IPv4-mapped IPv6 address (``::ffff:192.0.2.1``) as an IPv4 address; any other address unchanged."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def socket_address(name: Sequence[Any]) -> TransportAddress:
    """The transport address in a socket's address tuple, with the scope in the literal where there is one."""
    if len(name) == 4 and name[3] and "%" not in name[0]:
        return f"{name[0]}%{name[3]}", name[1]
    return name[0], name[1]


def plain_address(name: Sequence[Any]) -> TransportAddress:
    """The same without flow and scope, and with IPv4-mapped addresses as IPv4."""
    return str(unmapped(parse_ip(name[0]))), name[1]


def bracketed(host: str) -> str:
    """A host as in URLs (RFC 3986 §3.2.2): an IPv6 literal in brackets, anything else unchanged."""
    return f"[{host}]" if ":" in host else host


def show_address(address: TransportAddress) -> str:
    """``192.0.2.1:443`` or ``[2001:db8::1]:443``; the host may also be a name."""
    return f"{bracketed(address[0])}:{address[1]}"
