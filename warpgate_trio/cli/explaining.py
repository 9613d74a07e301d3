"""``ping --explain``: shows the steps of a call, with one piece of advice for each that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from .. import host as machine
from ..plugin import load_plugins
from .events import Explained, encode
from .failures import fitted
from .render import console, show_report
from .stdio import StandardOutput
from .steps import Step, advice_of, find_steps

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..node import Node
    from ..report import ConnectReport
    from .options import Settings

__all__ = ["explain_call", "step_lines"]


async def explain_call(settings: Settings, node: Node, peer: PeerAddress, report: ConnectReport, *, kind: str) -> None:
    """Show how a call went.  This side's network is measured for that.

    Args:
      kind: the kind of the path, for the JSON line.
    """
    aims = {name: plugin.aim for name, plugin in load_plugins().plugins.items()}
    network = await node.netcheck()
    steps = find_steps(report, network, peer, aims, now=machine.current().wall_time())
    if settings.json:
        event = Explained(
            peer=report.peer,
            kind=kind,
            verdict=report.verdict.value,
            advice=advice_of(report, network),
            steps=msgspec.to_builtins(steps),
            report=msgspec.to_builtins(report),
        )
        await StandardOutput().write(encode(event))
    _show(settings, report, steps)


def _show(settings: Settings, report: ConnectReport, steps: Sequence[Step]) -> None:
    if settings.quiet:
        return
    in_detail = settings.verbose or settings.debug
    if in_detail:
        show_report(settings, report)
    width = console().width if settings.live else None
    notes = () if in_detail else report.notes  # the table contains the notes
    for line in (*step_lines(steps), *(f"note: {each}" for each in notes)):
        for part in [line] if width is None else fitted(line, width):
            settings.say(part)


def step_lines(steps: Sequence[Step]) -> list[str]:
    """``failed   there   signals: the signal servers do not know the peer``, and the advice below it."""
    lines = []
    for each in steps:
        lines.append(f"{each.outcome:<8} {each.side:<7} {each.step}: {each.detail}")
        if each.advice is not None:
            lines.append(f"{'':<16} → {each.advice}")
    return lines
