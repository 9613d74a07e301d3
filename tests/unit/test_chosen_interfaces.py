"""Which interfaces a node uses, which addresses are lasting, and which of them a peer is told."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

import pytest

from tests.nodes import LoopbackHost
from warpgate_trio.address.interfaces import describe_interfaces, lasting_addresses
from warpgate_trio.cli.reachable import reachable_urls
from warpgate_trio.config import InterfacesConfig
from warpgate_trio.config.chosen_interfaces import choose_interfaces
from warpgate_trio.host import Host, Interface, InterfaceAddress
from warpgate_trio.names import Names
from warpgate_trio.nat.servers import StunServers
from warpgate_trio.netcheck.report import plan_paths
from warpgate_trio.sockaddr import Family, TransportAddress


def interface(name: str, *addresses: str, virtual: bool = False) -> Interface:
    """An interface with addresses such as ``2001:db8::5/64``; a suffix ``d`` means deprecated, ``t`` temporary."""
    own = []
    for text in addresses:
        plain = ip_interface(text.rstrip("dt"))
        marks = text[len(text.rstrip("dt")) :]
        own.append(
            InterfaceAddress(
                ip=plain.ip, prefix=plain.network.prefixlen, is_deprecated="d" in marks, is_temporary="t" in marks
            )
        )
    index = sum(name.encode())
    return Interface(name=name, index=index, addresses=tuple(own), is_loopback=name == "lo", is_virtual=virtual)


LO = interface("lo", "127.0.0.1/8", "::1/128")
MACHINE = (
    LO,
    interface("eth0", "192.168.1.5/24", "2001:db8::5/64", "fe80::5/64"),
    interface("wlan0", "192.168.2.5/24"),
    interface("tun0", "10.8.0.2/24", "fd08::2/64"),
    interface("docker0", "172.17.0.1/16", virtual=True),
)


class Machine(LoopbackHost):  # type: ignore[misc]  # final for everybody else
    """Sends everything that is not on a local network through tun0, as with a full-tunnel VPN."""

    listed: tuple[Interface, ...] = MACHINE

    def interfaces(self) -> tuple[Interface, ...]:
        return self.listed

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        own = [(each.ip, each.prefix) for interface in MACHINE for each in interface.addresses]
        for ip, prefix in own:
            if dest == ip or (dest.version == ip.version and dest in ip_interface((ip, prefix)).network):
                return ip
        return ip_address("10.8.0.2" if dest.version == 4 else "fd08::2")


def chosen(*, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Host:
    return choose_interfaces(Machine(), InterfacesConfig(include=include, exclude=exclude))


def published(host: Host) -> set[str]:
    described = describe_interfaces(host.interfaces(), port_v4=1, port_v6=1)
    return {str(endpoint.ip) for each in described for endpoint in each.endpoints}


def bound(host: Host, af: Family, servers: Sequence[TransportAddress] = ()) -> str:
    return StunServers((), host, Names()).source(af, servers)


ETH0 = {"192.168.1.5", "2001:db8::5"}
TUN0 = {"10.8.0.2", "fd08::2"}
WLAN0 = {"192.168.2.5"}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ETH0 | WLAN0 | TUN0),
        ((), ("tun*",), ETH0 | WLAN0),
        ((), ("TUN0", "wlan?"), ETH0),
        (("eth0",), (), ETH0),
        (("*",), ("tun*", "docker*"), ETH0 | WLAN0),
        (("eth*", "docker0"), (), ETH0 | {"172.17.0.1"}),
        (("eth*",), ("eth*",), {"127.0.0.1", "::1"}),
        ((), ("*",), {"127.0.0.1", "::1"}),
        (("[ew]*",), ("w*",), ETH0),
    ],
)
def test_what_is_published(include: tuple[str, ...], exclude: tuple[str, ...], expected: set[str]) -> None:
    assert published(chosen(include=include, exclude=exclude)) == expected


def test_what_is_left_out_is_this_machine_s_all_the_same() -> None:
    """Excluded addresses still count as this host's own, so that no peer can reach the host by having them dialled."""
    host = chosen(exclude=("tun*", "wlan*"))
    assert [each.name for each in host.interfaces()] == [each.name for each in MACHINE]
    assert [each.addresses for each in host.interfaces()] == [each.addresses for each in MACHINE]
    for text in ("10.8.0.2", "fd08::2", "192.168.2.5", "127.0.0.1"):
        assert host.source_address(ip_address(text)) == ip_address(text)


def test_nothing_is_sent_from_what_is_left_out() -> None:
    far, far6 = ip_address("198.51.100.1"), ip_address("2001:db8:9::1")
    assert chosen().source_address(far) == ip_address("10.8.0.2")
    host = chosen(exclude=("tun*",))
    assert host.source_address(far) == ip_address("192.168.1.5")
    assert host.source_address(far6) == ip_address("2001:db8::5")
    assert host.source_address(ip_address("192.168.2.77")) == ip_address("192.168.2.5")
    assert chosen(include=("wlan0",)).source_address(far) == ip_address("192.168.2.5")
    assert chosen(include=("wlan0",)).source_address(far6) is None


@pytest.mark.parametrize("servers", [[], [("198.51.100.1", 3478)]])
def test_what_is_bound(servers: list[tuple[str, int]]) -> None:
    assert bound(chosen(exclude=("tun*", "eth*")), 4, servers) == "192.168.2.5"
    assert bound(chosen(include=("docker0",)), 4, servers) == "172.17.0.1"
    with pytest.raises(OSError, match="no IPv4 address"):
        bound(chosen(exclude=("*",)), 4, servers)


def test_what_is_measured() -> None:
    host = chosen(exclude=("tun*",))
    paths = plan_paths(host.interfaces(), 4, host.source_address(ip_address("198.51.100.1")))
    assert [(path.interface, str(path.address), path.main) for path in paths] == [
        ("eth0", "192.168.1.5", True),
        ("wlan0", "192.168.2.5", False),
    ]


def test_everything_else_is_asked_of_the_machine() -> None:
    machine = Machine()
    host = choose_interfaces(machine, InterfacesConfig(exclude=("x",)))
    assert host is not machine
    assert host.random is machine.random
    assert host.machine_fingerprint() == machine.machine_fingerprint()
    assert len(host.entropy(3)) == 3
    assert abs(host.wall_time() - machine.wall_time()) < 60
    assert host.spare_descriptors() > 0
    assert choose_interfaces(machine, InterfacesConfig()) is machine


# -- addresses that last -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("2001:db8:1::1 2001:db8:2::2d", "2001:db8:1::1"),  # the network was renumbered
        ("2001:db8:1::1t 2001:db8:1::2", "2001:db8:1::2"),  # temporary addresses, RFC 8981
        ("2001:db8:1::1t 2001:db8:1::2d", "2001:db8:1::1"),
        ("2001:db8:1::1dt 2001:db8:1::2t 2001:db8:1::3t", "2001:db8:1::2 2001:db8:1::3"),
        ("2001:db8:1::1dt 2001:db8:1::2d", "2001:db8:1::2"),
        ("2001:db8:1::1d", "2001:db8:1::1"),  # there is no better one
        ("2001:db8:1::1t", "2001:db8:1::1"),
        ("fd00::1 2001:db8:1::1d", "2001:db8:1::1 fd00::1"),  # from outside, it is the only way
        ("fd00::1 fd00::2d 2001:db8:1::1 fe80::1", "2001:db8:1::1 fd00::1"),
        ("fe80::1", ""),
    ],
)
def test_those_that_last_are_published(addresses: str, expected: str) -> None:
    """In whatever order the system lists them."""
    own = [f"{text[: len(text.rstrip('dt'))]}/64{text[len(text.rstrip('dt')) :]}" for text in addresses.split()]
    for order in itertools.permutations(own):
        found = lasting_addresses(interface("eth0", *order), 6)
        assert {str(each.ip) for each in found} == set(expected.split())
        assert [each.ip.is_private for each in found if str(each.ip).startswith("fd")] == [
            True for each in expected.split() if each.startswith("fd")
        ]
        described = describe_interfaces([interface("eth0", *order)], port_v4=None, port_v6=1)
        told = {str(end.ip) for each in described for end in each.endpoints}
        assert told == (set(expected.split()) or {"::1"})


def test_those_that_last_are_measured_and_printed() -> None:
    eth0 = interface("eth0", "2001:db8::1/64t", "2001:db8:1::1/64d", "2001:db8::5/64", "203.0.113.5/24")
    (path,) = plan_paths([LO, eth0], 6, None)
    assert str(path.address) == "2001:db8::5"
    assert len(path.addresses) == 3  # the report names all three
    assert reachable_urls(["ws://[::]:1", "ws://0.0.0.0:1"], [LO, eth0]) == [
        "ws://203.0.113.5:1",
        "ws://[2001:db8::5]:1",
    ]
    host = Machine()
    host.listed = (LO, eth0)
    assert bound(host, 6) == "2001:db8::5"
