"""How much is handed to a carrier at once, depending on its speed; in virtual time, without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.link.pace import CHUNK_MAX, CHUNK_MIN, CHUNK_START, CHUNK_TIME, Pace


def hand_over(pace: Pace, rate: float, seconds: float, *, buffer: int = 0, now: float = 0.0) -> float:
    """Hand bulk data to a carrier that sends `rate` bytes a second and buffers `buffer` bytes; returns the time."""
    end = now + seconds
    while now < end:
        held_up = max(pace.size - buffer, 0)
        buffer = max(buffer - pace.size, 0)
        began, now = now, now + held_up / rate + 1e-5
        pace.handed(pace.size, began, now)
    return now


@pytest.mark.parametrize("rate", [200e3, 1e6, 2e6])
def test_a_chunk_is_what_the_carrier_takes_in_its_time(rate: float) -> None:
    pace = Pace()
    hand_over(pace, rate, 5.0)
    assert pace.size == pytest.approx(rate * CHUNK_TIME, rel=0.05)
    assert pace.is_slow


def test_a_fast_carrier_soon_gets_the_largest_chunks() -> None:
    """After a few chunks, so that a transfer over loopback is not slowed down."""
    pace = Pace()
    hand_over(pace, 100e6, 0.01)
    assert pace.size == CHUNK_MAX
    assert not pace.is_slow


def test_the_slowest_carrier_gets_the_smallest() -> None:
    pace = Pace()
    hand_over(pace, 3e3, 60.0)
    assert pace.size == CHUNK_MIN


def test_what_a_buffer_swallows_is_not_taken_for_a_fast_carrier() -> None:
    """A buffer that holds a chunk, and grows with the chunks, takes two of them at once; so does the first flight."""
    pace = Pace()
    pace.handed(CHUNK_START, 0.0, 0.0)
    pace.handed(CHUNK_START, 0.0, 0.0)
    pace.handed(CHUNK_START, 0.0, 0.0)
    assert pace.size == CHUNK_START
    hand_over(pace, 20e3, 10.0, buffer=CHUNK_START)
    assert pace.size == CHUNK_MIN


def test_a_carrier_that_slows_down_is_noticed_at_the_next_chunk() -> None:
    pace = Pace()
    now = hand_over(pace, 100e6, 0.01)
    pace.handed(CHUNK_MAX, now, now + 4.0)
    assert pace.size == CHUNK_MIN


def test_it_doubles_at_most_from_one_look_to_the_next() -> None:
    pace = Pace()
    now = hand_over(pace, 3e3, 60.0)
    sizes = [pace.size]
    while pace.is_slow:
        began, now = now, now + 1e-5
        if pace.handed(pace.size, began, now):
            sizes.append(pace.size)
    assert sizes == [CHUNK_MIN << step for step in range(len(sizes))]


@pytest.mark.parametrize("rate", [5e3, 50e6])
def test_a_sender_with_pauses_says_nothing_of_the_carrier(rate: float) -> None:
    """At 20 KB/s of talk nothing shows whether the carrier could take more."""
    pace = Pace()
    hand_over(pace, rate, 10.0)
    before = pace.size
    for tenth in range(1000):
        assert not pace.handed(1000, 20 + tenth / 20, 20 + tenth / 20 + 1e-4)
    assert pace.size == before


@given(
    handed=st.lists(
        st.tuples(st.integers(1, CHUNK_MAX), st.floats(0.0, 100.0, width=32), st.floats(0.0, 100.0, width=32)),
        max_size=10,
    )
)
def test_a_chunk_is_never_larger_or_smaller_than_it_may_be(handed: list[tuple[int, float, float]]) -> None:
    pace, now = Pace(), 0.0
    for size, pause, took in handed:
        before = pace.size
        changed = pace.handed(size, now + pause, now + pause + took)
        now += pause + took
        assert CHUNK_MIN <= pace.size <= CHUNK_MAX
        assert pace.size <= 2 * before
        assert changed is (pace.size != before)
