"""How far each address reaches: IANA's registries, and IPv4 addresses inside IPv6 ones."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from warpgate_trio.address.scope import AddressScope, embedded_v4, is_public, scope_of

PUBLIC, SHARED, PRIVATE = AddressScope.PUBLIC, AddressScope.SHARED, AddressScope.PRIVATE
LINK_LOCAL, LOOPBACK, NO_HOST = AddressScope.LINK_LOCAL, AddressScope.LOOPBACK, AddressScope.NO_HOST

V4_REGISTRY = {
    "0.0.0.0/8": NO_HOST,
    "0.0.0.0/32": NO_HOST,
    "10.0.0.0/8": PRIVATE,
    "100.64.0.0/10": SHARED,
    "127.0.0.0/8": LOOPBACK,
    "169.254.0.0/16": LINK_LOCAL,
    "172.16.0.0/12": PRIVATE,
    "192.0.0.0/24": PRIVATE,
    "192.0.0.0/29": PRIVATE,
    "192.0.0.8/32": PRIVATE,
    "192.0.0.9/32": PRIVATE,
    "192.0.0.10/32": PRIVATE,
    "192.0.0.170/32": PRIVATE,
    "192.0.0.171/32": PRIVATE,
    "192.0.2.0/24": PUBLIC,
    "192.31.196.0/24": PUBLIC,
    "192.52.193.0/24": PUBLIC,
    "192.88.99.0/24": NO_HOST,
    "192.168.0.0/16": PRIVATE,
    "192.175.48.0/24": PUBLIC,
    "198.18.0.0/15": PRIVATE,
    "198.51.100.0/24": PUBLIC,
    "203.0.113.0/24": PUBLIC,
    "224.0.0.0/4": NO_HOST,
    "240.0.0.0/4": NO_HOST,
    "255.255.255.255/32": NO_HOST,
}
"""https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast."""

V6_REGISTRY = {
    "::1/128": LOOPBACK,
    "::/128": NO_HOST,
    "100::/64": NO_HOST,
    "100:0:0:1::/64": NO_HOST,
    "2001:1::1/128": PRIVATE,
    "2001:1::2/128": PRIVATE,
    "2001:1::3/128": PRIVATE,
    "2001:2::/48": PRIVATE,
    "2001:3::/32": PRIVATE,
    "2001:4:112::/48": PRIVATE,
    "2001:10::/28": PRIVATE,
    "2001:20::/28": PRIVATE,
    "2001:30::/28": PRIVATE,
    "2001:db8::/32": PUBLIC,
    "2620:4f:8000::/48": PUBLIC,
    "3fff::/20": PUBLIC,
    "5f00::/16": PRIVATE,
    "fc00::/7": PRIVATE,
    "fe80::/10": LINK_LOCAL,
    # Not in that registry: other blocks of the address space.
    "200::/7": PRIVATE,
    "400::/6": PRIVATE,
    "1000::/4": PRIVATE,
    "2003::/16": PUBLIC,
    "2a00::/12": PUBLIC,
    "4000::/3": PRIVATE,
    "6000::/3": PRIVATE,
    "8000::/2": PRIVATE,
    "c000::/3": PRIVATE,
    "f800::/6": PRIVATE,
    "fe00::/9": PRIVATE,
    "fec0::/10": PRIVATE,
    "ff00::/8": NO_HOST,
}
"""https://www.iana.org/assignments/iana-ipv6-special-registry; blocks that embed IPv4 addresses are tested below."""


@pytest.mark.parametrize(("block", "scope"), [*V4_REGISTRY.items(), *V6_REGISTRY.items()])
def test_every_block_of_the_registries_from_end_to_end(block: str, scope: AddressScope) -> None:
    network = ip_network(block)
    for at in (network[0], network[-1], network[network.num_addresses // 2]):
        if at not in (ip_address("::"), ip_address("::1")) or network.prefixlen == 128:
            assert scope_of(at) is scope, at
            assert is_public(at) is (scope is PUBLIC)


@pytest.mark.parametrize("block", list(V4_REGISTRY))
def test_what_lies_around_a_block_is_not_in_it(block: str) -> None:
    """Where no other block begins, the addresses just before and after a block are public."""
    network = IPv4Network(block)
    others = [IPv4Network(each) for each, scope in V4_REGISTRY.items() if scope is not PUBLIC]
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= number < 2**32 and not any(IPv4Address(number) in other for other in others):
            assert scope_of(IPv4Address(number)) is PUBLIC


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.32.0.0",
        "198.17.255.255",
        "198.20.0.0",
    ],
)
def test_public_v4(text: str) -> None:
    assert scope_of(ip_address(text)) is PUBLIC


@pytest.mark.parametrize(
    "text", ["2000::", "2600::1", "2606:4700::1111", "2a0a::1", "2001:200::1", "2001:4860:4860::8888", "3ffe::1"]
)
def test_public_v6(text: str) -> None:
    assert scope_of(ip_address(text)) is PUBLIC


# -- embedded IPv4 addresses -------------------------------------------------------------------------------------------


def after(prefix: str) -> Callable[[IPv4Address], IPv6Address]:
    """A function that puts an IPv4 address into the last 32 bits after the prefix."""
    return lambda v4: IPv6Address(int(IPv6Address(prefix)) | int(v4))


def six_to_four(v4: IPv4Address) -> IPv6Address:
    return IPv6Address(b"\x20\x02" + v4.packed + bytes(9) + b"\x01")


def teredo_client(v4: IPv4Address) -> IPv6Address:
    hidden = bytes(255 - byte for byte in v4.packed)
    return IPv6Address(bytes.fromhex("20010000") + IPv4Address("65.54.227.120").packed + b"\x80\x00\x63\xbf" + hidden)


def teredo_server(v4: IPv4Address) -> IPv6Address:
    return IPv6Address(bytes.fromhex("20010000") + v4.packed + bytes.fromhex("800063bf") + bytes.fromhex("3fb1cc8d"))


FORMS = {
    "mapped": after("::ffff:0:0"),
    "compatible": after("::"),
    "translated": after("::ffff:0:0:0"),
    "NAT64": after("64:ff9b::"),
    "NAT64, local use": after("64:ff9b:1::"),
    "6to4": six_to_four,
    "Teredo client": teredo_client,
    "Teredo server": teredo_server,
    "ISATAP": after("2a00:0:0:7:0:5efe::"),
    "ISATAP, universal": after("2a00:0:0:7:200:5efe::"),
    "ISATAP under 6to4": after("2002:808:808:0:200:5efe::"),
}
ANY_V4 = st.ip_addresses(v=4) | st.one_of([st.ip_addresses(network=each) for each in V4_REGISTRY])
HARMLESS = ip_address("8.8.8.8")


@pytest.mark.parametrize("form", list(FORMS))
@given(v4=ANY_V4)
@example(v4=IPv4Address("127.0.0.1"))
@example(v4=IPv4Address("169.254.169.254"))
@example(v4=IPv4Address("10.0.0.0"))
@example(v4=IPv4Address("8.0.0.0"))
@example(v4=IPv4Address("255.255.255.255"))
def test_an_embedded_address_is_what_is_judged(form: str, v4: IPv4Address) -> None:
    ip = FORMS[form](v4)
    if ip not in (ip_address("::"), ip_address("::1")):
        assert v4 in embedded_v4(ip)
        assert scope_of(ip) is scope_of(v4)


@given(v4=ANY_V4, length=st.sampled_from([48, 56, 64, 96]))
def test_a_local_nat64_of_any_prefix_length_gives_no_private_address_away(v4: IPv4Address, length: int) -> None:
    """RFC 6052 §2.2: the address follows the prefix, around bits 64 to 71, which are zero."""
    octets, at = bytearray(IPv6Address("64:ff9b:1::").packed), length // 8
    for byte in v4.packed:
        at += at == 8
        octets[at] = byte
        at += 1
    ip = IPv6Address(bytes(octets))
    if scope_of(v4) is not NO_HOST:
        assert v4 in embedded_v4(ip)
        assert is_public(v4) or not is_public(ip)


@given(st.ip_addresses(v=6))
def test_what_embeds_nothing_is_judged_by_itself(ip: IPv6Address) -> None:
    if not embedded_v4(ip):
        assert (scope_of(ip) is PUBLIC) <= (ip in IPv6Network("2000::/3"))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_embeds_nothing(ip: IPv4Address) -> None:
    assert embedded_v4(ip) == ()


def test_a_public_address_in_a_link_local_one_makes_it_no_more_than_that() -> None:
    assert scope_of(ip_address("fe80::5efe:8.8.8.8")) is LINK_LOCAL
    assert scope_of(ip_address("fd00::5efe:8.8.8.8")) is PRIVATE


def test_of_two_embedded_addresses_the_less_public_one_counts() -> None:
    assert scope_of(ip_address("2002:a00:1::5efe:808:808")) is PRIVATE


def test_a_scope_id_changes_nothing() -> None:
    assert scope_of(ip_address("fe80::1%eth0")) is LINK_LOCAL
