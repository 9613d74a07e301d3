"""Which of a peer's claims about itself are believed: every class of address, for every route."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address import Endpoint, EndpointKind, Transport, is_public
from warpgate_trio.punch.candidates import MAX_CANDIDATES, Candidate, Candidates, admit, to_candidates
from warpgate_trio.sockaddr import TransportAddress

NIC, EXT = EndpointKind.NIC, EndpointKind.EXT
PUBLIC, PRIVATE = ("198.51.100.7", 1), ("10.8.0.7", 1)
"""The address that a STUN server saw: across the internet, and in a lab whose internet is private."""


def endpoint(ip: str, prefix: int | None, kind: EndpointKind = NIC) -> Endpoint:
    return Endpoint.make(transport=Transport.TCP, kind=kind, ip=ip, port=7000, prefix=prefix)


OURS = [
    endpoint("192.168.1.7", 24),
    endpoint("10.1.0.7", 16),
    endpoint("172.16.0.7", None),
    endpoint("198.51.100.7", 32, EXT),
    endpoint("2001:db8:1::7", 64),
    endpoint("fd00:1::7", 64),
]
OWN = frozenset(ip_address(each) for each in ("192.168.1.7", "10.88.0.1", "198.51.100.200", "2001:db8:1::7", "2a00::7"))
"""All addresses of this host, which has more than it publishes."""
LAN, LAN_V6 = ip_address("192.168.1.7"), ip_address("2001:db8:1::7")


def at(*hosts: str, port: int = 4000) -> list[Candidate]:
    return [Candidate(ip_address(host).packed, port) for host in hosts]


def admitted(
    *hosts: str,
    af: int = 4,
    loopback: bool = False,
    network_of: IPv4Address | IPv6Address | None = None,
    mapped: tuple[TransportAddress, ...] = (PUBLIC,),
    same_host: bool = False,
) -> list[str]:
    found = admit(
        at(*hosts),
        af=af,
        loopback=loopback,
        network_of=network_of,
        ours=OURS,
        own=OWN,
        same_host=same_host,
        mapped=mapped,
    )
    assert all(port == 4000 for _, port in found)
    return [host for host, _ in found]


NEVER_V4 = ["0.0.0.0", "240.0.0.1", "255.255.255.255", "224.0.0.251", "239.1.2.3", "169.254.1.1", "169.254.169.254"]
NEVER_V6 = [
    "::",
    "ff02::1",
    "ff05::2",
    "fe80::1",
    "::ffff:203.0.113.9",
    "::ffff:127.0.0.1",
    "::ffff:192.168.1.1",
    "64:ff9b::7f00:1",
]
PUBLIC_V4 = ["203.0.113.9", "8.8.8.8", "198.51.100.7"]
PUBLIC_V6 = ["2001:db8:9::1", "2a00::1", "64:ff9b::808:808"]
PRIVATE_V4 = ["10.9.9.9", "172.20.0.1", "192.168.77.1", "100.64.0.1", "198.18.0.1"]
PRIVATE_V6 = ["fd00:9::1", "200::1", "64:ff9b::a00:1", "2002:a00:1::1", "::a00:1"]
NEAR_V4 = ["192.168.1.1", "10.1.255.1"]
LOOPBACK_V4 = ["127.0.0.1", "127.1.2.3"]


@pytest.mark.parametrize("network_of", [None, LAN, LAN_V6])
@pytest.mark.parametrize("loopback", [True, False])
@pytest.mark.parametrize("mapped", [(), (PUBLIC,), (PRIVATE,)])
def test_what_is_never_sent_to(
    network_of: IPv4Address | IPv6Address | None, loopback: bool, mapped: tuple[TransportAddress, ...]
) -> None:
    for af, hosts in ((4, NEVER_V4), (6, NEVER_V6)):
        assert admitted(*hosts, af=af, loopback=loopback, network_of=network_of, mapped=mapped) == []


class TestAcrossTheInternet:
    def test_public_addresses_alone(self) -> None:
        assert admitted(*PUBLIC_V4, *PRIVATE_V4, *NEAR_V4, *LOOPBACK_V4) == PUBLIC_V4
        assert admitted(*PUBLIC_V6, "fd00:9::1", "::1", af=6) == PUBLIC_V6

    def test_what_is_private_by_its_block_or_by_what_it_embeds(self) -> None:
        assert admitted(*PRIVATE_V6, af=6) == []
        assert admitted(*PRIVATE_V6, af=6, mapped=(("fd00:7::1", 5),)) == PRIVATE_V6

    def test_our_own_machine_for_nobody_who_is_not_on_it(self) -> None:
        """Not at a public address either: the peer's packets would come from loopback, past this host's firewall."""
        ours = [str(each) for each in OWN if each.version == 4]
        for mapped in (PUBLIC, PRIVATE):
            assert admitted(*ours, mapped=(mapped,)) == []
        assert admitted(*ours, same_host=True) == ["198.51.100.200"]
        assert admitted("2a00::7", "2001:db8:1::7", af=6) == []

    def test_private_ones_where_the_internet_itself_is_private(self) -> None:
        """But not on this side's own networks, where a stranger has no business."""
        assert admitted(*PRIVATE_V4, *NEAR_V4, *LOOPBACK_V4, mapped=(PRIVATE,)) == PRIVATE_V4
        assert admitted("fd00:9::1", "fd00:1::9", "::1", af=6, mapped=(("fd00:7::1", 5),)) == ["fd00:9::1"]

    def test_one_private_view_of_several_is_enough(self) -> None:
        assert admitted("10.9.9.9", mapped=(PUBLIC, PRIVATE)) == ["10.9.9.9"]
        assert admitted("10.9.9.9", mapped=()) == []

    def test_an_endpoint_without_a_prefix_has_no_network(self) -> None:
        assert admitted("172.16.0.9", mapped=(PRIVATE,)) == ["172.16.0.9"]


class TestInOneNetwork:
    def test_hosts_of_that_network_alone(self) -> None:
        hosts = ["192.168.1.9", "192.168.1.254", "10.1.0.9", *PUBLIC_V4, *PRIVATE_V4, *LOOPBACK_V4]
        assert admitted(*hosts, network_of=LAN) == ["192.168.1.9", "192.168.1.254"]
        hosts = ["2001:db8:1::9", "2001:db8:1::", *PUBLIC_V6, "fd00:1::9", "::1"]
        assert admitted(*hosts, af=6, network_of=LAN_V6) == ["2001:db8:1::9", "2001:db8:1::"]

    def test_our_own_address_there_for_who_is_on_our_machine(self) -> None:
        assert admitted("192.168.1.7", network_of=LAN) == []
        assert admitted("192.168.1.7", "192.168.1.9", "10.88.0.1", network_of=LAN, same_host=True) == [
            "192.168.1.7",
            "192.168.1.9",
        ]

    def test_its_edges_are_no_hosts(self) -> None:
        assert admitted("192.168.1.0", "192.168.1.255", network_of=LAN) == []

    @pytest.mark.parametrize("prefix", [31, 32])
    def test_a_network_without_edges(self, prefix: int) -> None:
        ours = [endpoint("192.168.1.6", prefix)]
        here, hosts = ip_address("192.168.1.6"), at("192.168.1.6", "192.168.1.7")
        found = admit(hosts, af=4, loopback=False, network_of=here, ours=ours, own=(), same_host=False)
        assert [host for host, _ in found] == ["192.168.1.6", "192.168.1.7"][: 2 if prefix == 31 else 1]

    def test_a_private_internet_does_not_widen_it(self) -> None:
        assert admitted("10.9.9.9", "192.168.1.9", network_of=LAN, mapped=(PRIVATE,)) == ["192.168.1.9"]

    def test_networks_of_another_family_or_kind_do_not_count(self) -> None:
        ours = [endpoint("2001:db8:1::7", 64), endpoint("192.168.1.7", 24, EXT)]
        assert admit(at("192.168.1.9"), af=4, loopback=False, network_of=LAN, ours=ours, own=(), same_host=False) == []


class TestOnOneMachine:
    def test_loopback_alone(self) -> None:
        everything = [*LOOPBACK_V4, *PUBLIC_V4, *PRIVATE_V4, *NEAR_V4]
        assert admitted(*everything, loopback=True) == LOOPBACK_V4
        assert admitted(*everything, loopback=True, mapped=(PRIVATE,)) == LOOPBACK_V4
        assert admitted("::1", *PUBLIC_V6, "fd00:1::9", af=6, loopback=True) == ["::1"]


class TestNumbers:
    def test_the_other_family_and_odd_lengths_are_left_out(self) -> None:
        odd = [Candidate(b"\x08\x08\x08\x08\x08", 1), Candidate(bytes(15), 1)]
        for af in (4, 6):
            hosts = [*PUBLIC_V4, *PUBLIC_V6]
            found = admit(
                [*odd, *at(*hosts)], af=af, loopback=False, network_of=None, ours=OURS, own=OWN, same_host=False
            )
            assert [host for host, _ in found] == (PUBLIC_V4 if af == 4 else PUBLIC_V6)

    def test_each_once_in_order_and_not_too_many(self) -> None:
        many = [Candidate(ip_address("203.0.113.9").packed, port) for port in (5, 4, 5, *range(100, 200))]
        found = admit(many, af=4, loopback=False, network_of=None, ours=OURS, own=OWN, same_host=False)
        assert found[:2] == [("203.0.113.9", 5), ("203.0.113.9", 4)]
        assert len(found) == len(set(found)) == MAX_CANDIDATES - 1

    def test_what_we_say_has_each_once_in_order_and_not_too_many(self) -> None:
        said = to_candidates([("203.0.113.9", 5), ("2001:db8::1", 6), ("203.0.113.9", 5), ("fe80::1%eth0", 7)])
        assert said == (
            Candidate(b"\xcb\x00\x71\x09", 5),
            Candidate(ip_address("2001:db8::1").packed, 6),
            Candidate(ip_address("fe80::1").packed, 7),
        )
        assert len(to_candidates([("203.0.113.9", 1 + n) for n in range(100)])) == MAX_CANDIDATES

    def test_on_the_wire(self) -> None:
        """An array of arrays; values out of bounds are refused when the message is decoded."""
        said = to_candidates([("203.0.113.9", 4000)])
        data = msgspec.msgpack.encode(said)
        assert data == b"\x91\x92\xc4\x04\xcb\x00\x71\x09\xcd\x0f\xa0"
        assert msgspec.msgpack.decode(data, type=Candidates) == said
        for bad in ([[b"123", 1]], [[bytes(17), 1]], [[bytes(4), 0]], [[bytes(4), 65536]], [[bytes(4), 1]] * 17, [1]):
            with pytest.raises(msgspec.ValidationError):
                msgspec.msgpack.decode(msgspec.msgpack.encode(bad), type=Candidates)


@settings(max_examples=40)
@given(
    raw=st.lists(
        st.tuples(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(1, 65535)),
        max_size=20,
    ),
    af=st.sampled_from([4, 6]),
    loopback=st.booleans(),
    network_of=st.sampled_from([None, LAN, LAN_V6]),
    mapped=st.sampled_from([(), (PUBLIC,), (PRIVATE,)]),
    same_host=st.booleans(),
)
def test_whatever_a_peer_says(
    raw: list[tuple[bytes, int]],
    af: int,
    loopback: bool,
    network_of: IPv4Address | IPv6Address | None,
    mapped: tuple[TransportAddress, ...],
    same_host: bool,
) -> None:
    candidates = [Candidate(address, port) for address, port in raw]
    found = admit(
        candidates,
        af=af,
        loopback=loopback,
        network_of=network_of,
        ours=OURS,
        own=OWN,
        same_host=same_host,
        mapped=mapped,
    )
    assert len(found) <= MAX_CANDIDATES
    assert set(found) <= {(str(ip_address(address)), port) for address, port in raw}
    for host, _ in found:
        ip = ip_address(host)
        assert ip.version == af
        assert not any((ip.is_multicast, ip.is_unspecified, ip.is_link_local))
        assert same_host or ip not in OWN
        if loopback:
            assert ip.is_loopback
        elif network_of is None and not any(not is_public(ip_address(each)) for each, _ in mapped):
            assert is_public(ip)
