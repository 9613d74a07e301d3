"""When a node looks for a better path."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.node.upgrade_schedule import (
    DWELL,
    DWELL_MAX,
    DWELL_MEMORY,
    HEAD_START,
    JITTER,
    PAUSES,
    POSTPONED,
    SITS_OUT,
    SITS_OUT_MAX,
    SPRAYS,
    UpgradeSchedule,
)


@given(seed=st.integers(0, 2**32))
def test_searches_come_ever_more_rarely(seed: int) -> None:
    now = 100.0
    schedule = UpgradeSchedule(now, uniform=Random(seed).uniform)
    for pause in (*PAUSES, PAUSES[-1]):
        assert abs(schedule.next_at - now - pause) <= JITTER * pause
        now = schedule.next_at
        schedule.searched(now)


def test_one_that_is_wanted_comes_at_once_and_the_others_as_ever() -> None:
    schedule = UpgradeSchedule(7.0, uniform=lambda _a, _b: 1.0, at_once=True)
    assert schedule.next_at == 7.0 + HEAD_START, "the first bytes go first"
    schedule.searched(8.0)
    assert schedule.next_at == 8.0 + PAUSES[1]


def test_no_two_links_search_in_step() -> None:
    times = {UpgradeSchedule(0.0, uniform=Random(seed).uniform).next_at for seed in range(9)}
    assert len(times) == 9


def test_one_that_is_not_worth_it_does_not_count() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(1).uniform)
    for _ in range(5):
        now = schedule.next_at
        schedule.postpone(now)
        assert abs(schedule.next_at - now - POSTPONED) <= JITTER * POSTPONED


def test_a_change_of_the_network_has_one_at_once_and_the_pauses_start_afresh() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(1).uniform)
    for _ in range(4):
        schedule.searched(schedule.next_at)
    now = 5000.0
    schedule.hint(now)
    assert schedule.next_at == now
    schedule.searched(now)
    assert abs(schedule.next_at - now - PAUSES[1]) <= JITTER * PAUSES[1]


def test_the_pauses_start_afresh_where_the_path_has_changed() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(1).uniform)
    for _ in range(4):
        schedule.searched(schedule.next_at)
    now = 5000.0
    schedule.changed(now, upgraded=False)
    assert abs(schedule.next_at - now - PAUSES[0]) <= JITTER * PAUSES[0]


def test_each_further_upgrade_doubles_what_a_path_has_before_the_next_one() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(1).uniform)
    for number in range(8):
        now = float(number)
        schedule.changed(now, upgraded=True)
        schedule.hint(now)
        assert schedule.next_at == now + min(DWELL * 2**number, DWELL_MAX)


def test_however_often_the_path_was_lost_a_better_one_is_looked_for_soon() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(1).uniform)
    for number in range(8):
        now = 11.0 * number
        schedule.changed(now, upgraded=False)
        assert schedule.next_at <= now + (1 + JITTER) * PAUSES[0]
        schedule.hint(now)
        assert schedule.next_at == now + DWELL


def test_a_loss_does_not_shorten_what_the_upgrades_before_it_have_earned() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(1).uniform)
    for at in (0.0, 10.0, 30.0):
        schedule.changed(at, upgraded=True)
    schedule.changed(31.0, upgraded=False)
    schedule.hint(32.0)
    assert schedule.next_at == 30.0 + 4 * DWELL
    schedule.changed(69.0, upgraded=False)
    schedule.hint(69.0)
    assert schedule.next_at == 69.0 + DWELL


@given(happens=st.lists(st.tuples(st.floats(0.1, 400.0), st.booleans()), min_size=1, max_size=20), hinted=st.booleans())
def test_the_more_often_there_was_a_better_path_the_longer_it_stays(
    happens: list[tuple[float, bool]], hinted: bool
) -> None:
    """Law 12: never two upgrades within the dwell time, whatever paths are lost between them."""
    now, last, upgrades = 0.0, 0.0, [0.0]
    schedule = UpgradeSchedule(now, uniform=Random(0).uniform)
    schedule.changed(now, upgraded=True)
    for gap, lost in happens:
        now += gap
        if hinted:
            schedule.hint(now)
        if lost:
            schedule.changed(now, upgraded=False)
            last = now
        elif now >= schedule.next_at:
            assert now - last >= DWELL
            schedule.changed(now, upgraded=True)
            upgrades.append(now)
            last = now
    for index, (before, after) in enumerate(pairwise(upgrades)):
        lately = sum(1 for at in upgrades[: index + 1] if before - at < DWELL_MEMORY)
        assert after - before >= min(DWELL * 2 ** (lately - 1), DWELL_MAX)


def test_upgrades_long_ago_are_forgotten() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(0).uniform)
    for at in (0.0, 1.0, 2.0):
        schedule.changed(at, upgraded=True)
    now = 2.0 + DWELL_MEMORY
    schedule.changed(now, upgraded=True)
    schedule.hint(now)
    assert schedule.next_at == now + DWELL


def test_a_way_that_was_no_good_sits_out_ever_longer() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(0).uniform)
    now, seconds = 0.0, SITS_OUT
    for _ in range(9):
        schedule.failed("way", now)
        assert schedule.sits_out("way", now + seconds - 0.1)
        assert not schedule.sits_out("way", now + seconds)
        assert not schedule.sits_out("another", now)
        now += seconds
        seconds = min(2 * seconds, SITS_OUT_MAX)


def test_a_change_of_the_network_lets_it_be_tried_again() -> None:
    schedule = UpgradeSchedule(0.0, uniform=Random(0).uniform)
    schedule.failed("way", 0.0)
    schedule.hint(1.0)
    assert not schedule.sits_out("way", 1.0)
    schedule.failed("way", 1.0)
    assert not schedule.sits_out("way", 1.0 + SITS_OUT)
    assert schedule.next_at == pytest.approx(1.0)


def test_what_has_failed_with_all_others_is_no_bad_way() -> None:
    """If no path was well, the network was down.  If a failing path was left for one that was well, its way is bad."""
    for found in (False, True):
        schedule = UpgradeSchedule(0.0, uniform=lambda _a, _b: 1.0)
        schedule.failed("way", 0.0)
        schedule.changed(1.0, upgraded=False, found=found)
        assert schedule.sits_out("way", 1.0) is not found


def test_where_all_ways_sit_out_the_next_search_comes_when_one_may_be_tried() -> None:
    schedule = UpgradeSchedule(0.0, uniform=lambda _a, _b: 1.0)
    for way, at in (("way", 0.0), ("another", 0.0), ("another", 20.0)):
        schedule.failed(way, at)
    schedule.changed(10.0, upgraded=False)
    schedule.held_up(25.0)
    assert schedule.next_at == SITS_OUT
    schedule.held_up(SITS_OUT)
    assert schedule.next_at == 20.0 + 2 * SITS_OUT
    for _ in PAUSES:
        schedule.held_up(1000.0)
    assert schedule.next_at == 1000.0 + PAUSES[-1], "there is none"


def test_a_change_of_path_holds_that_up() -> None:
    schedule = UpgradeSchedule(0.0, uniform=lambda _a, _b: 1.0)
    schedule.failed("way", 0.0)
    schedule.changed(SITS_OUT - 1.0, upgraded=False)
    schedule.held_up(SITS_OUT - 1.0)
    assert schedule.next_at == SITS_OUT - 1.0 + DWELL


def test_sprays_come_in_the_first_search_and_then_rarely() -> None:
    """Also in the first search after the path or the network has changed."""
    schedule = UpgradeSchedule(0.0, uniform=lambda _a, _b: 1.0)
    sprayed: list[float] = []
    while schedule.next_at < 3 * SPRAYS:
        now = schedule.next_at
        if schedule.may_spray(now):
            sprayed.append(now)
        schedule.searched(now)
    assert sprayed[0] == PAUSES[0]
    assert len(sprayed) > 1
    assert all(later - earlier >= SPRAYS for earlier, later in pairwise(sprayed))
    for happens in (schedule.hint, lambda now: schedule.changed(now, upgraded=False)):
        now = schedule.next_at
        schedule.searched(now)
        assert not schedule.may_spray(now + 1.0)
        happens(now + 1.0)
        assert schedule.may_spray(now + 1.0)
