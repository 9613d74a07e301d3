"""Pipes on bad links, both directions full: what a sender's own bulk holds up, and what is taken for dead."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

import pytest
import trio

from warpgate_trio import ConnectError, PathState, Pipe
from warpgate_trio.sim import Link, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NodePair, open_nodes
from warpgate_trio.testing.worlds import PeerPair


async def call(nodes: NodePair) -> tuple[Pipe, Pipe]:
    ours: Pipe | None = None
    while ours is None:
        with suppress(ConnectError):  # the worst link loses a call now and then
            ours = await nodes.alice.auto_connect(nodes.bob.address, phases=["direct"])
    return ours, await nodes.bob.listener.accept()


def on(link: Link) -> PeerPair:
    """Alice on that link, bob without delay."""
    pair = PeerPair.between(rtt=0.001)
    return replace(pair, alice=replace(pair.alice, link=link))


async def send(pipe: Pipe, size: int) -> None:
    await pipe.send_all(bytes(size))


async def receive(pipe: Pipe, size: int) -> None:
    while size:
        size -= len(await pipe.receive_some(size))


async def both_ways(ours: Pipe, theirs: Pipe, size: int) -> list[PathState]:
    """Send so much each way at once; the states that the two paths had meanwhile."""
    states: list[PathState] = []

    async def watch(pipe: Pipe) -> None:
        while True:
            states.append((await pipe.wait_path_change()).state)

    async with trio.open_nursery() as watching:
        for pipe in (ours, theirs):
            watching.start_soon(watch, pipe)
        async with trio.open_nursery() as nursery:
            for one, other in ((ours, theirs), (theirs, ours)):
                nursery.start_soon(send, one, size)
                nursery.start_soon(receive, other, size)
        watching.cancel_scope.cancel()
    return states


def transfer(name: str, size: int, seed: int = 1) -> tuple[list[PathState], bool]:
    """What the paths were on one of the nine links, losses one by one, and whether each end kept to its carrier."""

    async def main() -> tuple[list[PathState], bool]:
        pair = on(replace(presets.LINKS[name], burst=1))
        async with pair.build(time_limit=1e7) as net, simulated_hosts(), open_nodes(net) as nodes:
            ours, theirs = await call(nodes)
            async with ours, theirs:
                carriers = ours.carrier, theirs.carrier
                states = await both_ways(ours, theirs, size)
                return states, (ours.carrier, theirs.carrier) == carriers

    return simulate(main, seed=seed)


@pytest.mark.slow("128 KiB each way over 0.5 Mbit/s of which an eighth is lost, packet by packet")
def test_a_bad_link_that_is_full_both_ways_is_not_suspected() -> None:
    assert transfer("fading", 128 * 1024) == ([], True)


@pytest.mark.slow("256 KiB each way, packet by packet")
@pytest.mark.parametrize("name", presets.LINKS)
def test_what_progresses_is_never_closed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """On one carrier, even where a pause of TCP's own has it suspected for a while."""
    with caplog.at_level(logging.DEBUG, "warpgate_trio.link.link"):
        states, same = transfer(name, 256 * 1024)
    assert same
    assert PathState.SUSPENDED not in states
    assert not [record for record in caplog.records if "the path is dead" in record.getMessage()]


@pytest.mark.slow("seconds of a full link, packet by packet")
def test_an_answer_does_not_wait_behind_a_senders_own_bulk() -> None:
    """Some chunks of 50 ms are before it, what is in flight, and what TCP sends again, as the queue overflows."""
    rtt, mbit = 0.2, 1.0
    queue = round(mbit * 1e6 * rtt / 8)

    async def main() -> list[float]:
        pair = on(Link(latency=rtt / 2, bandwidth=mbit * 1e6, queue=queue))
        async with pair.build() as net, simulated_hosts(), open_nodes(net) as nodes:
            ours, theirs = await call(nodes)
            async with ours, theirs, trio.open_nursery() as nursery:
                for one, other in ((ours, theirs), (theirs, ours)):
                    nursery.start_soon(send, one, 1 << 20)
                    nursery.start_soon(receive, other, 1 << 20)
                await trio.sleep(1.0)
                trips = [await ours.ping() for _ in range(2)]
                nursery.cancel_scope.cancel()
            return trips

    trips = simulate(main, seed=0)
    assert max(trips) < 10 * rtt, trips  # it was five seconds and more
