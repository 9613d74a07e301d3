"""A relayed path that was left for a better one stands by, in case the better one fails."""

from __future__ import annotations

from typing import Final

import pytest
import trio

from tests.sim.roaming import Talk
from tests.sim.test_quiet import Count
from tests.sim.test_relay_first import CONES, RTT, better_within, called
from warpgate_trio import NodeConfig, PathCause, PathsConfig, PathState, Pipe
from warpgate_trio.link.life import SLACK, SUSPICION_TRIPS
from warpgate_trio.link.moving import SPARE_FOR
from warpgate_trio.link.standbys import Standbys
from warpgate_trio.node import links
from warpgate_trio.sim import simulate
from warpgate_trio.sim.host import Interface
from warpgate_trio.sim.packet import Packet
from warpgate_trio.sim.segment import Segment

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

LEFT_FOR: Final = SPARE_FOR + 60.0
"""Seconds after which the node has decided about a lane that was left."""


def lanes(pipe: Pipe) -> int:
    return len(pipe._link.protocol.lanes)  # type: ignore[attr-defined]


class Hole:
    """Drops packets that go directly between the two addresses in `ends`, once these are set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: set[str] = set()
        carry = Segment.carry

        def swallow(segment: Segment, sender: Interface, packet: Packet, hop: str) -> None:
            if {packet.src[0], packet.dst[0]} != self.ends:
                carry(segment, sender, packet, hop)

        monkeypatch.setattr(Segment, "carry", swallow)


@pytest.mark.parametrize("keep", [True, False])
def test_a_direct_path_that_dies_is_replaced_by_the_relay_that_stands_by(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes three round trips and 1.5 s, and one more by the relay; without a standby, a search follows."""

    hole = Hole(monkeypatch)

    async def main() -> None:
        config = NodeConfig(paths=PathsConfig(standby_relay=keep))
        async with called(CONES, config=config, relay_first=True) as (ours, theirs, _), trio.open_nursery() as nursery:
            assert await better_within(ours, 5.0) is not None
            talks = [Talk(ours, theirs), Talk(theirs, ours)]
            for talk in talks:
                nursery.start_soon(talk.receive)
                nursery.start_soon(talk.send)
            await trio.sleep(LEFT_FOR)
            assert lanes(ours) == lanes(theirs) == 1 + keep
            began = trio.current_time()
            hole.ends = {pipe.path.remote[0] for pipe in (ours, theirs)}
            await trio.sleep(8.0)
            silences = [talk.silence_after(began) for talk in talks]
            print(*map(str, ours.path_log), sep="\n")
            print(f"{'standing by' if keep else 'searched for'}: silent for {silences}")
            assert ours.path.phase == theirs.path.phase == "relay"
            if keep:
                assert ours.path_log[-1].cause is PathCause.SUSPECTED
                assert max(silences) <= SUSPICION_TRIPS * 2 * RTT + SLACK + 2 * RTT
            hole.ends = set()
            assert await better_within(ours, 60.0) is not None
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()

    simulate(main, seed=0)


def test_what_has_to_give_way_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If more relays stand by than a node keeps, one is closed, because a server limits each node's circuits."""
    kept: list[Standbys] = []

    def few() -> Standbys:
        kept.append(Standbys(most=1))
        return kept[-1]

    monkeypatch.setattr(links, "Standbys", few)

    async def main() -> None:
        async with called(CONES, relay_first=True) as (ours, theirs, _):
            assert await better_within(ours, 5.0) is not None
            await trio.sleep(LEFT_FOR)
            assert lanes(ours) == lanes(theirs) == 2
            holder = max(kept, key=len)  # the node that first found the lane unused
            assert len(holder) == 1
            holder.keep("another one", lambda: None)
            await trio.sleep(1.0)
            assert lanes(ours) == lanes(theirs) == 1
            assert ours.path.state is theirs.path.state is PathState.LIVE
            assert sum(map(len, kept)) == 1

    simulate(main, seed=0)


def test_an_idle_link_with_a_relay_that_stands_by_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        count = Count(monkeypatch)
        async with called(CONES, relay_first=True) as (ours, theirs, _):
            assert await better_within(ours, 5.0) is not None
            await trio.sleep(LEFT_FOR)
            assert lanes(ours) == lanes(theirs) == 2
            await trio.sleep(300.0)
            each = await count.over(10)
            print(f"{ours.path.plugin}: frames a minute: {each}")
            assert max(each.values()) <= 2

    simulate(main, seed=0)
