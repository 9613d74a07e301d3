"""The path logs of two nodes when a path dies and is replaced: each side's is complete, with causes."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import pytest
import trio

from tests.sim.roaming import Talk
from warpgate_trio import PathCause, Pipe
from warpgate_trio.report import WalkEvent
from warpgate_trio.sim import Fault, Kind, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import open_nodes
from warpgate_trio.testing.worlds import PeerPair

RTT: Final = 0.05
PAIRS: Final = {
    "direct": (PeerPair.between(presets.LINUX, None, rtt=RTT), "direct_connect"),
    "punched": (PeerPair.between(presets.FULL_CONE, presets.LINUX, rtt=RTT), "udp_punch"),
}


def check(pipe: Pipe, began: float) -> None:
    """Check that each entry continues the one before it, and that the last one has the Pipe's present path."""
    log = pipe.path_log
    assert log
    for before, after in pairwise(log):
        assert before.at <= after.at
        assert (before.new is None) is (after.old is None)
        assert before.new is None or after.old is None or before.new.same_as(after.old)
    assert log[-1].new is not None
    assert log[-1].new.same_as(pipe.path)
    for change in log:
        assert isinstance(change.cause, PathCause)
        assert bool(change.detail) is (change.cause is PathCause.LOST)
        assert began <= change.at <= trio.current_time()
        assert 0 <= change.silence <= change.at - began + 0.2
        assert change.replayed == 0 or change.switched
    for before, after in pairwise(log):
        crossed = before.cause is PathCause.FOUND and after.cause is PathCause.LOST
        assert not crossed, "what one side has found the other one has given up"


@pytest.mark.slow("half a minute of talk")
@pytest.mark.parametrize("where", PAIRS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(at=0.0, target="alice-nat0", kind=Kind.REBIND),
        Fault(at=0.0, target="alice", kind=Kind.NEW_ADDRESS),
        Fault(at=0.0, target="bob", kind=Kind.NEW_ADDRESS),
        Fault(at=0.0, until=4.0, target="alice", kind=Kind.BLACKHOLE),
    ],
    ids=lambda fault: f"{fault.target}-{fault.kind.value}",
)
def test_a_path_that_dies_while_bytes_flow(where: str, fault: Fault) -> None:
    pair, plugin = PAIRS[where]

    async def main() -> None:
        events: list[WalkEvent] = []
        async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
            await trio.sleep(5.0)
            ours = await nodes.alice.connect(nodes.bob.address, plugin=plugin, on_event=events.append)
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, trio.open_nursery() as nursery:
                for talk in (Talk(ours, theirs), Talk(theirs, ours)):
                    nursery.start_soon(talk.send)
                    nursery.start_soon(talk.receive)
                await trio.sleep(5.0)
                began = trio.current_time()
                net.schedule([fault])
                await trio.sleep(25.0)
                for pipe, node in ((ours, nodes.alice), (theirs, nodes.bob)):
                    print(*pipe.path_log, sep="\n")
                    check(pipe, began)
                    stats = node.stats()
                    assert stats.switches == sum(change.switched for change in pipe.path_log)
                    assert stats.false_alarms == sum(each.cause is PathCause.FORGIVEN for each in pipe.path_log)
                assert nodes.alice.stats().searches + nodes.bob.stats().searches
                told = [event.path for event in events if event.kind == "path"]
                assert told == [change.as_report() for change in ours.path_log]
                nursery.cancel_scope.cancel()

    simulate(main, seed=0)
