"""The candidates that a peer names for a punch, and which of them are accepted (docs/walk.md).  No I/O.

A peer's candidates direct our packets, so they are judged before anything is sent: by the combo's route type, and by
our own networks.  An accepted candidate may still be false.  Then it costs a few small packets to a public address,
most of which expire on the way (`checks.OPENER_HOPS`).
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
"""Candidates in one message: the views that some servers have of one port, and predicted ports."""

_NEVER: Final = (AddressScope.NO_HOST, AddressScope.LINK_LOCAL)


@final
class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A transport address at which the sender may be reached; `address` has 4 or 16 bytes."""

    address: Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


Candidates = Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=MAX_CANDIDATES)]
"""Candidates in a signal."""


def to_candidates(addresses: Sequence[TransportAddress]) -> tuple[Candidate, ...]:
    """The candidates for a signal: without duplicates, in order, at most `MAX_CANDIDATES`."""
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
    """The candidates of a peer that this node may send to.

    Args:
      loopback: the combo is by loopback, on one host.
      network_of: our own address in the network that the combo is in; None for a combo across the internet.
      ours: our own published endpoints; across the internet their networks must not be probed.
      own: all addresses of this host (`warpgate_trio.address.own`), which reach it past its firewall.
      same_host: the peer is on this host.  Otherwise none of `own` can be the peer's.
      mapped: our server-reflexive addresses.  Across the internet private candidates pass only if one of these is
        private too: then the two sides share a private internet.
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
            continue  # an embedded IPv4 address, which must not be judged by the rules of IPv6
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
    """Whether an address is its network's own or broadcast address, which no host has (/31 and /32 have neither)."""
    return (
        ip.version == 4
        and ip
        in (
            getattr(network, "network_address", None),
            getattr(network, "broadcast_address", None),
        )
        and getattr(network, "prefixlen", 32) < 31
    )
