"""How long a phase lasts: its budget, and the events that extend or suspend it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from warpgate_trio.walk.phase_clock import HOLD, PhaseClock

BUDGET = 1.5


@pytest.mark.parametrize(
    ("holds", "end"),
    [
        ((), BUDGET),
        ((0.2,), BUDGET),
        ((1.0,), 1.0 + HOLD),
        ((1.4, 2.2, 2.3), BUDGET + HOLD),
    ],
)
async def test_a_handshake_is_waited_for_but_not_for_ever(
    holds: tuple[float, ...], end: float, autojump_clock: trio.testing.MockClock
) -> None:
    clock = PhaseClock()
    began = trio.current_time()
    with clock.phase(BUDGET):
        for at in holds:
            await trio.sleep_until(began + at)
            clock.hold()
        await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(end)
    assert clock.deadline - began == pytest.approx(end)


@pytest.mark.parametrize("held_first", [False, True])
async def test_a_budget_that_is_shortened_cuts_no_handshake(
    held_first: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A node that was just opened may learn its signal round-trip time in the middle of a phase."""
    clock = PhaseClock()
    began = trio.current_time()
    with clock.phase(BUDGET):
        clock.shorten(2 * BUDGET)  # longer than the budget: no effect
        if held_first:
            clock.hold()
        clock.shorten(0.1)
        if not held_first:
            clock.hold()
        await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(HOLD)


async def test_a_commit_suspends_the_budget_and_what_is_held(autojump_clock: trio.testing.MockClock) -> None:
    clock = PhaseClock()
    began = trio.current_time()
    with clock.phase(BUDGET):
        with clock.suspended():
            clock.hold()
            clock.shorten(0.1)
            await trio.sleep(10)
        clock.hold()
        await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(10 + BUDGET)
