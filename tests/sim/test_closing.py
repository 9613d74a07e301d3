"""A Pipe that is closed while its path dies: the other end still reads all data, and then the end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
import trio

from tests.waiting import wait_until
from warpgate_trio import Pipe
from warpgate_trio.sim import Fault, Kind, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import open_nodes
from warpgate_trio.testing.worlds import PeerPair

RTT: Final = 0.05
SIZE: Final = 8_000
"""Bytes that a carrier accepts at once, even if the path is a black hole."""
PAIRS: Final = {
    "direct": (partial(PeerPair.between, presets.LINUX, None), "direct_connect"),
    "punched": (partial(PeerPair.between, presets.FULL_CONE, presets.LINUX), "udp_punch"),
}
FAR: Final = 0.4
"""Seconds of a round trip with which a search takes more than a second."""
MAX_SEARCHES: Final = 4
"""One search for each pause up to 19 s, and one when the peer can be reached again."""


def numbered(size: int) -> bytes:
    return bytes(index % 251 for index in range(size))


async def read_all(pipe: Pipe) -> bytes:
    got = bytearray()
    async for piece in pipe:
        got += piece
    return bytes(got)


def closes(
    where: str, by: str, happens: Callable[[Network], object], *, rtt: float = RTT, within: float = 100.0
) -> None:
    """Something happens to a path; then an end sends all its data and closes, and the other end must get all of it."""
    between, plugin = PAIRS[where]

    async def main() -> None:
        async with between(rtt=rtt).build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
            await trio.sleep(5.0)
            ours = await nodes.alice.connect(nodes.bob.address, plugin=plugin)
            theirs = await nodes.bob.listener.accept()
            await ours.ping()
            await theirs.ping()
            await trio.sleep(5.0)
            happens(net)
            await trio.sleep(0.001)  # before either node has noticed
            closing, reading = (ours, theirs) if by == "alice" else (theirs, ours)
            began = trio.current_time()
            async with closing:
                await closing.send_all(numbered(SIZE))
            assert trio.current_time() - began < 0.1, "it waits for nobody"
            with trio.fail_after(within):
                assert await read_all(reading) == numbered(SIZE)
            searches = [node.stats().searches for node in (nodes.alice, nodes.bob)]
            print(f"all had come after {trio.current_time() - began:.2f} s, {searches} searches")
            assert max(searches) <= MAX_SEARCHES, "they come ever more rarely"
            await reading.aclose()
            with trio.fail_after(10.0):
                await wait_until(lambda: not nodes.alice.stats().links and not nodes.bob.stats().links)

    simulate(main, seed=0)


@pytest.mark.slow("two nodes and a search")
@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize("by", ["alice", "bob"])
def test_a_router_has_just_forgotten_its_mappings(where: str, by: str) -> None:
    fault = Fault(at=0.0, until=0.1, target="alice-nat0", kind=Kind.REBOOT)
    closes(where, by, lambda net: net.schedule([fault]))


@pytest.mark.slow("two nodes and a search")
@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize("by", ["alice", "bob"])
def test_a_machine_has_just_got_another_address(where: str, by: str) -> None:
    closes(where, by, lambda net: net.schedule([Fault(at=0.0, target=by, kind=Kind.NEW_ADDRESS)]))


@pytest.mark.slow("two nodes and a search")
@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize("by", ["alice", "bob"])
def test_the_same_far_away(where: str, by: str) -> None:
    """The search of a Link that only has unacknowledged data left may take as long as any other."""
    moves = Fault(at=0.0, target=by, kind=Kind.NEW_ADDRESS)
    closes(where, by, lambda net: net.schedule([moves]), rtt=FAR, within=3 * FAR + 4.0)
