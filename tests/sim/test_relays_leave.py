"""Pipes by relays whose server is about to be shut down: they have left it by then, and nothing was silent."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Final, NoReturn, final

import pytest
import trio

from tests.sim.roaming import numbered
from tests.sim.test_relays_fail import SECOND, where
from tests.sim.test_ws_relay import OPEN, URL
from warpgate_trio import PathState, Pipe
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import RendezvousServer, serve_rendezvous
from warpgate_trio.sim import presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

LEAVE: Final = 4.0
"""Seconds for which circuits go on, as with ``serve --drain 5``."""


@final
class Bulk:
    """Numbered bytes one way, as many as go, and when they came."""

    def __init__(self, sender: Pipe, receiver: Pipe) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent = self.got = 0
        self.arrivals: list[float] = []

    async def send(self) -> NoReturn:
        while True:
            await self.sender.send_all(numbered(self.sent, 16384))
            self.sent += 16384

    async def receive(self) -> NoReturn:
        while True:
            data = await self.receiver.receive_some()
            assert data == numbered(self.got, len(data))
            self.got += len(data)
            self.arrivals.append(trio.current_time())

    def silence(self, since: float) -> float:
        times = [at for at in self.arrivals if at >= since]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))


def full_lines(rtt: float) -> PeerPair:
    """Two symmetric NATs, at lines of 8 Mbit/s that hold what is on its way once more."""
    pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=rtt, server_rtt=rtt)
    alice, bob = (
        replace(each, link=replace(each.link, bandwidth=8e6, queue=round(8e6 * rtt / 8)))
        for each in (pair.alice, pair.bob)
    )
    return replace(pair, alice=alice, bob=bob)


@pytest.mark.parametrize("rtt", [0.05, 0.2])
def test_bulk_both_ways_leaves_a_rendezvous_server_before_it_is_gone(rtt: float) -> None:
    pair = full_lines(rtt)

    async def main() -> None:
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_background_nursery() as serving:
            servers: dict[str, RendezvousServer] = {}
            for name, url in (("server", URL), ("stun2", SECOND.url)):
                with net.hosts[name]:
                    serve = partial(serve_rendezvous, host=None, port=443, public_urls=[url], relay=OPEN)
                    servers[name] = await serving.start(serve)
            named = [replace(each, open=lambda _host: trio.open_nursery()) for each in (RENDEZVOUS, SECOND)]
            async with open_nodes(net, servers=[*named, STUN, NTP]) as nodes:
                ours = await nodes.alice.auto_connect(nodes.bob.address, relay_first=True)
                theirs = await nodes.bob.listener.accept()
                async with ours, theirs, open_background_nursery() as nursery:
                    both = [Bulk(ours, theirs), Bulk(theirs, ours)]
                    for bulk in both:
                        nursery.start_soon(bulk.receive)
                        nursery.start_soon(bulk.send)
                    await trio.sleep(3.0)
                    assert ours.path.plugin == theirs.path.plugin == "ws_relay"
                    going = where(net, ours)
                    began = trio.current_time()
                    usual = [bulk.silence(began - 2.0) for bulk in both]
                    with net.hosts[going]:
                        await servers[going].drain(leave=LEAVE)
                    took = trio.current_time() - began
                    assert where(net, ours) != going
                    assert where(net, theirs) != going
                    await trio.sleep(2.0)
                    for bulk, before in zip(both, usual, strict=True):
                        silence = bulk.silence(began - 1.0)
                        assert silence <= 4 * rtt, "a round trip by the relay, and what waits in both lines"
                        print(f"{rtt:g}: gone in {took:.2f} s, silent for {silence:.2f} s, before {before:.2f} s")
                    for pipe in (ours, theirs):
                        states = [change.new.state for change in pipe.path_log if change.new is not None]
                        assert states == [PathState.LIVE], pipe.path_log
                    assert took < LEAVE

    simulate(main, seed=0)
