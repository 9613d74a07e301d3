"""A path dies under a Pipe between two whole nodes: when does each side notice, depending on its traffic?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Literal

import pytest
import trio

from tests.links import link_of
from tests.sim.roaming import Family, Roaming, connected
from tests.waiting import wait_until
from warpgate_trio import NodeConfig, PathsConfig, PathState, Pipe
from warpgate_trio.carrier import quic, tls
from warpgate_trio.link.life import DEATH, HINT_SLACK, RESPONDER_WAITS, SLACK
from warpgate_trio.node.network_watch import DAMPING, LOOK_INTERVAL
from warpgate_trio.sim import Fault, Kind, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import SERVERS, NodePair, open_nodes
from warpgate_trio.testing.worlds import PeerPair

Work = Literal["busy", "idle"]
HOLE: Final = Fault(at=0.0, target="bob", kind=Kind.BLACKHOLE)
INTERVALS: Final = {"tls": tls.IDLE_INTERVAL, "quic": quic.IDLE_INTERVAL}


def the_way(carrier: str, rtt: float) -> tuple[PeerPair, Fault, str]:
    """A world with a path of that carrier, the black hole that kills it, and the plugin that finds it."""
    if carrier == "tls":
        return PeerPair.between(presets.LINUX, None, rtt=rtt), HOLE, "direct_connect"
    # Between two such NATs a UDP path has to be punched; the TCP path above is dialled.
    pair = PeerPair.between(presets.FULL_CONE, presets.FULL_CONE, rtt=rtt)
    return pair, replace(HOLE, target="bob-nat0"), "udp_punch"


PLACES: Final[list[tuple[Family, float]]] = [("v4", 0.05), ("v4", 0.2), ("v6", 0.05), ("dual", 0.05)]


def the_world(carrier: str, family: Family, rtt: float) -> tuple[Roaming, Fault]:
    """A world with a path of that carrier where both have addresses of these families, and the black hole."""
    world = Roaming(alice=family, bob=family, way="direct" if carrier == "tls" else "punched", rtt=rtt)
    return world, HOLE if carrier == "tls" else replace(HOLE, target="bob-home")


async def noticed(pipe: Pipe) -> float:
    """Wait until the path is suspected; returns the time."""
    assert (await pipe.wait_path_change()).state is PathState.SUSPECT
    return trio.current_time()


async def broken(pipe: Pipe, use: Callable[[Pipe], Awaitable[object]]) -> float:
    """Use a Pipe until it breaks; returns the time."""
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await use(pipe)
    return trio.current_time()


async def send(pipe: Pipe) -> None:
    await pipe.send_all(bytes(1000))
    await trio.sleep(0.05)  # the pace of a talk


async def receive(pipe: Pipe) -> None:
    assert await pipe.receive_some()


@pytest.mark.slow("one node's hundred seconds of talk, packet by packet")
@pytest.mark.parametrize(("family", "rtt"), PLACES)
@pytest.mark.parametrize("carrier", ["tls", "quic"])
@pytest.mark.parametrize("work", ["busy", "idle"])
def test_a_path_that_dies_is_suspected_and_then_given_up(work: Work, carrier: str, family: Family, rtt: float) -> None:
    """It is suspected within three round trips and 1.5 s of the last sending, and dead 15 s later."""

    async def main() -> None:
        world, hole = the_world(carrier, family, rtt)
        async with connected(world) as (nodes, ours, theirs):
            assert ours.path.carrier == carrier
            async with trio.open_nursery() as nursery:
                talk = trio.CancelScope()

                async def echo() -> None:
                    with talk:
                        while True:
                            await theirs.send_all(await theirs.receive_some())

                nursery.start_soon(echo)
                for _ in range(5):
                    await ours.send_all(b"x")
                    await ours.receive_some()
                    await trio.sleep(1.0)
                talk.cancel()
                await wait_until(lambda: theirs.path.rtt is not None)
                use = send if work == "busy" else receive
                times: dict[str, tuple[float, float]] = {}
                if work == "busy":  # each has unacknowledged data when the hole opens
                    await ours.send_all(b"x")
                    await theirs.send_all(b"x")
                nodes.net.schedule([hole])
                began = trio.current_time()

                async def watch(name: str, pipe: Pipe) -> None:
                    async with trio.open_nursery() as inner:
                        inner.start_soon(broken, pipe, use)
                        suspected = await noticed(pipe)
                        while pipe.path.state is not PathState.SUSPENDED:
                            await pipe.wait_path_change()
                        times[name] = suspected - began, trio.current_time() - began
                        inner.cancel_scope.cancel()

                async with trio.open_nursery() as both:
                    both.start_soon(watch, "alice", ours)
                    both.start_soon(watch, "bob", theirs)
                interval = 0.0 if work == "busy" else INTERVALS[carrier]
                for name, (suspected, dead) in times.items():
                    waits = interval * (RESPONDER_WAITS if name == "bob" else 1.0)
                    assert suspected <= waits + 3 * rtt + SLACK + 0.1, times  # plus the interval of the talk
                    assert suspected + DEATH - 0.1 <= dead <= suspected + DEATH + 0.1, times

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of two idle nodes, packet by packet")
@pytest.mark.parametrize(("family", "rtt"), PLACES)
@pytest.mark.parametrize("carrier", ["tls", "quic"])
@pytest.mark.parametrize("asked_by", ["both", "the caller"])
def test_a_path_that_dies_idle_is_suspected_within_the_time_that_was_asked_for(
    asked_by: str, carrier: str, family: Family, rtt: float
) -> None:
    async def main() -> None:
        config = NodeConfig(paths=PathsConfig(dead_after=6.0 if asked_by == "both" else 0.0))
        world, hole = the_world(carrier, family, rtt)
        asked = None if asked_by == "both" else 6.0
        async with connected(world, config=config, dead_after=asked) as (nodes, ours, theirs):
            assert ours.path.carrier == carrier
            with trio.move_on_after(20.0):  # a path that lives is not suspected
                pytest.fail(f"{await ours.wait_path_change()}")
            nodes.net.schedule([hole])
            began = trio.current_time()
            times: list[float] = []

            async def watch(pipe: Pipe) -> None:
                times.append(await noticed(pipe) - began)

            async with trio.open_nursery() as nursery:
                for pipe in (ours, theirs) if asked_by == "both" else (ours,):
                    nursery.start_soon(watch, pipe)
            assert max(times) <= 6.0, times

    simulate(main, seed=0)


@pytest.mark.slow("a minute of bulk, packet by packet")
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_path_that_dies_in_one_direction_is_noticed_by_who_sends_there(way: str) -> None:
    """Data from the other side keeps arriving."""

    async def main() -> None:
        pair = PeerPair.between(presets.LINUX, None, rtt=0.05)
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
            ours = await nodes.alice.connect(nodes.bob.address, plugin="direct_connect")
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, trio.open_nursery() as nursery:
                await trio.sleep(1.0)
                for pipe in (ours, theirs):
                    nursery.start_soon(broken, pipe, send)
                await trio.sleep(1.0)
                net.schedule([Fault(at=0.0, target=f"alice-nat0:{way}", kind=Kind.BLACKHOLE)])
                began = trio.current_time()
                sender = ours if way == "up" else theirs
                assert await noticed(sender) - began <= 3 * 0.05 + SLACK + 0.15

    simulate(main, seed=0)


@pytest.mark.slow("two holes of some seconds, packet by packet")
def test_a_path_that_comes_back_is_forgiven() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.LINUX, None, rtt=0.05)
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
            ours = await nodes.alice.connect(nodes.bob.address, plugin="direct_connect")
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs:
                await trio.sleep(1.0)
                for _ in range(2):
                    net.schedule([Fault(at=0.0, until=5.0, target="alice-nat0", kind=Kind.BLACKHOLE)])
                    await ours.send_all(b"hello")
                    await noticed(ours)
                    with trio.fail_after(20):
                        assert await theirs.receive_some() == b"hello"
                        while ours.path.state is not PathState.LIVE:
                            await ours.wait_path_change()

    simulate(main, seed=0)


# --- hints ---


@asynccontextmanager
async def idle_pipe(
    carrier: str, rtt: float, *, config: NodeConfig | None = None
) -> AsyncGenerator[tuple[NodePair, Pipe]]:
    """Alice's end of an idle Pipe, half way between two PINGs."""
    pair, _, plugin = the_way(carrier, rtt)
    async with (
        pair.build(time_limit=1e6) as net,
        simulated_hosts(),
        open_nodes(net, config=config, servers=SERVERS) as nodes,
    ):
        ours = await nodes.alice.connect(nodes.bob.address, plugin=plugin)
        theirs = await nodes.bob.listener.accept()
        async with ours, theirs:
            await trio.sleep(INTERVALS[carrier] / 2)
            yield nodes, ours


def questions(pipe: Pipe) -> int:
    """How many PINGs its Link has sent."""
    return link_of(pipe).protocol.life._asked


@pytest.mark.slow("half a minute of two idle nodes, packet by packet")
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("carrier", ["tls", "quic"])
def test_who_moves_to_another_address_closes_its_paths_at_once(carrier: str, kept: bool) -> None:
    """If that would end the Pipe, the Link only sends a PING, because a machine may get its address back."""

    async def main() -> None:
        config = None if kept else NodeConfig(paths=PathsConfig(resume_timeout=0))
        async with idle_pipe(carrier, 0.2, config=config) as (nodes, pipe):
            nodes.net.hosts["alice"].change_address()
            began = trio.current_time()
            changed = await pipe.wait_path_change()
            assert changed.state is (PathState.SUSPENDED if kept else PathState.SUSPECT)
            asked = 0.0 if kept else 0.2 + HINT_SLACK
            assert trio.current_time() - began <= DAMPING + asked + 0.05

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of two idle nodes, packet by packet")
@pytest.mark.parametrize("carrier", ["tls", "quic"])
def test_a_link_that_is_down_for_a_moment_closes_nothing(carrier: str) -> None:
    """The addresses stay; a PING at that moment may be lost, and then the path is suspected."""

    async def main() -> None:
        async with idle_pipe(carrier, 0.05) as (nodes, pipe):
            nodes.net.schedule([Fault(at=0.0, until=0.4, target="alice", kind=Kind.LINK_DOWN)])
            known = pipe.path
            with trio.move_on_after(5.0):
                while known.state is not PathState.SUSPENDED:
                    known = await pipe.wait_path_change(known)
            assert known.state is PathState.LIVE

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of two idle nodes, packet by packet")
@pytest.mark.parametrize("rtt", [0.05, 0.2])
@pytest.mark.parametrize("carrier", ["tls", "quic"])
def test_a_node_that_is_told_suspects_dead_paths_at_once(carrier: str, rtt: float) -> None:
    async def main() -> None:
        async with idle_pipe(carrier, rtt) as (nodes, pipe):
            nodes.net.schedule([the_way(carrier, rtt)[1]])
            await trio.sleep(0.1)
            began = trio.current_time()
            nodes.alice.network_changed()
            trip = link_of(pipe).protocol.life.trip
            assert trip <= rtt + 0.05
            assert await noticed(pipe) - began <= trip + HINT_SLACK + 0.001

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of two idle nodes, packet by packet")
def test_a_udp_path_for_which_there_is_no_route_any_more_is_suspected_when_three_sends_have_failed() -> None:
    """The addresses stay, as when a VPN removes the default route."""

    async def main() -> None:
        async with idle_pipe("quic", 0.05) as (nodes, pipe), trio.open_nursery() as nursery:
            nursery.start_soon(broken, pipe, send)
            await trio.sleep(1.0)
            machine = nodes.net.hosts["alice"]
            routes, machine.routes = machine.routes, []
            machine._cache.clear()
            began = trio.current_time()
            assert await noticed(pipe) - began <= 3 * 0.05 + 0.05 + HINT_SLACK + 0.1 < SLACK
            machine.routes = routes
            machine._cache.clear()
            with trio.fail_after(20):
                while pipe.path.state is not PathState.LIVE:
                    await pipe.wait_path_change()
            nursery.cancel_scope.cancel()

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of two idle nodes, packet by packet")
@pytest.mark.parametrize("what", ["a clock that jumps", "one more address", "network_changed"])
@pytest.mark.parametrize("carrier", ["tls", "quic"])
def test_a_hint_costs_a_path_that_lives_a_ping_and_is_no_alarm(carrier: str, what: str) -> None:
    async def main() -> None:
        async with idle_pipe(carrier, 0.2) as (nodes, pipe):
            before, known, address = questions(pipe), pipe.path, nodes.alice.address
            if what == "a clock that jumps":
                nodes.net.hosts["alice"].clock_offset += 60.0
            elif what == "one more address":
                (interface,) = nodes.net.hosts["alice"].interfaces
                interface.segment.give(interface, interface.segment.free_address())
            else:
                for _ in range(3):
                    nodes.alice.network_changed()
                assert questions(pipe) == before + 1, "at once"
                assert nodes.alice.address == address
            await trio.sleep(LOOK_INTERVAL + 1.0)
            life = link_of(pipe).protocol.life
            assert life.answered == questions(pipe) == before + 1
            assert (life.false_alarms, pipe.path.same_as(known)) == (0, True)

    simulate(main, seed=0)
