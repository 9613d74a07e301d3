"""The first candidate that has proven itself wins a race; the others are closed."""

from __future__ import annotations

from typing import Any, cast, final

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from warpgate_strategies.winner import Winner


@final
class Candidate:
    def __init__(self) -> None:
        self.closed = False

    def close_nowait(self) -> None:
        self.closed = True


def offer(winner: Winner) -> Candidate:
    candidate = Candidate()
    winner.offer(cast("Any", candidate))
    return candidate


async def test_the_first_one_outlives_the_race() -> None:
    with Winner() as winner:
        first, second = offer(winner), offer(winner)
        assert second.closed
        assert await winner.first() is cast("Any", first)
    assert not first.closed
    assert offer(winner).closed  # it comes too late


async def test_it_is_waited_for(nursery: trio.Nursery) -> None:
    with Winner() as winner, trio.fail_after(HANG):
        nursery.start_soon(winner.first)
        await trio.testing.wait_all_tasks_blocked()
        first = offer(winner)
        await trio.testing.wait_all_tasks_blocked()
    assert not first.closed


async def test_what_nobody_came_for_is_closed() -> None:
    with Winner() as winner:
        first = offer(winner)
        with trio.CancelScope() as scope:
            scope.cancel()
            await winner.first()
    assert first.closed


async def test_a_race_that_is_left_by_an_exception_has_no_winner() -> None:
    with pytest.raises(RuntimeError), Winner() as winner:
        first = offer(winner)
        await winner.first()
        raise RuntimeError
    assert first.closed
