"""Interfaces that go down, get other addresses, and move to another network."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import trio

from tests.sim.programs import bound, receive
from tests.sim.worlds import run
from warpgate_trio import host as machine
from warpgate_trio.config import InterfacesConfig
from warpgate_trio.config.chosen_interfaces import choose_interfaces
from warpgate_trio.sim import Fault, Host, Kind, Link, Network, presets
from warpgate_trio.testing import simulated_hosts, simulated_machine

LINK = Link(latency=0.02)


def down(begin: float, end: float) -> Fault:
    return Fault(at=begin, until=end, target="alice", kind=Kind.LINK_DOWN)


def listed(host: Host) -> dict[str, list[str]]:
    """The interfaces and addresses that a program finds on a host, without loopback."""
    with host:
        return {
            each.name: [str(address.ip) for address in each.addresses]
            for each in machine.current().interfaces()
            if not each.is_loopback
        }


def test_an_interface_that_is_down_is_none() -> None:
    """Nothing passes in either direction, and programs do not see it; it comes back, even after overlapping faults."""

    async def world(net: Network) -> None:
        alice, bob = net.host("alice", link=LINK), net.host("bob")
        ip = alice.ip
        a, b = await bound(alice, 1), await bound(bob, 1)
        net.schedule([down(10, 20), down(15, 30)])
        async with simulated_hosts():
            for when, there in ((5, True), (12, False), (25, False), (35, True)):
                await trio.sleep_until(when)
                assert listed(alice) == ({"eth0": [ip]} if there else {})
                with alice:
                    assert psutil.net_if_stats()["eth0"].isup == there
                if there:
                    await a.sendto(b"x", (bob.ip, 1))
                    assert await receive(b, 1) == (b"x", (ip, 1))
                else:
                    with pytest.raises(OSError, match="unreachable") as caught:
                        await a.sendto(b"x", (bob.ip, 1))
                    assert caught.value.errno == errno.ENETUNREACH
                await b.sendto(b"y", (ip, 1))
                assert (await receive(a, 1) is not None) == there
        a.close()
        b.close()

    with simulated_machine():
        run(world)


def test_a_connection_outlives_an_interface_that_was_down() -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice", link=LINK), net.host("bob", link=LINK)
        with bob:
            listener = trio.socket.socket()
            await listener.bind((bob.ip, 80))
            listener.listen()
        with alice:
            stream = await trio.open_tcp_stream(bob.ip, 80)
        there, _ = await listener.accept()
        net.schedule([down(1, 10)])
        await trio.sleep(2)
        await stream.send_all(b"x")  # no error: the kernel buffers it
        assert await there.recv(10) == b"x"
        assert 10 < trio.current_time() < 12  # by its retransmission timer, as on Linux
        await stream.aclose()
        listener.close()
        there.close()

    run(world)


@pytest.mark.parametrize("ipv6", [False, True])
def test_another_address(ipv6: bool) -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice"), net.host("bob")
        old = list(alice.addresses)
        a, b = await bound(alice, 1), await bound(bob, 1)
        net.schedule([Fault(at=10, target="alice", kind=Kind.NEW_ADDRESS)])
        await trio.sleep(11)
        assert len(alice.addresses) == len(old) == 1 + ipv6
        assert not set(alice.addresses) & set(old)
        async with simulated_hosts():
            assert listed(alice) == {"eth0": alice.addresses}
        for to in (old[0], alice.ip):
            await b.sendto(b"?", (to, 1))
        await a.sendto(b"!", (bob.ip, 1))  # it was bound to no address
        assert await receive(b, 1) == (b"!", (alice.ip, 1))
        assert await receive(a, 1) is not None
        assert await receive(a, 1) is None
        assert alice.change_address("11.0.3.4") == alice.ip == "11.0.3.4"
        assert alice.addresses == ["11.0.3.4"]
        a.close()
        b.close()

    run(world, ipv6=ipv6)


def test_a_move_to_another_network() -> None:
    """From a LAN behind a NAT to a carrier's network, and to a public address."""

    async def world(net: Network) -> None:
        home, cellular = net.lan("home", nat=presets.LINUX), net.lan("cellular", nat=presets.CGN, link=LINK)
        alice, bob = home.host("alice", link=Link(loss=0.5)), net.host("bob")
        old, seen = alice.ip, []
        a, b = await bound(alice, 1), await bound(bob, 1)
        net.schedule(
            [
                Fault(at=10, target="alice", kind=Kind.MOVE, to="cellular"),
                Fault(at=10, until=20, target="alice:down", kind=Kind.BLACKHOLE),  # for the link that she has by then
                Fault(at=30, target="alice", kind=Kind.MOVE, to="internet"),
            ]
        )
        async with simulated_hosts():
            await trio.sleep(15)
            assert listed(alice) == {"eth1": [alice.ip]}
            assert alice.ip in (cellular.prefix4 or ())
            assert alice.interfaces[0].tx.link == LINK
            assert alice.interfaces[0].rx.carry(100, 15) == "blackhole"
            assert "alice" in net.topology().split("cellular (")[1]
            assert home.hosts == []
            assert home.neighbour(old) is None
            await a.sendto(b"?", (bob.ip, 1))
            seen.append(await receive(b, 1))
            await trio.sleep_until(35)
            assert listed(alice) == {"eth2": [alice.ip]}
            await a.sendto(b"?", (bob.ip, 1))
            seen.append(await receive(b, 1))
        assert [each[1][0] for each in seen if each] == [net.hosts["cellular"].ip, alice.ip]
        with pytest.raises(ValueError, match="there is no segment 'office' here; there are internet, home, cellular"):
            net.schedule([Fault(at=10, target="alice", kind=Kind.MOVE, to="office")])
        a.close()
        b.close()

    run(world)


def test_a_move_by_hand_within_ipv6() -> None:
    """A host that is configured without IPv6 stays without; one whose network had no IPv6 gets it."""

    async def world(net: Network) -> None:
        plain, home = net.lan("plain", ipv6=False, nat=presets.LINUX), net.lan("home", nat=presets.LINUX)
        alice, bob, carol = plain.host("alice"), home.host("bob"), home.host("carol", ipv6=False)
        for host in (alice, bob, carol):
            moved = host.move_to(net.internet, link=LINK)
            assert moved.tx.link == LINK
            assert (len(moved.addresses) == 2) == (host is not carol)
        second = home.attach(alice)
        assert (second.name, alice.interfaces[0].name) == ("eth2", "eth1")

    run(world, ipv6=True)


def test_a_capture_follows_a_host_that_moves(tmp_path: Path) -> None:
    async def world(net: Network) -> None:
        alice = net.lan("home", nat=presets.LINUX).host("alice")
        net.capture(tmp_path / "run.pcapng")
        alice.move_to(net.internet)
        with await bound(alice) as sock:
            await sock.sendto(b"where she is now", ("11.9.9.9", 9))

    run(world)
    assert b"where she is now" in (tmp_path / "run.pcapng").read_bytes()


Change = Callable[[Network, Host], object]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda net, alice: alice.interfaces[0].take_down(), id="down"),
        pytest.param(lambda net, alice: alice.change_address(), id="address"),
        pytest.param(lambda net, alice: alice.move_to(net.internet), id="move"),
        pytest.param(lambda net, alice: net.internet.attach(alice), id="one more"),
        pytest.param(lambda net, alice: net.internet.take_away(alice.ip), id="gone"),
    ],
)
def test_who_waits_for_a_change_is_told(change: Change) -> None:
    async def world(net: Network) -> None:
        alice = net.host("alice")
        alice.change_address()  # before it waits
        async with simulated_hosts(), trio.open_nursery() as nursery:
            told: list[float] = []

            async def wait() -> None:
                await machine.current().wait_change()
                told.append(trio.current_time())

            with alice:
                nursery.start_soon(wait)
            await trio.sleep(5)
            net.host("bob").change_address()
            await trio.sleep(5)
            assert told == []
            net.wire.at(12, change, net, alice)
        assert told == [12]

    run(world)


def test_who_sleeps_is_told_when_it_wakes() -> None:
    async def world(net: Network) -> None:
        alice = net.host("alice")
        net.lan("home", nat=presets.LINUX)
        net.schedule(
            [
                Fault(at=1, until=10, target="alice", kind=Kind.SLEEP),
                Fault(at=5, target="alice", kind=Kind.MOVE, to="home"),
            ]
        )
        await alice.wait_change()
        assert trio.current_time() == 10

    run(world)


def test_a_machine_of_which_a_node_uses_a_part_tells_the_same() -> None:
    async def world(net: Network) -> None:
        alice = net.host("alice")
        net.schedule(
            [
                Fault(at=1, until=10, target="alice", kind=Kind.SLEEP),
                Fault(at=20, target="alice", kind=Kind.NEW_ADDRESS),
            ]
        )
        async with simulated_hosts():
            with alice:
                part = choose_interfaces(machine.current(), InterfacesConfig(exclude=("tun*",)))
            await part.wait_change()
        assert trio.current_time() == 20
        assert part.asleep() == 9

    run(world)


@pytest.mark.parametrize("kind", [Kind.LINK_DOWN, Kind.NEW_ADDRESS, Kind.MOVE])
def test_what_befalls_interfaces_befalls_hosts(kind: Kind) -> None:
    async def world(net: Network) -> None:
        net.lan("home", nat=presets.LINUX).host("alice")
        for target in ("home", "alice:up"):
            with pytest.raises(ValueError, match="a host as a whole"):
                net.schedule([Fault(at=1, target=target, kind=kind, to="home" if kind is Kind.MOVE else "")])

    run(world)


def test_the_faults_print_as_the_code_that_makes_them() -> None:
    fault = Fault(at=1, target="alice", kind=Kind.MOVE, to="cellular")
    assert repr(fault) == "Fault(at=1, target='alice', kind=Kind.MOVE, to='cellular')"
    assert eval(repr(fault)) == fault
    with pytest.raises(ValueError, match="leads to ''"):
        Fault(at=1, target="alice", kind=Kind.MOVE)
    with pytest.raises(ValueError, match="leads to 'home'"):
        Fault(at=1, target="alice", kind=Kind.SLEEP, to="home")
