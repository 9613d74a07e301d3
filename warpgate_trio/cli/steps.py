"""The steps of a call for ``ping --explain``: what was done on which side, how it ended, and what would help.

The report has the verdict, the known causes and the advice; this module assigns each of them to the step that it
concerns.  A cause belongs to one step.  A failed step has one piece of advice, or none if another step is its cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ..combos import Aim
from ..netcheck import NetcheckReport, PathCheck
from ..plugin import PHASES
from ..report import ADVICE, BETTER_ADVICE, REMEDIES, ComboReport, ConnectReport, Known, Outcome, Verdict, advise
from .failures import combos_in_words

if TYPE_CHECKING:
    from ..address import PeerAddress

__all__ = ["Step", "advice_of", "find_steps"]

MAX_CLOCK_ERROR: Final = 300.0
"""Seconds by which a clock may be wrong: peers refuse signals with a time stamp further away (docs/signals.md)."""
SIGNAL_KINDS: Final = ("websocket", "mqtt")
SIDES: Final = {Aim.PEER: "here", Aim.OURS: "there", Aim.MEET: "both", Aim.RELAY: "server"}
"""The side that acts: the side that dials, both at once, or a server that relays."""

_STEP_OF_VERDICT: Final = {
    Verdict.NO_BETTER_PATH: "direct",
    Verdict.REFUSED: "acceptance",
    Verdict.NOT_ACCEPTING: "acceptance",
    Verdict.BUSY: "acceptance",
    Verdict.UNSUPPORTED: "acceptance",
    Verdict.WRONG_PEER: "acceptance",
    Verdict.BROKE_OFF: "acceptance",
    Verdict.CLOCK_OFF: "clock",
    Verdict.NO_DNS: "signal server",
    Verdict.NO_SIGNAL: "signal server",
    Verdict.PEER_OFFLINE: "signals",
    Verdict.PEER_SILENT: "signals",
    Verdict.UNREACHABLE: "direct",
    Verdict.NO_RELAY_CONFIGURED: "relay",
    Verdict.RELAY_FAILED: "relay",
    Verdict.RELAY_FORBIDS: "relay",
}
"""The step that each verdict concerns; the others concern the whole call."""
_STEP_OF_KNOWN: Final = {
    Known.NO_RELAY_TOKEN: "relay",
    Known.NO_COMMON_SERVER: "relay",
    Known.NO_SIGNAL_HERE: "signal server",
    Known.NO_STUN_HERE: "NAT here",
    Known.NO_STUN_THERE: "NAT there",
    Known.UDP_BLOCKED_HERE: "NAT here",
    Known.UDP_BLOCKED_THERE: "NAT there",
    Known.BOTH_SYMMETRIC: "punch",
    Known.TAKEN: "acceptance",
}
_ABOUT_PATHS: Final = frozenset(
    {
        Verdict.NO_BETTER_PATH,
        Verdict.UNREACHABLE,
        Verdict.TIMED_OUT,
        Verdict.NO_RELAY_CONFIGURED,
        Verdict.RELAY_FAILED,
        Verdict.RELAY_FORBIDS,
    }
)
"""Verdicts that all known causes help to explain; any other verdict names the one problem to solve first."""
_SAID: Final = {
    Verdict.REFUSED: "the peer does not let this id in",
    Verdict.NOT_ACCEPTING: "the peer does not listen",
    Verdict.BUSY: "the peer has no room",
    Verdict.UNSUPPORTED: "the peer speaks another version",
    Verdict.WRONG_PEER: "another node answers at the peer's address",
    Verdict.BROKE_OFF: "the path broke before the peer had accepted",
}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    Attributes:
      side: ``"here"``, ``"there"`` (the peer's side), ``"both"`` or ``"server"``.
      step: its name.
      outcome: ``"ok"``, ``"failed"``, ``"skipped"`` (not needed, or not reached) or ``"unknown"``.
      detail: what is known about it, as text for the user.
      advice: what would help if the step failed; None if it did not fail, or if another step is the cause.
    """

    side: str
    step: str
    outcome: str
    detail: str
    advice: str | None = None


def advice_of(report: ConnectReport, network: NetcheckReport) -> str:
    """The advice for a call; for a relayed Pipe, what would make its path direct."""
    return advise(_verdict_of(report), _known(report, network))


def _known(report: ConnectReport, network: NetcheckReport) -> set[Known]:
    """The known causes: those of the report, and blocked UDP, which the call may have been too early to know."""
    ways = [each.udp.blocked for each in network.paths if each.main]
    blocked = bool(ways) and all(ways)
    return {*report.known, *([Known.UDP_BLOCKED_HERE] if blocked else [])}


def _verdict_of(report: ConnectReport) -> Verdict:
    winner = report.winner
    relayed = report.verdict is Verdict.CONNECTED and winner is not None and winner.phase == "relay"
    return Verdict.NO_BETTER_PATH if relayed else report.verdict


def find_steps(
    report: ConnectReport, network: NetcheckReport, peer: PeerAddress, aims: Mapping[str, Aim], *, now: float
) -> list[Step]:
    """The steps of a call, in the order in which they were, or would have been, taken.

    Args:
      network: the measurement of this side's network.
      peer: the address that was called.
      aims: the aim of each plugin, by its name.
      now: the Unix time in seconds.
    """
    verdict = _verdict_of(report)
    known, about_paths = _known(report, network), verdict in _ABOUT_PATHS
    causes = [each for each in Known if each in known and (about_paths or (verdict, each) in BETTER_ADVICE)]
    steps = [
        _signal_server(report, network),
        _clock(network),
        *_own_nats(network),
        _peer_nats(report, peer, now),
        _signals(report),
        *_phases(report, aims),
        _acceptance(report),
    ]
    if verdict is Verdict.CONNECTED:
        return steps
    for each in causes:
        steps = _blame(steps, _STEP_OF_KNOWN[each], f"{each}", REMEDIES[each])
    step = _STEP_OF_VERDICT.get(verdict)
    if step is None:
        detail = f"{verdict} after {report.elapsed_ms / 1000:.1f} s"
        return [*steps, Step(side="here", step="call", outcome="failed", detail=detail, advice=ADVICE[verdict])]
    found = {_STEP_OF_KNOWN[each] for each in causes}
    if step in found or (causes and verdict is Verdict.NO_BETTER_PATH):
        return steps
    return _blame(steps, step, "", ADVICE[verdict])


def _blame(steps: Sequence[Step], name: str, why: str, advice: str) -> list[Step]:
    """Assign a cause to the step `name`; a second cause of a step gets a step of its own."""
    at = next((i for i, each in enumerate(steps) if _name(each) == name), None)
    if at is None:
        return [*steps, Step(side="both", step=name, outcome="failed", detail=why, advice=advice)]
    step = steps[at]
    rest = list(steps)
    if step.advice == advice:
        return rest
    if step.advice is not None:
        rest.insert(at + 1, Step(side=step.side, step=step.step, outcome="failed", detail=why, advice=advice))
        return rest
    detail = "; ".join(filter(None, (why, step.detail)))
    rest[at] = msgspec.structs.replace(step, outcome="failed", detail=detail, advice=advice)
    return rest


def _name(step: Step) -> str:
    return f"NAT {step.side}" if step.step == "NAT" else step.step


# -- this side ---------------------------------------------------------------------------------------------------------


def _signal_server(report: ConnectReport, network: NetcheckReport) -> Step:
    rows = [each for each in network.servers if each.kind in SIGNAL_KINDS]
    said = [
        f"{each.url}: " + (f"connected, {each.latency_ms:.1f} ms" if each.latency_ms else each.error or "connected")
        for each in rows
    ]
    detail = "; ".join(said) or "none is configured here"
    if any(each.reachable for each in rows):
        return Step(side="here", step="signal server", outcome="ok", detail=detail)
    advice = advise(Verdict.NO_SIGNAL, report.known if rows else {Known.NO_SIGNAL_HERE})
    if report.verdict is Verdict.NO_DNS:
        advice = ADVICE[Verdict.NO_DNS]
    return Step(side="here", step="signal server", outcome="failed", detail=detail, advice=advice)


def _clock(network: NetcheckReport) -> Step:
    offset = network.clock.offset_s
    if offset is None:
        return Step(side="here", step="clock", outcome="unknown", detail="no NTP server answered")
    way = "behind" if offset > 0 else "ahead"
    detail = f"{abs(offset):.3f} s {way}"
    if abs(offset) > MAX_CLOCK_ERROR:
        return Step(side="here", step="clock", outcome="failed", detail=detail, advice=ADVICE[Verdict.CLOCK_OFF])
    return Step(side="here", step="clock", outcome="ok", detail=detail)


def _own_nats(network: NetcheckReport) -> Iterator[Step]:
    paths = [each for each in network.paths if each.main] or network.paths[:1]
    for path in paths:
        outcome = "ok" if path.udp.external or path.tcp.external or path.udp.blocked else "unknown"
        yield Step(side="here", step="NAT", outcome=outcome, detail=_own_nat(path))
    if not paths:
        yield Step(side="here", step="NAT", outcome="failed", detail="this machine has no address but its own loopback")


def _own_nat(path: PathCheck) -> str:
    seen = ", ".join(dict.fromkeys((*path.udp.external, *path.tcp.external)))
    where = f"IPv{path.af} by {path.interface}" + (f", seen as {seen}" if seen else "")
    if not seen and path.udp.blocked is None and path.unknown:
        return f"{where}: {path.unknown[0]}"
    return f"{where}: UDP {path.udp.words}, TCP {path.tcp.words}"


# -- the peer ----------------------------------------------------------------------------------------------------------


def _peer_nats(report: ConnectReport, peer: PeerAddress, now: float) -> Step:
    age = max(now - peer.issued_at, 0.0)
    said = "; ".join(report.peer_nats) or "its address says nothing of it"
    return Step(
        side="there",
        step="NAT",
        outcome="ok" if report.peer_nats else "unknown",
        detail=f"{said} (address of {_age(age)} ago)",
    )


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _signals(report: ConnectReport) -> Step:
    """Whether the peer was found by signals, and has answered."""
    signals, connected = report.signals, report.verdict is Verdict.CONNECTED
    outcome, detail = "failed", "handed over to the peer, which has not answered"
    if signals is None or not signals.sent:
        outcome, detail = "skipped", "nothing had to be said by signal"
    elif signals.answered:
        corrected = ", after its time was taken for ours" if signals.clock_corrected else ""
        outcome, detail = "ok", f"the peer has answered{corrected}"
    elif connected or report.verdict in _SAID:
        outcome, detail = "skipped", "the peer was reached otherwise, before it had answered"
    elif signals.clock_corrected:
        detail = "the peer has told its time and nothing else"
    elif signals.delivery is None:
        detail = "no signal server took a message for the peer"
    elif signals.delivery == "nobody_home":
        detail = "the signal servers do not know the peer"
    elif signals.delivery == "full":
        detail = "the peer takes no more messages at the moment"
    return Step(side="there", step="signals", outcome=outcome, detail=detail)


def _acceptance(report: ConnectReport) -> Step:
    if report.verdict is Verdict.CONNECTED:
        return Step(side="there", step="acceptance", outcome="ok", detail="the peer has accepted")
    if said := _SAID.get(report.verdict):
        return Step(side="there", step="acceptance", outcome="failed", detail=said)
    return Step(side="there", step="acceptance", outcome="skipped", detail="nobody could be asked")


# -- between them ------------------------------------------------------------------------------------------------------


def _phases(report: ConnectReport, aims: Mapping[str, Aim]) -> Iterator[Step]:
    said_no, needed = _who_heard_no(report), _verdict_of(report) is not Verdict.CONNECTED
    for phase in PHASES:
        for aim, side in SIDES.items():
            combos = [each for each in report.combos if each.phase == phase and aims.get(each.plugin, Aim.PEER) is aim]
            if combos:
                outcome = "ok" if said_no in combos else _outcome(combos, needed=needed)
                yield Step(side=side, step=phase, outcome=outcome, detail=_in_words(combos))


def _who_heard_no(report: ConnectReport) -> ComboReport | None:
    """The combo that reached the peer and was refused, which ended the walk: the last combo to fail."""
    if report.verdict not in (Verdict.REFUSED, Verdict.NOT_ACCEPTING, Verdict.BUSY, Verdict.UNSUPPORTED):
        return None
    failed = [each for each in report.combos if each.outcome is Outcome.FAILED]
    return max(failed, key=lambda each: each.ended_ms or 0.0, default=None)


def _in_words(combos: Sequence[ComboReport]) -> str:
    by_plugin: dict[str, list[ComboReport]] = {}
    for each in combos:
        by_plugin.setdefault(each.plugin, []).append(each)
    return "; ".join(f"{plugin}: {combos_in_words(some)}" for plugin, some in by_plugin.items())


def _outcome(combos: Sequence[ComboReport], *, needed: bool) -> str:
    """The outcome of combos.  `needed`: the call has no direct path, so unfinished or hopeless combos have failed."""
    outcomes = {each.outcome for each in combos}
    if Outcome.WON in outcomes:
        return "ok"
    if outcomes == {Outcome.NOT_STARTED}:
        return "skipped"
    return "failed" if needed or outcomes & {Outcome.FAILED, Outcome.TIMED_OUT} else "skipped"
