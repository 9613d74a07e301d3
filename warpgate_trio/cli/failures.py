"""The output for a walk that gave no Pipe: a screen, or one line if the peer itself gave the reason.

First comes what this side lacked, then what was tried, with a line for each phase, then further notes.  The table of
``-v`` and the JSON line have every combo and every reason.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Final

from .render import console, hanging, show_report, without_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..report import ComboReport, ConnectReport
    from .options import Settings

__all__ = ["combos_in_words", "failure_lines", "fitted", "show_failure"]

SAID_BY_VERDICT: Final = frozenset(
    {"refused", "not_accepting", "busy", "unsupported", "peer_offline", "nothing_to_try"}
)
"""Verdicts for which the sentence about the verdict suffices, and the paths tried explain nothing."""
MAX_NOTES: Final = 4
"""Notes of a kind that are shown on a terminal."""
MAX_LINES: Final = 2
"""Lines of a terminal for one sentence."""


def show_failure(settings: Settings, report: ConnectReport) -> None:
    """Show why there is no Pipe, before the sentence that ends the command."""
    if settings.quiet:
        return
    if settings.verbose or settings.debug:
        for lack in report.lacks:
            settings.say(lack)
        show_report(settings, report)
        return
    for line in failure_lines(report, console().width if settings.live else None):
        settings.say(line)


def failure_lines(report: ConnectReport, width: int | None) -> list[str]:
    """The lines before the last one.

    Args:
      width: columns of the terminal, to which lines are wrapped and long sentences cut; None: no limit, for a file or a
        pipe.
    """
    if report.verdict.value in SAID_BY_VERDICT:
        return []
    lines = [
        *_few(report.lacks, width),
        *_phase_lines(report),
        *_few([f"note: {each}" for each in report.notes], width),
    ]
    if report.combos:
        lines.append("-v shows each path that was tried")
    if width is None:
        return lines
    return [each for line in lines for each in fitted(line, width)]


def _few(sentences: Sequence[str], width: int | None) -> list[str]:
    if width is None or len(sentences) <= MAX_NOTES:
        return list(sentences)
    return [*sentences[: MAX_NOTES - 1], f"and {len(sentences) - MAX_NOTES + 1} more, which -v shows"]


def fitted(text: str, width: int) -> list[str]:
    """A sentence in at most `MAX_LINES` lines of a terminal."""
    lines = hanging(text, width).splitlines()
    if len(lines) <= MAX_LINES and all(len(line) <= width for line in lines):
        return lines
    return hanging(textwrap.shorten(text, MAX_LINES * (width - 8), placeholder=" …"), width).splitlines()[:MAX_LINES]


def _phase_lines(report: ConnectReport) -> Iterator[str]:
    """``punch, up to 2.8 s: 2 paths, 1 timed out, 1 failed (Connection refused)``, in the order of the phases."""
    from ..plugin import PHASES

    for phase in (None, *PHASES):
        combos = [each for each in report.combos if each.phase == phase]
        if not combos:
            continue
        end = max(
            (each.ended_ms or each.started_ms or 0.0 for each in combos if each.started_ms is not None), default=None
        )
        until = "" if end is None else f", up to {end / 1000:.1f} s"
        yield f"{phase or 'the plugin'}{until}: {combos_in_words(combos)}"


def combos_in_words(combos: Sequence[ComboReport]) -> str:
    """``2 paths, 1 timed out, 1 failed (Connection refused)``: the outcomes of combos, and the most frequent reason."""
    outcomes = Counter(each.outcome.value.replace("_", " ") for each in combos)
    counts = [f"{count} {outcome}" for outcome, count in outcomes.most_common()]
    paths = f"{len(combos)} path{'' if len(combos) == 1 else 's'}"
    said = ", ".join([paths, *counts]) if len(counts) > 1 else f"{paths} {next(iter(outcomes))}"
    reasons = Counter(without_address(each.error) for each in combos if each.error)
    return said + (f" ({reasons.most_common(1)[0][0]})" if reasons else "")
