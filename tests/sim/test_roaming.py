"""Pipes that outlive their paths, between two whole nodes: who moves, what breaks, and how soon bytes flow again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import pytest
import trio

from warpgate_trio import PathState, Pipe
from warpgate_trio.sim import Fault, Kind, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import open_nodes
from warpgate_trio.testing.worlds import PeerPair

RTT: Final = 0.05


NUMBERS: Final = bytes(range(251))


def numbered(start: int, size: int) -> bytes:
    start %= 251
    return (NUMBERS * (2 + size // 251))[start : start + size]


class Talk:
    """Numbered bytes one way, a hundred each 20 ms, and when they came."""

    def __init__(self, sender: Pipe, receiver: Pipe) -> None:
        self.sender, self.receiver = sender, receiver
        self.got = 0
        self.arrivals: list[float] = []

    async def send(self) -> None:
        sent = 0
        while True:
            await self.sender.send_all(numbered(sent, 100))
            sent += 100
            await trio.sleep(0.02)  # the pace of a talk

    async def receive(self) -> None:
        while True:
            data = await self.receiver.receive_some()
            assert data == numbered(self.got, len(data))
            self.got += len(data)
            self.arrivals.append(trio.current_time())

    def silence_after(self, time: float) -> float:
        """The longest pause from shortly before a time on."""
        times = [at for at in self.arrivals if at >= time - 1.0]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))


def survive(
    pair: PeerPair, plugin: str, happens: Callable[[Network], object], *, lasts: float = 30.0
) -> tuple[float, float]:
    """The longest silence in each direction when something happens to a talking Pipe, in seconds."""
    silences: list[float] = []

    async def main() -> None:
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
            await trio.sleep(5.0)
            ours = await nodes.alice.connect(nodes.bob.address, plugin=plugin)
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, trio.open_nursery() as nursery:
                talks = [Talk(ours, theirs), Talk(theirs, ours)]
                for talk in talks:
                    nursery.start_soon(talk.send)
                    nursery.start_soon(talk.receive)
                await trio.sleep(5.0)
                happened = trio.current_time()
                happens(net)
                await trio.sleep(lasts)
                for talk in talks:
                    assert talk.arrivals[-1] >= trio.current_time() - 1.0, "it flows"
                    silences.append(talk.silence_after(happened))
                print(f"silent for {max(silences):.2f} s")
                assert ours.path.state is theirs.path.state is PathState.LIVE
                nursery.cancel_scope.cancel()

    simulate(main, seed=0)
    first, second = silences
    return first, second


PAIRS: Final = {
    "direct": (PeerPair.between(presets.LINUX, None, rtt=RTT), "direct_connect"),
    "punched": (PeerPair.between(presets.FULL_CONE, presets.LINUX, rtt=RTT), "udp_punch"),
}


@pytest.mark.slow("half a minute of talk")
@pytest.mark.parametrize("where", PAIRS)
def test_a_router_that_forgets_its_mappings(where: str) -> None:
    pair, plugin = PAIRS[where]
    happens = [Fault(at=0.0, until=0.1, target="alice-nat0", kind=Kind.REBOOT)]
    silences = survive(pair, plugin, lambda net: net.schedule(happens))
    assert max(silences) <= 3 * RTT + 4.0


@pytest.mark.slow("half a minute of talk")
@pytest.mark.parametrize(("where", "who"), [("direct", "alice"), ("punched", "alice"), ("punched", "bob")])
def test_a_router_that_gets_another_address(where: str, who: str) -> None:
    pair, plugin = PAIRS[where]
    silences = survive(pair, plugin, lambda net: net.schedule([Fault(at=0.0, target=f"{who}-nat0", kind=Kind.REBIND)]))
    assert max(silences) <= 3 * RTT + 4.0


@pytest.mark.slow("half a minute of talk")
@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_machine_that_gets_another_address(where: str, who: str) -> None:
    pair, plugin = PAIRS[where]
    silences = survive(pair, plugin, lambda net: net.schedule([Fault(at=0.0, target=who, kind=Kind.NEW_ADDRESS)]))
    assert max(silences) <= 5.0


@pytest.mark.slow("some minutes of talk")
@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_machine_that_sleeps_for_a_minute(where: str, who: str) -> None:
    """Both sides keep the Link for two: it goes on soon after the machine has woken up."""
    pair, plugin = PAIRS[where]
    sleep = Fault(at=0.0, until=60.0, target=who, kind=Kind.SLEEP)
    silences = survive(pair, plugin, lambda net: net.schedule([sleep]), lasts=90.0)
    assert max(silences) <= 60.0 + 5.0


@pytest.mark.slow("ten minutes of talk")
def test_a_direct_path_does_not_notice_that_the_server_is_gone() -> None:
    pair, plugin = PAIRS["direct"]
    gone = Fault(at=0.0, until=600.0, target="server", kind=Kind.BLACKHOLE)
    silences = survive(pair, plugin, lambda net: net.schedule([gone]), lasts=610.0)
    assert max(silences) <= 0.1
