"""Relayed Pipes whose relay dies: another relay takes over."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
import trio

from tests.sim.roaming import Talk
from tests.sim.test_ws_relay import OPEN, server
from warpgate_trio import Pipe
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.sim import Fault, Kind, Network, presets, simulate
from warpgate_trio.testing import Restarts, simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

OTHER: Final = "ws://stun2:443"
SECOND: Final = replace(
    RENDEZVOUS,
    url=OTHER,
    machine="stun2",
    open=lambda _host: open_rendezvous(host=None, port=443, public_urls=[OTHER], relay=OPEN),
)
CREDENTIALS: Final = TurnCredentials("example.org", {"alice": "sesame"})
TURNS: Final = [
    WorldServer(
        key="turn",
        url=f"turn:alice:sesame@{machine}:3490",
        machine=machine,
        open=lambda host: open_turn_server(CREDENTIALS, host=host.ip, port=3490),
    )
    for machine in ("ntp", "stun2")
]
RELAYS: Final = {"ws_relay": (server(OPEN), SECOND, STUN, NTP), "turn": (*TURNS, RENDEZVOUS, STUN, NTP)}
BAR: Final = 5.0
"""The longest silence in seconds when the active relay dies."""


def where(net: Network, pipe: Pipe) -> str:
    """The machine of the relay that a Pipe uses."""
    ends = {pipe.path.local[0], pipe.path.remote[0]}
    (found,) = [each for each in ("server", "stun2", "ntp") if ends & set(net.hosts[each].addresses)]
    return found


@pytest.mark.parametrize("rtt", [0.05, 0.2])
@pytest.mark.parametrize("how", ["killed", "gone without a word"])
@pytest.mark.parametrize("plugin", RELAYS)
def test_a_talk_goes_on_by_the_other_server(plugin: str, how: str, rtt: float) -> None:
    pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=rtt, server_rtt=rtt)

    async def main() -> None:
        restarts = Restarts()
        servers = restarts.of(*RELAYS[plugin])
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            await trio.sleep(5.0)
            ours = await nodes.alice.auto_connect(nodes.bob.address, relay_first=True)
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, trio.open_nursery() as nursery:
                assert ours.path.plugin == plugin
                talks = [Talk(ours, theirs), Talk(theirs, ours)]
                for talk in talks:
                    nursery.start_soon(talk.receive)
                    nursery.start_soon(talk.send)
                await trio.sleep(2.0)
                began = trio.current_time()
                dying = where(net, ours)
                if how == "killed":
                    nursery.start_soon(lambda: restarts.restart(dying, pause=1000.0))
                else:
                    net.schedule([Fault(at=0.0, until=1e5, target=dying, kind=Kind.BLACKHOLE)])
                await trio.sleep(8.0)
                for talk in talks:
                    print(f"{plugin}, {how}, {rtt:g}: silent for {talk.silence_after(began):.2f} s")
                    assert talk.silence_after(began) <= BAR
                assert ours.path.plugin == plugin
                assert where(net, ours) != dying
                nursery.cancel_scope.cancel()

    simulate(main, seed=0)
