"""How far an address reaches: whether anybody, a network's members, or this machine alone can be meant by it.  Pure.

Everything that judges an address asks here: what a node publishes, what it dials for a peer, where it sends packets
that nobody asked for, what it believes of a STUN server.  The tables are IANA's special-purpose registries (RFC 6890)
and not Python's `is_global` and `is_private`, which have changed between patch releases; what stands here is the same
on every version.  Three things differ from the registries, on purpose:

* The documentation ranges (RFC 5737, RFC 3849, RFC 9637) are public: labs use them so, and nobody else.
* Of IPv6 nothing but 2000::/3 is public, which is all that IANA has given out so far: overlay networks use the rest
  for their members (200::/7).
* The anycast addresses among the protocol assignments (RFC 7723, RFC 8155) are no node's own, so nobody is there.

**An IPv4 address inside an IPv6 one** is where the packet ends up, so that is what is judged: IPv4-mapped, -compatible
and -translated addresses, NAT64 with the well-known and the local-use prefix, 6to4, Teredo, ISATAP.  A network that has
a NAT64 prefix of its own (RFC 6052 §2.2) cannot be told from any other.
"""

from __future__ import annotations

import functools
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final

from ..sockaddr import IpAddress

__all__ = ["AddressScope", "embedded_v4", "is_public", "scope_of"]


class AddressScope(Enum):
    """Who can be meant by an address."""

    PUBLIC = "public"
    """One host of the internet, from wherever it is asked (firewalls apart)."""
    SHARED = "shared"
    """A subscriber of one's provider: 100.64.0.0/10 (RFC 6598), which VPNs use too."""
    PRIVATE = "private"
    """A host of some network that has such addresses, and of another one elsewhere."""
    LINK_LOCAL = "link-local"
    """A neighbour on one link; clouds have their metadata servers there."""
    LOOPBACK = "loopback"
    """This machine."""
    NO_HOST = "no host"
    """No single host: unspecified, multicast, broadcast, reserved, made to be discarded."""


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
        ("192.88.99.0/24", AddressScope.NO_HOST),  # 6to4's relays, RFC 7526: no more
        ("192.168.0.0/16", AddressScope.PRIVATE),  # RFC 1918
        ("198.18.0.0/15", AddressScope.PRIVATE),  # benchmarks, RFC 2544; local proxies hand out names' stand-ins in it
        ("224.0.0.0/4", AddressScope.NO_HOST),  # multicast, RFC 5771
        ("240.0.0.0/4", AddressScope.NO_HOST),  # reserved, RFC 1112; holds the broadcast address
    )
)
"""What is in none of them is public."""

_V6: Final = tuple(
    (IPv6Network(network), scope)
    for network, scope in (
        ("::/128", AddressScope.NO_HOST),  # unspecified
        ("::1/128", AddressScope.LOOPBACK),
        ("100::/64", AddressScope.NO_HOST),  # to be discarded, RFC 6666
        ("100:0:0:1::/64", AddressScope.NO_HOST),  # a stand-in for no prefix, RFC 9780
        ("2001::/23", AddressScope.PRIVATE),  # protocol assignments, RFC 2928
        ("2000::/3", AddressScope.PUBLIC),  # RFC 4291
        ("fe80::/10", AddressScope.LINK_LOCAL),  # RFC 4291
        ("ff00::/8", AddressScope.NO_HOST),  # multicast
        ("::/0", AddressScope.PRIVATE),  # fc00::/7 (RFC 4193), fec0::/10 (RFC 3879), and all that is not given out
    )
)
"""The first one that holds an address decides."""

_REACH: Final = (
    AddressScope.LOOPBACK,
    AddressScope.LINK_LOCAL,
    AddressScope.PRIVATE,
    AddressScope.SHARED,
    AddressScope.NO_HOST,
    AddressScope.PUBLIC,
)
"""Of several addresses that may be meant, the first of these is what it would be unwise to send to."""

_COMPATIBLE: Final = IPv6Network("::/96")  # RFC 4291 §2.5.5.1
_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")  # RFC 2765 §2.1
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052 §2.1
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_6TO4: Final = IPv6Network("2002::/16")  # RFC 3056
_TEREDO: Final = IPv6Network("2001::/32")  # RFC 4380
_ISATAP: Final = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")  # an interface identifier's first half, RFC 5214 §6.1
_TWO_SPECIAL: Final = 2  # :: and ::1 are no IPv4-compatible addresses


@functools.lru_cache(maxsize=1024)  # a walk asks of each endpoint for each of its plugins, families and routes
def scope_of(ip: IpAddress) -> AddressScope:
    """How far an address reaches; where IPv4 addresses are embedded, how far the least public of them does."""
    if isinstance(ip, IPv4Address):
        return next((scope for network, scope in _V4 if ip in network), AddressScope.PUBLIC)
    around = next(scope for network, scope in _V6 if ip in network)
    inside = [scope_of(each) for each in embedded_v4(ip)]
    if ip.packed[8:12] in _ISATAP:  # which has a prefix of the site's own, and counts for no more than that
        inside.append(around)
    return min(inside, key=_REACH.index, default=around)


def is_public(ip: IpAddress) -> bool:
    """Whether an address can be reached from elsewhere, firewalls apart: ``scope_of(ip) is AddressScope.PUBLIC``."""
    return scope_of(ip) is AddressScope.PUBLIC


def embedded_v4(ip: IpAddress) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses to which a packet for `ip` may be handed on; none for an IPv4 address."""
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
    if ip in _TEREDO:  # the server, and the client's address with all bits turned over
        return IPv4Address(packed[4:8]), IPv4Address(bytes(255 - byte for byte in packed[12:]))
    return isatap


def _local_nat64(packed: bytes) -> tuple[IPv4Address, ...]:
    """Whom a local NAT64 may mean: only it knows how long its prefix is, 48, 56, 64 or 96 bits (RFC 6052 §2.2).

    Read by a wrong length, the zeros around an address mostly make one that no host has; that reading is left out.
    """
    readings = (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13], packed[12:16])
    found = tuple(dict.fromkeys(IPv4Address(each) for each in readings))
    return tuple(each for each in found if scope_of(each) is not AddressScope.NO_HOST) or found[-1:]
