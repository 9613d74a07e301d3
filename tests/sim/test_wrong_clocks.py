"""Nodes on machines that start with a wrong clock, as those without a battery do, and call at once."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.identities import ALICE, BOB
from warpgate_trio import NodeConfig, Servers, anyone, open_node
from warpgate_trio.sim import presets, simulate
from warpgate_trio.testing import simulated_hosts, walks
from warpgate_trio.testing.worlds import PeerPair


@pytest.mark.slow("a simulated walk, with all servers")
@pytest.mark.parametrize("ntp", [True, False])
@pytest.mark.parametrize("offset", [-1.7e9, -86400.0, -400.0, 400.0, 86400.0])
def test_a_caller_whose_clock_is_wrong_calls(offset: float, ntp: bool) -> None:
    """With NTP servers it waits for them; without, the peer tells it the time."""

    async def body() -> tuple[str, ...]:
        pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=0.1, server_rtt=(0.05, 0.06), seed=3)
        async with pair.build(time_limit=3600) as net, simulated_hosts(), AsyncExitStack() as stack:
            net.hosts["alice"].clock_offset = offset
            for each in walks.SERVERS:
                stack.enter_context(net.hosts[each.machine])
                await stack.enter_async_context(each.open(net.hosts[each.machine]))
            servers = Servers(
                websocket=["ws://server:443"],
                stun=["stun:stun:3478", "stun:stun2:3478"],
                ntp=["ntp://ntp:123"] if ntp else [],
            )
            config = NodeConfig(servers=servers)
            stack.enter_context(net.hosts["bob"])
            bob = await stack.enter_async_context(open_node(config, identity=BOB, authorize=anyone))
            await bob.wait_signals()
            stack.enter_context(net.hosts["alice"])
            alice = await stack.enter_async_context(open_node(config, identity=ALICE))
            async with await alice.auto_connect(str(bob.address)) as pipe:
                assert pipe.peer_id == bob.peer_id
                assert pipe.report is not None
                return pipe.report.notes

    notes = simulate(body, seed=3)
    corrected = any("clock" in note for note in notes)
    assert not (ntp and offset < 0 and corrected), "it did not wait for its time server"
