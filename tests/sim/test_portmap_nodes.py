"""Nodes whose routers open ports for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio

from tests.identities import ALICE, BOB
from tests.sim.gateways import Gateway
from warpgate_trio import ListenConfig, Node, NodeConfig, PortMapConfig, anyone, open_node
from warpgate_trio.address import EndpointKind
from warpgate_trio.sim import NatConfig, Router, presets, simulate
from warpgate_trio.testing.world import WORLD_CONFIG, World, world
from warpgate_trio.testing.worlds import PeerPair

ENABLED = PortMapConfig()

pytestmark = pytest.mark.slow("whole nodes in worlds of their own")


def configured(portmap: PortMapConfig, port: int = 0) -> NodeConfig:
    return NodeConfig(servers=WORLD_CONFIG.servers, portmap=portmap, listen=ListenConfig(port=port))


def play(
    body: Callable[[Node, Node, Gateway], Awaitable[None]],
    *,
    kind: type[Gateway] = Gateway,
    alice: Sequence[NatConfig] = (presets.LINUX,),
    bob: Sequence[NatConfig] = (presets.CGN_SYMMETRIC,),
    shared: Sequence[NatConfig] = (),
    portmap: PortMapConfig = ENABLED,
    port: int = 0,
    seed: int = 3,
) -> Gateway:
    """Run `body` with two nodes, the first of which has a gateway; returns the gateway after the nodes were closed."""
    made: list[Gateway] = []

    async def main() -> None:
        pair = PeerPair.between(alice, bob, rtt=0.05, shared=shared, seed=seed)
        async with world(pair) as hosts, trio.open_nursery() as nursery:
            router = hosts.alice.interfaces[0].segment.router
            assert isinstance(router, Router)
            gateway = kind(router)
            made.append(gateway)
            await nursery.start(gateway.serve)
            await _with_nodes(hosts, configured(portmap, port), gateway, body)
            nursery.cancel_scope.cancel()

    simulate(main, seed=seed)
    return made[0]


async def _with_nodes(
    hosts: World, config: NodeConfig, gateway: Gateway, body: Callable[[Node, Node, Gateway], Awaitable[None]]
) -> None:
    with hosts.alice:
        async with open_node(config, identity=ALICE, authorize=anyone) as alice:
            await alice.wait_published()
            with hosts.bob:
                async with open_node(config, identity=BOB, authorize=anyone) as bob:
                    await bob.wait_published()
                    await body(alice, bob, gateway)


def mapped(node: Node) -> list[str]:
    return [
        f"{endpoint.ip}:{endpoint.port}"
        for interface in node.address.interfaces
        for endpoint in interface.endpoints
        if endpoint.kind is EndpointKind.MAPPED
    ]


def listens_on(node: Node) -> int:
    return node.address.interfaces[0].endpoints[0].port


async def call(caller: Node, callee: Node) -> tuple[str | None, str]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(callee.listener.accept)
        async with await caller.auto_connect(str(callee.address)) as pipe:
            return pipe.path.phase, pipe.path.plugin


def test_a_mapped_port_is_published_and_dialled() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert mapped(alice) == [f"{gateway.outside}:{listens_on(alice)}"]
        assert await call(bob, alice) == ("direct", "direct_connect")
        stats = alice.stats()
        assert (stats.gateways, stats.mapped_ports) == (1, 1)
        assert (bob.stats().gateways, bob.stats().mapped_ports) == (0, 0)

    assert play(body).table == {}


def test_without_it_the_pair_has_to_do_otherwise() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert mapped(alice) == []
        phase, _ = await call(bob, alice)
        assert phase != "direct"
        assert alice.stats().gateways == 0

    assert play(body, portmap=PortMapConfig(enabled=False)).asked == []


def test_one_protocol_is_enough_and_the_others_are_not_asked() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert alice.stats().mapped_ports == 1

    assert {name for name, *_ in play(body, portmap=PortMapConfig(protocols=["natpmp"])).asked} == {"natpmp"}


def test_pcp_knows_a_node_again_that_was_killed() -> None:
    """The mapping's nonce is the same after each start of the node."""

    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert list(gateway.nonces) == [listens_on(alice)]

    first, again = (play(body, port=4433, seed=seed).nonces for seed in (3, 4))
    assert first == again


def test_netcheck_tells_what_the_router_does() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        (found,) = (await alice.netcheck()).gateways
        assert found.address == gateway.inside
        assert "pcp" in found.protocols
        assert found.mapped == (f"{gateway.outside}:{listens_on(alice)}",)

    play(body)


def test_the_ports_are_closed_when_the_node_is_cancelled() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert gateway.table
        raise RuntimeError("the program fails")

    gateways: list[Gateway] = []

    class Remembered(Gateway):
        def __init__(self, router: Router) -> None:
            super().__init__(router)
            gateways.append(self)

    with pytest.raises(RuntimeError, match="the program fails"):
        play(body, kind=Remembered)
    assert gateways[0].table == {}


class _SaysPublic(Gateway):
    """It reports a public address from which no server sees the node, because another NAT is in front of it."""

    def __init__(self, router: Router) -> None:
        super().__init__(router)
        self.external = "11.77.0.1"


def test_a_public_address_that_no_server_sees_is_not_published() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert alice.stats().mapped_ports == 1
        assert mapped(alice) == []

    play(body, kind=_SaysPublic)


def test_two_homes_behind_one_cgn_meet_at_the_routers_own_address() -> None:
    async def body(alice: Node, bob: Node, gateway: Gateway) -> None:
        assert mapped(alice) == [f"{gateway.outside}:{listens_on(alice)}"]
        assert await call(bob, alice) == ("direct", "direct_connect")

    play(body, shared=(presets.CGN,))


class _Silent(Gateway):
    delay = 100.0


def test_a_walk_does_not_wait_for_a_router_that_does_not_answer() -> None:
    took = {}

    for kind in (_Silent, Gateway):

        async def body(alice: Node, bob: Node, gateway: Gateway, kind: type[Gateway] = kind) -> None:
            started = trio.current_time()
            await call(alice, bob)
            took[kind] = (started, trio.current_time() - started)

        play(body, kind=kind, bob=(presets.LINUX,), portmap=PortMapConfig(enabled=kind is _Silent))
    assert took[_Silent] == took[Gateway]
