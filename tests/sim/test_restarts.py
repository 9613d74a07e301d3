"""Servers of every kind that are killed and come back, chosen by the name of their machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio

from tests.identities import ALICE
from tests.sim.walks import CONES
from warpgate_trio import open_node
from warpgate_trio.nurseries import reason_of
from warpgate_trio.servers.turn import TurnServer, open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.sim import Host, simulate
from warpgate_trio.testing import WORLD_CONFIG, Restarts, simulated_hosts, world
from warpgate_trio.testing.walks import SERVERS, NodePair, WorldServer, open_nodes

CREDENTIALS = TurnCredentials("example.org", {"alice": "sesame"})
MACHINES = ("server", "stun", "stun2", "ntp", "turn")


class Births:
    """Servers of every kind, with TURN over TCP too, and the times at which each was opened."""

    def __init__(self) -> None:
        self.at: dict[str, list[float]] = {}
        self.turn: list[TurnServer] = []
        turn = WorldServer(key="turn", url="turn:alice:sesame@turn:3478", machine="turn", open=self._open_turn)
        self.servers = [replace(each, open=partial(self._open, each)) for each in (*SERVERS, turn)]

    @asynccontextmanager
    async def _open(self, server: WorldServer, host: Host) -> AsyncGenerator[None]:
        async with server.open(host):
            self.at.setdefault(host.name, []).append(trio.current_time())
            yield

    @asynccontextmanager
    async def _open_turn(self, host: Host) -> AsyncGenerator[None]:
        async with open_turn_server(CREDENTIALS, host=host.ip, port=3478) as server:
            self.turn.append(server)
            yield


def in_world(main: Callable[[NodePair, Restarts, Births], Awaitable[None]]) -> None:
    async def run() -> None:
        restarts, births = Restarts(), Births()
        pair = replace(CONES, public=(*CONES.public, replace(CONES.public[-1], name="turn")))
        async with pair.build(time_limit=36000) as net, simulated_hosts():
            async with open_nodes(net, servers=restarts.of(*births.servers)) as nodes:
                await main(nodes, restarts, births)
            left = net.netstat()
            assert not left, str(left)
            with pytest.raises(KeyError):
                await restarts.restart("server")

    simulate(run)


@pytest.mark.slow("whole nodes, and every server twice")
def test_each_is_gone_for_a_while_and_comes_back() -> None:
    """Each restart makes a new server at the old addresses, without disturbing the others."""

    async def main(nodes: NodePair, restarts: Restarts, births: Births) -> None:
        assert {name: len(at) for name, at in births.at.items()} == dict.fromkeys(MACHINES, 1)
        for index, machine in enumerate(MACHINES):
            before, addresses = trio.current_time(), list(nodes.net.hosts[machine].addresses)
            await restarts.restart(machine, pause=2.5)
            assert births.at[machine][1:] == [before + 2.5] == [trio.current_time()]
            assert {name: len(at) for name, at in births.at.items()} == {
                name: 2 if name in MACHINES[: index + 1] else 1 for name in MACHINES
            }
            assert nodes.net.hosts[machine].addresses == addresses
        assert births.turn[0] is not births.turn[1]
        with pytest.raises(KeyError, match="alice"):
            await restarts.restart("alice")

    in_world(main)


@pytest.mark.parametrize(("machine", "port"), [("server", 443), ("turn", 3478)])
def test_who_is_connected_is_reset_and_who_connects_is_refused(machine: str, port: int) -> None:
    async def main(nodes: NodePair, restarts: Restarts, births: Births) -> None:
        ended: list[tuple[str, float]] = []

        async def client() -> None:
            async with await trio.open_tcp_stream(machine, port) as stream:
                with pytest.raises(trio.BrokenResourceError) as broken:
                    await stream.receive_some()
                ended.append((type(broken.value.__cause__).__name__, trio.current_time()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await trio.sleep(0.5)
            killed_at = trio.current_time()
            nursery.start_soon(partial(restarts.restart, machine, pause=2.0))
            await trio.sleep(1)
            assert [name for name, _ in ended] == ["ConnectionResetError"]
            assert ended[0][1] - killed_at < 0.1
            with pytest.raises(OSError, match="failed") as failed:
                await trio.open_tcp_stream(machine, port)
            assert "refused" in reason_of(failed.value)
            await trio.sleep(1.1)
            await (await trio.open_tcp_stream(machine, port)).aclose()

    in_world(main)


@pytest.mark.slow("whole nodes, and every server twice")
def test_nodes_find_all_of_them_again() -> None:
    async def main(nodes: NodePair, restarts: Restarts, births: Births) -> None:
        for machine in MACHINES:
            await restarts.restart(machine, pause=1.0)
        await trio.sleep(30)
        report = await nodes.alice.netcheck(servers=True)
        assert all(row.error is None for row in report.servers), report
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                async with await nodes.bob.listener.accept() as theirs:
                    await theirs.send_all(await theirs.receive_some())
                    assert await theirs.receive_some() == b""

            with nodes.net.hosts["bob"]:
                nursery.start_soon(accept)
            async with await nodes.alice.auto_connect(nodes.bob.address) as pipe:
                await pipe.send_all(b"x")
                assert await pipe.receive_some() == b"x"

    in_world(main)


def test_a_world_for_programs_has_them_too() -> None:
    async def main() -> None:
        restarts = Restarts()
        async with world(CONES, restarts=restarts) as (_, alice, _):
            with alice:
                async with open_node(WORLD_CONFIG, identity=ALICE) as node:
                    await node.wait_signals()
                    for machine in ("server", "stun", "stun2", "ntp"):
                        await restarts.restart(machine, pause=1.0)
                    await trio.sleep(20)
                    assert [each.rtt is not None for each in node.signal_servers] == [True]

    simulate(main)
