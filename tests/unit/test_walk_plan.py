"""What a newer address of the peer adds to a walk's plan, and what the report shows of both plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from warpgate_trio.combos import Combo, Likelihood, RouteType
from warpgate_trio.plugin import PHASES
from warpgate_trio.report import ComboReport, Outcome, Verdict
from warpgate_trio.walk.plan import Plan
from warpgate_trio.walk.recorder import Recorder

PUNCH: Final = Combo(
    phase="punch",
    plugin="udp_punch",
    af=4,
    route_type=RouteType.EXT_BIND,
    target=None,
    source=None,
    likelihood=Likelihood.HOPELESS,
    delay=0.0,
    why="as it was",
)
LIKELY: Final = replace(PUNCH, likelihood=Likelihood.LIKELY, why="as it is")
HOPELESS: Final = replace(PUNCH, why="as it is")
OTHER: Final = replace(PUNCH, af=6)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(peer="p" * 52, now=0.0)


def planned(recorder: Recorder, *combos: Combo) -> Plan:
    plan = Plan(combos, PHASES, recorder)
    plan.record()
    return plan


def rows(recorder: Recorder) -> tuple[ComboReport, ...]:
    return recorder.finish(Verdict.UNREACHABLE, 1.0, session_id=bytes(16)).combos


@pytest.mark.parametrize("likelihood", [Likelihood.DOUBTFUL, Likelihood.LIKELY])
def test_what_was_hopeless_may_work_now(recorder: Recorder, likelihood: Likelihood) -> None:
    now = replace(LIKELY, likelihood=likelihood)
    plan = planned(recorder, PUNCH, OTHER)
    assert plan.add_new([now, OTHER]) == [now]
    assert plan.of_phase("punch") == [now]
    assert plan.hopeless() == [OTHER]
    assert [(row.af, row.outcome) for row in rows(recorder)] == [(6, Outcome.HOPELESS), (4, Outcome.NOT_STARTED)]


def test_or_be_hopeless_for_another_reason(recorder: Recorder) -> None:
    plan = planned(recorder, PUNCH)
    plan.add_new([HOPELESS])
    assert plan.hopeless() == [HOPELESS]
    assert [row.error for row in rows(recorder)] == ["as it is"]


@pytest.mark.parametrize("likelihood", [Likelihood.DOUBTFUL, Likelihood.LIKELY])
@pytest.mark.parametrize("now", list(Likelihood)[1:])
def test_what_may_work_stays_as_it_is(recorder: Recorder, likelihood: Likelihood, now: Likelihood) -> None:
    """An attempt may be under way."""
    before = replace(PUNCH, likelihood=likelihood)
    plan = planned(recorder, before)
    assert plan.add_new([replace(LIKELY, likelihood=now)]) == []
    assert plan.of_phase("punch") == [before]


def test_what_was_tried_in_the_last_round_stays_in_the_report(recorder: Recorder) -> None:
    """Even if it had not started when the new plan came, since it was holding back for another combo."""
    plan = planned(recorder, PUNCH, OTHER)
    recorder.started(PUNCH, 0.1)
    assert plan.add_new([LIKELY, replace(OTHER, why="as it is")]) == [LIKELY, replace(OTHER, why="as it is")]
    recorder.started(OTHER, 0.2)
    recorder.ended(PUNCH, Outcome.FAILED, 0.3, error="no answer")
    recorder.started(LIKELY, 0.3)
    recorder.ended(LIKELY, Outcome.WON, 0.4)
    assert [(row.af, row.outcome) for row in rows(recorder)] == [
        (4, Outcome.FAILED),
        (6, Outcome.TIMED_OUT),
        (4, Outcome.WON),
    ]
