"""Two homes behind NATs that share only a code: they pair through a server, and connect."""

from __future__ import annotations

import pytest
import trio

from warpgate_trio import CodeRefused, Paired, PairedPeers, PairingUnavailable
from warpgate_trio.sim import NatConfig, presets, simulate
from warpgate_trio.testing import Restarts, simulated_hosts
from warpgate_trio.testing.walks import RENDEZVOUS, SERVERS, NodePair, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes, and key exchanges in Python")

RTT = 0.05


async def typed(nodes: NodePair, code: str, *, again: bool = False) -> Paired:
    """Alice types a code at home; with `again` she retries when asked to, as a person does."""
    with nodes.net.hosts["alice"]:
        while True:
            try:
                return await nodes.alice.accept_code(code)
            except (CodeRefused, PairingUnavailable):
                if not again:
                    raise
                await trio.sleep(1)


@pytest.mark.parametrize("nats", [(presets.LINUX, presets.LINUX), (presets.LINUX, presets.LINUX_SYMMETRIC)])
@pytest.mark.parametrize("skew", [0.0, 3600.0])
def test_two_homes_pair_and_connect(nats: tuple[NatConfig, NatConfig], skew: float) -> None:
    """Also if one of the clocks is an hour wrong."""
    pair = PeerPair.between(*nats, rtt=RTT, clock_offsets=(0.0, skew))

    async def main() -> float:
        friends = PairedPeers()
        async with pair.build() as net, simulated_hosts(), open_nodes(net, authorize=friends) as nodes:
            with net.hosts["bob"]:
                async with nodes.bob.offer_code(on_paired=friends.add) as offer:
                    start = trio.current_time()
                    by_alice = await typed(nodes, offer.code)
                    took = trio.current_time() - start
                    by_bob = await offer.wait_paired()
            assert (by_alice.peer_id, by_bob.peer_id) == (nodes.bob.peer_id, nodes.alice.peer_id)
            async with await nodes.alice.auto_connect(by_alice.address) as pipe:
                assert pipe.peer_id == by_alice.peer_id
                (await nodes.bob.listener.accept()).abort()
        return took

    assert simulate(main, seed=1) <= 8 * RTT, "connecting, registering, and two round trips between the two"


def test_a_server_that_is_started_again_is_offered_the_same_code() -> None:
    pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
    restarts = Restarts()

    async def main() -> None:
        servers = (*restarts.of(RENDEZVOUS), *SERVERS[1:])
        async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            with net.hosts["bob"]:
                async with nodes.bob.offer_code() as offer:
                    await restarts.restart(RENDEZVOUS.machine, pause=3.0)
                    assert (await typed(nodes, offer.code, again=True)).peer_id == nodes.bob.peer_id
                    assert (await offer.wait_paired()).peer_id == nodes.alice.peer_id

    simulate(main, seed=2)


def test_a_code_ends_after_five_minutes() -> None:
    pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)

    async def main() -> None:
        async with pair.build() as net, simulated_hosts(), open_nodes(net) as nodes:
            with net.hosts["bob"]:
                start = trio.current_time()
                async with nodes.bob.offer_code() as offer:
                    with pytest.raises(CodeRefused, match="the code has expired"):
                        await offer.wait_paired()
                    assert 299 <= trio.current_time() - start <= 301
            with pytest.raises(CodeRefused, match="the code has expired"):
                await typed(nodes, offer.code)

    simulate(main, seed=3)
