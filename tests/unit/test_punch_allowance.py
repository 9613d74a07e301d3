"""How many unrequested packets one address gets, over all attempts of a node."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address.nat_profile import TransportProfile
from warpgate_trio.punch.allowance import (
    BURST,
    DIALS,
    DIALS_REFILL,
    MAX_TARGETS,
    PORTS_KEPT,
    REFILL,
    TARGET_DIALS,
    TARGET_DIALS_REFILL,
    Allowance,
    DialBudget,
    Sprays,
)

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
    """Repeated requests must not keep it empty for ever, nor keep it full."""
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
    assert not allowance.take(OTHER, 0.0)  # the table is full, and no entry has its whole burst again
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


class TestDials:
    def test_to_one_address_whoever_asks(self) -> None:
        dials = DialBudget()
        assert sum(dials.take(VICTIM, 0.0) for _ in range(200)) == TARGET_DIALS
        assert dials.take(OTHER, 0.0)
        assert sum(dials.take(VICTIM, now / 10) for now in range(1, 101)) == int(10 * TARGET_DIALS_REFILL)

    def test_an_ipv6_network_is_one_address(self) -> None:
        dials = DialBudget()
        assert sum(dials.take(f"2001:db8:0:1::{number:x}", 0.0) for number in range(1, 200)) == TARGET_DIALS

    def test_to_all_addresses(self) -> None:
        dials = DialBudget()
        many = [f"198.51.{high}.{low}" for high in range(8) for low in range(100)]
        assert sum(dials.take(ip, 0.0) for ip in many) == DIALS
        assert sum(dials.take(ip, 5.0) for ip in many) == int(5 * DIALS_REFILL)

    def test_who_is_refused_for_all_has_lost_nothing_of_its_own(self) -> None:
        dials = DialBudget()
        for number in range(DIALS):
            dials.take(f"198.51.{number}.1", 0.0)
        for _ in range(100):
            assert not dials.take(VICTIM, 0.0)
        assert sum(dials.take(VICTIM, 1e3) for _ in range(200)) == TARGET_DIALS

    def test_an_address_that_is_exhausted_takes_nothing_of_the_others(self) -> None:
        dials = DialBudget()
        for _ in range(10 * DIALS):
            dials.take(VICTIM, 0.0)
        others = [f"198.51.{number % 256}.{number // 256}" for number in range(2 * DIALS)]
        assert sum(dials.take(ip, 0.0) for ip in others) == DIALS - TARGET_DIALS

    def test_what_is_given_back_may_be_taken_again_and_no_more_than_that(self) -> None:
        dials = DialBudget()
        for _ in range(5 * DIALS):
            assert dials.take(VICTIM, 0.0)
            dials.give_back(VICTIM)
        dials.give_back(VICTIM)
        dials.give_back(OTHER)
        assert sum(dials.take(VICTIM, 0.0) for _ in range(200)) == TARGET_DIALS
        others = [f"198.51.{number % 256}.{number // 256}" for number in range(2 * DIALS)]
        assert sum(dials.take(ip, 0.0) for ip in others) == DIALS - TARGET_DIALS


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from([VICTIM, OTHER]), st.booleans()), max_size=200))
def test_whatever_is_asked_for_an_address_gets_its_dials_and_their_refill(
    steps: list[tuple[float, str, bool]],
) -> None:
    dials, now = DialBudget(), 0.0
    spent = {VICTIM: 0, OTHER: 0}
    for pause, ip, to_the_peer in steps:
        now += pause
        if dials.take(ip, now):
            if to_the_peer:
                dials.give_back(ip)
            else:
                spent[ip] += 1
    for count in spent.values():
        assert count <= TARGET_DIALS + now * TARGET_DIALS_REFILL


# -- ports of this side's NAT ------------------------------------------------------------------------------------------


def block(ports: int, *external: str) -> TransportProfile:
    return TransportProfile(low=2000, high=1999 + ports, external=tuple(map(ip_address, external)))


def test_sprays_leave_half_of_the_ports_for_as_long_as_a_nat_keeps_them() -> None:
    sprays, nat = Sprays(), block(2048, VICTIM)
    assert sprays.take_ports(1000, nat, 0.0)
    assert sprays.has_ports(24, nat, 0.0)
    assert not sprays.has_ports(25, nat, 0.0)
    assert not sprays.take_ports(25, nat, PORTS_KEPT - 0.1)
    assert sprays.take_ports(24, nat, PORTS_KEPT - 0.1)
    assert sprays.take_ports(1000, nat, PORTS_KEPT)
    assert not sprays.take_ports(1, nat, PORTS_KEPT)


def test_asking_whether_there_are_ports_takes_none() -> None:
    sprays, nat = Sprays(), block(100)
    assert all(sprays.has_ports(50, nat, 0.0) for _ in range(3))
    assert not sprays.has_ports(51, nat, 0.0)
    assert sprays.take_ports(50, nat, 0.0)


def test_a_nat_that_is_seen_at_other_addresses_has_all_of_its_ports() -> None:
    sprays = Sprays()
    assert sprays.take_ports(1024, block(2048, VICTIM), 0.0)
    assert sprays.take_ports(1024, block(2048, OTHER), 0.0)
    assert not sprays.has_ports(1, block(2048, OTHER, VICTIM), 0.0)
    assert not sprays.has_ports(1, block(2048), 0.0), "it may be any of them"
    assert sprays.has_ports(1, block(65536 - 2000, VICTIM), 0.0), "another range, and more in it"
