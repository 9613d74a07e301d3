"""Which search has its turn, and how many run at the same time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from warpgate_trio.node.search_turns import SPREAD, SearchTurns

LIMIT = 4


def busy() -> bool:
    return True


def idle() -> bool:
    return False


def make_turns() -> SearchTurns:
    return SearchTurns(LIMIT, uniform=Random(0).uniform)


class Searches:
    """Searches of one second each that want a turn, and the order and times in which they began."""

    def __init__(self) -> None:
        self.turns = make_turns()
        self.began: dict[str, float] = {}
        self.under_way = self.most = 0

    async def search(self, name: str, is_busy: Callable[[], bool]) -> None:
        async with self.turns.turn(is_busy):
            self.began[name] = trio.current_time()
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await trio.sleep(1.0)
            self.under_way -= 1


async def test_one_alone_begins_at_once(autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    async with make_turns().turn(idle):
        assert trio.current_time() == before


async def test_no_more_than_the_limit_are_under_way(autojump_clock: trio.testing.MockClock) -> None:
    searches = Searches()
    async with trio.open_nursery() as nursery:
        for number in range(5 * LIMIT):
            nursery.start_soon(searches.search, str(number), busy)
    assert searches.most == LIMIT
    assert len(searches.began) == 5 * LIMIT
    assert trio.current_time() == 5.0, "as soon as one ends, the next one begins"


async def test_those_that_nobody_waits_for_are_spread(autojump_clock: trio.testing.MockClock) -> None:
    searches = Searches()
    async with trio.open_nursery() as nursery:
        for number in range(LIMIT):
            nursery.start_soon(searches.search, str(number), idle)
    times = list(searches.began.values())
    assert len(set(times)) == LIMIT
    assert times == sorted(times)
    assert max(times) <= SPREAD


async def test_busy_ones_go_first(autojump_clock: trio.testing.MockClock) -> None:
    searches = Searches()
    async with trio.open_nursery() as nursery:
        for number in range(5 * LIMIT):
            nursery.start_soon(searches.search, f"idle {number}", idle)
        await trio.sleep(SPREAD)
        nursery.start_soon(searches.search, "busy", busy)
    assert list(searches.began).index("busy") == LIMIT, "the first one after those that had begun"


async def test_what_becomes_busy_while_it_waits_goes_first(autojump_clock: trio.testing.MockClock) -> None:
    searches, waited_for = Searches(), set[str]()
    async with trio.open_nursery() as nursery:
        for number in range(5 * LIMIT):
            nursery.start_soon(searches.search, str(number), partial(waited_for.__contains__, str(number)))
        await trio.sleep(SPREAD)
        late = next(str(number) for number in range(5 * LIMIT) if str(number) not in searches.began)
        waited_for.add(late)
    assert list(searches.began).index(late) == LIMIT


async def test_who_is_cancelled_takes_no_turn_along() -> None:
    for cut in cuts():
        turns = SearchTurns(1, uniform=lambda low, _: low)
        with cut:
            async with turns.turn(idle):
                await trio.lowlevel.checkpoint()
        await takes_a_turn(turns)


async def test_who_is_cancelled_in_the_queue_is_no_more_in_it(autojump_clock: trio.testing.MockClock) -> None:
    turns = SearchTurns(1, uniform=lambda low, _: low)
    async with turns.turn(busy):
        with trio.move_on_after(1.0) as late:
            await takes_a_turn(turns)
        assert late.cancelled_caught
    await takes_a_turn(turns)


async def takes_a_turn(turns: SearchTurns) -> None:
    with trio.fail_after(HANG):
        async with turns.turn(busy):
            pass
