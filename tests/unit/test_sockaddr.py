"""Socket addresses: their family, their normal form, and how they are shown."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from warpgate_trio.sockaddr import (
    bracketed,
    family_of,
    parse_ip,
    plain_address,
    show_address,
    socket_address,
    socket_family,
    unmapped,
)


@pytest.mark.parametrize(
    ("ip", "family", "number"),
    [
        ("192.0.2.1", 4, socket.AF_INET),
        ("2001:db8::1", 6, socket.AF_INET6),
        ("fe80::1%2", 6, socket.AF_INET6),
        ("::ffff:192.0.2.1", 6, socket.AF_INET6),
    ],
)
def test_families(ip: str, family: int, number: int) -> None:
    assert family_of(ip) == family
    assert socket_family(ip) == number


def test_an_ip_literal_is_read_without_its_scope() -> None:
    assert parse_ip("fe80::1%eth0") == ip_address("fe80::1")
    assert parse_ip("192.0.2.1") == ip_address("192.0.2.1")
    with pytest.raises(ValueError, match="example"):
        parse_ip("example")


def test_ipv4_in_the_form_of_ipv6_is_ipv4() -> None:
    assert unmapped(ip_address("::ffff:192.0.2.1")) == ip_address("192.0.2.1")
    for ip in (ip_address("2001:db8::1"), ip_address("192.0.2.1")):
        assert unmapped(ip) is ip


def test_addresses_of_sockets() -> None:
    assert plain_address(("192.0.2.1", 1)) == ("192.0.2.1", 1)
    assert plain_address(("fe80::1%eth0", 1, 0, 2)) == ("fe80::1", 1)
    assert plain_address(("::ffff:192.0.2.1", 1, 0, 0)) == ("192.0.2.1", 1)


def test_addresses_of_sockets_with_their_scope() -> None:
    assert socket_address(("192.0.2.1", 1)) == ("192.0.2.1", 1)
    assert socket_address(("fe80::1", 1, 0, 2)) == ("fe80::1%2", 1)
    assert socket_address(("fe80::1%eth0", 1, 0, 2)) == ("fe80::1%eth0", 1)
    assert socket_address(("2001:db8::1", 1, 0, 0)) == ("2001:db8::1", 1)


def test_how_addresses_are_shown() -> None:
    assert show_address(("192.0.2.1", 443)) == "192.0.2.1:443"
    assert show_address(("2001:db8::1", 443)) == "[2001:db8::1]:443"
    assert show_address(("example.org", 443)) == "example.org:443"
    assert (bracketed("::1"), bracketed("example.org")) == ("[::1]", "example.org")
