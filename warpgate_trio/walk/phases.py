"""The phases of a walk, one row each: how long it may take, and what becomes of its combos after that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

from ..config import Budgets

__all__ = ["PHASE_TABLE", "PhaseRule", "phase_budget"]

PHASE_SLACK: Final = 0.5
"""Seconds of a punch beyond its round trips, of which it takes seven, or three and a half of a signal's: a lost SYN."""
UNLIKELY_SLACK: Final = 0.1
"""Seconds of a punch beyond its round trips where it is not likely, and sprays are worth it: one that meets no loss has
its time, and any other is tried again beside them."""

RoundTrip = float | None
"""Seconds that a signal to a peer and its answer take at least; None while no signal server is connected."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRule:
    """A phase.

    Attributes:
      budget: seconds that it may take; without a measured round trip, its largest.
      short_budget: seconds that it may take where the phase after it is the better one.
      goes_on: whether likely combos of it, and those towards another network, run on beside the next phase.
      repeats: the phase whose combos have a second try in this one where they ran out of time.
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
    # 8,000 pairs did that could have met.  A second try has new ports, a new instant, and a phase that is longer.
    "punch": PhaseRule(budget=_punch, short_budget=_unlikely_punch),
    "spray": PhaseRule(budget=_spray, repeats="punch"),
    "relay": PhaseRule(budget=_relay),
    None: PhaseRule(budget=_relay),  # plugins without a phase, which have a ceiling of their own in place of a budget
}
"""In the order of a walk (`warpgate_trio.plugin.PHASES`)."""


def phase_budget(phase: str | None, budgets: Budgets, signal_rtt: RoundTrip) -> float:
    """Seconds that a phase may take."""
    return PHASE_TABLE[phase].budget(budgets, signal_rtt)
