"""From several servers to one offset: majorities, contradictions, age, and clocks that are set."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.clock.estimate import DRIFT, ClockEstimate, Interval, Offset, intersect

approx: Any = pytest.approx  # stands for a float in comparisons with ==


def intervals(*pairs: tuple[float, float]) -> list[Interval]:
    return [Interval(chr(ord("a") + number), *pair) for number, pair in enumerate(pairs)]


def test_nobody() -> None:
    assert intersect([]) is None


def test_one_server_is_believed() -> None:
    assert intersect(intervals((5, 0.1))) == Offset(approx(5), approx(0.1), ("a",), ())


def test_what_two_have_in_common() -> None:
    assert intersect(intervals((5, 1), (6, 1))) == Offset(5.5, 0.5, ("a", "b"), ())
    assert intersect(intervals((5, 10), (6, 1))) == Offset(6, 1, ("a", "b"), ())


def test_of_two_that_contradict_each_other_none_moves_the_clock() -> None:
    assert intersect(intervals((5, 1), (50, 1))) is None
    assert intersect(intervals((5, 1), (5, 1), (50, 1), (50, 1))) is None


def test_a_liar_is_outvoted() -> None:
    assert intersect(intervals((0, 0.1), (1e9, 1e-6), (0.1, 0.1))) == Offset(
        approx(0.05), approx(0.05), ("a", "c"), ("b",)
    )
    found = intersect(intervals((-3, 0.1), (0, 0.1), (0.02, 0.1), (7, 2), (0.04, 0.1)))
    assert found is not None
    assert (found.agreeing, found.outvoted) == (("b", "c", "e"), ("a", "d"))


def test_edges_that_touch_agree() -> None:
    assert intersect(intervals((0, 1), (2, 1))) == Offset(1, 0, ("a", "b"), ())
    assert intersect(intervals((3, 0), (3, 0), (4, 0))) == Offset(3, 0, ("a", "b"), ("c",))


def test_a_liar_who_agrees_a_little_does_not_narrow_the_estimate() -> None:
    """Two servers say 0 to 2, the third says exactly 0: the truth may still be 2."""
    found = intersect(intervals((1, 1), (1, 1), (0, 0)))
    assert found == Offset(0, 2, ("a", "b", "c"), ())


def test_a_wide_server_that_agrees_with_either_side_leaves_both_possible() -> None:
    """a and b agree, and so do b and c: each time two of three.  The truth may be anywhere between them."""
    found = intersect(intervals((0, 1), (5, 5), (10, 1)))
    assert found == Offset(5, 5, ("a", "b", "c"), ())


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 100)), min_size=1, max_size=7),
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 100)), max_size=6),
    st.randoms(),
)
def test_the_truth_is_kept_as_long_as_most_tell_it(
    truth: float, honest: list[tuple[float, float]], liars: list[tuple[float, float]], random: object
) -> None:
    liars = liars[: len(honest) - 1]
    said = [Interval("honest", truth + share * width, width + 1e-9) for share, width in honest]
    said += [Interval("liar", *liar) for liar in liars]
    random.shuffle(said)  # type: ignore[attr-defined]
    found = intersect(said)
    assert found is not None
    assert abs(found.offset - truth) <= found.uncertainty + 1e-6
    assert found.agreeing.count("honest") == len(honest)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 3)), max_size=8))
def test_the_estimate_does_not_depend_on_the_order_and_names_everybody(pairs: list[tuple[float, float]]) -> None:
    said = intervals(*pairs)
    found, backwards = intersect(said), intersect(said[::-1])
    if found is None:
        assert backwards is None
        return
    assert backwards is not None
    assert (found.offset, found.uncertainty) == (backwards.offset, backwards.uncertainty)
    assert sorted(found.agreeing + found.outvoted) == [each.source for each in said]
    assert len(found.agreeing) * 2 > len(said)
    assert found.uncertainty >= 0


# -- age ---------------------------------------------------------------------------------------------------------------

WALL, MONOTONIC = 1.8e9, 500.0
ESTIMATE = ClockEstimate(offset=30.0, uncertainty=0.02, measured_at=MONOTONIC, wall_at=WALL)


def test_an_interval_ages() -> None:
    assert Interval("a", 1, 2).aged(100) == Interval("a", 1, 2 + 100 * DRIFT)
    assert Interval("a", 1, 2).aged(-5) == Interval("a", 1, 2)


def test_an_estimate_ages() -> None:
    assert ESTIMATE.corrected(WALL, MONOTONIC) == WALL + 30
    assert ESTIMATE.uncertainty_at(WALL, MONOTONIC) == 0.02
    assert ESTIMATE.corrected(WALL + 1000, MONOTONIC + 1000) == WALL + 1030
    assert ESTIMATE.uncertainty_at(WALL + 1000, MONOTONIC + 1000) == approx(0.02 + 0.015)


def test_the_machines_daemon_sets_the_clock_right() -> None:
    """10 s later the wall clock is stepped by the same 30 s, which must not be added again."""
    assert ESTIMATE.corrected(WALL + 40, MONOTONIC + 10) == WALL + 40
    assert ESTIMATE.uncertainty_at(WALL + 40, MONOTONIC + 10) >= 30, "until it is measured anew"


def test_the_machine_slept() -> None:
    """The monotonic clock stood still for an hour."""
    assert ESTIMATE.corrected(WALL + 3610, MONOTONIC + 10) == WALL + 3640
    assert ESTIMATE.uncertainty_at(WALL + 3610, MONOTONIC + 10) >= 3600


@given(st.floats(-1e4, 1e4), st.floats(-1e5, 1e5), st.floats(0, 1e5), st.booleans())
def test_whichever_clock_is_right_the_truth_is_within(offset: float, jump: float, age: float, slept: bool) -> None:
    estimate = ClockEstimate(offset=offset, uncertainty=0.01, measured_at=MONOTONIC, wall_at=WALL)
    wall, monotonic = WALL + age + jump, MONOTONIC + age
    truth = wall + offset if slept else WALL + offset + age
    assert abs(estimate.corrected(wall, monotonic) - truth) <= estimate.uncertainty_at(wall, monotonic) + 1e-5
    assert estimate.moved(wall, monotonic) == approx(jump, abs=1e-5)
