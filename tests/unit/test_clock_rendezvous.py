"""Boundaries and their ports, and the offset to a peer's clock from one round trip of a signal."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from warpgate_trio.clock.estimate import DRIFT
from warpgate_trio.clock.peer_offset import PeerOffset, combine, from_signal
from warpgate_trio.clock.rendezvous import (
    AVOIDED_PORTS,
    Boundary,
    boundaries_left,
    boundaries_to_serve,
    boundary_rendezvous,
    bucket_ports,
    can_meet,
)

approx: Any = pytest.approx  # stands for a float in comparisons with ==

times = st.floats(0, 1e10)
periods = st.floats(0.01, 1000)
leads = st.floats(0, 1000)

# -- boundaries --------------------------------------------------------------------------------------------------------


def test_the_first_boundary_that_leaves_time() -> None:
    assert boundary_rendezvous(100.0, 3.0, 1.0) == (Boundary(34, 102.0), Boundary(35, 105.0))
    assert boundary_rendezvous(101.0, 3.0, 1.0) == (Boundary(34, 102.0), Boundary(35, 105.0)), "just so"
    assert boundary_rendezvous(101.1, 3.0, 1.0) == (Boundary(35, 105.0), Boundary(36, 108.0))
    assert boundary_rendezvous(0.0, 3.0, 0.0) == (Boundary(0, 0.0), Boundary(1, 3.0))


@given(times, periods, leads)
def test_a_boundary_is_the_first(now: float, period: float, lead: float) -> None:
    first, second = boundary_rendezvous(now, period, lead)
    assert first.instant == first.bucket * period >= now + lead
    assert first.bucket == 0 or (first.bucket - 1) * period < now + lead
    assert second == Boundary(first.bucket + 1, (first.bucket + 1) * period)


@given(times, periods, leads, st.floats(0, 1), st.floats(-1, 1))
def test_two_clocks_meet(now: float, period: float, lead: float, share: float, other: float) -> None:
    """The boundary that one side chooses by its own clock is among those that the other side serves."""
    differ = share * period * 0.499
    theirs = now + other * differ
    assume(theirs >= 0)
    served = boundaries_to_serve(now, period, lead, differ)
    assert boundary_rendezvous(theirs, period, lead)[0] in served
    assert len(served) <= 2


def test_a_good_clock_serves_one_boundary_a_bad_one_two() -> None:
    assert [each.bucket for each in boundaries_to_serve(100.0, 3.0, 1.0, 0.1)] == [34]
    assert [each.bucket for each in boundaries_to_serve(100.95, 3.0, 1.0, 0.1)] == [34, 35]
    assert [each.bucket for each in boundaries_to_serve(101.05, 3.0, 1.0, 0.1)] == [34, 35]
    assert can_meet(3.0, 1.4)
    assert not can_meet(3.0, 1.5)
    for uncertainty in (1.5, math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match="cannot meet"):
            boundaries_to_serve(100.0, 3.0, 1.0, uncertainty)


def test_which_of_a_peers_two_are_left() -> None:
    def left(now: float, uncertainty: float = 0.0) -> list[int]:
        return [each.bucket for each in boundaries_left(34, 3.0, now, 1.0, uncertainty)]

    assert left(100.0) == [34, 35]
    assert left(101.0) == [34, 35]
    assert left(101.0, 0.1) == [35], "if our clock is slow it is too late"
    assert left(103.9) == [35]
    assert left(104.1) == []


@pytest.mark.parametrize("now", [math.nan, math.inf, -1.0, 1e12])
@pytest.mark.parametrize(("period", "lead"), [(3.0, 1.0)])
def test_no_time(now: float, period: float, lead: float) -> None:
    with pytest.raises(ValueError, match="no rendezvous"):
        boundary_rendezvous(now, period, lead)


@pytest.mark.parametrize(("period", "lead"), [(0, 1), (-1, 1), (1e-300, 1), (math.inf, 1), (1, -1), (1, math.inf)])
def test_no_period_or_lead(period: float, lead: float) -> None:
    with pytest.raises(ValueError, match="no rendezvous"):
        boundary_rendezvous(100, period, lead)
    with pytest.raises(ValueError, match=r"no rendezvous|cannot meet"):
        boundaries_to_serve(100, period, lead, 0)
    with pytest.raises(ValueError, match="no rendezvous"):
        boundaries_left(34, period, 100, lead, 0)


def test_a_bucket_of_a_peers_invention() -> None:
    for bucket in (-1, 1 << 64, 1 << 5000):
        with pytest.raises(ValueError, match="is out of range"):
            boundaries_left(bucket, 3.0, 100.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="cannot be negative"):
        boundaries_left(34, 3.0, 100.0, 1.0, -1)


# -- ports -------------------------------------------------------------------------------------------------------------

SECRET = bytes(range(32))


def test_the_ports_golden_numbers() -> None:
    """Both sides must derive the same ports, whatever their releases."""
    assert bucket_ports(SECRET, 600_000_000, 8, 2024, 65535) == (
        *(17210, 42739, 40084, 11646, 25764, 29248, 60550, 16811),
    )
    assert bucket_ports(SECRET, 600_000_001, 3, 40000, 40004) == (40001, 40004, 40003)
    assert sorted(bucket_ports(SECRET, 7, 5, 40000, 40004)) == [40000, 40001, 40002, 40003, 40004]


@given(st.binary(min_size=16, max_size=64), st.integers(0, 10**12), st.integers(0, 300), st.data())
def test_ports_are_distinct_in_range_and_avoid_gateways(
    secret: bytes, bucket: int, n: int, data: st.DataObject
) -> None:
    low = data.draw(st.integers(1, 65000))
    high = data.draw(st.integers(min(low + n + len(AVOIDED_PORTS), 65535), 65535))
    assume(high - low + 1 - len(AVOIDED_PORTS) >= n)
    ports = bucket_ports(secret, bucket, n, low, high)
    assert len(set(ports)) == len(ports) == n
    assert all(low <= port <= high for port in ports)
    assert not AVOIDED_PORTS & set(ports)
    assert bucket_ports(secret, bucket, n // 2, low, high) == ports[: n // 2]


def test_buckets_and_secrets_have_ports_of_their_own() -> None:
    sets = [set(bucket_ports(SECRET, bucket, 8, 2024, 65535)) for bucket in range(20)]
    sets += [set(bucket_ports(bytes([number]) * 16, 0, 8, 2024, 65535)) for number in range(20)]
    assert len(set().union(*sets)) > 300, "of 320, by chance a few twice"


def test_every_port_is_equally_likely() -> None:
    counts = dict.fromkeys(range(50000, 50010), 0)
    for bucket in range(1000):
        for port in bucket_ports(SECRET, bucket, 2, 50000, 50009):
            counts[port] += 1
    assert all(150 < count < 250 for count in counts.values()), counts  # 200 ± 13


@pytest.mark.parametrize(
    ("secret", "bucket", "n", "low", "high", "why"),
    [
        (b"short", 0, 1, 1024, 2048, "at least 16 bytes"),
        (SECRET, -1, 1, 1024, 2048, "is out of range"),
        (SECRET, 1 << 64, 1, 1024, 2048, "is out of range"),
        (SECRET, 0, 1, 0, 2048, "is not a range"),
        (SECRET, 0, 1, 2048, 1024, "is not a range"),
        (SECRET, 0, 1, 1024, 65536, "is not a range"),
        (SECRET, 0, -1, 1024, 2048, "cannot choose -1 ports"),
        (SECRET, 0, 12, 1024, 1034, "cannot choose 12 ports"),
        (SECRET, 0, 2, 5060, 5062, "cannot choose 2 ports"),
    ],
)
def test_what_no_ports_are_made_of(secret: bytes, bucket: int, n: int, low: int, high: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bucket_ports(secret, bucket, n, low, high)


# -- the peer's clock --------------------------------------------------------------------------------------------------


def test_four_timestamps() -> None:
    found = from_signal(100.0, 130.2, 130.3, 100.5, resolution=0.001)
    assert found == PeerOffset(approx(30.0), approx(0.201, abs=1e-4), "signal")
    assert found.to_peer(100.0) == approx(130.0)
    assert found.to_ours(130.0) == approx(100.0)


@given(st.floats(-1e6, 1e6), st.floats(0, 30), st.floats(0, 30), st.floats(0, 30))
def test_the_peers_clock_is_within_half_the_round_trip(true: float, there: float, back: float, held: float) -> None:
    sent = 1.8e9
    found = from_signal(sent, sent + there + true, sent + there + held + true, sent + there + held + back)
    assert abs(found.offset - true) <= found.uncertainty + 1e-6
    drifted = 2 * DRIFT * (there + held + back)
    assert found.uncertainty == approx((there + back) / 2 + drifted, abs=2e-6)


def test_a_peer_whose_clock_runs_faster_than_ours_held_it_for_a_little_longer_than_we_waited() -> None:
    found = from_signal(1.8e9, 1.8e9, 1.8e9 + 10.0009, 1.8e9 + 10)
    assert found.uncertainty >= abs(found.offset - 0.00045) - 1e-6
    with pytest.raises(ValueError, match="claims to have held"):
        from_signal(1.8e9, 1.8e9, 1.8e9 + 10.1, 1.8e9 + 10)


def test_timestamps_of_whole_milliseconds() -> None:
    """Rounding down can put two timestamps on loopback in the wrong order; `resolution` allows for that."""
    assert from_signal(0.0009, 0.001, 0.001, 0.0008, resolution=0.001).uncertainty >= 0.001
    with pytest.raises(ValueError, match="claims to have held"):
        from_signal(0.0009, 0.001, 0.001, 0.0008, resolution=0)


@pytest.mark.parametrize(
    "stamps",
    [
        (0, 5, 4, 1),  # sent before it was received
        (0, 5, 8, 1),  # held for longer than this side waited
        (1, 5, 5, 0),  # answered before it was sent
        (0, math.nan, 1, 1),
        (0, math.inf, math.inf, 1),
    ],
)
def test_no_round_trip(stamps: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"claims to have held|not a finite number"):
        from_signal(*stamps, resolution=0.001)


SIGNAL = PeerOffset(0.02, 0.05, "signal")


@pytest.mark.parametrize(
    ("ours", "theirs", "signal", "expected"),
    [
        (None, None, None, None),
        (0.1, None, None, None),
        (None, 0.1, None, None),
        (math.inf, 0.1, None, None),
        (0.1, 0.2, None, PeerOffset(0.0, approx(0.3), "ntp")),
        (None, None, SIGNAL, SIGNAL),
        (math.inf, 0.01, SIGNAL, SIGNAL),
        (0.01, 0.01, SIGNAL, PeerOffset(0.0, 0.02, "ntp")),
        (0.04, 0.04, SIGNAL, SIGNAL),
        (0.02, 0.03, SIGNAL, SIGNAL),  # equally good: the measurement between the two peers wins
        (0.001, 0.001, PeerOffset(30.0, 0.05, "signal"), PeerOffset(30.0, 0.05, "signal")),  # an NTP server lied
        (0.001, 0.001, PeerOffset(0.04, 0.05, "signal"), PeerOffset(0.0, 0.002, "ntp")),
    ],
)
def test_the_less_uncertain_one_counts(
    ours: float | None, theirs: float | None, signal: PeerOffset | None, expected: PeerOffset | None
) -> None:
    assert combine(ours, theirs, signal) == expected


@pytest.mark.parametrize(("ours", "theirs"), [(-1.0, 5.0), (5.0, -1.0), (math.nan, 1.0)])
def test_no_uncertainty(ours: float, theirs: float) -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        combine(ours, theirs, None)
