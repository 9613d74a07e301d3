"""What a walk waits for and what not, measured in round trips of a simulated network."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tests.identities import ALICE, BOB
from tests.sim.walks import WARM, Connect, meet, rows
from warpgate_trio import Node, NodeConfig, PeerAddress, Pipe, Servers, anyone, open_node
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.plugin import Aim, Message, Plugin
from warpgate_trio.report import Outcome
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.sim import Link, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import simulate_walk
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

RTT = 0.05
OVERHEAD = 0.03
PORTS_MOVE = presets.LINUX_SYMMETRIC


class NoPunch(Plugin):
    """A plugin that ends at once, so that only combos beside the phases are left."""

    name = "no_punch"
    phase = "punch"
    aim = Aim.MEET

    async def run(self, reply: Message | None = None) -> NoReturn:
        raise AttemptFailed("nothing was tried")


# -- private addresses elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rtt", [0.02, 0.05, 0.3])
def test_a_private_address_of_another_network_holds_no_phase(rtt: float) -> None:
    """Each side has one, from which no answer comes.  Two signals, SYN, TLS and COMMIT take 5 round trips."""
    result = meet(PeerPair.between(presets.LINUX, presets.LINUX, rtt=rtt))
    assert result.plugin == "tcp_punch", rows(result)
    assert result.walk <= 5.2 * rtt + OVERHEAD
    direct = [row for row in result.report.combos if row.plugin == "direct_connect"]
    assert [row.outcome for row in direct] == [Outcome.LOST]  # it ran to the end of the walk


def test_a_private_address_of_another_network_may_answer_late() -> None:
    """Bob is in the network outside of Alice's NAT; three round trips to him take longer than the direct phase."""
    pair = PeerPair.between(presets.LINUX, None, shared=[presets.LINUX], rtt=0.6, server_rtt=0.3)
    walk = simulate_walk(pair, plugins=["direct_connect", NoPunch])
    assert walk.report.winner is not None, walk.report
    assert (walk.report.winner.plugin, walk.report.winner.route) == ("direct_connect", "NIC_BIND")
    assert walk.connect == pytest.approx(1.8, abs=0.1)


def test_a_walk_ends_when_nothing_is_left_but_silence() -> None:
    """Private addresses elsewhere then have had the time of a direct phase, and no more."""
    pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
    walk = simulate_walk(pair, plugins=["direct_connect", NoPunch])
    assert not walk.connected
    assert walk.report.elapsed_ms == pytest.approx(300, abs=1)


# -- what is far away --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rtt", "mine"), [(0.12, 0.004), (0.2, 0.004), (0.32, 0.05), (0.4, 0.004), (0.4, 0.4), (0.6, 0.004), (1.0, 0.004)]
)
def test_a_public_peer_is_dialled_at_every_distance(rtt: float, mine: float) -> None:
    """However near the caller's signal server is."""
    walk = simulate_walk(PeerPair.between(None, rtt=rtt, server_rtt=(mine, rtt), seed=7))
    assert walk.report.winner is not None, walk.report
    assert walk.report.winner.plugin == "direct_connect"
    assert walk.connect == pytest.approx(3 * rtt)


def call(far: float) -> str:
    """The plugin that reaches a public peer with only one server, a near signal server."""

    async def main() -> str:
        async with Network(seed=1) as net, simulated_hosts():
            server, alice, bob = net.host("server"), net.host("alice"), net.host("bob", link=Link(latency=far / 2))
            config = NodeConfig(servers=Servers(websocket=["ws://server:443"]))
            with server:
                async with open_rendezvous(host=None, port=443):
                    with bob:
                        async with open_node(config, identity=BOB, authorize=anyone) as node:
                            await node.wait_signals()
                            with alice:
                                async with open_node(config, identity=ALICE) as caller:
                                    await caller.wait_signals()
                                    async with await caller.auto_connect(node.address) as pipe:
                                        return pipe.path.plugin

    return simulate(main)


@pytest.mark.parametrize("far", [0.08, 0.2, 0.8])
def test_a_public_peer_is_dialled_though_there_is_no_stun(far: float) -> None:
    assert call(far) == "direct_connect"


@pytest.mark.slow("6 walks of up to ten seconds")
def test_a_long_way_with_loss_only_takes_longer() -> None:
    """The peer has answered by signal, so a likely combo gets enough time for a handshake with lost SYNs."""
    took = []
    for seed in range(101, 107):  # 100 and 128 lose four SYNs in a row, longer than a peer may be silent
        pair = PeerPair.between(None, rtt=0.54, server_rtt=(0.004, 0.54), loss=0.1, seed=seed)
        walk = simulate_walk(pair, plugins=["direct_connect", "get_addr", NoPunch])
        assert walk.connect is not None, walk.report
        took.append(walk.connect)
    assert max(took) > 3.0


# -- what needs no forecast --------------------------------------------------------------------------------------------


def pinned(plugin: str) -> Connect:
    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.connect(address, plugin=plugin, timeout=6.0)

    return connect


@pytest.mark.parametrize("connect", [pinned("tcp_punch"), Node.auto_connect], ids=["pinned", "walk"])
def test_a_port_that_two_servers_see_alike_needs_no_forecast(connect: Connect) -> None:
    """The caller was just opened: signals take three round trips, two of them with STUN over TCP; the punch five."""
    result = meet(PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT), connect, warm=0)
    assert result.plugin == "tcp_punch", rows(result)
    assert result.walk <= 8.2 * RTT + OVERHEAD


# -- what sprays wait for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [0, WARM])
@pytest.mark.parametrize("alice_is_hard", [True, False])
def test_sprays_do_not_wait_for_a_punch_that_is_not_likely(alice_is_hard: bool, warm: float) -> None:
    """The ports of one side cannot be predicted.  The spray itself takes 0.8 s at this distance."""
    nats = [PORTS_MOVE, presets.LINUX] if alice_is_hard else [presets.LINUX, PORTS_MOVE]
    result = meet(PeerPair.between(*nats, rtt=RTT, seed=3), warm=warm)
    assert result.plugin == "random_probe", rows(result)
    assert result.walk <= 29 * RTT


def test_a_punch_that_is_not_likely_may_come_to_something_all_the_same() -> None:
    """Over TCP a NAT's filtering is unknown; this one lets everybody in."""
    result = meet(PeerPair.between(presets.FULL_CONE, PORTS_MOVE, rtt=RTT))
    assert result.plugin == "tcp_punch", rows(result)
