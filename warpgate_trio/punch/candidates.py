"""Where a peer says that it can be met, and which of that is believed (docs/walk.md).  Pure.

A peer's claim aims our packets, so it is judged before one is sent: by the route that the combo is about, and by where
we are ourselves.  What passes can still be a lie; then it is a few small packets to a public address, most of which die
on the way (`checks.OPENER_HOPS`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Annotated, Final, final

import msgspec

from ..address import AddressScope, Endpoint, EndpointKind, is_public, scope_of
from ..sockaddr import TransportAddress, parse_ip, unmapped

__all__ = ["MAX_CANDIDATES", "Candidate", "Candidates", "admit", "to_candidates"]

MAX_CANDIDATES: Final = 16
"""Candidates in one message: a few servers' views of one port, and predicted ports beside it."""

_NEVER: Final = (AddressScope.NO_HOST, AddressScope.LINK_LOCAL)


@final
class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """One transport address at which the sender may be met; `address` has 4 or 16 bytes."""

    address: Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


Candidates = Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=MAX_CANDIDATES)]
"""As a signal carries them."""


def to_candidates(addresses: Sequence[TransportAddress]) -> tuple[Candidate, ...]:
    """For a signal: each once, in order, at most `MAX_CANDIDATES`."""
    distinct = list(dict.fromkeys((parse_ip(host).packed, port) for host, port in addresses))
    return tuple(Candidate(packed, port) for packed, port in distinct[:MAX_CANDIDATES])


def admit(
    candidates: Sequence[Candidate],
    *,
    af: int,
    loopback: bool,
    network_of: IPv4Address | IPv6Address | None,
    ours: Sequence[Endpoint],
    own: Container[IPv4Address | IPv6Address],
    same_host: bool,
    mapped: Sequence[TransportAddress] = (),
) -> list[TransportAddress]:
    """Those of a peer's candidates that may be sent to.

    Args:
      loopback: the two are on one machine and meet there.
      network_of: our own address in the one network in which the two meet; None: they meet across the internet.
      ours: our own published endpoints, whose networks are not to be felt around in.
      own: all addresses of our machine (`warpgate_trio.address.own`), which lead to it past firewalls.
      same_host: the peer runs on it too; who does not is at none of them.
      mapped: where STUN servers saw us.  Private addresses pass only if one of these is private too: the internet that
        the two share is then a private one.
    """
    networks = [
        ip_interface((endpoint.ip, endpoint.prefix)).network
        for endpoint in ours
        if endpoint.kind is EndpointKind.NIC and endpoint.prefix is not None and endpoint.af == af
    ]
    private_internet = any(not is_public(ip_address(host)) for host, _ in mapped)
    admitted: dict[TransportAddress, None] = {}
    for candidate in candidates[:MAX_CANDIDATES]:
        if len(candidate.address) != (4 if af == 4 else 16):
            continue
        ip = IPv4Address(candidate.address) if af == 4 else IPv6Address(candidate.address)
        scope = scope_of(ip)
        if scope in _NEVER:
            continue
        if unmapped(ip) is not ip:
            continue  # an IPv4 address that would be judged by the rules of IPv6
        near = [network for network in networks if ip in network]
        if scope is AddressScope.LOOPBACK:
            good = loopback and ip.is_loopback
        elif loopback or (ip in own and not same_host):
            good = False
        elif network_of is not None:
            good = any(network_of in network and not _is_edge(ip, network) for network in near)
        else:
            good = scope is AddressScope.PUBLIC or (private_internet and not near)
        if good:
            admitted[str(ip), candidate.port] = None
    return list(admitted)


def _is_edge(ip: IPv4Address | IPv6Address, network: object) -> bool:
    """Whether it is its network's own or broadcast address, which no host has (/31 and /32 have neither)."""
    return (
        ip.version == 4
        and ip
        in (
            getattr(network, "network_address", None),
            getattr(network, "broadcast_address", None),
        )
        and getattr(network, "prefixlen", 32) < 31
    )
