"""Punching where something goes wrong that nobody meant: networks that change, tables that are full, clocks that are off.

The rows of docs/punching.md that need a whole world; who means harm is in test_punching_hostile.py.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from tests.nodes import echo
from tests.sim.punching import Meeting, meet, rows
from warpgate_trio import ConnectError, Node, PeerAddress, Pipe, anyone
from warpgate_trio.nat.probe import ProbeCodec
from warpgate_trio.nat.stun import BINDING, XOR_MAPPED_ADDRESS, MessageClass, decode, encode
from warpgate_trio.nat.tcp_port import TcpPort
from warpgate_trio.nat.udp_port import UdpPort, UdpPorts
from warpgate_trio.sim import Conflict, Fault, Host, Kind, NatConfig, Network, presets, simulate
from warpgate_trio.sim.packet import UDP, Packet
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, SERVERS, STUN, NodePair, Walk, WorldServer, open_nodes, walk
from warpgate_trio.testing.worlds import PeerPair, Place

RTT = 0.05
CONES = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
PUNCHES = ["udp_punch", "tcp_punch"]


def in_world(
    main: Callable[[NodePair], Awaitable[None]],
    pair: PeerPair = CONES,
    *,
    servers: Sequence[WorldServer] = SERVERS,
    prepare: Callable[[Network], object] = lambda _: None,
    accepting: bool = True,
) -> None:
    """Run `main` between two nodes, of which bob echoes; nothing may be left afterwards."""

    async def run() -> None:
        async with pair.build(time_limit=36000) as net, simulated_hosts():
            prepare(net)
            opened = open_nodes(net, servers=servers, authorize_alice=anyone)
            async with opened as nodes, trio.open_nursery() as nursery:
                if accepting:
                    with net.hosts["bob"]:
                        nursery.start_soon(serve, nodes.bob)
                await main(nodes)
                nursery.cancel_scope.cancel()
            left = net.netstat()
            assert not left, str(left)

    simulate(run, seed=pair.seed)


async def serve(node: Node) -> None:
    async def one(pipe: Pipe) -> None:
        with suppress(trio.BrokenResourceError):
            await echo(pipe)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(one, await node.listener.accept())


async def try_to_connect(nodes: NodePair, plugin: str | None = None, timeout: float = 6.0) -> str:
    """Connect, exchange something; the winner's plugin, or the verdict of the report."""
    node, peer = nodes.alice, nodes.bob.address
    try:
        pipe = await (node.auto_connect(peer) if plugin is None else node.connect(peer, plugin=plugin, timeout=timeout))
    except ConnectError as error:
        return error.report.verdict.value
    async with pipe:
        with suppress(trio.BrokenResourceError):
            await pipe.send_all(b"hello")
            assert await pipe.receive_some() == b"hello"
        return pipe.path.plugin


def nothing_runs(nodes: NodePair) -> None:
    for node in (nodes.alice, nodes.bob):
        stats = node.stats()
        assert (stats.links, stats.attempts, stats.handshakes) == (0, 0, 0)
        assert len(node._runtime.udp_ports) <= 1, "the warm one, and no more"


# -- both call at once -------------------------------------------------------------------------------------------------


async def call_each_other(nodes: NodePair, plugin: str | None) -> list[str]:
    """Both at once: each call has a Pipe of its own, which carries its own bytes, and there is no third."""
    won: list[str] = []

    async def one(node: Node, other: Node, host: Host, word: bytes) -> None:
        with host:
            try:
                pipe = await (
                    node.auto_connect(other.address)
                    if plugin is None
                    else node.connect(other.address, plugin=plugin, timeout=12)
                )
            except ConnectError:
                won.append("missed")
                return
            theirs = await other.listener.accept()
            async with pipe, theirs:
                await pipe.send_all(word)
                assert await theirs.receive_some() == word
                won.append(pipe.path.plugin)

    hosts = nodes.net.hosts
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, nodes.alice, nodes.bob, hosts["alice"], b"from alice")
        nursery.start_soon(one, nodes.bob, nodes.alice, hosts["bob"], b"from bob")
    assert (nodes.alice.listener.waiting, nodes.bob.listener.waiting) == (0, 0)
    return won


BOTH_HARD = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
HARD_AND_EASY = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX, rtt=RTT)


@pytest.mark.slow("20 times two walks, or 4 times two sprays")
@pytest.mark.parametrize(
    ("plugin", "pair", "times", "pause"),
    [
        ("udp_punch", CONES, 20, 3.0),
        ("tcp_punch", CONES, 20, 3.0),
        (None, CONES, 20, 3.0),
        ("random_probe", HARD_AND_EASY, 4, 130.0),  # seconds in which the allowance of an address is whole again
    ],
)
def test_two_that_call_each_other_at_once_have_a_pipe_each(
    plugin: str | None, pair: PeerPair, times: int, pause: float
) -> None:
    async def main(nodes: NodePair) -> None:
        won: Counter[str] = Counter()
        for _ in range(times):
            with trio.fail_after(20):
                won.update(await call_each_other(nodes, plugin))
            await trio.sleep(pause)
            nothing_runs(nodes)
        assert won.total() == 2 * times
        assert won["missed"] <= (3 if plugin == "random_probe" else 0)  # of 8 sprays at 98 % each

    in_world(main, pair, accepting=False)


# -- cancelled in the middle -------------------------------------------------------------------------------------------


def still_there(net: Network) -> Counter[str]:
    """Sockets and tasks, without ports: a node has others mapped in place of those that were used."""
    found = net.netstat()
    return Counter(re.sub(r"\d+", "", line) for line in (*found.sockets, *found.tasks))


@pytest.mark.parametrize("plugin", [*PUNCHES, "random_probe"])
def test_a_call_that_is_cancelled_ends_at_the_peer_within_a_second(plugin: str) -> None:
    """Its handshake budget would be ten seconds; nobody meets here, so both sides are busy when it comes."""

    async def main(nodes: NodePair) -> None:
        before = still_there(nodes.net)
        busy = 0
        for cut in (RTT * 0.6, RTT * 1.1, RTT * 1.6, RTT * 2.5, 0.3):
            with trio.move_on_after(cut) as scope:
                with suppress(ConnectError):
                    await nodes.alice.connect(nodes.bob.address, plugin=plugin, timeout=10)
            assert scope.cancelled_caught
            busy += nodes.bob.stats().attempts
            await trio.sleep(1.0)
            nothing_runs(nodes)
            await trio.sleep(3)
            assert still_there(nodes.net) == before
        assert busy >= 3

    in_world(main, HARD_AND_EASY if plugin == "random_probe" else BOTH_HARD)


# -- servers that lie, disagree or die ---------------------------------------------------------------------------------


def liar(where: tuple[str, int], machine: str = "stun2") -> WorldServer:
    """A STUN server that tells everybody one address."""

    @asynccontextmanager
    async def opened(host: Host) -> Any:
        async def answer() -> None:
            while True:
                data, source = await sock.recvfrom(2048)
                with suppress(OSError, ValueError):
                    told = [XOR_MAPPED_ADDRESS(where)]
                    said = encode(BINDING, MessageClass.SUCCESS, decode(data).transaction_id, told)
                    await sock.sendto(said, source)

        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind((host.ip, 3478))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                yield
                nursery.cancel_scope.cancel()

    return WorldServer(key="stun", url=f"stun:{machine}:3478", machine=machine, open=opened)


LIES = [("11.200.1.1", 4242), ("192.168.7.7", 9), ("127.0.0.1", 22)]


@pytest.mark.slow("whole walks, some of which fail")
@pytest.mark.parametrize("where", LIES, ids=["somebody", "private", "loopback"])
@pytest.mark.parametrize("plugin", [*PUNCHES, None])
@pytest.mark.parametrize("honest", [True, False])
def test_stun_servers_that_lie(where: tuple[str, int], plugin: str | None, honest: bool) -> None:
    """One liar of two servers costs nothing; without any honest one nobody meets, and that is said in time."""
    found: list[str] = []

    async def main(nodes: NodePair) -> None:
        began = trio.current_time()
        found.append(await try_to_connect(nodes, plugin))
        assert trio.current_time() - began < 20
        await trio.sleep(12)
        nothing_runs(nodes)

    servers = (RENDEZVOUS, STUN, liar(where), NTP) if honest else (RENDEZVOUS, liar(where), NTP)
    in_world(main, servers=servers)
    print(found)
    if honest:
        assert found[0] in PUNCHES
