"""`ws_relay` in simulated worlds: without a direct path a Pipe comes up, or the verdict says why not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import pytest
import trio

from tests.sim.walks import echoing
from warpgate_trio import Identity, Node, NodeConfig, PathCause, PeerAddress, Pipe, Servers, open_node
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.ping import PathKind, _ping
from warpgate_trio.config import IdentityConfig
from warpgate_trio.errors import AttemptFailed, ConnectError
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.plugin import UDP, Aim, Message, Plugin
from warpgate_trio.report import ConnectReport, Outcome, Verdict
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous, serve_rendezvous
from warpgate_trio.servers.turn import serve_turn
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.signal.websocket_channel import WebSocketChannel
from warpgate_trio.sim import Host, NatConfig, presets, simulate
from warpgate_trio.testing import Restarts, simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, STUN2, Walk, WorldServer, open_nodes, simulate_walk
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

URL = "ws://server:443"
OPEN = RelayRules(open_to_all=True)
RTT = 0.05


def server(relay: RelayRules) -> WorldServer:
    return replace(RENDEZVOUS, open=lambda _host: open_rendezvous(host=None, port=443, public_urls=[URL], relay=relay))


def relayed(pair: PeerPair, relay: RelayRules = OPEN, **options: Any) -> Walk:
    return simulate_walk(pair, servers=(server(relay), STUN, STUN2, NTP), **options)


async def by_relay_alone(node: Node, address: PeerAddress) -> Pipe:
    return await node.auto_connect(address, phases=["relay"])


async def without_relay(node: Node, address: PeerAddress) -> Pipe:
    return await node.auto_connect(address, phases=["direct", "punch", "spray"])


HARD = {
    "symmetric, symmetric": (presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC),
    "UDP blocked, symmetric": (presets.UDP_BLOCKED, presets.LINUX_SYMMETRIC),
    "TCP 443 only, symmetric": (presets.WEB_ONLY, presets.LINUX_SYMMETRIC),
    "TCP 443 only, both": (presets.WEB_ONLY, presets.WEB_ONLY),
}


@pytest.mark.parametrize("nats", HARD.values(), ids=HARD)
def test_a_pair_without_a_direct_path_is_relayed(nats: tuple[NatConfig, NatConfig]) -> None:
    """The report names the server."""
    walk = relayed(PeerPair.between(*nats, rtt=RTT))
    assert walk.connected, walk.explanation
    assert walk.intact
    winner = walk.report.winner
    assert winner is not None
    assert (winner.phase, winner.plugin, winner.target) == ("relay", "ws_relay", URL)
    assert walk.left == ""


@pytest.mark.parametrize(
    "nats",
    [
        (presets.WEB_ONLY, presets.WEB_ONLY),
        (presets.WEB_ONLY, presets.LINUX_SYMMETRIC),
        (presets.LINUX_SYMMETRIC, presets.WEB_ONLY),
    ],
)
def test_a_pair_that_is_known_to_have_no_direct_path_is_relayed_at_once(nats: tuple[NatConfig, NatConfig]) -> None:
    """Six round trips from the call to the first echoed byte in a whole walk, if both NATs have been measured."""

    async def main() -> float:
        async with (
            PeerPair.between(*nats, rtt=RTT).build(time_limit=600) as net,
            simulated_hosts(),
            open_nodes(net, servers=(server(OPEN), STUN, STUN2)) as nodes,
        ):
            await trio.sleep(30)
            async with echoing(nodes):
                began = trio.current_time()
                async with await nodes.alice.auto_connect(nodes.bob.address) as pipe:
                    await pipe.send_all(b"x")
                    assert await pipe.receive_some() == b"x"
                    return trio.current_time() - began
        raise AssertionError("unreachable")

    assert simulate(main, seed=0) <= 6 * RTT + 0.03


def test_it_is_relayed_through_losses() -> None:
    for seed in range(6):
        pair = PeerPair.between(presets.WEB_ONLY, presets.LINUX_SYMMETRIC, rtt=RTT, loss=0.05, seed=seed)
        walk = relayed(pair)
        assert walk.connected, walk.explanation
        assert walk.intact


def test_who_can_connect_directly_is_not_relayed() -> None:
    walk = relayed(PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT))
    assert walk.report.winner is not None
    assert walk.report.winner.phase != "relay"
    relay = [row for row in walk.report.combos if row.plugin == "ws_relay"]
    assert [row.outcome for row in relay] == [Outcome.NOT_STARTED]


def test_phases_forbid_it() -> None:
    walk = relayed(PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT), connect=without_relay)
    assert not walk.connected
    assert "ws_relay" not in {row.plugin for row in walk.report.combos if row.outcome is not Outcome.NOT_STARTED}


@pytest.mark.parametrize("rtt", [0.02, 0.1])
def test_the_first_byte_comes_back_6_round_trips_after_the_call(rtt: float) -> None:
    """The servers are as far from each peer as the peers are from each other."""
    pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=rtt, server_rtt=rtt)
    walk = relayed(pair, connect=by_relay_alone, payload=b"x")
    assert walk.first_byte is not None, walk.explanation
    assert 5 * rtt <= walk.first_byte <= 6 * rtt + 0.03


def test_a_node_that_was_just_opened_waits_for_its_server() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=[server(OPEN)]) as nodes:
            config = NodeConfig(servers=Servers(websocket=[URL]))
            async with open_node(config, identity=Identity.from_seed(b"carol" + bytes(27))) as carol:
                async with await by_relay_alone(carol, nodes.bob.address) as pipe:
                    assert pipe.path.plugin == "ws_relay"

    simulate(main)


def test_a_server_that_comes_up_during_the_call_is_waited_for() -> None:
    """The first connection of the call to the server fails, and the next one succeeds."""

    async def main() -> None:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
        restarts = Restarts()
        servers = restarts.of(server(OPEN))
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: restarts.restart("server", pause=1.0))
                await trio.sleep(0.1)  # the server is down
                began = trio.current_time()
                config = NodeConfig(servers=Servers(websocket=[URL]))
                async with open_node(config, identity=Identity.from_seed(b"carol" + bytes(27))) as carol:
                    async with await by_relay_alone(carol, nodes.bob.address) as pipe:
                        assert pipe.path.plugin == "ws_relay"
                assert 0.9 < trio.current_time() - began < 3.0

    simulate(main)


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connect", [Node.auto_connect, by_relay_alone])
def test_the_verdict_says_that_the_token_is_missing(connect: Any) -> None:
    pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
    walk = relayed(pair, RelayRules(token="a token of 16 and more"), connect=connect)
    assert walk.report.verdict is Verdict.NO_RELAY_CONFIGURED
    assert walk.report.advice == (
        "Put the server's relay_token into [servers] on one side, or have the server started with `serve --open`."
    )
    assert "neither side has the relay token of a server that both use" in walk.report.lacks
    (row,) = [row for row in walk.report.combos if row.plugin == "ws_relay"]
    assert row.error == f"no circuit by {URL}: neither side has the server's relay token"


def test_a_server_that_does_not_relay_is_no_way() -> None:
    walk = simulate_walk(PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT))
    (row,) = [row for row in walk.report.combos if row.plugin == "ws_relay"]
    assert row.likelihood == "hopeless"
    assert row.error is not None
    assert row.error.startswith("that server does not relay; tried all the same: ")
    assert walk.report.verdict is Verdict.NO_RELAY_CONFIGURED


def test_a_pair_without_a_server_in_common_is_told_so() -> None:
    """They still signal through Bob's server."""

    async def main() -> ConnectReport:
        pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=[server(OPEN)]) as nodes:
            elsewhere = "ws://stun2:443"
            with net.hosts["stun2"]:
                second = open_rendezvous(host=None, port=443, public_urls=[elsewhere], relay=OPEN)
                await second.__aenter__()
            config = NodeConfig(servers=Servers(websocket=[elsewhere]))
            async with open_node(config, identity=Identity.from_seed(b"carol" + bytes(27))) as carol:
                await carol.wait_signals()
                with pytest.raises(ConnectError) as caught:
                    await carol.auto_connect(nodes.bob.address)
            await second.__aexit__(None, None, None)
        return caught.value.report

    report = simulate(main)
    (row,) = [row for row in report.combos if row.plugin == "ws_relay"]
    assert (row.likelihood, row.target) == ("hopeless", "")
    assert report.verdict is Verdict.NO_RELAY_CONFIGURED
    assert report.advice.startswith("Name the peer's rendezvous server in [servers] here")


def test_a_peer_that_does_not_let_us_in_refuses_the_call_at_once() -> None:
    async def nobody(_peer_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def main() -> ConnectReport:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
        async with (
            pair.build() as net,
            simulated_hosts(),
            open_nodes(net, servers=[server(OPEN)], authorize=nobody) as nodes,
        ):
            with pytest.raises(ConnectError) as caught:
                await by_relay_alone(nodes.alice, nodes.bob.address)
        return caught.value.report

    (row,) = [each for each in simulate(main).combos if each.plugin == "ws_relay"]
    assert row.outcome is Outcome.FAILED
    assert row.error == f"no circuit by {URL}: the peer refused the call"


@pytest.mark.parametrize("offsets", [(400.0, 0.0), (0.0, 400.0)])
@pytest.mark.parametrize("connect", [Node.auto_connect, by_relay_alone])
def test_clocks_that_differ(connect: Any, offsets: tuple[float, float]) -> None:
    """A call that the peer refuses because of its time stamp is made once more, with the peer's time."""
    pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT, clock_offsets=offsets)
    walk = relayed(pair, connect=connect)
    assert walk.connected, walk.report
    assert walk.left == ""


# -- when --------------------------------------------------------------------------------------------------------------


TURN_SERVER = WorldServer(
    key="turn", url="turn:user:secret@stun:3478", machine="stun", open=lambda _host: trio.open_nursery()
)


class Turn(Plugin):
    """Stands in for the plugin `turn`; fails after 100 ms."""

    name = "turn"
    phase = "relay"
    transport = UDP
    aim = Aim.RELAY

    async def run(self, reply: Message | None = None) -> NoReturn:
        await trio.sleep(0.1)
        raise AttemptFailed("no allocation")


class SlowTurn(Turn):
    async def run(self, reply: Message | None = None) -> NoReturn:
        await trio.sleep_forever()
        raise AssertionError


@pytest.mark.parametrize(("turn", "start"), [((), 0.0), ((Turn,), 0.1), ((SlowTurn,), 0.3)])
def test_it_holds_back_only_while_turn_is_under_way(turn: tuple[type[Plugin], ...], start: float) -> None:
    pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
    servers = (server(OPEN), STUN, STUN2, NTP, TURN_SERVER)
    walk = simulate_walk(pair, servers=servers, connect=by_relay_alone, plugins=["ws_relay", *turn])
    assert walk.report.winner is not None, walk.report
    assert walk.report.winner.plugin == "ws_relay"
    assert walk.report.winner.started_ms == pytest.approx(1000 * start, abs=1)


# -- beside TURN -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_turn(host: Host) -> AsyncGenerator[None]:
    async with open_background_nursery() as nursery:
        credentials = TurnCredentials("example.org", {"user": "secret"})
        await nursery.start(partial(serve_turn, credentials, host=host.ip, port=3478))
        yield


REAL_TURN = replace(TURN_SERVER, url="turn:user:secret@ntp:3478", machine="ntp", open=open_turn)


@pytest.mark.parametrize(
    ("nat", "winner"), [(presets.LINUX_SYMMETRIC, "turn"), (presets.WEB_ONLY, "ws_relay")], ids=["UDP", "TCP alone"]
)
def test_turn_has_the_first_word_where_both_relay(nat: NatConfig, winner: str) -> None:
    """If the network does not let TURN reach its server, `ws_relay` has not waited for its failure."""
    pair = PeerPair.between(nat, nat, rtt=RTT)
    walk = simulate_walk(pair, servers=(server(OPEN), STUN, STUN2, NTP, REAL_TURN))
    assert walk.report.winner is not None, walk.report
    assert (walk.report.winner.plugin, walk.intact, walk.left) == (winner, True, "")


class Broken(Plugin):
    """Stands in for `ws_relay`, and fails."""

    name = "ws_relay"
    phase = "relay"
    aim = Aim.RELAY

    async def run(self, reply: Message | None = None) -> NoReturn:
        raise AttemptFailed("the server has ended")


TOKEN = RelayRules(token="a token of 16 and more")
NO_TOKEN = "neither side has the relay token of a server that both use"


@pytest.mark.parametrize(
    ("relay", "options", "missing"),
    [
        (TOKEN, {"servers": [TURN_SERVER]}, True),
        (OPEN, {"plugins": ["reverse_connect", "get_addr", Broken]}, False),
    ],
    ids=["TURN", "rendezvous server"],
)
def test_a_relay_that_is_there_and_fails_is_not_called_missing(
    relay: RelayRules, options: dict[str, Any], missing: bool
) -> None:
    pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
    servers = (server(relay), STUN, STUN2, NTP, *options.pop("servers", ()))
    walk = simulate_walk(pair, servers=servers, **options)
    assert walk.report.verdict is Verdict.RELAY_FAILED, walk.report
    assert (NO_TOKEN in walk.report.lacks) is missing


def test_who_has_no_rendezvous_server_does_not_miss_one_in_common() -> None:
    walk = simulate_walk(PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT), servers=())
    assert [row.plugin for row in walk.report.combos if row.phase == "relay"] == ["turn"]
    assert "in common" not in "; ".join(walk.report.lacks)


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_a_server_that_ends_breaks_the_pipe_with_the_cause() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
        async with trio.open_nursery() as nursery, pair.build() as net, simulated_hosts():
            stop = trio.CancelScope()

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                with net.hosts["server"], stop:
                    async with open_rendezvous(host=None, port=443, public_urls=[URL], relay=OPEN):
                        task_status.started()
                        await trio.sleep_forever()

            await nursery.start(serve)
            config = NodeConfig(servers=Servers(websocket=[URL]))
            named = WorldServer(key="websocket", url=URL, machine="server", open=lambda _host: trio.open_nursery())
            async with open_nodes(net, config=config, servers=[named]) as nodes:
                pipe = await by_relay_alone(nodes.alice, nodes.bob.address)
                async with pipe:
                    await pipe.send_all(b"hello")
                    stop.cancel()
                    with pytest.raises(trio.BrokenResourceError, match="circuit by ws://server:443 has ended"):
                        await pipe.receive_some()

    simulate(main)


def test_a_server_that_is_shut_down_breaks_the_pipe_with_the_cause_behind_what_was_sent() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
        async with trio.open_nursery() as nursery, pair.build() as net, simulated_hosts():
            with net.hosts["server"]:
                relay = await nursery.start(
                    partial(serve_rendezvous, host=None, port=443, public_urls=[URL], relay=OPEN)
                )
            config = NodeConfig(servers=Servers(websocket=[URL]))
            named = WorldServer(key="websocket", url=URL, machine="server", open=lambda _host: trio.open_nursery())
            async with open_nodes(net, config=config, servers=[named]) as nodes:
                pipe = await by_relay_alone(nodes.alice, nodes.bob.address)
                async with pipe:
                    await pipe.send_all(b"hello")
                    with trio.fail_after(1):
                        await relay.drain()
                    with pytest.raises(trio.BrokenResourceError, match="has ended: the server is shutting down"):
                        await pipe.receive_some()
            nursery.cancel_scope.cancel()

    simulate(main)


def test_a_large_transfer_both_ways() -> None:
    pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=0.1)
    walk = relayed(pair, connect=by_relay_alone, payload=bytes(range(256)) * 8192)
    assert walk.intact
    assert walk.left == ""


def test_bulk_to_a_slow_line_whose_owner_talks_meanwhile_keeps_its_path() -> None:
    """The sender has had no credit for more than a second when the peer's data comes."""
    pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
    pair = replace(pair, bob=replace(pair.bob, link=replace(pair.bob.link, bandwidth=12 * 8 * 1024)))

    async def main() -> None:
        async with (
            pair.build(time_limit=600) as net,
            simulated_hosts(),
            open_nodes(net, servers=(server(OPEN), STUN, STUN2)) as nodes,
            open_background_nursery() as nursery,
        ):
            await trio.sleep(30)
            pipe = await by_relay_alone(nodes.alice, nodes.bob.address)
            theirs = await nodes.bob.listener.accept()

            async def talk() -> None:
                while True:
                    await theirs.send_all(b"still here")
                    await trio.sleep(0.3)

            nursery.start_soon(talk)
            nursery.start_soon(pipe.send_all, bytes(300_000))
            left = 300_000
            while left:
                left -= len(await theirs.receive_some())
            assert {each.cause for each in pipe.path_log} <= {PathCause.SUSPECTED, PathCause.FORGIVEN}
            nursery.cancel_scope.cancel()

    simulate(main, seed=0)


def test_ping_exits_with_1() -> None:
    async def main() -> PathKind:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT)
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=[server(OPEN)]) as nodes:
            config = NodeConfig(identity=IdentityConfig(ephemeral=True), servers=Servers(websocket=[URL]))
            return await _ping(Settings(quiet=True), config, str(nodes.bob.address), 1, 1.0, None)
        raise AssertionError("unreachable")  # for mypy: `async with` might swallow exceptions

    kind = simulate(main)
    assert (kind, int(kind)) == (PathKind.RELAYED, 1)


def test_cancelling_at_any_step_leaves_nothing() -> None:
    """Nothing is left at the server, which ends the circuit at the peer, nor at the two nodes."""

    async def main(after: float) -> None:
        pair = PeerPair.between(presets.WEB_ONLY, presets.WEB_ONLY, rtt=RTT, server_rtt=RTT)
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=[server(OPEN)]) as nodes:
            with trio.move_on_after(after):
                pipe = await by_relay_alone(nodes.alice, nodes.bob.address)
                pipe.abort()
                await trio.sleep_forever()
            await trio.sleep(1.0)
            assert nodes.bob.stats().attempts == 0
            assert nodes.alice.stats().attempts == 0
            assert nodes.bob.stats().links == nodes.alice.stats().links == 0
            for node in (nodes.alice, nodes.bob):
                assert _circuits(node) == 0

    for step in range(0, 60, 4):
        simulate(partial(main, step * RTT / 10))


def _circuits(node: Node) -> int:
    channels = [slot.channel for slot in node._runtime.hub._keeper.own]
    return sum(channel.circuits for channel in channels if isinstance(channel, WebSocketChannel))
