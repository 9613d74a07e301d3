"""Combos that an old address record of the peer rules out, but its present one allows, are tried in the same walk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any, Final

import pytest
import trio

from tests.links import link_of
from tests.sim.test_ws_relay import OPEN, server
from warpgate_trio import NodeConfig, PathCause, PeerAddress, Pipe
from warpgate_trio.address.nat_profile import NatProfile, NatProfiles, TransportProfile
from warpgate_trio.report import ConnectReport, Outcome
from warpgate_trio.sim import presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import BOB, NTP, SERVERS, STUN, STUN2, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

DAY: Final = 24 * 3600
BLOCKED: Final = TransportProfile(blocked=True)
NOTHING_OUT: Final = NatProfiles(MappingProxyType({(None, 4): NatProfile(udp=BLOCKED, tcp=BLOCKED)}))
RELAYS: Final = (server(OPEN), STUN, STUN2, NTP)


def as_of_yesterday(address: PeerAddress) -> PeerAddress:
    """Bob's address of yesterday, from a network that let nothing out, and of a release that took no relayed calls."""
    return PeerAddress.issue(
        BOB,
        seq=address.seq - 1,
        issued_at=address.issued_at - DAY,
        expires_at=address.expires_at - DAY,
        host_salt=address.host_salt,
        host_id=address.host_id,
        signals=address.signals,
        interfaces=address.interfaces,
        nat=NOTHING_OUT.to_bytes(interfaces=1),
        listens=True,
    )


def between(nats: tuple[Any, Any], *, rtt: float, server_rtt: tuple[float, float] | None = None) -> PeerPair:
    return PeerPair.between(*nats, rtt=rtt, server_rtt=server_rtt or rtt, seed=3)


CONES: Final = (presets.LINUX, presets.LINUX)


def in_world(
    main: Callable[[NodePair], Awaitable[None]],
    pair: PeerPair,
    *,
    servers: tuple[WorldServer, ...] = SERVERS,
    config: NodeConfig | None = None,
) -> None:
    async def run() -> None:
        async with pair.build() as net, simulated_hosts():
            async with open_nodes(net, servers=servers, config=config) as nodes:
                await main(nodes)
            assert not net.netstat()

    simulate(run, seed=pair.seed)


def assert_judged_once(report: ConnectReport) -> None:
    """The report has each combo once, without its first judgement."""
    rows = [(row.plugin, row.af, row.route, row.target) for row in report.combos if row.phase != "spray"]
    assert len(rows) == len(set(rows)), report.combos


async def call(nodes: NodePair, **options: Any) -> Pipe:
    pipe = await nodes.alice.auto_connect(as_of_yesterday(nodes.bob.address), **options)
    assert pipe.report is not None
    assert pipe.report.notes == ("the peer's address was out of date; the peer sent its present one",)
    return pipe


@pytest.mark.parametrize("rtt", [0.05, 0.3, 0.8, 1.0])
def test_a_punch_that_the_old_address_made_hopeless_is_made_in_its_phase(rtt: float) -> None:
    async def main(nodes: NodePair) -> None:
        began = trio.current_time()
        async with await call(nodes) as pipe:
            assert pipe.path.phase == "punch"
            assert trio.current_time() - began < 0.1 + 8 * rtt  # the question, the answer, and five for the punch
            assert pipe.report is not None
            assert_judged_once(pipe.report)
            assert [row.outcome for row in pipe.report.combos if row.plugin == "direct_connect"] == [Outcome.LOST]

    in_world(main, between(CONES, rtt=rtt))


@pytest.mark.parametrize("rtt", [0.05, 0.8])
def test_it_is_made_though_the_last_round_has_begun(rtt: float) -> None:
    async def main(nodes: NodePair) -> None:
        async with await call(nodes, plugins=["udp_punch", "get_addr"]) as pipe:
            assert pipe.path.plugin == "udp_punch"

    in_world(main, between(CONES, rtt=rtt))


@pytest.mark.parametrize(("relay_first", "winner"), [(False, "tcp_punch"), (True, "ws_relay")])
def test_a_relay_that_the_old_address_made_hopeless_is_taken_at_once_where_relays_are_first(
    relay_first: bool, winner: str
) -> None:
    async def main(nodes: NodePair) -> None:
        async with await call(nodes, relay_first=relay_first) as pipe:
            assert pipe.report is not None
            assert_judged_once(pipe.report)
            assert pipe.report.winner is not None
            assert pipe.report.winner.plugin == winner

    in_world(main, between(CONES, rtt=0.3), servers=RELAYS)


@pytest.mark.parametrize("rtt", [0.05, 0.8])
def test_and_in_its_phase_otherwise(rtt: float) -> None:
    async def main(nodes: NodePair) -> None:
        async with await call(nodes, plugins=["direct_connect", "ws_relay", "get_addr"]) as pipe:
            assert pipe.path.plugin == "ws_relay"

    in_world(main, between(CONES, rtt=rtt), servers=RELAYS)


def test_a_dial_under_way_is_not_cut_short_by_what_follows_it_now() -> None:
    """The signal server is near and the peer far, so the direct phase ends before the dial does."""

    async def main(nodes: NodePair) -> None:
        began = trio.current_time()
        async with await call(nodes) as pipe:
            assert pipe.path.plugin == "direct_connect"
            assert trio.current_time() - began == pytest.approx(3 * 0.4)

    in_world(main, between((None, None), rtt=0.4, server_rtt=(0.004, 0.4)))


@pytest.mark.parametrize("rtt", [0.05, 0.8])
def test_a_search_for_a_lost_path_goes_by_the_present_address_too(rtt: float) -> None:
    async def main(nodes: NodePair) -> None:
        async with await call(nodes) as pipe:
            nodes.alice._runtime.book.hear(as_of_yesterday(nodes.bob.address))
            link_of(pipe).carrier.close_nowait()
            with trio.fail_after(0.5 + 10 * rtt):
                async for change in pipe.path_changes():
                    if change.cause is PathCause.FOUND:
                        break
            assert pipe.path.phase == "punch"

    in_world(main, between(CONES, rtt=rtt))
