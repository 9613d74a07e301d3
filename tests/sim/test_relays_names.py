"""Relays whose names do not resolve when they are needed: their addresses were looked up before."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import pytest
import trio

from tests.sim.roaming import Talk
from tests.sim.test_relays_fail import RELAYS, TURNS, where
from warpgate_trio import names
from warpgate_trio.sim import Network, presets, simulate
from warpgate_trio.testing import Restarts, simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

AGE: Final = 400.0
"""Seconds after which an address is forgotten here, instead of a day."""
PAIR: Final = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC)


def silence_dns(net: Network) -> None:
    for name in net.names:
        net.spoil_name(name, delay=math.inf)


@pytest.mark.parametrize("plugin", RELAYS)
def test_a_link_goes_to_a_relay_that_is_needed_for_the_first_time(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS falls silent while the Link is up, for longer than an address from the call's look-up stays valid."""
    monkeypatch.setattr(names, "MAX_AGE", AGE)

    async def main() -> None:
        restarts = Restarts()
        servers = restarts.of(*RELAYS[plugin])
        async with PAIR.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            ours = await nodes.alice.auto_connect(nodes.bob.address, relay_first=True)
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, trio.open_nursery() as nursery:
                assert ours.path.plugin == plugin
                await trio.sleep(names.KEPT_FRESH + 10)
                silence_dns(net)
                await trio.sleep(AGE - names.KEPT_FRESH)
                talks = [Talk(ours, theirs), Talk(theirs, ours)]
                for talk in talks:
                    nursery.start_soon(talk.receive)
                    nursery.start_soon(talk.send)
                await trio.sleep(1.0)
                began, dying = trio.current_time(), where(net, ours)
                nursery.start_soon(lambda: restarts.restart(dying, pause=1000.0))
                await trio.sleep(8.0)
                assert where(net, ours) != dying
                for talk in talks:
                    print(f"{plugin}: silent for {talk.silence_after(began):.2f} s")
                    assert talk.silence_after(began) <= 5.0
                nursery.cancel_scope.cancel()

    simulate(main, seed=0)


def test_a_call_goes_by_a_turn_server_whose_name_was_never_needed_before() -> None:
    """DNS falls silent after the nodes were opened."""

    async def main() -> None:
        servers = [replace(each, url=each.url.replace(each.machine, f"turn-{each.machine}")) for each in TURNS]
        async with PAIR.build() as net, simulated_hosts():
            for each in TURNS:
                net.names[f"turn-{each.machine}"] = [net.hosts[each.machine].ip]
            async with open_nodes(net, servers=[*servers, RENDEZVOUS, STUN, NTP]) as nodes:
                silence_dns(net)
                async with await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"]) as pipe:
                    assert pipe.path.plugin == "turn"

    simulate(main, seed=0)


def test_a_rendezvous_server_is_connected_to_again_by_an_address_that_was_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "MAX_AGE", AGE)

    async def main() -> None:
        restarts = Restarts()
        servers = restarts.of(*RELAYS["ws_relay"][:1])
        async with PAIR.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            await trio.sleep(names.KEPT_FRESH + 10)
            silence_dns(net)
            await trio.sleep(AGE - names.KEPT_FRESH)
            await restarts.restart("server")
            await trio.sleep(1.0)  # until the node has noticed
            with trio.fail_after(5):
                await nodes.alice.wait_signals()

    simulate(main, seed=0)
