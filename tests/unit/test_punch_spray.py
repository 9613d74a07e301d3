"""Spraying: the birthday arithmetic against published tables, the plans, and caps that no claim can raise."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address.nat_profile import ALL_PORTS, Allocation, Filtering, Mapping, TransportProfile
from warpgate_trio.punch.spray import (
    BURST,
    BURST_INTERVAL,
    HAIRPINNING,
    MAX_OPENERS,
    MAX_SHARE,
    MAX_SOCKETS,
    MIN_CHANCE,
    TARGET,
    Role,
    balanced_for,
    batches,
    both_hard_probability,
    draw_ports,
    plan_both_hard,
    plan_spray,
    spray_duration,
    spray_probability,
    spray_roles,
)

EASY = TransportProfile(
    translated=True,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
    allocation=Allocation.PRESERVING,
)
HARD = replace(EASY, mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM)
UNKNOWN = TransportProfile()
ALL = HARD.ports


def block(size: int) -> TransportProfile:
    return replace(HARD, low=8192, high=8191 + size)


# In percent, for the full port range; the figures of Tailscale's "How NAT traversal works" are among them.
OPENERS = (64, 128, 174, 256, 512, 1024, 2048, 4096)
TABLE = {
    1: (0.10, 0.20, 0.27, 0.40, 0.79, 1.59, 3.17, 6.35),
    64: (6.16, 11.94, 15.88, 22.48, 39.96, 64.10, 87.33, 98.50),
    128: (11.94, 22.47, 29.25, 39.92, 63.97, 87.13, 98.40, 99.98),
    256: (22.48, 39.92, 49.98, 63.94, 87.05, 98.35, 99.97, 100),
    512: (39.96, 63.97, 75.05, 87.05, 98.34, 99.97, 100, 100),
    1024: (64.10, 87.13, 93.84, 98.35, 99.97, 100, 100, 100),
}


class TestProbability:
    @pytest.mark.parametrize("sockets", TABLE)
    def test_the_table(self, sockets: int) -> None:
        found = [round(100 * spray_probability(sockets, openers, ALL), 2) for openers in OPENERS]
        assert found == list(TABLE[sockets])

    @pytest.mark.parametrize(
        ("ports", "half", "most", "small", "large"),
        [
            (64512, 212, 546, 6.2, 63.9),
            (32768, 151, 389, 11.8, 86.7),
            (28232, 140, 361, 13.5, 90.4),
            (16384, 107, 275, 22.2, 98.3),
            (2048, 38, 98, 87.3, 100),
            (1024, 27, 69, 98.6, 100),
        ],
    )
    def test_the_range_matters_more_than_the_numbers(
        self, ports: int, half: int, most: int, small: float, large: float
    ) -> None:
        assert (balanced_for(0.5, ports), balanced_for(0.99, ports)) == (half, most)
        assert round(100 * spray_probability(64, 64, ports), 1) == small
        assert round(100 * spray_probability(256, 256, ports), 1) == large

    @settings(max_examples=50)
    @given(st.integers(1, 65535), st.data())
    def test_laws(self, ports: int, data: st.DataObject) -> None:
        n, k = data.draw(st.integers(0, ports)), data.draw(st.integers(0, ports))
        p = spray_probability(n, k, ports)
        assert 0 <= p <= 1
        assert p == pytest.approx(spray_probability(k, n, ports), abs=1e-6)
        assert p <= spray_probability(n, min(ports, k + 1), ports) + 1e-6
        assert spray_probability(n, k, ports, delivery=0.5) <= p + 1e-6
        if n + k > ports:
            assert p == 1

    @pytest.mark.parametrize("values", [(-1, 1, 5), (6, 1, 5), (1, 6, 5)])
    def test_impossible_numbers(self, values: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="do not fit"):
            spray_probability(*values)
        with pytest.raises(ValueError, match="chance"):
            balanced_for(1.0, 5)

    @pytest.mark.parametrize(
        ("packets", "ports", "percent"),
        [(256, 64512, 0.0016), (1024, 64512, 0.025), (54000, 65536, 49.3), (256, 1024, 6.1), (512, 1024, 22.1)],
    )
    def test_both_hard(self, packets: int, ports: int, percent: float) -> None:
        p = both_hard_probability(packets, packets, ports, ports, filters_a_by_port=True, filters_b_by_port=True)
        assert 100 * p == pytest.approx(percent, rel=0.02)

    def test_both_hard_with_one_side_that_does_not_filter_by_port_is_the_one_sided_law(self) -> None:
        p = both_hard_probability(256, 1024, ALL, ALL, filters_a_by_port=False, filters_b_by_port=True)
        assert p == pytest.approx(spray_probability(256, 1024, ALL), abs=0.001)
        assert p == both_hard_probability(1024, 256, ALL, ALL, filters_a_by_port=True, filters_b_by_port=False)

    def test_both_hard_without_ports(self) -> None:
        with pytest.raises(ValueError, match="needs ports"):
            both_hard_probability(1, 1, 0, 1, filters_a_by_port=True, filters_b_by_port=True)

    def test_drawn_ports_meet_as_often_as_computed(self) -> None:
        random, runs = Random(4), 200
        hits = 0
        for _ in range(runs):
            mapped = {random.randint(*ALL_PORTS) for _ in range(64)}
            hits += bool(mapped & set(draw_ports(random, 512)))
        p = spray_probability(64, 512, ALL)
        assert abs(hits / runs - p) < 4 * (p * (1 - p) / runs) ** 0.5


class TestPlan:
    def test_the_full_range_takes_the_caps(self) -> None:
        plan = plan_spray(HARD)
        assert (plan.sockets, plan.openers, plan.low, plan.high) == (256, 1024, 1024, 65535)
        assert plan.probability == pytest.approx(0.9835, abs=1e-4)

    @pytest.mark.parametrize(
        ("size", "sockets", "openers"), [(16384, 256, 433), (2048, 119, 113), (1024, 85, 77), (512, 60, 53)]
    )
    def test_a_smaller_range_takes_fewer(self, size: int, sockets: int, openers: int) -> None:
        plan = plan_spray(block(size))
        assert (plan.sockets, plan.openers) == (sockets, openers)
        assert plan.probability > TARGET
        assert spray_probability(plan.sockets, plan.openers - 1, size) <= TARGET

    def test_losses_are_made_up_for(self) -> None:
        assert plan_spray(block(2048), delivery=0.8).openers > plan_spray(block(2048)).openers

    @given(st.integers(1, 65535), st.integers(0, 64511), st.integers(-5, 10**6), st.integers(-5, 10**6))
    def test_no_claim_and_no_caller_raises_the_caps(self, low: int, more: int, sockets: int, openers: int) -> None:
        claimed = replace(HARD, low=low, high=min(65535, low + more))
        plan = plan_spray(claimed, max_sockets=sockets, max_openers=openers)
        assert 1 <= plan.sockets <= max(1, min(MAX_SOCKETS, claimed.ports * MAX_SHARE, sockets))
        assert 1 <= plan.openers <= max(1, min(MAX_OPENERS, claimed.ports, openers))
        both = plan_both_hard(claimed, HARD)
        assert both.sockets <= MAX_SOCKETS
        assert both.openers <= MAX_OPENERS

    def test_two_hard_sides_only_where_both_ranges_are_small(self) -> None:
        assert not plan_both_hard(HARD, HARD).worth_it
        assert not plan_both_hard(HARD, block(512)).worth_it
        for size, packets in ((512, 256), (1024, 512), (2048, 1024)):
            plan = plan_both_hard(block(size), block(size))
            assert plan.worth_it
            assert plan.openers == packets
            assert plan.probability > MIN_CHANCE
        assert not plan_both_hard(block(4096), block(4096)).worth_it

    def test_a_filter_by_address_makes_two_hard_sides_worth_it(self) -> None:
        lenient = replace(HARD, filtering=Filtering.ADDRESS_DEPENDENT)
        assert plan_both_hard(lenient, HARD).probability > 0.99
        assert not plan_both_hard(replace(HARD, filtering=Filtering.UNKNOWN), HARD).worth_it

    @pytest.mark.parametrize(
        ("ours", "peers", "factor"),
        [(None, None, HAIRPINNING), (False, None, 0), (None, True, 1), (True, False, 1)],
        ids=["unknown", "it does not", "it does", "it does for one"],
    )
    def test_of_two_hard_sides_behind_one_address_a_packet_has_to_be_led_back_in(
        self, ours: bool | None, peers: bool | None, factor: float
    ) -> None:
        home, away = ip_address("198.51.100.7"), ip_address("198.51.100.8")
        one, other = replace(block(1024), external=(home,)), replace(block(1024), external=(away,))
        apart = plan_both_hard(one, other).probability
        assert apart == plan_both_hard(block(1024), block(1024)).probability > MIN_CHANCE
        together = plan_both_hard(replace(one, hairpin=ours), replace(other, external=(away, home), hairpin=peers))
        assert together.probability == (apart * factor if apart * factor >= MIN_CHANCE else 0)

    def test_two_hard_sides_behind_one_address_spray_where_they_are_sure_to_meet_if_it_leads_back(self) -> None:
        lenient = replace(HARD, filtering=Filtering.ADDRESS_DEPENDENT, external=(ip_address("198.51.100.7"),))
        assert plan_both_hard(lenient, lenient).worth_it


class TestRoles:
    @pytest.mark.parametrize(
        ("ours", "peers", "roles"),
        [
            (EASY, HARD, (Role.EASY, Role.HARD)),
            (HARD, HARD, (Role.BOTH, Role.BOTH)),
            (EASY, EASY, (None, None)),
            (UNKNOWN, HARD, (Role.EASY, Role.HARD)),
            (UNKNOWN, EASY, (Role.HARD, Role.EASY)),
            (UNKNOWN, UNKNOWN, (Role.EASY, Role.HARD)),
        ],
    )
    def test_both_sides_agree_whoever_asks(
        self, ours: TransportProfile, peers: TransportProfile, roles: tuple[Role | None, Role | None]
    ) -> None:
        assert spray_roles(ours, peers, we_are_lower=True) is roles[0]
        assert spray_roles(peers, ours, we_are_lower=False) is roles[1]


class TestPorts:
    @settings(max_examples=20)
    @given(
        st.integers(-1, 5000),
        st.integers(1, 65535),
        st.integers(0, 3000),
        st.lists(st.integers(-9, 70000), max_size=40),
        st.integers(0, 999),
    )
    def test_drawn(self, count: int, low: int, more: int, first: list[int], seed: int) -> None:
        high = min(65535, low + more)
        ports = draw_ports(Random(seed), count, low=low, high=high, first=first)
        assert len(ports) == len(set(ports)) <= MAX_OPENERS
        assert len(ports) >= min(max(0, count), MAX_OPENERS, high - low + 1)
        wanted = list(dict.fromkeys(port for port in first if 0 < port <= 65535))[: max(0, count)]
        assert ports[: len(wanted)] == wanted
        assert all(low <= port <= high for port in ports[len(wanted) :])

    def test_a_range_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="1 to 65535"):
            draw_ports(Random(1), 5, low=9, high=8)

    @pytest.mark.parametrize("count", [0, 1, BURST, BURST + 1, MAX_OPENERS])
    def test_pacing(self, count: int) -> None:
        sent = list(batches(count))
        assert sum(sent) == count
        assert all(0 < each <= BURST for each in sent)
        assert spray_duration(count) == pytest.approx(max(0, len(sent) - 1) * BURST_INTERVAL)

    def test_all_openers_in_under_half_a_second(self) -> None:
        assert spray_duration(MAX_OPENERS) <= 0.42
