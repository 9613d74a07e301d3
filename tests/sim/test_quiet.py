"""How many PINGs an idle Link costs, and how long its path may be silent: whole nodes in simulated worlds."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import pytest
import trio

from warpgate_trio import PathCause, PathState, Pipe
from warpgate_trio.carrier.quic import IDLE_INTERVAL
from warpgate_trio.link.frames import Frame, Ping, Pong
from warpgate_trio.link.lane import LaneProtocol
from warpgate_trio.link.life import RESPONDER_WAITS, SLACK
from warpgate_trio.link.quiet import GROWTH
from warpgate_trio.sim import Fault, Kind, NatConfig, presets, simulate
from warpgate_trio.sim.nat_axes import Timers
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NodePair, open_nodes
from warpgate_trio.testing.worlds import PeerPair

RTT: Final = 0.05
GROWN: Final = 300.0
"""Seconds within which an idle path has found how long it may be silent."""
FORGETFUL: Final = replace(presets.RESTRICTED, timers=Timers(udp=30.0, udp_stream=30.0))
"""A NAT with the shortest timeouts."""
FICKLE: Final = replace(presets.LINUX_SYMMETRIC, timers=FORGETFUL.timers)


class Count:
    """Counts the PINGs and PONGs that each end sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: Counter[str] = Counter()
        say = LaneProtocol.say

        def counted(lane: LaneProtocol, frame: Frame) -> None:
            if isinstance(frame, Ping | Pong):
                self.said["caller" if lane._initiator else "listener"] += 1
            say(lane, frame)

        monkeypatch.setattr(LaneProtocol, "say", counted)

    async def over(self, minutes: int) -> dict[str, float]:
        """How many each end sends a minute."""
        self.said.clear()
        await trio.sleep(60.0 * minutes)
        return {end: self.said[end] / minutes for end in ("caller", "listener")}


@asynccontextmanager
async def idle_pipe(
    plugin: str, alice: NatConfig = presets.FULL_CONE, bob: NatConfig | None = presets.FULL_CONE
) -> AsyncGenerator[tuple[NodePair, Pipe, Pipe]]:
    """Both ends of an idle Pipe."""
    pair = PeerPair.between(alice, bob, rtt=RTT)
    async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
        ours = await nodes.alice.connect(nodes.bob.address, plugin=plugin)
        theirs = await nodes.bob.listener.accept()
        async with ours, theirs:
            yield nodes, ours, theirs


def suspicions(pipe: Pipe) -> int:
    return sum(change.cause is PathCause.SUSPECTED for change in pipe.path_log)


@pytest.mark.slow("a quarter of an hour of two idle nodes, packet by packet")
def test_an_idle_link_over_udp_asks_ever_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three frames a minute each way, and two once its NATs are known to tolerate a longer silence."""

    async def main() -> None:
        count = Count(monkeypatch)
        async with idle_pipe("udp_punch") as (nodes, ours, theirs):
            await trio.sleep(1.0)
            before = await count.over(2)
            await trio.sleep(GROWN - 120.0)
            after = await count.over(10)
            print(f"frames a minute: {before}, then {after}")
            for end in ("caller", "listener"):
                assert before[end] <= 3
                assert after[end] <= 2
            assert (ours.path_log, theirs.path_log) == ((), ())
            nodes.alice.network_changed()
            again = await count.over(2)
            assert max(again.values()) > 2, "she may be behind another NAT by now"

    simulate(main, seed=0)


@pytest.mark.slow("five minutes of two idle nodes, packet by packet")
def test_a_path_that_dies_when_it_asks_less_is_noticed_within_the_longer_interval() -> None:
    async def main() -> None:
        async with idle_pipe("udp_punch") as (nodes, ours, theirs):
            await trio.sleep(GROWN)
            nodes.net.schedule([Fault(at=0.0, target="bob-nat0", kind=Kind.BLACKHOLE)])
            began = trio.current_time()
            times: dict[str, float] = {}

            async def notice(name: str, pipe: Pipe) -> None:
                assert (await pipe.wait_path_change()).state is PathState.SUSPECT
                times[name] = trio.current_time() - began

            async with trio.open_nursery() as nursery:
                nursery.start_soon(notice, "caller", ours)
                nursery.start_soon(notice, "listener", theirs)
            print(f"noticed after {times}")
            interval, patience = GROWTH * IDLE_INTERVAL, 3 * RTT + SLACK
            assert times["caller"] <= interval + patience
            assert times["listener"] <= RESPONDER_WAITS * interval + patience

    simulate(main, seed=0)


@pytest.mark.slow("some minutes of two idle nodes, packet by packet")
def test_an_idle_link_over_tcp_asks_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        count = Count(monkeypatch)
        async with idle_pipe("direct_connect", presets.LINUX, None) as (_, ours, _theirs):
            await trio.sleep(1.0)
            each = await count.over(10)
            print(f"frames a minute: {each}")
            assert max(each.values()) <= 2
            assert not ours.path_log

    simulate(main, seed=0)


@pytest.mark.slow("half an hour of two idle nodes, packet by packet")
@pytest.mark.parametrize(
    ("alice", "bob"),
    [
        (FORGETFUL, FORGETFUL),
        (FORGETFUL, presets.FULL_CONE),
        (presets.FULL_CONE, FORGETFUL),
        (FICKLE, presets.FULL_CONE),
    ],
    ids=["both", "the caller's", "the listener's", "the caller's, which then takes another port"],
)
def test_a_nat_that_bears_no_longer_silence_costs_one_path(alice: NatConfig, bob: NatConfig) -> None:
    """The Link goes on; neither it nor another Link of these nodes tries again, because each node has learned it."""

    async def main() -> None:
        async with idle_pipe("udp_punch", alice, bob) as (nodes, ours, theirs):
            await trio.sleep(GROWN)
            assert suspicions(ours) + suspicions(theirs) == 1
            for pipe in (ours, theirs):
                assert (pipe.path.carrier, pipe.path.state) == ("quic", PathState.LIVE)
                print(f"idle for {GROWN:.0f} s: {'; '.join(map(str, pipe.path_log)) or 'nothing noticed'}")
            known = ours.path_log, theirs.path_log
            further = await nodes.alice.connect(nodes.bob.address, plugin="udp_punch")
            accepted = await nodes.bob.listener.accept()
            async with further, accepted:
                await trio.sleep(2 * GROWN)
                nodes.alice.network_changed()  # she forgets what she learned
                await trio.sleep(2 * GROWN)
                assert (further.path_log, accepted.path_log) == ((), ())
                assert (ours.path_log, theirs.path_log) == known
                for sender, receiver in ((ours, theirs), (theirs, ours), (further, accepted)):
                    await sender.send_all(b"it goes on")
                    assert await receiver.receive_some() == b"it goes on"

    simulate(main, seed=0)
