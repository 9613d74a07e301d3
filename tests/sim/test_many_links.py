"""A machine moves with many Links: which of them work again first, and how many searches run at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import pytest
import trio

from warpgate_trio import Identity, NodeConfig, PathState, Pipe, Servers, anyone, open_node
from warpgate_trio.config import ListenConfig
from warpgate_trio.node import path_keeper
from warpgate_trio.sim import Link, Network, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import ALICE, RENDEZVOUS
from warpgate_trio.walk.walk import Walk

PEERS: Final = 4
LINKS: Final = 40
LIMIT: Final = 4
"""Searches at a time, so that forty have to take turns."""
WITHIN: Final = 10.0


async def open_links(net: Network, stack: AsyncExitStack) -> list[tuple[Pipe, Pipe]]:
    """Links from alice to several peers with public addresses; both ends of each."""
    link = Link(latency=0.0125)
    for name in ("server", "alice", *(f"bob{number}" for number in range(PEERS))):
        net.host(name, link=link)
    stack.enter_context(net.hosts["server"])
    await stack.enter_async_context(RENDEZVOUS.open(net.hosts["server"]))
    config = NodeConfig(servers=Servers(websocket=[RENDEZVOUS.url]), listen=ListenConfig(port=7000))
    peers = []
    for number in range(PEERS):
        stack.enter_context(net.hosts[f"bob{number}"])
        identity = Identity.from_seed(bytes([number]) * 32)
        peers.append(await stack.enter_async_context(open_node(config, identity=identity, authorize=anyone)))
    stack.enter_context(net.hosts["alice"])
    alice = await stack.enter_async_context(open_node(config, identity=ALICE))
    pipes = []
    for number in range(LINKS):
        peer = peers[number % PEERS]
        pipe = await stack.enter_async_context(await alice.auto_connect(peer.address, plugins=["direct_connect"]))
        pipes.append((pipe, await stack.enter_async_context(await peer.listener.accept())))
    return pipes


async def wait_state(pipe: Pipe, *, live: bool) -> None:
    while (pipe.path.state is PathState.LIVE) is not live:
        await pipe.wait_path_change(pipe.path)


@pytest.mark.slow("forty Links, packet by packet")
def test_busy_ones_speak_again_first_and_no_more_than_the_budget_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_keeper, "MAX_RECOVERIES", LIMIT)
    again: list[Pipe] = []
    under_way = most = 0

    async def search(walk: Walk, *, deadline: float) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await walks_search(walk, deadline=deadline)
        finally:
            under_way -= 1

    walks_search = Walk.search
    monkeypatch.setattr(Walk, "search", search)

    async def talk(pipe: Pipe) -> None:
        while True:
            await pipe.send_all(bytes(100))
            await trio.sleep(0.02)  # the pace of a talk

    async def wait_again(pipe: Pipe) -> None:
        await wait_state(pipe, live=False)
        await wait_state(pipe, live=True)
        again.append(pipe)

    async def main() -> None:
        async with Network(0, time_limit=1e6) as net, simulated_hosts(), AsyncExitStack() as stack:
            pipes = await open_links(net, stack)
            talking = [pipe for pipe, _ in pipes[-2:]]
            async with trio.open_nursery() as nursery:
                for pipe in talking:
                    nursery.start_soon(talk, pipe)
                await trio.sleep(1.0)
                moved_at = trio.current_time()
                net.hosts["alice"].change_address()
                with trio.fail_after(WITHIN):
                    async with trio.open_nursery() as waiting:
                        for pipe, _ in pipes:
                            waiting.start_soon(wait_again, pipe)
                print(f"all {LINKS} speak again after {trio.current_time() - moved_at:.2f} s")
                nursery.cancel_scope.cancel()
            assert set(talking) <= set(again[:LIMIT]), [again.index(pipe) for pipe in talking]
            assert most == LIMIT
            for pipe, other in pipes:
                await pipe.send_all(b"x")
                with trio.fail_after(WITHIN):
                    while not (await other.receive_some()).endswith(b"x"):
                        pass

    simulate(main, seed=0)
