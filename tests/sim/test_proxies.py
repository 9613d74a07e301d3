"""Whole nodes in networks that let nothing out but through a proxy."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from tests.connect_proxy import serve_connect_proxy
from tests.sim.anywhere import PROXY_ONLY
from tests.sim.anywhere import PROXY_PORT as PORT
from warpgate_trio import ConnectError, NodeConfig, PathInfo
from warpgate_trio.config import NetworkConfig
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.report import Verdict
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.signal import ServerState
from warpgate_trio.sim import Host, NatConfig, presets, simulate
from warpgate_trio.testing import simulated_hosts, walks
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("two whole nodes")


def server(relay: RelayRules) -> walks.WorldServer:
    def open_server(_host: Host) -> AbstractAsyncContextManager[object]:
        return open_rendezvous(host=None, port=443, public_urls=["ws://server:443"], relay=relay)

    return replace(walks.RENDEZVOUS, open=open_server)


def call(proxy: str) -> tuple[Verdict, set[ServerState], list[str]]:
    """The result of a call between two such networks: the verdict, alice's server states, the proxy's requests."""
    asked: list[str] = []

    async def scene() -> tuple[Verdict, set[ServerState], list[str]]:
        pair = PeerPair.between(PROXY_ONLY, PROXY_ONLY, rtt=0.1, seed=5)
        config = NodeConfig(network=NetworkConfig(proxy=proxy))
        async with pair.build(time_limit=3600) as net, simulated_hosts(), open_background_nursery() as nursery:
            with net.hosts["stun2"]:
                await nursery.start(serve_connect_proxy, PORT, asked)
            async with walks.open_nodes(net, config=config, servers=[server(RelayRules())]) as nodes:
                states = {each.state for each in nodes.alice.signal_servers}
                with pytest.raises(ConnectError) as failed:
                    await nodes.alice.auto_connect(nodes.bob.address)
            return failed.value.verdict, states, asked

    return simulate(scene)


def test_the_peer_answers_by_signals_although_neither_has_a_way_out() -> None:
    verdict, states, asked = call(f"http://stun2:{PORT}")
    assert verdict is Verdict.NO_RELAY_CONFIGURED
    assert states == {ServerState.CONNECTED}
    assert asked == ["server:443"] * 2  # the name, unresolved


@pytest.mark.parametrize("other", [PROXY_ONLY, presets.LINUX_SYMMETRIC, None], ids=["proxy", "symmetric", "open"])
def test_a_pipe_goes_through_the_proxy_by_a_server_that_relays(other: NatConfig | None) -> None:
    asked: list[str] = []

    async def scene() -> PathInfo:
        config = NodeConfig(network=NetworkConfig(proxy=f"http://stun2:{PORT}"))
        pair = PeerPair.between(PROXY_ONLY, other, rtt=0.1, seed=6)
        async with pair.build(time_limit=3600) as net, simulated_hosts(), open_background_nursery() as nursery:
            with net.hosts["stun2"]:
                await nursery.start(serve_connect_proxy, PORT, asked)
            relaying = server(RelayRules(open_to_all=True))
            async with walks.open_nodes(net, config=config, servers=[relaying]) as nodes:
                async with (
                    await nodes.alice.auto_connect(nodes.bob.address) as ours,
                    await nodes.bob.listener.accept() as theirs,
                ):
                    await ours.send_all(b"x" * 100_000)
                    got = 0
                    while got < 100_000:
                        got += len(await theirs.receive_some())
                    return ours.path
        raise AssertionError("unreachable")

    path = simulate(scene)
    assert (path.phase, path.plugin) == ("relay", "ws_relay")
    assert asked == ["server:443"] * 2


@pytest.mark.parametrize("other", [PROXY_ONLY, presets.LINUX_SYMMETRIC, None], ids=["proxy", "symmetric", "open"])
def test_a_pipe_goes_through_the_proxy_by_a_turn_server(other: NatConfig | None) -> None:
    asked: list[str] = []

    def serve(host: Host) -> AbstractAsyncContextManager[object]:
        return open_turn_server(TurnCredentials("example.org", {"alice": "sesame"}), host=host.ip, port=443)

    async def scene() -> PathInfo:
        config = NodeConfig(network=NetworkConfig(proxy=f"http://stun2:{PORT}"))
        pair = PeerPair.between(PROXY_ONLY, other, rtt=0.1, seed=7)
        turn = walks.WorldServer(key="turn", url="turn:alice:sesame@stun:443?transport=tcp", machine="stun", open=serve)
        async with pair.build(time_limit=3600) as net, simulated_hosts(), open_background_nursery() as nursery:
            with net.hosts["stun2"]:
                await nursery.start(serve_connect_proxy, PORT, asked)
            async with walks.open_nodes(net, config=config, servers=[server(RelayRules()), turn]) as nodes:
                async with (
                    await nodes.alice.auto_connect(nodes.bob.address) as ours,
                    await nodes.bob.listener.accept() as theirs,
                ):
                    await ours.send_all(b"x" * 100_000)
                    got = 0
                    while got < 100_000:
                        got += len(await theirs.receive_some())
                    return ours.path
        raise AssertionError("unreachable")

    path = simulate(scene)
    assert (path.phase, path.plugin) == ("relay", "turn")
    assert set(asked) == {"server:443", "stun:443"}


def test_without_the_proxy_nobody_is_reached() -> None:
    verdict, states, asked = call("none")
    assert verdict is Verdict.NO_SIGNAL
    assert ServerState.CONNECTED not in states
    assert asked == []
