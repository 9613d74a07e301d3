"""Two nodes without a direct path connect through the package's TURN server.

Whenever a walk is cancelled, nothing is left at the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from tests.cancel_sweep import step_cuts
from tests.nodes import BRIEF
from tests.sim.walks import echoing
from warpgate_trio import ConnectError, NodeConfig, anyone
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.turn import TurnServer, open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.sim import Host, NatConfig, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair
from warpgate_trio.turn.relay_port import CHECK_INTERVAL, SILENCE

RTT = 0.05
CREDENTIALS = TurnCredentials("example.org", {"alice": "sesame"})
FORMS = {"udp": "turn:alice:sesame@stun2:3478", "tcp": "turn:alice:sesame@stun2:3478?transport=tcp"}
Body = Callable[[NodePair, TurnServer], Awaitable[None]]


def in_world(
    one: NatConfig,
    other: NatConfig,
    body: Body,
    *,
    by: str = "udp",
    authorize: Callable[[str], Awaitable[bool]] = anyone,
) -> None:
    """Run a test with two nodes behind such NATs, both of which use the server."""
    running: list[TurnServer] = []

    @asynccontextmanager
    async def serve(host: Host) -> AsyncGenerator[object]:
        async with open_turn_server(CREDENTIALS, host=host.ip, port=3478) as server:
            running.append(server)
            yield server

    async def main() -> None:
        turn = WorldServer(key="turn", url=FORMS[by], machine="stun2", open=serve)
        pair = PeerPair.between(one, other, rtt=RTT)
        async with pair.build(time_limit=1e7) as net, simulated_hosts():
            async with open_nodes(net, servers=(RENDEZVOUS, STUN, NTP, turn), authorize=authorize) as nodes:
                await trio.sleep(60)
                await body(nodes, running[0])
            left = net.netstat()
            assert not left, str(left)

    simulate(main, seed=0)


@pytest.mark.slow("a walk of two nodes")
@pytest.mark.parametrize(
    ("nats", "by", "most"),
    [
        (("LINUX_SYMMETRIC", "LINUX_SYMMETRIC"), "udp", 10),
        (("LINUX_SYMMETRIC", "LINUX_SYMMETRIC"), "tcp", 11),
        (("UDP_BLOCKED", "LINUX_SYMMETRIC"), "tcp", 12),
        (("LINUX_SYMMETRIC", "UDP_BLOCKED"), "tcp", 13),
        (("UDP_BLOCKED", "UDP_BLOCKED"), "tcp", 13),
    ],
)
def test_a_pair_that_nothing_direct_connects_meets_at_a_relay(nats: tuple[str, str], by: str, most: float) -> None:
    """`most` is the number of round trips from a warm call in the relay phase only to the first echoed byte."""

    async def body(nodes: NodePair, server: TurnServer) -> None:
        async with echoing(nodes):
            began = trio.current_time()
            async with await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"]) as pipe:
                assert pipe.path.plugin == "turn"
                await pipe.send_all(b"x")
                assert await pipe.receive_some() == b"x"
                taken = trio.current_time() - began
                await pipe.send_all(bytes(100_000))
                left = 100_000
                while left:
                    left -= len(await pipe.receive_some())
                assert server.statistics().allocations >= 1
            assert taken <= most * RTT + 0.03, taken / RTT
            await trio.sleep(10)
            assert server.statistics().allocations == 0

    in_world(getattr(presets, nats[0]), getattr(presets, nats[1]), body, by=by)


@pytest.mark.slow("a walk of two nodes")
def test_an_authorize_that_takes_its_time_loses_nothing_that_the_caller_says_meanwhile() -> None:
    async def slow(_peer: str) -> bool:
        await trio.sleep(0.5)
        return True

    async def body(nodes: NodePair, server: TurnServer) -> None:
        async with echoing(nodes), await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"]) as pipe:
            await pipe.send_all(b"x")
            assert await pipe.receive_some() == b"x"
            assert pipe.path.plugin == "turn"

    in_world(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, body, authorize=slow)


@pytest.mark.slow("a walk of two nodes")
def test_a_whole_walk_has_asked_the_server_before_it_wants_a_relay() -> None:
    """The relay phase takes one round trip less than in a walk that begins with it.

    The walk does not wait for any earlier phase, spray included, longer than for that phase's own duration.
    """

    async def body(nodes: NodePair, server: TurnServer) -> None:
        async with echoing(nodes):
            began = trio.current_time()
            async with await nodes.alice.auto_connect(nodes.bob.address) as pipe:
                await pipe.send_all(b"x")
                assert await pipe.receive_some() == b"x"
                assert pipe.report is not None
                winner = pipe.report.winner
                assert winner is not None
                assert (winner.phase, winner.started_ms is None) == ("relay", False)
                assert trio.current_time() - began <= 6 + 11 * RTT
                taken = trio.current_time() - began - (winner.started_ms or 0.0) / 1000
                assert taken <= 9 * RTT + 0.03, taken / RTT

    in_world(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, body)


@pytest.mark.slow("many walks, each cancelled at another step of all tasks")
@pytest.mark.parametrize(("nat", "by", "stride"), [("LINUX_SYMMETRIC", "udp", 17), ("UDP_BLOCKED", "tcp", 23)])
def test_a_walk_that_is_cancelled_anywhere_leaves_nothing_at_the_relay(nat: str, by: str, stride: int) -> None:
    async def body(nodes: NodePair, server: TurnServer) -> None:
        async with echoing(nodes):
            for cut in step_cuts(stride):
                with cut, suppress(ConnectError):
                    await (await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"])).aclose()
                await trio.sleep(61)
                assert server.statistics().allocations == 0, cut.number
                for node in (nodes.alice, nodes.bob):
                    assert len(node._runtime.relays) == 0, cut.number

    in_world(getattr(presets, nat), getattr(presets, nat), body, by=by)


@pytest.mark.slow("a walk of two nodes")
def test_without_a_server_the_relay_is_hopeless() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
        async with pair.build(time_limit=1e7) as net, simulated_hosts(), open_nodes(net) as nodes:
            with pytest.raises(ConnectError) as caught:
                await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"])
            (row,) = [row for row in caught.value.report.combos if row.plugin == "turn"]
            assert (row.plugin, row.likelihood) == ("turn", "hopeless")

    simulate(partial(main), seed=0)


@pytest.mark.slow("two nodes, in mid-transfer")
@pytest.mark.parametrize(
    ("nats", "by", "whose", "why"),
    [
        (("LINUX_SYMMETRIC", "LINUX_SYMMETRIC"), "udp", {"alice"}, "437 Allocation Mismatch"),
        (("UDP_BLOCKED", "LINUX_SYMMETRIC"), "tcp", {"alice"}, "the server closed the connection"),
        (("UDP_BLOCKED", "UDP_BLOCKED"), "tcp", {"alice", "bob"}, "the server closed the connection"),
    ],
)
@pytest.mark.parametrize("sender", ["alice", "bob"])
def test_a_server_that_is_restarted_in_mid_transfer_breaks_the_pipe(
    sender: str, nats: tuple[str, str], by: str, whose: set[str], why: str
) -> None:
    """Sides with an allocation there (`whose`) get the reason; for the others the path falls silent."""
    lives: list[trio.CancelScope] = []

    @asynccontextmanager
    async def serve(host: Host) -> AsyncGenerator[object]:
        async def live() -> None:
            while True:
                with trio.CancelScope() as scope:
                    async with open_turn_server(CREDENTIALS, host=host.ip, port=3478):
                        lives.append(scope)
                        up.set()
                        await trio.sleep_forever()

        up = trio.Event()
        async with open_background_nursery() as nursery:
            nursery.start_soon(live)
            await up.wait()
            yield None

    async def main() -> None:
        turn = WorldServer(key="turn", url=FORMS[by], machine="stun2", open=serve)
        one, other = (getattr(presets, each) for each in nats)
        told: dict[str, tuple[str, float]] = {}

        async def end(name: str, do: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.BrokenResourceError) as broken:
                while True:
                    await do()
            told[name] = str(broken.value.__cause__ or broken.value), trio.current_time() - restarted

        pair = PeerPair.between(one, other, rtt=RTT)
        async with pair.build(time_limit=1e7) as net, simulated_hosts():
            brief = NodeConfig(paths=BRIEF)
            async with open_nodes(net, config=brief, servers=(RENDEZVOUS, STUN, NTP, turn)) as nodes:
                await trio.sleep(60)
                ours = await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"])
                theirs = await nodes.bob.listener.accept()
                async with ours, theirs, trio.open_nursery() as nursery:
                    for name, pipe in (("alice", ours), ("bob", theirs)):
                        do = partial(pipe.send_all, bytes(10_000)) if name == sender else pipe.receive_some
                        nursery.start_soon(end, name, do)
                    await trio.sleep(1)
                    restarted = trio.current_time()
                    lives[-1].cancel()
                assert len(lives) == 2
                for name, (reason, taken) in told.items():
                    if name in whose:
                        assert why in reason
                        assert taken <= SILENCE + CHECK_INTERVAL + 1, taken
                    else:
                        assert taken < 105, taken  # 100 s after the last byte; see `link.life.MISSES`
            left = net.netstat()
            assert not left, str(left)

    simulate(main, seed=0)
