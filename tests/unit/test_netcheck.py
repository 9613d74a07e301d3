"""Which paths `netcheck` measures, and its summary for a whole node."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.config import Servers
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.netcheck import ServerCheck
from warpgate_trio.netcheck.report import MAX_INTERFACES, MAX_SENTENCE, Path, plan_paths, sentence, whole
from warpgate_trio.sockaddr import IpAddress


def interface(name: str, *addresses: str, loopback: bool = False, virtual: bool = False) -> Interface:
    return Interface(
        name=name,
        index=1,
        addresses=tuple(InterfaceAddress(ip=ip_address(each), prefix=24) for each in addresses),
        is_loopback=loopback,
        is_virtual=virtual,
    )


MACHINE = (
    interface("lo", "127.0.0.1", "::1", loopback=True),
    interface("eth0", "10.0.0.2", "203.0.113.2", "fe80::2", "fd00::2"),
    interface("docker0", "172.17.0.1", virtual=True),
    interface("wlan0", "192.168.1.2", "2001:db8::2"),
    interface("usb0"),
    interface("ll0", "169.254.1.1", "fe80::9"),
)


def names(paths: list[Path]) -> list[tuple[str, str, bool]]:
    return [(path.interface, str(path.address), path.main) for path in paths]


@pytest.mark.parametrize(
    ("af", "source", "expected"),
    [
        (4, None, [("eth0", "203.0.113.2", False), ("wlan0", "192.168.1.2", False)]),
        (4, "192.168.1.2", [("wlan0", "192.168.1.2", True), ("eth0", "203.0.113.2", False)]),
        (4, "10.0.0.2", [("eth0", "10.0.0.2", True), ("wlan0", "192.168.1.2", False)]),
        (4, "127.0.0.1", [("lo", "127.0.0.1", True), ("eth0", "203.0.113.2", False), ("wlan0", "192.168.1.2", False)]),
        (
            4,
            "172.17.0.1",
            [("docker0", "172.17.0.1", True), ("eth0", "203.0.113.2", False), ("wlan0", "192.168.1.2", False)],
        ),
        (6, None, [("eth0", "fd00::2", False), ("wlan0", "2001:db8::2", False)]),
        (6, "2001:db8::2", [("wlan0", "2001:db8::2", True), ("eth0", "fd00::2", False)]),
    ],
)
def test_paths(af: Any, source: str | None, expected: list[tuple[str, str, bool]]) -> None:
    chosen: IpAddress | None = None if source is None else ip_address(source)
    paths = plan_paths(MACHINE, af, chosen)
    assert names(paths) == expected
    assert all(path.address in path.addresses for path in paths)


def test_a_machine_with_a_hundred_interfaces_is_measured_on_a_few_the_main_one_first() -> None:
    many = [interface(f"eth{n}", f"10.0.{n}.1") for n in range(100)]
    paths = plan_paths(many, 4, ip_address("10.0.99.1"))
    assert len(paths) == MAX_INTERFACES
    assert names(paths)[0] == ("eth99", "10.0.99.1", True)


@given(st.text(max_size=20))
def test_what_a_server_writes_into_an_error_is_shown_as_text(text: str) -> None:
    shown = sentence(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert shown == text or not text.isprintable()
    assert len(sentence(text + MAX_SENTENCE * "x")) <= MAX_SENTENCE


def test_the_node_as_a_whole() -> None:
    up = ServerCheck(url="ws://a", kind="websocket", transport="tcp", reachable=True, latency_ms=1.0)
    down = ServerCheck(url="ws://a", kind="websocket", transport="tcp", reachable=False, error="refused")
    nothing = whole([], [], Servers(), [])
    assert nothing.can == ()
    assert nothing.cannot[0].startswith("no signal server is configured: ")
    assert nothing.cannot[1] == "this machine has no address but its own loopback"
    assert nothing.unknown[0].startswith("no STUN server is configured")
    assert nothing.unknown[1].startswith("no NTP server is configured")
    bad = whole([], [down], Servers(stun=["stun:a"]), [down])
    assert bad.cannot[0].startswith("no signal server answers: ")
    assert bad.unknown == ("no NTP server answers: the clock's error can be measured only against peers",)
    good = whole([], [down, up], Servers(stun=["stun:a"]), [up])
    assert good.can == ("exchanges signals with peers that use the same servers",)
    assert good.unknown == ()
