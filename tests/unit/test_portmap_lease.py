"""When a mapping is requested, renewed, checked and given up."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address import Transport
from warpgate_trio.portmap.client import Claim, Found, Grant
from warpgate_trio.portmap.epoch import Epoch
from warpgate_trio.portmap.lease import (
    CHECK_INTERVAL,
    MAX_CONFLICTS,
    MIN_PORT,
    RETRY_FIRST,
    RETRY_LAST,
    SOONEST,
    Lease,
    Step,
)

NONCE = bytes(12)
NOW = 1000.0


def lease(port: int = 4433, others: tuple[int, ...] = (5001, 5002, 5003, 5004)) -> Lease:
    return Lease(Transport.TCP, port, nonce=NONCE, choose=iter(others).__next__)


def grant(of: Lease, lifetime: int = 3600, external: int | None = None, ip: str | None = None) -> Grant:
    return Grant(of.claim, external or of.claim.external, None if ip is None else IPv4Address(ip), lifetime)


def test_the_external_port_is_the_internal_one_where_that_may_be_asked_for() -> None:
    assert lease(4433).claim == Claim(Transport.TCP, 4433, 4433, NONCE)
    assert lease(MIN_PORT).claim.external == MIN_PORT
    assert lease(443).claim == Claim(Transport.TCP, 443, 5001, NONCE)


def test_it_is_asked_for_at_once() -> None:
    fresh = lease()
    assert fresh.deadline < 0
    assert fresh.step is Step.MAP


@pytest.mark.parametrize(("lifetime", "renews"), [(3600, 1800), (86400, None), (60, 30), (2, SOONEST)])
def test_it_is_renewed_at_half_of_what_was_given(lifetime: int, renews: float | None) -> None:
    held = lease()
    held.granted(grant(held, lifetime), NOW)
    for n in range(1, 4):
        if held.step is Step.RENEW:
            break
        assert held.deadline == NOW + n * CHECK_INTERVAL
        held.checked(Found(True), NOW + n * CHECK_INTERVAL)
    if renews is None:
        assert held.step is Step.CHECK
    else:
        assert (held.step, held.deadline) == (Step.RENEW, NOW + renews)


def test_what_was_given_for_ever_is_checked_and_not_renewed() -> None:
    held = lease()
    held.granted(grant(held, 0), NOW)
    assert (held.step, held.deadline) == (Step.CHECK, NOW + CHECK_INTERVAL)


def test_a_renewal_names_the_port_that_was_given() -> None:
    held = lease(4433)
    held.granted(grant(held, external=9000), NOW)
    assert held.claim == Claim(Transport.TCP, 4433, 9000, NONCE)


def test_a_renewal_that_fails_is_tried_again_until_the_end_and_then_anew() -> None:
    held = lease()
    held.granted(grant(held, 120), NOW)
    times = []
    while held.grant is not None:
        assert held.step is Step.RENEW
        times.append(held.deadline - NOW)
        held.failed(held.deadline)
    assert times == [60, 90, 105, 112.5, 117.5, 120]
    assert (held.step, held.deadline) == (Step.MAP, NOW + 120 + SOONEST)
    held.failed(held.deadline)
    assert held.deadline == NOW + 120 + SOONEST + RETRY_FIRST


def test_a_gateway_that_refuses_is_asked_again_later_and_later() -> None:
    fresh, now, pauses = lease(), NOW, []
    for _ in range(8):
        fresh.failed(now)
        pauses.append(fresh.deadline - now)
        now = fresh.deadline
    assert pauses == [60, 120, 240, 480, 960, 1920, RETRY_LAST, RETRY_LAST]


def test_what_the_user_has_to_allow_is_asked_once_an_hour() -> None:
    fresh = lease()
    fresh.failed(NOW, denied=True)
    assert fresh.deadline == NOW + 3600


def test_where_somebody_has_the_port_three_others_are_tried() -> None:
    fresh = lease()
    tried = []
    for _ in range(MAX_CONFLICTS):
        fresh.failed(NOW, conflict=True)
        assert fresh.deadline == NOW
        tried.append(fresh.claim.external)
    assert tried == [5001, 5002, 5003]
    fresh.failed(NOW, conflict=True)
    assert fresh.deadline == NOW + RETRY_FIRST
    assert fresh.claim.external == 4433


def test_a_port_that_is_lost_to_somebody_else_at_a_renewal_is_replaced() -> None:
    held = lease()
    held.granted(grant(held), NOW)
    held.failed(NOW + 1800, conflict=True)
    assert held.grant is None
    assert (held.step, held.deadline, held.claim.external) == (Step.MAP, NOW + 1800, 5001)


def test_what_the_gateway_has_forgotten_is_asked_for_at_once() -> None:
    held = lease()
    held.granted(grant(held), NOW)
    held.checked(Found(False), NOW + CHECK_INTERVAL)
    assert held.grant is None
    assert (held.step, held.deadline) == (Step.MAP, NOW + CHECK_INTERVAL)


def test_a_check_tells_the_gateways_new_address() -> None:
    held = lease()
    held.granted(grant(held, ip="192.0.2.1"), NOW)
    held.checked(Found(True, IPv4Address("192.0.2.2")), NOW + CHECK_INTERVAL)
    assert held.grant is not None
    assert str(held.grant.ip) == "192.0.2.2"


def test_an_announcement_renews_now() -> None:
    held = lease()
    held.granted(grant(held), NOW)
    held.look_again(NOW + 7)
    assert (held.step, held.deadline) == (Step.RENEW, NOW + 7)
    fresh = lease()
    fresh.failed(NOW)
    fresh.look_again(NOW + 7)
    assert (fresh.step, fresh.deadline) == (Step.MAP, NOW + 7)


class _Events:
    """The events that a lease may receive, by number."""

    @staticmethod
    def happen(held: Lease, event: int, value: int, now: float) -> None:
        if event == 0:
            held.granted(grant(held, value % 90_000, 1024 + value % 60_000), now)
        elif event == 1:
            held.failed(now, conflict=value % 2 == 0, denied=value % 3 == 0)
        elif event == 2:
            held.checked(Found(value % 2 == 0), now)
        elif event == 3:
            held.look_again(now)
        else:
            held.lost(now)


@settings(max_examples=50)
@given(st.integers(1, 65535), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**6), st.floats(0, 4000))))
def test_whatever_happens_the_internal_port_stays_and_the_end_of_a_lifetime_is_the_end(
    port: int, events: list[tuple[int, int, float]]
) -> None:
    held = Lease(Transport.UDP, port, nonce=NONCE, choose=lambda: 5000)
    now, ends = NOW, float("inf")
    for event, value, later in events:
        now = min(now + later, max(now, held.deadline))
        _Events.happen(held, event, value, now)
        if event == 0 and held.grant is not None:
            ends = now + held.grant.lifetime if held.grant.lifetime else float("inf")
        assert held.claim.internal == port
        assert held.claim.external >= MIN_PORT
        assert held.claim.nonce == NONCE
        assert held.deadline < float("inf")
        if held.grant is not None and held.grant.lifetime >= 2 * SOONEST:
            assert held.deadline <= max(ends, now)


class TestEpoch:
    def test_seconds_that_go_on(self) -> None:
        epoch = Epoch()
        assert epoch.is_continued(100, NOW)
        assert epoch.is_continued(110, NOW + 10)
        assert epoch.is_continued(110, NOW + 11)  # the answer was slow
        assert epoch.is_continued(990, NOW + 1000)  # the gateway's clock is slower, by less than an eighth

    @pytest.mark.parametrize(("later", "epoch"), [(600, 0), (600, 90), (600, 500), (3, 0)])
    def test_a_restart(self, later: float, epoch: int) -> None:
        clock = Epoch()
        clock.is_continued(100, NOW)
        assert not clock.is_continued(epoch, NOW + later)
        assert clock.is_continued(epoch + 600, NOW + later + 600)
