"""How a walk's record develops: from the plan, through the events, to the report that users and scripts read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from warpgate_trio.address import Endpoint, EndpointKind, PeerAddress, Transport
from warpgate_trio.address.nat_profile import NatProfile, NatProfiles, TransportProfile
from warpgate_trio.combos import Combo, Likelihood, RouteType
from warpgate_trio.errors import ConnectError, WarpgateError
from warpgate_trio.identity import Identity
from warpgate_trio.plugin import PHASES
from warpgate_trio.report import (
    ADVICE,
    BETTER_ADVICE,
    ConnectReport,
    Known,
    Outcome,
    Verdict,
    WalkEvent,
    advise,
)
from warpgate_trio.walk.recorder import Recorder
from warpgate_trio.walk.session import Session
from warpgate_trio.walk.verdicts import ThisSide, take_stock

SESSION = bytes(range(16))


def combo(plugin: str = "direct_connect", *, port: int = 1, likelihood: Likelihood = Likelihood.LIKELY) -> Combo:
    target = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.EXT, ip="203.0.113.9", port=port)
    return Combo(
        phase="direct",
        plugin=plugin,
        af=4,
        route_type=RouteType.EXT_BIND,
        target=target,
        source=None,
        likelihood=likelihood,
        delay=0.0,
        why="a reason",
    )


@pytest.fixture
def events() -> list[WalkEvent]:
    return []


@pytest.fixture
def recorder(events: list[WalkEvent]) -> Recorder:
    return Recorder(peer="p" * 52, now=100.0, on_event=events.append)


class TestRecorder:
    def test_a_planned_combo_has_not_started(self, recorder: Recorder, events: list[WalkEvent]) -> None:
        recorder.planned(combo())
        (row,) = recorder.finish(Verdict.TIMED_OUT, 101.0, session_id=SESSION).combos
        assert row.outcome is Outcome.NOT_STARTED
        assert (row.phase, row.plugin, row.af, row.route) == ("direct", "direct_connect", 4, "EXT_BIND")
        assert (row.target, row.likelihood) == ("ext tcp 203.0.113.9:1", "likely")
        assert (row.error, row.started_ms, row.ended_ms, row.cleanup_ms) == (None, None, None, None)
        assert events == []

    def test_a_hopeless_combo_says_why(self, recorder: Recorder) -> None:
        recorder.planned(combo(likelihood=Likelihood.HOPELESS))
        (row,) = recorder.finish(Verdict.UNREACHABLE, 101.0, session_id=SESSION).combos
        assert (row.outcome, row.error, row.likelihood) == (Outcome.HOPELESS, "a reason", "hopeless")

    def test_what_started_and_never_ended_ran_out_of_time(self, recorder: Recorder) -> None:
        recorder.planned(combo())
        recorder.started(combo(), 100.0125)
        (row,) = recorder.finish(Verdict.TIMED_OUT, 101.0, session_id=SESSION).combos
        assert (row.outcome, row.started_ms, row.ended_ms) == (Outcome.TIMED_OUT, 12.5, None)

    @pytest.mark.parametrize("outcome", Outcome)
    def test_the_end_of_a_combo(self, recorder: Recorder, outcome: Outcome) -> None:
        recorder.planned(combo())
        recorder.started(combo(), 100.001)
        recorder.ended(combo(), outcome, 100.0345678, error="a reason", cleanup=0.0021)
        (row,) = recorder.finish(Verdict.UNREACHABLE, 101.0, session_id=SESSION).combos
        assert (row.outcome, row.error) == (outcome, "a reason")
        assert (row.started_ms, row.ended_ms, row.cleanup_ms) == (1.0, 34.568, 2.1)

    def test_rows_keep_the_order_of_the_plan(self, recorder: Recorder) -> None:
        plan = [combo(port=port) for port in (3, 1, 2)]
        for each in plan:
            recorder.planned(each)
        for each in reversed(plan):
            recorder.started(each, 100.5)
            recorder.ended(each, Outcome.FAILED, 100.6)
        rows = recorder.finish(Verdict.UNREACHABLE, 101.0, session_id=SESSION).combos
        assert [row.target for row in rows] == [str(each.target) for each in plan]

    def test_a_note_is_kept_once(self, recorder: Recorder, events: list[WalkEvent]) -> None:
        for text in ("a", "b", "a"):
            recorder.note(text, 100.5)
        assert recorder.finish(Verdict.UNREACHABLE, 101.0, session_id=SESSION).notes == ("a", "b")
        assert [event.text for event in events] == ["a", "b"]

    def test_the_events_of_a_walk(self, recorder: Recorder, events: list[WalkEvent]) -> None:
        recorder.planned(combo())
        recorder.phase("direct", 100.0)
        recorder.started(combo(), 100.001)
        recorder.note("something", 100.002)
        recorder.ended(combo(), Outcome.WON, 100.003)
        assert [(event.kind, event.at_ms, event.phase) for event in events] == [
            ("phase", 0.0, "direct"),
            ("combo_started", 1.0, "direct"),
            ("note", 2.0, None),
            ("combo_ended", 3.0, "direct"),
        ]
        rows = [event.combo for event in events if event.combo is not None]
        assert [row.outcome for row in rows] == [Outcome.TIMED_OUT, Outcome.WON]

    def test_it_names_peer_and_session(self, recorder: Recorder) -> None:
        report = recorder.finish(Verdict.UNREACHABLE, 100.25, session_id=SESSION)
        assert (report.peer, report.session) == ("p" * 52, "000102030405060708090a0b0c0d0e0f")
        assert (report.elapsed_ms, report.combos, report.notes) == (250.0, (), ())

    def test_a_second_session_starts_the_rows_afresh(self, recorder: Recorder) -> None:
        recorder.planned(combo())
        recorder.started(combo(), 100.1)
        recorder.ended(combo(), Outcome.FAILED, 100.2, error="a reason")
        recorder.planned(combo())
        (row,) = recorder.finish(Verdict.TIMED_OUT, 101.0, session_id=SESSION).combos
        assert (row.outcome, row.error, row.ended_ms) == (Outcome.NOT_STARTED, None, None)

    def test_nobody_has_to_listen(self) -> None:
        recorder = Recorder(peer="p", now=0.0)
        recorder.phase("direct", 0.1)
        recorder.note("something", 0.2)
        assert recorder.finish(Verdict.UNREACHABLE, 0.5, session_id=SESSION).elapsed_ms == 500.0

    def test_a_combo_that_was_never_planned_is_a_bug(self, recorder: Recorder) -> None:
        with pytest.raises(KeyError):
            recorder.started(combo(), 100.0)


def a_report(verdict: Verdict = Verdict.CONNECTED) -> ConnectReport:
    recorder = Recorder(peer="p" * 52, now=0.0)
    for port, outcome in enumerate(Outcome, 1):
        recorder.planned(combo(port=port))
        recorder.started(combo(port=port), 0.001)
        recorder.ended(combo(port=port), outcome, 0.002, error=None if outcome is Outcome.WON else "a reason")
    recorder.note("something", 0.003)
    return recorder.finish(verdict, 0.004, session_id=SESSION)


class TestConnectReport:
    def test_the_winner(self) -> None:
        winner = a_report().winner
        assert winner is not None
        assert winner.outcome is Outcome.WON

    def test_no_winner(self) -> None:
        assert Recorder(peer="p", now=0.0).finish(Verdict.UNREACHABLE, 1.0, session_id=SESSION).winner is None

    @pytest.mark.parametrize("verdict", Verdict)
    def test_it_is_json_and_reads_back_equal(self, verdict: Verdict) -> None:
        report = a_report(verdict)
        encoded = msgspec.json.encode(report)
        plain: dict[str, Any] = json.loads(encoded)
        assert plain == json.loads(json.dumps(msgspec.to_builtins(report)))
        assert (plain["verdict"], plain["advice"], plain["notes"]) == (verdict.value, ADVICE[verdict], ["something"])
        assert [row["outcome"] for row in plain["combos"]] == [outcome.value for outcome in Outcome]
        assert msgspec.json.decode(encoded, type=ConnectReport) == report

    def test_events_are_json_too(self, recorder: Recorder, events: list[WalkEvent]) -> None:
        recorder.planned(combo())
        recorder.started(combo(), 100.0)
        (event,) = events
        assert msgspec.json.decode(msgspec.json.encode(event), type=WalkEvent) == event


class TestVerdicts:
    @pytest.mark.parametrize("verdict", Verdict)
    def test_each_has_one_sentence_of_advice(self, verdict: Verdict) -> None:
        advice = ADVICE[verdict]
        assert advice.endswith(".")
        assert "\n" not in advice
        assert len(advice) < 120

    def test_the_error_says_verdict_and_advice(self) -> None:
        report = a_report(Verdict.PEER_OFFLINE)
        error = ConnectError(report)
        assert isinstance(error, WarpgateError)
        assert (error.report, error.verdict, error.advice) == (report, Verdict.PEER_OFFLINE, report.advice)
        assert str(error) == f"peer_offline: {report.advice}"


MEASURED = NatProfiles({(None, 4): NatProfile(udp=TransportProfile(translated=False))}).to_bytes(interfaces=0)


@pytest.mark.parametrize(
    ("phases", "this_side", "nat", "known", "lacks"),
    [
        (
            PHASES,
            ThisSide(stun=False),
            None,
            {Known.NO_STUN_HERE, Known.NO_STUN_THERE},
            ["no STUN server is configured"],
        ),
        (PHASES, ThisSide(stun=False), MEASURED, {Known.NO_STUN_HERE}, ["no STUN server is configured"]),
        (PHASES, ThisSide(), None, {Known.NO_STUN_THERE}, []),
        (PHASES, ThisSide(), MEASURED, set(), []),
        (PHASES, ThisSide(signal=False), MEASURED, {Known.NO_SIGNAL_HERE}, ["no signal server is configured"]),
        (
            PHASES,
            ThisSide(silent=["ws://a: refused"]),
            MEASURED,
            set(),
            ["no signal server is connected: ws://a: refused"],
        ),
        (["direct"], ThisSide(stun=False), None, set(), []),
    ],
)
def test_what_this_side_was_without(
    phases: Sequence[str], this_side: ThisSide, nat: bytes | None, known: set[Known], lacks: list[str]
) -> None:
    """Only what the walk needed is reported as missing: no STUN server, for example, if nothing was to be punched."""
    peer = PeerAddress.issue(
        Identity.from_seed(bytes(32)), seq=1, issued_at=1, expires_at=2, host_salt=bytes(8), host_id=bytes(16), nat=nat
    )
    session = Session(peer, SESSION, Recorder(peer="p" * 52, now=0.0))
    session.evidence.signalled = True
    found, sentences = take_stock(session, phases, this_side)
    assert found == known
    assert [have[: len(start)] for have, start in zip(sentences, lacks, strict=True)] == lacks


@pytest.mark.parametrize(("verdict", "known"), BETTER_ADVICE)
def test_advice_goes_by_what_is_known(verdict: Verdict, known: Known) -> None:
    better = BETTER_ADVICE[verdict, known]
    assert advise(verdict, {known}) == better != ADVICE[verdict] == advise(verdict)
    assert better.endswith(".")
    assert len(better) < 120
    assert advise(Verdict.UNREACHABLE, set(Known)) == ADVICE[Verdict.UNREACHABLE]


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_is_shown_by_its_value(verdict: Verdict) -> None:
    assert str(verdict) == f"{verdict}" == verdict.value
