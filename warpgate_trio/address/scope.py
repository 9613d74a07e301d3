"""The scope of an address: the internet, one network, or this host alone.  Pure.

Everything that judges an address asks here: what a node publishes, what it dials for a peer, where it sends unsolicited
packets, what it believes of a STUN server.  The tables follow IANA's special-purpose registries (RFC 6890).  Python's
`is_global` and `is_private` are not used, since they have changed between patch releases.  Three things differ from the
registries on purpose:

* The documentation ranges (RFC 5737, RFC 3849, RFC 9637) are public: only labs use them, and as public addresses.
* Of IPv6 only 2000::/3 is public, which is all that IANA has allocated so far: overlay networks use other ranges for
  their members (200::/7).
* The anycast addresses among the protocol assignments (RFC 7723, RFC 8155) are not public: they belong to no node.

**An IPv4 address inside an IPv6 one** is where the packet ends up, so the IPv4 address is judged.  This covers
IPv4-mapped, -compatible and -translated addresses, NAT64 with the well-known and the local-use prefix, 6to4, Teredo and
ISATAP.  A NAT64 prefix of a network's own (RFC 6052 §2.2) cannot be told from any other prefix.
"""

from __future__ import annotations

import functools
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final

from ..sockaddr import IpAddress

__all__ = ["AddressScope", "embedded_v4", "is_public", "scope_of"]


class AddressScope(Enum):
    """Which hosts an address can stand for."""

    PUBLIC = "public"
    """The same host from everywhere on the internet (firewalls apart)."""
    SHARED = "shared"
    """A subscriber of the same provider: 100.64.0.0/10 (RFC 6598), which VPNs use too."""
    PRIVATE = "private"
    """A host of a private network; in another network, the same address is another host."""
    LINK_LOCAL = "link-local"
    """A neighbour on one link; clouds have their metadata servers there."""
    LOOPBACK = "loopback"
    """This host."""
    NO_HOST = "no host"
    """No single host: unspecified, multicast, broadcast, reserved or discard-only."""


_V4: Final = tuple(
    (IPv4Network(network), scope)
    for network, scope in (
        ("0.0.0.0/8", AddressScope.NO_HOST),  # "this network", RFC 791; holds the unspecified address
        ("10.0.0.0/8", AddressScope.PRIVATE),  # RFC 1918
        ("100.64.0.0/10", AddressScope.SHARED),  # RFC 6598
        ("127.0.0.0/8", AddressScope.LOOPBACK),  # RFC 1122
        ("169.254.0.0/16", AddressScope.LINK_LOCAL),  # RFC 3927
        ("172.16.0.0/12", AddressScope.PRIVATE),  # RFC 1918
        ("192.0.0.0/24", AddressScope.PRIVATE),  # protocol assignments, RFC 6890; 192.0.0.4 of phones behind 464XLAT
        ("192.88.99.0/24", AddressScope.NO_HOST),  # 6to4 relays, deprecated by RFC 7526
        ("192.168.0.0/16", AddressScope.PRIVATE),  # RFC 1918
        ("198.18.0.0/15", AddressScope.PRIVATE),  # benchmarks, RFC 2544; some local proxies resolve names to it
        ("224.0.0.0/4", AddressScope.NO_HOST),  # multicast, RFC 5771
        ("240.0.0.0/4", AddressScope.NO_HOST),  # reserved, RFC 1112; holds the broadcast address
    )
)
"""An address in none of these networks is public."""

_V6: Final = tuple(
    (IPv6Network(network), scope)
    for network, scope in (
        ("::/128", AddressScope.NO_HOST),  # unspecified
        ("::1/128", AddressScope.LOOPBACK),
        ("100::/64", AddressScope.NO_HOST),  # discard-only, RFC 6666
        ("100:0:0:1::/64", AddressScope.NO_HOST),  # dummy prefix, RFC 9780
        ("2001::/23", AddressScope.PRIVATE),  # protocol assignments, RFC 2928
        ("2000::/3", AddressScope.PUBLIC),  # RFC 4291
        ("fe80::/10", AddressScope.LINK_LOCAL),  # RFC 4291
        ("ff00::/8", AddressScope.NO_HOST),  # multicast
        ("::/0", AddressScope.PRIVATE),  # fc00::/7 (RFC 4193), fec0::/10 (RFC 3879), and all that is not allocated
    )
)
"""The first network that contains an address decides."""

_REACH: Final = (
    AddressScope.LOOPBACK,
    AddressScope.LINK_LOCAL,
    AddressScope.PRIVATE,
    AddressScope.SHARED,
    AddressScope.NO_HOST,
    AddressScope.PUBLIC,
)
"""From the least public scope on: of several addresses that a packet may reach, the first in this order decides."""

_COMPATIBLE: Final = IPv6Network("::/96")  # RFC 4291 §2.5.5.1
_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")  # RFC 2765 §2.1
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052 §2.1
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_6TO4: Final = IPv6Network("2002::/16")  # RFC 3056
_TEREDO: Final = IPv6Network("2001::/32")  # RFC 4380
_ISATAP: Final = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")  # an interface identifier's first half, RFC 5214 §6.1
_TWO_SPECIAL: Final = 2  # :: and ::1 are no IPv4-compatible addresses


@functools.lru_cache(maxsize=1024)  # a walk asks about each endpoint for each of its plugins, families and routes
def scope_of(ip: IpAddress) -> AddressScope:
    """The scope of an address; where IPv4 addresses are embedded, that of the least public one."""
    if isinstance(ip, IPv4Address):
        return next((scope for network, scope in _V4 if ip in network), AddressScope.PUBLIC)
    around = next(scope for network, scope in _V6 if ip in network)
    inside = [scope_of(each) for each in embedded_v4(ip)]
    if ip.packed[8:12] in _ISATAP:  # the prefix is the site's own, so the address is no more public than the prefix
        inside.append(around)
    return min(inside, key=_REACH.index, default=around)


def is_public(ip: IpAddress) -> bool:
    """Whether an address can be reached from elsewhere, firewalls apart: ``scope_of(ip) is AddressScope.PUBLIC``."""
    return scope_of(ip) is AddressScope.PUBLIC


def embedded_v4(ip: IpAddress) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses to which a packet for `ip` may be forwarded; none for an IPv4 address."""
    if isinstance(ip, IPv4Address):
        return ()
    packed = ip.packed
    last = IPv4Address(packed[12:])
    isatap = (last,) if packed[8:12] in _ISATAP else ()
    if ip in _COMPATIBLE:
        return (last,) if int(ip) >= _TWO_SPECIAL else ()
    if ip in _MAPPED or ip in _TRANSLATED or ip in _NAT64:
        return (last,)
    if ip in _LOCAL_NAT64:
        return _local_nat64(packed)
    if ip in _6TO4:
        return IPv4Address(packed[2:6]), *isatap
    if ip in _TEREDO:  # the server's address, and the client's with all bits inverted
        return IPv4Address(packed[4:8]), IPv4Address(bytes(255 - byte for byte in packed[12:]))
    return isatap


def _local_nat64(packed: bytes) -> tuple[IPv4Address, ...]:
    """The addresses that a local-use NAT64 address may embed.

    Only the NAT64 knows the length of its prefix: 48, 56, 64 or 96 bits (RFC 6052 §2.2).  With a wrong length, the
    zeros around the embedded address mostly give an address that no host has; such a reading is left out.
    """
    readings = (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13], packed[12:16])
    found = tuple(dict.fromkeys(IPv4Address(each) for each in readings))
    return tuple(each for each in found if scope_of(each) is not AddressScope.NO_HOST) or found[-1:]
