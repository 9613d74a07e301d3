"""What one address gets unasked, over all attempts of a node."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.nat.allowance import BURST, MAX_TARGETS, REFILL, Allowance

VICTIM, OTHER = "203.0.113.9", "203.0.113.10"


def spend(allowance: Allowance, count: int, now: float, ip: str = VICTIM) -> int:
    return sum(allowance.take(ip, now) for _ in range(count))


def test_a_burst_and_no_more() -> None:
    allowance = Allowance()
    assert spend(allowance, BURST + 100, 0.0) == BURST
    assert not allowance.take(VICTIM, 0.0)


def test_each_address_has_its_own() -> None:
    allowance = Allowance()
    spend(allowance, BURST, 0.0)
    assert allowance.take(OTHER, 0.0)
    assert not allowance.take(VICTIM, 0.0)


def test_it_fills_up_again_to_the_burst() -> None:
    allowance = Allowance()
    spend(allowance, BURST, 0.0)
    assert spend(allowance, BURST, 10.0) == int(10 * REFILL)
    assert spend(allowance, 2 * BURST, 1e6) == BURST


def test_a_refusal_does_not_put_it_off() -> None:
    """Asking again and again must not keep it empty for ever, nor full."""
    allowance = Allowance()
    spend(allowance, BURST, 0.0)
    taken = sum(allowance.take(VICTIM, k * 0.01) for k in range(1, 101))
    assert taken == pytest.approx(REFILL, abs=1)


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    allowance = Allowance()
    spend(allowance, BURST, 100.0)
    assert not allowance.take(VICTIM, 100.0)
    assert not allowance.take(VICTIM, 50.0)


def strangers(count: int, net: str = "198") -> list[str]:
    return [f"{net}.51.{number >> 8}.{number & 255}" for number in range(count)]


def test_naming_many_addresses_makes_nobody_forgotten_who_is_owed_something() -> None:
    allowance = Allowance()
    spend(allowance, BURST, 0.0)
    for ip in strangers(MAX_TARGETS - 1):
        assert allowance.take(ip, 0.0)
    assert not allowance.take(OTHER, 0.0)  # no room, and nobody whose burst is whole again
    assert not allowance.take(VICTIM, 0.0)
    assert len(allowance._left) == MAX_TARGETS


def test_those_whose_burst_is_whole_again_make_room() -> None:
    allowance = Allowance()
    spend(allowance, BURST, 0.0)
    for ip in strangers(MAX_TARGETS - 1):
        allowance.take(ip, 0.0)
    for ip in strangers(MAX_TARGETS - 1, net="192"):
        assert allowance.take(ip, 1.0)
    assert len(allowance._left) == MAX_TARGETS
    assert spend(allowance, BURST, 1.0) == int(REFILL)


def test_a_subscriber_with_ipv6_is_one_target() -> None:
    allowance = Allowance()
    assert sum(allowance.take(f"2001:db8:0:1::{number:x}", 0.0) for number in range(1, 2 * BURST)) == BURST
    assert not allowance.take("2001:db8:0:1:ffff::1%eth0", 0.0)
    assert allowance.take("2001:db8:0:2::1", 0.0)


def test_several_at_once_go_or_stay_together() -> None:
    allowance = Allowance()
    assert allowance.take(VICTIM, 0.0, BURST - 1)
    assert not allowance.take(VICTIM, 0.0, 2)
    assert allowance.take(VICTIM, 0.0, 1)


@pytest.mark.slow("dozens of histories")
@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 3000)), max_size=12))
def test_never_more_than_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    allowance = Allowance()
    now, taken = 0.0, 0
    for wait, count in steps:
        now += wait
        taken += spend(allowance, count, now)
        assert taken <= BURST + now * REFILL + 1e-6
