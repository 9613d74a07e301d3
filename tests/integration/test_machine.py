"""Machines that offer less than most: no list of interfaces, few file descriptors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import psutil
import pytest
import trio

from tests.identities import ALICE, BOB
from tests.nodes import config, echo, loopback_node
from warpgate_trio import NodeConfig, Servers, anyone, host, open_node
from warpgate_trio.host import RESERVED_DESCRIPTORS, RealHost
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.ports.udp import UdpPort, UdpPorts

resource = pytest.importorskip("resource", reason="limits of POSIX")


# -- no list of interfaces ---------------------------------------------------------------------------------------------

DENIALS = [
    pytest.param(OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol"), id="systemd"),
    pytest.param(PermissionError(errno.EACCES, "Permission denied"), id="android"),
]


@pytest.fixture(params=DENIALS)
def no_netlink(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise request.param

    monkeypatch.setattr(psutil, "net_if_addrs", refuse)
    host._tell_of_missing_list.cache_clear()


@pytest.mark.usefixtures("no_netlink")
def test_addresses_are_those_of_the_routes(caplog: pytest.LogCaptureFixture) -> None:
    real = RealHost()
    found = real.interfaces()
    ours = {address.ip for each in found for address in each.addresses}
    assert ip_address("127.0.0.1") in ours
    assert real.source_address(ip_address("192.0.2.1")) in ours | {None}
    assert len({each.index for each in found}) == len(found)
    assert all(each.is_loopback == address.ip.is_loopback for each in found for address in each.addresses)
    real.interfaces()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not list its network interfaces" in caplog.text


@pytest.mark.usefixtures("no_netlink", "bounded")
async def test_nodes_work_without_a_list_of_interfaces() -> None:
    """On the real machine, nodes find at least the loopback addresses, and can report on the network."""
    own = NodeConfig(servers=Servers())
    async with open_node(own, identity=BOB, authorize=anyone) as bob, open_background_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [bob.listener])
        async with open_node(own, identity=ALICE) as alice:
            assert next(alice.address.endpoints(), None) is not None
            async with await alice.auto_connect(bob.address) as pipe:
                await pipe.send_all(b"x")
                await pipe.send_eof()
                assert b"".join([data async for data in pipe]) == b"x"
            report = await alice.netcheck()
            assert report.complete


def test_what_has_an_address_is_up_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Android, for example, /proc/net may not be read."""
    before = RealHost().interfaces()

    def refuse() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/proc/net/dev")

    monkeypatch.setattr(psutil, "net_if_stats", refuse)
    found = {each.name: each for each in RealHost().interfaces()}
    for each in before:
        if each.addresses:
            assert found[each.name].addresses == each.addresses
            assert found[each.name].is_loopback == each.is_loopback


# -- file descriptors --------------------------------------------------------------------------------------------------


def open_now() -> int:
    return len(os.listdir("/dev/fd")) - 1


@pytest.fixture(params=[300, 100])
def few_descriptors(request: pytest.FixtureRequest) -> Iterator[int]:
    """Limits how many more files this process may open; yields the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = open_now() + request.param
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.needs("linux")
async def test_udp_ports_leave_some_descriptors(few_descriptors: int) -> None:
    ports, held = UdpPorts(), list[UdpPort]()
    reserve = min(RESERVED_DESCRIPTORS, few_descriptors // 4)
    assert reserve >= 16
    async with open_background_nursery() as nursery, ports.running(nursery):
        spare = RealHost().spare_descriptors()
        assert spare == few_descriptors - reserve - open_now()
        with pytest.raises(OSError, match="too few file descriptors") as caught:
            for _ in range(few_descriptors):
                held.append(await ports.open("127.0.0.1"))
        assert caught.value.errno == errno.EMFILE
        assert len(held) == spare
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(reserve)]
        assert RealHost().spare_descriptors() == 0  # all are in use, and the call does not fail
        for each in files:
            os.close(each)
        held.pop().release()
        (await ports.open("127.0.0.1")).release()


@contextmanager
def no_descriptor() -> Iterator[None]:
    """All descriptors that this process may have are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_what_is_known_without_descriptors() -> None:
    real = RealHost()
    interfaces, gateways = real._list(), real.gateways()
    assert interfaces
    with no_descriptor():
        assert real._list() == interfaces
        assert real.gateways() == gateways
        assert RealHost()._list() == ()  # a new host remembers nothing, and the call does not fail


def test_a_network_that_cannot_be_asked_for_is_what_it_was() -> None:
    check_what_is_known_without_descriptors()


@pytest.mark.usefixtures("no_netlink")
def test_routes_that_cannot_be_asked_for_are_what_they_were() -> None:
    check_what_is_known_without_descriptors()


@pytest.mark.needs("linux")
def test_descriptors_are_counted_without_a_list_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, the lowest free descriptor tells at least how many are open."""
    counted = RealHost().spare_descriptors()

    def missing(_path: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "listdir", missing)
    guessed = RealHost().spare_descriptors()
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert guessed == limit - min(RESERVED_DESCRIPTORS, limit // 4) - lowest
    assert guessed >= counted


def test_a_machine_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: unlimited)
    assert RealHost().spare_descriptors() > 100_000
    monkeypatch.setattr("sys.platform", "win32")
    assert RealHost().spare_descriptors() > 100_000


@pytest.mark.needs("linux")
@pytest.mark.usefixtures("bounded")
async def test_nodes_meet_with_few_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now() + 40, hard))
    try:
        async with loopback_node(BOB, config(), authorize=anyone) as bob, open_background_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [bob.listener])
            async with loopback_node(ALICE, config()) as alice:
                async with await alice.auto_connect(bob.address) as pipe:
                    await pipe.send_all(b"x")
                    await pipe.send_eof()
                    assert b"".join([data async for data in pipe]) == b"x"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- sleep -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow("other interpreters")
@pytest.mark.needs("time_namespaces")
def test_how_long_it_has_slept() -> None:
    """A time namespace has the clocks of this machine as they would be after one more hour of sleep."""

    def asleep(*command: str) -> float:
        code = "from warpgate_trio.host import RealHost; print(RealHost().asleep())"
        done = subprocess.run([*command, sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return float(done.stdout)

    before = asleep()
    assert before == pytest.approx(RealHost().asleep(), abs=1)
    assert asleep("unshare", "--time", "--boottime", "3600") == pytest.approx(before + 3600, abs=1)
