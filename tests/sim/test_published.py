"""`Node.wait_published`: the address that a node prints afterwards does not change within seconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from tests.identities import ALICE, BOB
from warpgate_trio import Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.address.nat_profile import UNKNOWN
from warpgate_trio.sim import Host, NatConfig, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts, walks
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes in worlds of their own")

LASTS = 20
"""Seconds for which a fresh address is watched: any further measurement would have ended by then."""


@dataclass
class World:
    net: Network
    config: NodeConfig
    node: Node


@asynccontextmanager
async def _nothing(_: Host) -> AsyncGenerator[None]:
    yield


SIGNALS, STUN, STUN2 = walks.RENDEZVOUS, walks.STUN, walks.STUN2
DEAD = walks.WorldServer(key="stun", url="stun:stun:3478", machine="stun", open=_nothing)


def play(
    body: Callable[[World], Awaitable[None]],
    *,
    nat: NatConfig = presets.LINUX,
    servers: Collection[walks.WorldServer] = (SIGNALS, STUN, STUN2),
) -> None:
    """Run `body` at the moment at which bob's node has opened, behind a NAT, with these servers."""

    async def main() -> None:
        pair = PeerPair.between(nat, nat, rtt=0.1, seed=5)
        async with pair.build(time_limit=3600) as net, simulated_hosts():
            urls: dict[str, list[str]] = {}
            for server in servers:
                urls.setdefault(server.key, []).append(server.url)
            config = NodeConfig(servers=Servers(**urls))  # type: ignore[arg-type]
            async with trio.open_nursery() as nursery:
                for server in servers:
                    await nursery.start(_run, net.hosts[server.machine], server)
                with net.hosts["bob"]:
                    async with open_node(config, identity=BOB, authorize=anyone) as node:
                        await body(World(net, config, node))
                nursery.cancel_scope.cancel()

    simulate(main, seed=5)


async def _run(host: Host, server: walks.WorldServer, *, task_status: trio.TaskStatus[None]) -> None:
    with host:
        async with server.open(host):
            task_status.started()
            await trio.sleep_forever()


async def lasts(node: Node) -> None:
    """Check that the address does not change for `LASTS` seconds."""
    before = node.address
    for _ in range(10 * LASTS):
        await trio.sleep(0.1)
        assert node.address == before, f"{before.nat!r} became {node.address.nat!r}"


def test_what_is_printed_then_has_its_nat_and_is_not_old_within_seconds() -> None:
    async def body(this: World) -> None:
        await this.node.wait_signals()
        assert this.node.address.nat is None  # too early
        await this.node.wait_published()
        assert this.node.address.nat_profiles.get(None, 4).udp.translated
        await lasts(this.node)

    play(body)


def test_no_call_to_it_says_that_it_was_old() -> None:
    async def body(this: World) -> None:
        await this.node.wait_published()
        text = str(this.node.address)
        with this.net.hosts["alice"]:
            async with open_node(this.config, identity=ALICE) as alice:
                await alice.wait_published()
                async with await alice.auto_connect(text) as pipe:
                    assert pipe.report is not None
                    assert pipe.report.elapsed_ms > 200  # long enough for a question to the peer
                    assert not [note for note in pipe.report.notes if "old" in note]

    play(body)


def test_what_is_not_configured_is_not_waited_for() -> None:
    async def no_stun(this: World) -> None:
        await this.node.wait_signals()
        connected = trio.current_time()
        await this.node.wait_published()
        assert trio.current_time() == pytest.approx(connected + 0.1), "the server keeps our key record"

    async def no_signals(this: World) -> None:
        await this.node.wait_published()
        assert this.node.address.nat is not None

    async def neither(this: World) -> None:
        opened = trio.current_time()
        await this.node.wait_published()
        assert trio.current_time() == opened

    play(no_stun, servers=[SIGNALS])
    play(no_signals, servers=[STUN])
    play(neither, servers=[])


def test_that_no_stun_server_answers_is_known_too() -> None:
    async def body(this: World) -> None:
        await this.node.wait_published()
        assert trio.current_time() < 20
        assert this.node.address.nat_profiles.get(None, 4).udp.blocked  # although signals came only later
        await lasts(this.node)

    play(body, nat=presets.WEB_ONLY)


@pytest.mark.parametrize("signals", [True, False])
def test_a_server_that_is_dead_holds_nobody_up_for_long(signals: bool) -> None:
    async def body(this: World) -> None:
        await this.node.wait_published()
        assert trio.current_time() < 20
        assert this.node.address.nat_profiles.get(None, 4).udp == UNKNOWN
        await lasts(this.node)

    play(body, servers=[SIGNALS, DEAD] if signals else [DEAD])


def test_several_may_wait_for_it() -> None:
    async def body(this: World) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(this.node.wait_published)

    play(body, servers=[SIGNALS, DEAD])


def test_it_ends_with_the_node() -> None:
    async def body(this: World) -> None:
        async def wait(node: Node) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await node.wait_published()

        async with trio.open_nursery() as nursery:
            with this.net.hosts["alice"]:
                async with open_node(this.config, identity=ALICE) as alice:
                    nursery.start_soon(wait, alice)
                    await trio.testing.wait_all_tasks_blocked()
            await wait(alice)

    play(body, servers=[SIGNALS, DEAD])
