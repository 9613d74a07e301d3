"""`warpgate_trio.testing.walks`: nodes and servers in the world of a pair, and the result of a walk there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from warpgate_trio import Node, PeerAddress, Pipe
from warpgate_trio import host as machine
from warpgate_trio.clock.ntp_client import measure_offset
from warpgate_trio.config import ServerUrl
from warpgate_trio.report import Verdict
from warpgate_trio.sim import Host, presets, simulate
from warpgate_trio.stun.client import query_udp, resolve
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, open_nodes, simulate_walk
from warpgate_trio.testing.worlds import PeerPair, Place

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")


def test_a_walk_tells_all_about_itself() -> None:
    pair = PeerPair.between(presets.LINUX, rtt=0.1, server_rtt=0.06, seed=5)
    walk = simulate_walk(pair)
    assert walk.connected
    assert walk.report.winner is not None
    assert walk.report.winner.plugin == "direct_connect"
    assert walk.connect == pytest.approx(0.3)
    assert walk.first_byte == pytest.approx(0.4)
    assert walk.intact
    assert walk.left == ""
    assert "router alice-nat0" in walk.explanation
    first, *_, last = walk.ladder.splitlines()
    assert float(first.split()[0]) >= 5.0  # nothing from before the call
    assert "alice" in last
    assert simulate_walk(pair).digest == walk.digest != simulate_walk(PeerPair.between(presets.LINUX, seed=6)).digest


def test_a_walk_that_finds_nothing() -> None:
    walk = simulate_walk(PeerPair.between(presets.UDP_BLOCKED, presets.WEB_ONLY), plugins=["direct_connect"])
    assert not walk.connected
    assert (walk.connect, walk.first_byte, walk.intact) == (None, None, False)
    assert walk.report.verdict is not Verdict.CONNECTED
    assert walk.left == ""


def test_clocks_that_differ_are_waited_for() -> None:
    for offsets in ((0.0, 40.0), (40.0, 0.0)):
        walk = simulate_walk(PeerPair.between(None, presets.LINUX, clock_offsets=offsets))
        assert walk.report.winner is not None, walk.report
        assert walk.report.winner.plugin == "reverse_connect"


def test_servers_run_on_their_machines_and_are_configured() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def open_time_server(host: Host) -> AsyncGenerator[None]:
        here = machine.current()
        seen.append(f"opened on {host.name} {here.source_address(here.interfaces()[1].addresses[0].ip)}")
        await trio.lowlevel.checkpoint()
        yield
        assert machine.current().machine_fingerprint() == here.machine_fingerprint()
        seen.append("closed there")

    server = replace(NTP, open=open_time_server)

    async def main() -> None:
        pair = PeerPair.between(presets.LINUX)
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=(RENDEZVOUS, server)) as nodes:
            assert nodes.net is net
            assert [status.url for status in nodes.alice.signal_servers] == [RENDEZVOUS.url]
            seen.append(net.hosts["ntp"].ip)
            async with await nodes.alice.auto_connect(nodes.bob.address) as pipe:
                assert pipe.path.plugin == "direct_connect"

    simulate(main)
    opened, address, closed = seen
    assert opened == f"opened on ntp {address}"
    assert closed == "closed there"


def test_another_way_to_connect() -> None:
    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.connect(address, plugin="reverse_connect")

    walk = simulate_walk(PeerPair.between(), connect, payload=b"x")
    assert walk.report.winner is not None
    assert walk.report.winner.plugin == "reverse_connect"
    assert walk.intact


def test_a_fault_of_a_plugin_brings_the_world_along() -> None:
    async def connect(node: Node, address: PeerAddress) -> Pipe:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        simulate_walk(PeerPair.between(seed=9), connect)
    assert "seed 9" in caught.value.__notes__[0]


def test_a_capture(tmp_path: Path) -> None:
    simulate_walk(PeerPair.between(), capture=tmp_path / "run.pcapng")
    assert b"bob:eth0@internet" in (tmp_path / "run.pcapng").read_bytes()


def test_servers_that_a_world_has_no_machine_for_are_left_out() -> None:
    assert simulate_walk(PeerPair(alice=Place(nats=(presets.LINUX,)))).connected


def test_the_servers_of_a_world_answer() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.LINUX, rtt=0.1, clock_offsets=(-3.0, 0.0))
        async with pair.build() as net, simulated_hosts(), open_nodes(net):
            outside = net.hosts["alice-nat0"].ip
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.bind(("0.0.0.0", 40000))
                for name in ("stun", "stun2"):
                    answer = await query_udp(sock, await resolve(name, 3478))
                    assert answer.mapped == (outside, 40000)
                    assert (answer.other_address is not None) is (name == "stun")
            estimate = await measure_offset([ServerUrl.parse(NTP.url)], timeout=5.0, host=machine.current())
            assert estimate.offset == pytest.approx(3.0, abs=0.001)

    simulate(main)
