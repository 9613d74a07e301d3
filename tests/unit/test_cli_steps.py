"""The steps of `ping --explain`: each cause stands below the step that it concerns, and each advice appears once."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import msgspec
import pytest

from warpgate_trio.address import PeerAddress
from warpgate_trio.address.nat_profile import NatProfile, TransportProfile
from warpgate_trio.cli.explaining import step_lines
from warpgate_trio.cli.steps import Step, advice_of, find_steps
from warpgate_trio.combos import Aim
from warpgate_trio.identity import Identity
from warpgate_trio.netcheck import ClockCheck, NetcheckReport, ServerCheck
from warpgate_trio.netcheck.report import Path, path_check
from warpgate_trio.report import (
    ADVICE,
    BETTER_ADVICE,
    REMEDIES,
    ComboReport,
    ConnectReport,
    Known,
    Outcome,
    SignalReport,
    Verdict,
    advise,
)

ISSUED: Final = 1_000_000
PEER: Final = PeerAddress.issue(
    Identity.from_seed(bytes(32)), seq=1, issued_at=ISSUED, expires_at=ISSUED + 9, host_salt=bytes(8), host_id=bytes(16)
)
PHASES: Final = {"direct_connect": "direct", "reverse_connect": "direct", "tcp_punch": "punch", "ws_relay": "relay"}
AIMS: Final = dict(zip(PHASES, (Aim.PEER, Aim.OURS, Aim.MEET, Aim.RELAY), strict=True))
SERVER: Final = ServerCheck(url="ws://a", kind="websocket", transport="tcp", reachable=True, latency_ms=1.0)
DEAD: Final = ServerCheck(url="ws://a", kind="websocket", transport="tcp", reachable=False, error="refused")


def network(*servers: ServerCheck, offset: float | None = 0.0, blocked: bool | None = None) -> NetcheckReport:
    ours = ip_address("192.0.2.1")
    profile = NatProfile(udp=TransportProfile(blocked=blocked))
    return NetcheckReport(
        online=True,
        complete=True,
        elapsed_ms=1.0,
        external=(),
        paths=(path_check(Path("eth0", 4, ours, (ours,), main=True, profile=profile)),),
        servers=servers or (SERVER,),
        clock=ClockCheck(offset_s=offset),
        can=(),
        cannot=(),
        unknown=(),
    )


def combo(plugin: str, outcome: Outcome, *, error: str | None = None) -> ComboReport:
    return ComboReport(
        phase=PHASES[plugin],
        plugin=plugin,
        af=4,
        route="EXT_BIND",
        target="",
        likelihood="likely",
        outcome=outcome,
        error=error,
        started_ms=0.0,
        ended_ms=1.0,
    )


FAILED: Final = tuple(combo(plugin, Outcome.FAILED, error="no answer") for plugin in PHASES)
RELAYED: Final = (*FAILED[:-1], combo("ws_relay", Outcome.WON))
ANSWERED: Final = SignalReport(sent=True, delivery="delivered", answered=True, clock_corrected=False)
DIRECT: Final = (combo("direct_connect", Outcome.WON), combo("ws_relay", Outcome.NOT_STARTED))


def report(
    verdict: Verdict,
    *known: Known,
    combos: tuple[ComboReport, ...] = FAILED,
    signals: SignalReport | None = ANSWERED,
) -> ConnectReport:
    return ConnectReport(
        peer="p" * 52,
        session="0" * 32,
        verdict=verdict,
        advice=advise(verdict, known),
        elapsed_ms=1.0,
        combos=combos,
        known=known,
        signals=signals,
    )


def steps(report: ConnectReport, found: NetcheckReport | None = None) -> list[Step]:
    return find_steps(report, found or network(), PEER, AIMS, now=ISSUED + 200.0)


def advised(found: list[Step]) -> list[str]:
    assert all(each.outcome == "failed" for each in found if each.advice is not None)
    return [each.advice for each in found if each.advice is not None]


def one(found: list[Step], side: str, name: str) -> Step:
    (step,) = (each for each in found if (each.side, each.step) == (side, name))
    return step


@pytest.mark.parametrize("verdict", [each for each in Verdict if each not in (Verdict.CONNECTED, Verdict.NO_DNS)])
def test_each_verdict_has_one_step_with_its_advice(verdict: Verdict) -> None:
    assert advised(steps(report(verdict))) == [ADVICE[verdict]]


def test_names_that_are_not_resolved_are_the_servers() -> None:
    found = steps(report(Verdict.NO_DNS), network(DEAD))
    assert advised(found) == [ADVICE[Verdict.NO_DNS]]
    assert one(found, "here", "signal server").advice is not None


@pytest.mark.parametrize(("verdict", "known"), BETTER_ADVICE)
def test_what_more_is_known_has_its_own_step_and_advice(verdict: Verdict, known: Known) -> None:
    servers = () if known is not Known.NO_SIGNAL_HERE else (DEAD,)
    given = advised(steps(report(verdict, known), network(*servers)))
    assert REMEDIES[known] in given
    assert set(given) <= {REMEDIES[known], ADVICE[verdict]}
    assert len(given) == len(set(given))


def test_two_causes_of_a_step_have_a_row_each() -> None:
    found = steps(report(Verdict.NO_RELAY_CONFIGURED, Known.NO_RELAY_TOKEN, Known.NO_COMMON_SERVER))
    assert [each.advice for each in found if each.step == "relay"] == [
        REMEDIES[Known.NO_RELAY_TOKEN],
        REMEDIES[Known.NO_COMMON_SERVER],
    ]


def test_what_would_help_a_path_is_no_cause_where_the_peer_says_no() -> None:
    found = steps(report(Verdict.PEER_OFFLINE, Known.NO_STUN_HERE))
    assert advised(found) == [ADVICE[Verdict.PEER_OFFLINE]]


def test_a_direct_path_has_no_advice_whatever_is_known() -> None:
    found = steps(report(Verdict.CONNECTED, Known.UDP_BLOCKED_THERE, combos=DIRECT), network(blocked=True))
    assert advised(found) == []
    assert one(found, "server", "relay").outcome == "skipped"


def test_a_relayed_path_has_what_would_make_it_direct() -> None:
    plain = report(Verdict.CONNECTED, combos=RELAYED)
    assert advised(steps(plain)) == [advice_of(plain, network())] == [ADVICE[Verdict.NO_BETTER_PATH]]
    known = report(Verdict.CONNECTED, Known.BOTH_SYMMETRIC, combos=RELAYED)
    assert advised(steps(known)) == [advice_of(known, network())] == [REMEDIES[Known.BOTH_SYMMETRIC]]
    seen = network(blocked=True)
    assert advised(steps(plain, seen)) == [advice_of(plain, seen)] == [REMEDIES[Known.UDP_BLOCKED_HERE]]


def test_a_way_on_which_udp_passes_is_enough() -> None:
    ways = (*network(blocked=True).paths, *network(blocked=False).paths)
    seen = msgspec.structs.replace(network(), paths=ways)
    assert advised(steps(report(Verdict.CONNECTED, combos=RELAYED), seen)) == [ADVICE[Verdict.NO_BETTER_PATH]]


def test_a_clock_that_is_wrong() -> None:
    found = steps(report(Verdict.CONNECTED, combos=DIRECT), network(offset=-301.0))
    assert one(found, "here", "clock") == Step(
        side="here", step="clock", outcome="failed", detail="301.000 s ahead", advice=ADVICE[Verdict.CLOCK_OFF]
    )
    assert one(steps(report(Verdict.UNREACHABLE), network(offset=None)), "here", "clock").outcome == "unknown"
    assert advised(steps(report(Verdict.CLOCK_OFF), network(offset=301.0))) == [ADVICE[Verdict.CLOCK_OFF]]


@pytest.mark.parametrize(
    ("verdict", "signals", "outcome", "words"),
    [
        (Verdict.UNREACHABLE, None, "skipped", "nothing had to be said"),
        (Verdict.PEER_OFFLINE, ("nobody_home", False, False), "failed", "do not know the peer"),
        (Verdict.PEER_SILENT, ("full", False, False), "failed", "takes no more messages"),
        (Verdict.PEER_SILENT, ("queued", False, False), "failed", "has not answered"),
        (Verdict.PEER_SILENT, ("delivered", False, False), "failed", "has not answered"),
        (Verdict.NO_SIGNAL, (None, False, False), "failed", "no signal server took"),
        (Verdict.CLOCK_OFF, ("delivered", False, True), "failed", "has told its time and nothing else"),
        (Verdict.RELAY_FAILED, ("delivered", True, True), "ok", "has answered, after its time"),
        (Verdict.REFUSED, ("delivered", False, False), "skipped", "was reached otherwise"),
        (Verdict.CONNECTED, (None, False, False), "skipped", "was reached otherwise"),
    ],
)
def test_whether_the_peer_was_found_by_signal(
    verdict: Verdict, signals: tuple[str | None, bool, bool] | None, outcome: str, words: str
) -> None:
    said = None
    if signals is not None:
        said = SignalReport(sent=True, delivery=signals[0], answered=signals[1], clock_corrected=signals[2])
    step = one(steps(report(verdict, signals=said)), "there", "signals")
    assert step.outcome == outcome
    assert words in step.detail


def test_a_peer_that_says_no_was_reached_by_the_path_that_failed_last() -> None:
    refused = combo("reverse_connect", Outcome.FAILED, error="the peer refused: unauthorized")
    combos = (combo("direct_connect", Outcome.TIMED_OUT), refused, combo("tcp_punch", Outcome.LOST))
    found = steps(report(Verdict.REFUSED, combos=combos))
    assert [(each.side, each.outcome) for each in found if each.step in PHASES.values()] == [
        ("here", "failed"),
        ("there", "ok"),
        ("both", "failed"),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3 * 86400, "3 days"), (-9, "0 s")],
)
def test_how_old_the_address_is(seconds: float, words: str) -> None:
    found = find_steps(report(Verdict.UNREACHABLE), network(), PEER, AIMS, now=ISSUED + seconds)
    assert one(found, "there", "NAT").detail == f"its address says nothing of it (address of {words} ago)"


def test_the_lines() -> None:
    failed = Step(side="there", step="signals", outcome="failed", detail="gone", advice="Look.")
    assert step_lines([failed, Step(side="here", step="clock", outcome="ok", detail="right")]) == [
        "failed   there   signals: gone",
        "                 → Look.",
        "ok       here    clock: right",
    ]
