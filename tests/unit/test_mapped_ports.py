"""Which of the ports that a router claims to have opened are published."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from tests.identities import ALICE
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, PeerAddress, Transport
from warpgate_trio.address.nat_profile import NatProfile, NatProfiles, TransportProfile
from warpgate_trio.address.record import MAX_ENDPOINTS
from warpgate_trio.config.config import PORTMAP_PROTOCOLS
from warpgate_trio.node.own_address import with_mapped
from warpgate_trio.portmap.service import MappedPort

LOCAL = IPv4Address("192.168.1.2")
NIC = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip=LOCAL, port=4433, prefix=24)
V6 = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip="2001:db8::2", port=4433, prefix=64)
INTERFACES = (AddressInterface(2, (V6, NIC)), AddressInterface(3, (NIC,)))
PORT = MappedPort(2, LOCAL, Transport.TCP, IPv4Address("203.0.113.5"), 4434, 4433, PORTMAP_PROTOCOLS[0], False)


def seen(*external: str) -> NatProfiles:
    profile = NatProfile(udp=TransportProfile(external=tuple(map(ip_address, external))))
    return NatProfiles({(None, 4): profile})


def published(port: MappedPort, nat: NatProfiles) -> list[Endpoint]:
    found = with_mapped(INTERFACES, [port], nat)
    assert found[1] == INTERFACES[1]
    assert found[0].endpoints[:2] == INTERFACES[0].endpoints
    return list(found[0].endpoints[2:])


@pytest.mark.parametrize("nat", [NatProfiles(), seen("203.0.113.5"), seen("203.0.113.9", "203.0.113.5")])
def test_a_public_address_that_servers_see_or_have_not_spoken_of(nat: NatProfiles) -> None:
    expected = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.MAPPED, ip="203.0.113.5", port=4434, base=1)
    assert published(PORT, nat) == [expected]


def test_a_public_address_that_servers_do_not_see() -> None:
    assert published(PORT, seen("203.0.113.9")) == []


@pytest.mark.parametrize("ip", ["100.64.0.2", "10.0.0.2", "192.168.100.2"])
def test_the_routers_address_in_its_providers_network(ip: str) -> None:
    (found,) = published(replace(PORT, ip=IPv4Address(ip)), seen("203.0.113.9"))
    assert str(found.ip) == ip


@pytest.mark.parametrize("ip", [None, "0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255"])
def test_what_no_peer_may_be_told_of(ip: str | None) -> None:
    told = None if ip is None else IPv4Address(ip)
    assert published(replace(PORT, ip=told), NatProfiles()) == []


def test_a_pinhole_is_for_an_address_that_is_published_anyway() -> None:
    assert published(replace(PORT, ip=IPv6Address("2001:db8::2")), NatProfiles()) == []


def test_an_interface_has_no_more_endpoints_than_a_record_holds() -> None:
    full = AddressInterface(2, (NIC,) * MAX_ENDPOINTS)
    assert with_mapped((full,), [PORT], NatProfiles()) == (full,)


def test_a_record_carries_it() -> None:
    record = PeerAddress.issue(
        ALICE,
        seq=1,
        issued_at=1,
        expires_at=2,
        host_salt=bytes(8),
        host_id=bytes(16),
        interfaces=with_mapped(INTERFACES, [PORT], NatProfiles()),
    )
    assert record.interfaces[0].endpoints[2].kind is EndpointKind.MAPPED
