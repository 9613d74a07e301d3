"""The table of a walk's phases: how long each may last, and whether its combos go on or are repeated later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

from ..config import Budgets

__all__ = ["PHASE_TABLE", "PhaseRule", "phase_budget"]

PHASE_SLACK: Final = 0.5
"""Seconds of a punch beyond its round trips: time for one lost SYN.  A punch takes seven round trips, or three and a
half of a signal."""
UNLIKELY_SLACK: Final = 0.1
"""Seconds of a punch beyond its round trips where it is not likely and sprays are worth trying.  That is enough for a
punch without loss; any other is tried again beside the sprays."""

RoundTrip = float | None
"""Seconds that a signal to a peer and its answer take at least; None while no signal server is connected."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRule:
    """A phase.

    Attributes:
      budget: returns the seconds that the phase may last; the largest value where no round trip was measured.
      short_budget: returns the seconds where the next phase is more promising.
      goes_on: whether its likely combos, and those towards another network, go on beside the next phase.
      repeats: the phase whose combos are tried again in this one if they ran out of time.
    """

    budget: Callable[[Budgets, RoundTrip], float]
    short_budget: Callable[[float], float] | None = None
    goes_on: bool = False
    repeats: str | None = None


def _direct(budgets: Budgets, signal_rtt: RoundTrip) -> float:
    if signal_rtt is None:
        return budgets.direct_max
    return min(max(3 * signal_rtt, budgets.direct_min), budgets.direct_max)


def _punch(budgets: Budgets, signal_rtt: RoundTrip) -> float:
    if signal_rtt is None:  # there is no signal server yet; a direct phase may have had nothing to wait for
        return budgets.direct_max + budgets.punch
    return max(budgets.punch, 4 * signal_rtt + PHASE_SLACK)


def _unlikely_punch(signal_rtt: float) -> float:
    return 3.5 * signal_rtt + UNLIKELY_SLACK


def _spray(budgets: Budgets, signal_rtt: RoundTrip) -> float:
    return max(budgets.spray, 5 * (signal_rtt or 0.0) + 4 * PHASE_SLACK)


def _relay(budgets: Budgets, signal_rtt: RoundTrip) -> float:
    return budgets.relay_base + 12 * (signal_rtt if signal_rtt is not None else budgets.direct_max / 3)


PHASE_TABLE: Final[Mapping[str | None, PhaseRule]] = {
    "direct": PhaseRule(budget=_direct, goes_on=True),
    # A punch over TCP lasts a second or two, so a late signal and a lost SYN are enough to miss it: at 5 % loss, 8 of
    # 8,000 pairs missed that could have met.  The second try has new ports, a new instant, and a longer phase.
    "punch": PhaseRule(budget=_punch, short_budget=_unlikely_punch),
    "spray": PhaseRule(budget=_spray, repeats="punch"),
    "relay": PhaseRule(budget=_relay),
    None: PhaseRule(budget=_relay),  # plugins without a phase: their own timeout replaces the budget
}
"""In the order of a walk (`warpgate_trio.plugin.PHASES`)."""


def phase_budget(phase: str | None, budgets: Budgets, signal_rtt: RoundTrip) -> float:
    """Seconds that a phase may last."""
    return PHASE_TABLE[phase].budget(budgets, signal_rtt)
