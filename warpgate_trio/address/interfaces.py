"""Which addresses of a host's interfaces are worth publishing.

A host may have more addresses than a record has room for: bridges of virtual machines, a dozen temporary IPv6 addresses
(RFC 8981), aliases.  Each published address costs a dialling peer a connection attempt, in vain if the address cannot
be reached from elsewhere.  So `describe_interfaces` takes a few lasting addresses of each interface, public ones first.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from ..sockaddr import unmapped
from .endpoint import MAX_INTERFACES, AddressInterface, Endpoint, EndpointKind, Transport
from .scope import is_public

if TYPE_CHECKING:
    from ..host import Interface, InterfaceAddress

__all__ = ["describe_interfaces", "lasting_addresses"]

_MAX_V4_ADDRESSES: Final = 4  # of one interface; more are aliases that lead to the same place
_MAX_V6_ADDRESSES: Final = 2  # of one interface; privacy extensions (RFC 8981) collect a dozen
_MAX_DESCRIBED: Final = 32  # endpoints in all, of at most 27 bytes each; this leaves room for the rest of a record


def describe_interfaces(
    host_interfaces: Sequence[Interface],
    *,
    port_v4: int | None,
    port_v6: int | None,
) -> tuple[AddressInterface, ...]:
    """The interfaces and endpoints that a node listening on TCP publishes for its host (`Host.interfaces()`).

    Interfaces that are not used (`Interface.is_used`) are left out.  Each of the others' `lasting_addresses` gives a
    NIC endpoint; one that `is_public` also gives an EXT endpoint with the NIC one as its base.  At most 2 IPv6 and 4
    IPv4 addresses of one interface are taken.  Where a host has more than a record holds, interfaces with public
    addresses have priority.  A host that has no other address publishes its loopback, so that its own programs can
    still reach each other.

    Args:
      port_v4, port_v6: the port that the node listens on; None leaves the family out.
    """
    described: list[tuple[bool, AddressInterface]] = []
    for interface in host_interfaces:
        if not interface.is_used:
            continue
        endpoints: list[Endpoint] = []
        for version, port, most in ((4, port_v4, _MAX_V4_ADDRESSES), (6, port_v6, _MAX_V6_ADDRESSES)):
            if port is None:
                continue
            for address in lasting_addresses(interface, version)[:most]:
                nic = len(endpoints)
                endpoints.append(
                    Endpoint.make(
                        transport=Transport.TCP,
                        kind=EndpointKind.NIC,
                        ip=address.ip,
                        port=port,
                        prefix=address.prefix,
                    )
                )
                if is_public(address.ip):
                    endpoints.append(
                        Endpoint.make(
                            transport=Transport.TCP,
                            kind=EndpointKind.EXT,
                            ip=address.ip,
                            port=port,
                            base=nic,
                        )
                    )
        if endpoints:
            has_public = any(endpoint.kind is EndpointKind.EXT for endpoint in endpoints)
            described.append((has_public, AddressInterface(interface.index, tuple(endpoints))))
    chosen: set[int] = set()
    room = _MAX_DESCRIBED
    for _, each in sorted(described, key=lambda pair: not pair[0]):
        if len(each.endpoints) <= room and len(chosen) < MAX_INTERFACES:
            chosen.add(each.index)
            room -= len(each.endpoints)
    found = tuple(each for _, each in described if each.index in chosen)
    return found or _loopback_only(port_v4, port_v6)


def lasting_addresses(interface: Interface, version: int) -> list[InterfaceAddress]:
    """An interface's addresses of one family that peers can use the longest, public ones first.

    Loopback, link-local, multicast, unspecified and IPv4-mapped addresses are left out.  Public and other addresses are
    chosen separately:

    * Deprecated addresses are left out where there is one that is not.  They stop working when a provider has
      renumbered.
    * Then temporary addresses (RFC 8981) are left out where there is a stable one.  They last a day or two, while a
      record is good for a week.  They would hide nothing: whoever gets the record knows the peer id, which never
      changes.

    The system chooses the address that a node connects *from*; it takes temporary ones where they are enabled.
    """
    ours = [each for each in interface.addresses if each.ip.version == version and _is_usable(each.ip)]
    kept: list[InterfaceAddress] = []
    for public in (True, False):
        kind = [each for each in ours if is_public(each.ip) is public]
        best = min(map(_wear, kind), default=None)
        kept += [each for each in kind if _wear(each) == best]
    return kept


def _wear(address: InterfaceAddress) -> tuple[bool, bool]:
    return address.is_deprecated, address.is_temporary


def _loopback_only(port_v4: int | None, port_v6: int | None) -> tuple[AddressInterface, ...]:
    endpoints = tuple(
        Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip=ip, port=port)
        for ip, port in (("127.0.0.1", port_v4), ("::1", port_v6))
        if port is not None
    )
    return (AddressInterface(0, endpoints),) if endpoints else ()


def _is_usable(ip: IPv4Address | IPv6Address) -> bool:
    mapped = unmapped(ip) is not ip
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified or mapped)
