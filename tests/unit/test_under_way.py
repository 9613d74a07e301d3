"""Which combos of a walk hold back for others, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
import trio
import trio.testing

from warpgate_trio.combos import Combo, Likelihood, RouteType
from warpgate_trio.walk.under_way import HELD_BACK, YIELD, UnderWay

LIKELY: Final = Combo(
    phase="direct",
    plugin="direct_connect",
    af=4,
    route_type=RouteType.EXT_BIND,
    target=None,
    source=None,
    likelihood=Likelihood.LIKELY,
    delay=0.0,
    why="",
)


@pytest.mark.parametrize(("signal_rtt", "most"), [(None, HELD_BACK), (0.05, 0.05), (1.0, HELD_BACK)])
async def test_a_relay_holds_back_for_a_likely_direct_path(
    signal_rtt: float | None, most: float, autojump_clock: trio.testing.MockClock
) -> None:
    under_way = UnderWay()
    under_way.begin([LIKELY])
    with under_way.until_ended(LIKELY):
        began = trio.current_time()
        await under_way.yield_to_direct(signal_rtt)
        assert trio.current_time() - began == pytest.approx(most)
    began = trio.current_time()
    await under_way.yield_to_direct(signal_rtt)
    assert trio.current_time() == began


async def test_a_relay_that_was_called_before_signals_came_up_waits_for_who_dials_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    under_way = UnderWay()
    asking = replace(LIKELY, plugin="reverse_connect", asks=True)
    under_way.begin([asking])
    began = trio.current_time()
    await under_way.yield_to_direct(0.05, dials=True)
    assert trio.current_time() == began
    await under_way.yield_to_direct(0.05)
    assert trio.current_time() - began == pytest.approx(0.05)
    under_way.begin([LIKELY])
    began = trio.current_time()
    await under_way.yield_to_direct(0.05, dials=True)
    assert trio.current_time() - began == pytest.approx(0.05)


@pytest.mark.parametrize(
    "other",
    [replace(LIKELY, likelihood=Likelihood.DOUBTFUL), replace(LIKELY, phase="punch")],
    ids=["doubtful", "punch"],
)
async def test_and_for_nothing_else(other: Combo, autojump_clock: trio.testing.MockClock) -> None:
    under_way = UnderWay()
    under_way.begin([other])
    began = trio.current_time()
    await under_way.yield_to_direct(None)
    assert trio.current_time() == began


async def test_a_combo_yields_to_another_plugins_until_that_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    under_way = UnderWay()
    under_way.begin([LIKELY, LIKELY])

    async def run(seconds: float) -> None:
        with under_way.until_ended(LIKELY):
            await trio.sleep(seconds)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 0.1)
        nursery.start_soon(run, 0.2)
        await under_way.yield_to("direct_connect")
        assert trio.current_time() - began == pytest.approx(0.2)
    under_way.begin([LIKELY])
    began = trio.current_time()
    await under_way.yield_to("direct_connect")
    assert trio.current_time() - began == pytest.approx(YIELD)


RELAY: Final = replace(LIKELY, phase="relay", plugin="ws_relay", server="ws://one")


async def test_a_relays_server_takes_its_turn_when_those_before_it_have_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Otherwise it waits for its delay, as combos without a server always do."""
    under_way, began = UnderWay(), trio.current_time()
    second, third = replace(RELAY, server="ws://two", delay=0.25), replace(RELAY, server="ws://three", delay=0.5)
    under_way.begin([RELAY, second, third])
    turns: dict[str | None, float] = {}

    async def run(combo: Combo) -> None:
        await under_way.wait_turn(combo)
        turns[combo.server] = trio.current_time() - began

    async with trio.open_nursery() as nursery:
        for each in (second, third, replace(LIKELY, delay=0.1)):
            nursery.start_soon(run, each)
        with under_way.until_ended(RELAY):
            await trio.sleep(0.05)
    assert turns == {"ws://two": pytest.approx(0.05), "ws://three": pytest.approx(0.5), None: pytest.approx(0.1)}
