"""Relay first: a relayed Pipe after a few round trips, whatever the NATs, and a better path as soon as there is one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio

from tests.cancel_sweep import step_cuts
from tests.sim.roaming import Talk
from tests.sim.test_ws_relay import OPEN, URL, server
from warpgate_strategies.ws_relay import WsRelay
from warpgate_trio import (
    Identity,
    Node,
    NodeConfig,
    PathCause,
    PathsConfig,
    PeerAddress,
    Pipe,
    Servers,
    anyone,
    open_node,
)
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.link import Terms
from warpgate_trio.node.admission import Admission
from warpgate_trio.node.links import Links
from warpgate_trio.report import WalkEvent
from warpgate_trio.servers.rendezvous import RelayRules
from warpgate_trio.sim import presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, STUN, STUN2, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

RTT: Final = 0.05
CONES: Final = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT, server_rtt=RTT)
TO_PUBLIC: Final = PeerPair.between(presets.LINUX, None, rtt=RTT, server_rtt=RTT)
CONE_TO_SYMMETRIC: Final = PeerPair.between(presets.LINUX, presets.LINUX_SYMMETRIC, rtt=RTT, server_rtt=RTT)
SYMMETRIC: Final = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT, server_rtt=RTT)
PIPE_IN: Final = 3 * RTT
"""Seconds: two round trips of the call, and one to spare."""
BETWEEN: Final = 10.0
"""Seconds from one call to the next, so that the peer's part of the first one is over."""


@asynccontextmanager
async def called(
    pair: PeerPair, *, config: NodeConfig | None = None, **options: Any
) -> AsyncGenerator[tuple[Pipe, Pipe, float]]:
    """Make a call between warm nodes; yields both ends of the Pipe, and the seconds until the caller's was there."""
    async with pair.build(time_limit=1e6) as net, simulated_hosts():
        async with open_nodes(net, servers=(server(OPEN), STUN, STUN2, NTP), config=config or NodeConfig()) as nodes:
            await trio.sleep(5.0)
            began = trio.current_time()
            ours = await nodes.alice.auto_connect(nodes.bob.address, **options)
            taken = trio.current_time() - began
            async with ours, await nodes.bob.listener.accept() as theirs:
                yield ours, theirs, taken
        left = net.netstat()
        assert not left, str(left)


async def better_within(pipe: Pipe, seconds: float) -> float | None:
    """The seconds until a Pipe has left the relay; None if it has not within `seconds`."""
    began = trio.current_time()
    with trio.move_on_after(seconds):
        while pipe.path.phase == "relay":
            await pipe.wait_path_change()
        return trio.current_time() - began
    return None


@pytest.mark.parametrize(
    ("pair", "phase", "within"),
    [(CONES, "punch", 9 * RTT), (CONE_TO_SYMMETRIC, "spray", 3.0)],
    ids=["cones", "cone to symmetric"],
)
def test_a_relays_pipe_comes_first_and_a_better_path_follows(pair: PeerPair, phase: str, within: float) -> None:
    events: list[WalkEvent] = []

    async def main() -> None:
        call = called(pair, relay_first=True, on_event=events.append)
        async with call as (ours, theirs, taken), trio.open_nursery() as nursery:
            began = trio.current_time()
            assert ours.path.plugin == "ws_relay"
            talks = [Talk(ours, theirs), Talk(theirs, ours)]
            for talk in talks:
                nursery.start_soon(talk.receive)
                nursery.start_soon(talk.send)
            assert await better_within(ours, 20.0) is not None
            (changed,) = [event.at_ms / 1000 for event in events if event.kind == "path"]  # seconds from the call
            print(f"a Pipe after {taken / RTT:.1f} round trips, {ours.path.phase} after {changed / RTT:.1f}")
            assert taken <= PIPE_IN
            assert changed <= within
            assert ours.path.phase == phase
            await trio.sleep(2.0)
            assert theirs.path.phase == phase
            assert [each.cause for each in ours.path_log] == [PathCause.BETTER]
            for talk in talks:
                print(f"silent for {talk.silence_after(began) / RTT:.1f} round trips at most")
                assert talk.silence_after(began) <= 0.02 + 3 * RTT  # two RTT by the relay, and one by the new path
            nursery.cancel_scope.cancel()

    simulate(main, seed=0)


def test_a_pair_that_nothing_better_connects_stays_on_the_relay() -> None:
    async def main() -> None:
        async with called(SYMMETRIC, relay_first=True) as (ours, theirs, taken):
            assert taken <= PIPE_IN
            assert await better_within(ours, 60.0) is None
            assert (ours.path.plugin, theirs.path.plugin) == ("ws_relay", "ws_relay")

    simulate(main, seed=0)


def test_a_likely_direct_path_is_waited_for() -> None:
    async def main() -> None:
        async with called(TO_PUBLIC, relay_first=True) as (ours, _theirs, _taken):
            assert ours.path.phase == "direct"
            assert ours.path_log == ()

    simulate(main, seed=0)


def test_the_configuration_may_ask_for_it() -> None:
    async def main() -> None:
        config = NodeConfig(paths=PathsConfig(relay_first=True))
        async with called(CONES, config=config) as (ours, _theirs, _taken):
            assert ours.path.phase == "relay"
        async with called(CONES, config=config, relay_first=False) as (ours, _theirs, _taken):
            assert ours.path.phase == "punch"

    simulate(main, seed=0)


@pytest.mark.parametrize("relay_first", [True, False])
def test_what_a_call_forbids_stays_forbidden(relay_first: bool) -> None:
    async def main() -> None:
        phases = ["direct", "punch"]
        async with called(CONES, phases=phases, relay_first=relay_first) as (ours, _theirs, _taken):
            assert ours.path.phase == "punch"
            assert ours.report is not None
            assert {row.phase for row in ours.report.combos} <= set(phases)

    simulate(main, seed=0)


@pytest.mark.parametrize("size", [1, 64 * 1024])
@pytest.mark.parametrize("early", [True, False])
def test_the_first_byte_comes_back_four_round_trips_after_the_call(early: bool, size: int) -> None:
    async def echo(pipe: Pipe) -> None:
        async for data in pipe:
            await pipe.send_all(data)

    async def main() -> None:
        async with SYMMETRIC.build(time_limit=1e6) as net, simulated_hosts():
            async with (
                open_nodes(net, servers=(server(OPEN), STUN, STUN2, NTP)) as nodes,
                trio.open_nursery() as nursery,
            ):
                await trio.sleep(5.0)

                async def serve() -> None:
                    with net.hosts["bob"]:
                        async with await nodes.bob.listener.accept() as pipe:
                            await echo(pipe)

                nursery.start_soon(serve)
                began = trio.current_time()
                options: Any = {"early_data": bytes(size)} if early else {}
                async with await nodes.alice.auto_connect(nodes.bob.address, relay_first=True, **options) as pipe:
                    if not early:
                        nursery.start_soon(pipe.send_all, bytes(size))
                    came = len(await pipe.receive_some())
                    taken = trio.current_time() - began
                    while came < size:
                        came += len(await pipe.receive_some())
                    print(f"the first byte after {taken / RTT:.1f} round trips")
                    assert taken <= 4 * RTT + 0.03

    simulate(main, seed=0)


def test_a_peer_that_promises_nothing_has_the_walk_as_it_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of an older release, or one without a free place now, promises nothing: a Pipe might stay on the relay."""
    monkeypatch.setattr(Admission, "would_accept", lambda *_: False)

    async def main() -> None:
        async with called(CONES, relay_first=True) as (ours, _theirs, _taken):
            assert ours.path.phase == "punch"
        async with called(SYMMETRIC, phases=["direct", "relay"], relay_first=True) as (ours, _theirs, _taken):
            assert ours.path.plugin == "ws_relay"

    simulate(main, seed=0)


@pytest.mark.parametrize("paths", [PathsConfig(resume_timeout=0.0), PathsConfig(upgrade=False)])
def test_where_pipes_stay_on_their_paths_they_do_not_begin_by_a_relay(paths: PathsConfig) -> None:
    async def main() -> None:
        async with called(CONES, config=NodeConfig(paths=paths), relay_first=True) as (ours, _theirs, _taken):
            assert ours.path.phase == "punch"

    simulate(main, seed=0)


@pytest.mark.parametrize("lasts", [True, False])
def test_nor_where_the_peers_do(lasts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = Links.terms

    def of_bob(links: Links) -> Terms | None:
        listens = links._admission.listening
        return terms(links) if lasts or not listens else None

    monkeypatch.setattr(Links, "terms", of_bob)

    async def main() -> None:
        async with called(CONES, relay_first=True) as (ours, _theirs, _taken):
            assert ours.path.phase == ("relay" if lasts else "punch")

    simulate(main, seed=0)


def test_a_relay_that_fails_is_tried_again_in_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    call = WsRelay._call

    async def fail_once(plugin: WsRelay) -> object:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise AttemptFailed("the first one fails")
        return await call(plugin)

    monkeypatch.setattr(WsRelay, "_call", fail_once)

    async def main() -> None:
        async with called(SYMMETRIC, phases=["direct", "punch", "relay"], relay_first=True) as (ours, _theirs, _taken):
            assert ours.path.plugin == "ws_relay"
            assert tries == 2

    simulate(main, seed=0)


def test_a_call_that_is_cancelled_leaves_nothing() -> None:
    """Cancelled before the Pipe, or in the middle of the search for a better path."""

    async def main() -> None:
        async with CONES.build(time_limit=1e7) as net, simulated_hosts():
            async with open_nodes(net, servers=(server(OPEN), STUN, STUN2, NTP)) as nodes:
                await trio.sleep(5.0)
                caught = 0
                for cut in step_cuts(stride=61):
                    with cut:
                        async with await nodes.alice.auto_connect(nodes.bob.address, relay_first=True) as pipe:
                            await better_within(pipe, 1.0)
                    caught += cut.caught
                    await trio.sleep(BETWEEN)
                    assert nodes.alice.stats().attempts == 0
                assert caught > 5
            left = net.netstat()
            assert not left, str(left)

    simulate(main, seed=0)


async def echo_once(listener: Node) -> None:
    async with await listener.listener.accept() as pipe:
        async for data in pipe:
            await pipe.send_all(data)


async def call_at_once(config: NodeConfig, identity: Identity, address: PeerAddress) -> tuple[float, float]:
    """Seconds from the start of a node to the Pipe, and to the first echoed byte."""
    began = trio.current_time()
    async with open_node(config, identity=identity) as caller:
        async with await caller.auto_connect(address, relay_first=True, early_data=b"x") as pipe:
            taken = trio.current_time() - began
            assert await pipe.receive_some() == b"x"
            return taken, trio.current_time() - began


@pytest.mark.parametrize("who", ["both", "the caller", "the listener", "everybody"])
def test_a_program_that_was_just_started_calls_with_the_request_to_its_server(who: str) -> None:
    """One round trip to the server and four for the call, whichever side has the server's token."""
    token = "t" * 43
    rules = RelayRules(open_to_all=True) if who == "everybody" else RelayRules(token=token)

    def config(side: str) -> NodeConfig:
        return NodeConfig(servers=Servers(websocket=[URL], relay_token=token if who in ("both", side) else None))

    async def main() -> None:
        async with SYMMETRIC.build(time_limit=1e6) as net, simulated_hosts():
            dave, carol = (Identity.from_seed(name + bytes(27)) for name in (b"dave.", b"carol"))
            async with open_nodes(net, servers=(server(rules), STUN, STUN2, NTP)):
                with net.hosts["bob"]:
                    listening = open_node(config("the listener"), identity=dave, authorize=anyone)
                    async with listening as listener, trio.open_nursery() as nursery:
                        nursery.start_soon(echo_once, listener)
                        await trio.sleep(5.0)
                        with net.hosts["alice"]:
                            taken, first = await call_at_once(config("the caller"), carol, listener.address)
                print(f"a Pipe after {taken / RTT:.1f} round trips, the first byte after {first / RTT:.1f}")
                assert taken <= 3 * RTT + 0.03
                assert first <= 5 * RTT + 0.03

    simulate(main, seed=0)


@pytest.mark.parametrize("offsets", [(400.0, 0.0), (0.0, 400.0)])
def test_a_program_that_was_just_started_with_another_time_than_its_peers(offsets: tuple[float, float]) -> None:
    """The peer is near the server: its message about its clock comes before the caller registers.

    The caller calls once more.
    """
    pair = PeerPair.between(
        presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=0.1, server_rtt=(0.1, 0.02), clock_offsets=offsets
    )

    async def main() -> None:
        async with pair.build(time_limit=1e6) as net, simulated_hosts():
            async with open_nodes(net, servers=(server(OPEN), STUN, STUN2)) as nodes, trio.open_nursery() as nursery:
                await trio.sleep(5.0)
                with net.hosts["bob"]:
                    nursery.start_soon(echo_once, nodes.bob)
                config, carol = NodeConfig(servers=Servers(websocket=[URL])), Identity.from_seed(b"carol" + bytes(27))
                taken, first = await call_at_once(config, carol, nodes.bob.address)
                print(f"a Pipe after {taken:.2f} s, the first byte after {first:.2f}")
                assert first <= 1.0

    simulate(main, seed=0)
