"""`tests.kernel.theory` is consistent, and agrees with published results."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.kernel.nats import NATS, Nat, Transport, nat
from tests.kernel.theory import can_punch, expected_phase, hit_chance, possible, spray_chance

PAIRS = list(itertools.product(NATS.values(), repeat=2))


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_it_is_the_same_from_both_sides(transport: Transport) -> None:
    for a, b in PAIRS:
        assert can_punch(a, b, transport) == can_punch(b, a, transport)
        assert expected_phase(a, b, transport) == expected_phase(b, a, transport)


def test_a_weaker_filter_or_mapping_loses_no_pair() -> None:
    for a, b in PAIRS:
        if can_punch(a, b, "udp"):
            assert can_punch(replace(a, filtering="EIF"), b, "udp")
            assert can_punch(replace(a, mapping="EIM"), b, "udp")


def test_the_matrix_that_everybody_knows() -> None:
    kinds = ("open", "full-cone", "address-restricted", "port-restricted", "symmetric")
    fails = {(a, b) for a in kinds for b in kinds if not can_punch(NATS[a], NATS[b], "udp")}
    cone, symmetric = "port-restricted", "symmetric"
    assert fails == {(cone, symmetric), (symmetric, cone), (symmetric, symmetric)}


@pytest.mark.parametrize(
    ("a", "b", "phase"),
    [
        ("open", "symmetric", "direct"),
        ("port-restricted", "rst-box", "punch"),
        ("port-restricted", "sequential", "punch"),
        ("sequential", "sequential", "punch"),
        ("port-restricted", "symmetric", "spray"),
        ("sequential", "symmetric", "relay"),
        ("symmetric", "symmetric", "relay"),
        ("udp-blocked", "symmetric", "relay"),
        ("udp-blocked", "port-restricted", "punch"),
    ],
)
def test_expected_phases(a: str, b: str, phase: str) -> None:
    assert expected_phase(nat(a), nat(b)) == phase


def test_one_transport_alone_may_need_a_later_phase() -> None:
    assert expected_phase(nat("open"), nat("open"), "udp") == "spray"
    assert expected_phase(nat("port-restricted"), nat("full-cone"), "udp") == "spray"
    assert expected_phase(nat("udp-blocked"), nat("full-cone"), "udp") == "relay"
    assert expected_phase(nat("port-restricted"), nat("symmetric"), "tcp") == "relay"
    assert expected_phase(nat("symmetric"), nat("symmetric"), phases=("direct", "punch")) is None


def test_a_forwarded_port_helps_whom_it_is_told() -> None:
    forwarded, symmetric = nat("forwarded"), nat("symmetric")
    assert not possible("direct", symmetric, forwarded)
    assert possible("direct", symmetric, forwarded, known_forward=True)


@pytest.mark.parametrize(
    ("probes", "published"), [(174, 0.50), (256, 0.64), (1024, 0.98), (2048, 0.999)], ids=["174", "256", "1024", "2048"]
)
def test_the_published_chances_of_a_spray(probes: int, published: float) -> None:
    assert spray_chance(nat("port-restricted"), nat("symmetric"), probes=probes) == pytest.approx(published, abs=0.006)


def test_a_foretold_port_is_no_easy_side_of_a_spray() -> None:
    assert spray_chance(nat("sequential"), nat("port-restricted")) == 1.0, "one packet is all that it takes"
    assert spray_chance(nat("sequential"), nat("symmetric")) < 0.01
    assert spray_chance(nat("sequential"), nat("block-symmetric")) < 0.2


def test_two_sides_at_random_need_small_ranges() -> None:
    block = Nat(name="block", mapping="APDM", allocation="random", ports=range(50_000, 51_024))
    assert spray_chance(nat("symmetric"), nat("symmetric"), probes=2048) == pytest.approx(0.000126, rel=0.01)
    assert spray_chance(block, block, sockets=256, probes=256) == pytest.approx(0.061, abs=0.001)


def test_more_than_all_ports_always_hit() -> None:
    assert hit_chance(600, 500, 1000) == 1.0
