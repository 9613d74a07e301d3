"""Two whole nodes in a simulated world, and what they do there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from tests.nodes import echo
from warpgate_trio import Node, Pipe, anyone
from warpgate_trio.plugin import Plugin
from warpgate_trio.sim import Network, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import SERVERS, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair

RTT = 0.05
CONES = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)


def in_world(
    main: Callable[[NodePair], Awaitable[None]],
    pair: PeerPair = CONES,
    *,
    servers: Sequence[WorldServer] = SERVERS,
    prepare: Callable[[Network], object] = lambda _: None,
    accepting: bool = True,
    plugins: Sequence[str | type[Plugin]] | None = None,
) -> None:
    """Run `main` between two nodes, of which bob echoes; nothing may be left afterwards."""

    async def run() -> None:
        async with pair.build(time_limit=36000) as net, simulated_hosts():
            prepare(net)
            opened = open_nodes(net, servers=servers, authorize_alice=anyone, plugins=plugins)
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
