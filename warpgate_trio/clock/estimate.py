"""From what several servers say to one offset with an uncertainty.  No I/O, no clock.

Theory of operation.  Each server's answer is an interval that the truth lies in if the server is right.  The servers
that are right therefore have a point in common (Marzullo's algorithm, from which RFC 5905 section 11.2.1 has its
selection).  The best guess is the middle of what most of them have in common.  The uncertainty is wider: a liar who
takes care to agree with the others a little can pull that middle, so it covers every point on which *some* majority
agrees, and the truth is one of those as long as most servers are right, whatever the rest says.  Only a majority can
outvote: of two servers that contradict each other either may be the liar, and then there is no estimate, so that
neither moves our clock.

An estimate ages.  Between the oscillators of two machines lie up to `DRIFT` seconds per second, and it also stops being
true when the wall clock is moved under it: by the machine's own time daemon, by hand, or by a sleep in which the
monotonic clock stood still.  A `ClockEstimate` therefore remembers both clocks and sees by their difference that
one was moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, final

__all__ = ["DRIFT", "ClockEstimate", "Interval", "Offset", "intersect"]

DRIFT: Final = 15e-6
"""Seconds by which a clock may go wrong per second: PHI of RFC 5905 section 7.2."""


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """The offset as one server has it: `offset` ± `uncertainty` seconds."""

    source: str
    offset: float
    uncertainty: float

    def aged(self, seconds: float) -> Interval:
        """The same, `seconds` later."""
        return Interval(self.source, self.offset, self.uncertainty + DRIFT * max(seconds, 0.0))


@final
@dataclass(frozen=True, slots=True)
class Offset:
    """What a majority agrees on.

    Attributes:
      offset: seconds to add to the local clock.
      uncertainty: seconds by which that may be wrong.
      agreeing: the sources that allow for some of what lies within that.
      outvoted: the others.
    """

    offset: float
    uncertainty: float
    agreeing: tuple[str, ...]
    outvoted: tuple[str, ...]


def intersect(intervals: Sequence[Interval]) -> Offset | None:
    """The offset that most intervals have in common; None when no majority of them has any, or there is none."""
    edges = sorted(
        [(each.offset - each.uncertainty, 0) for each in intervals]  # where edges meet, an interval begins first
        + [(each.offset + each.uncertainty, 1) for each in intervals]
    )
    depths = accumulate(-1 if ends else 1 for _, ends in edges)
    stretches = [(depth, low, high) for depth, (low, _), (high, _) in zip(depths, edges, edges[1:], strict=False)]
    agreed = [stretch for stretch in stretches if stretch[0] * 2 > len(intervals)]
    if not agreed:
        return None
    deepest = [stretch for stretch in agreed if stretch[0] == max(agreed)[0]]
    offset = (deepest[0][1] + deepest[-1][2]) / 2  # of two groups that are as large: from the one to the other
    low, high = agreed[0][1], agreed[-1][2]
    right = [each.offset - each.uncertainty <= high and each.offset + each.uncertainty >= low for each in intervals]
    return Offset(
        offset,
        max(offset - low, high - offset),
        tuple(each.source for each, agrees in zip(intervals, right, strict=True) if agrees),
        tuple(each.source for each, agrees in zip(intervals, right, strict=True) if not agrees),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClockEstimate:
    """How wrong this machine's wall clock was at one moment, and what that tells about later ones.

    Attributes:
      offset: seconds to add to the wall clock.
      uncertainty: seconds by which the corrected time may then have been wrong.
      measured_at: that moment, in monotonic seconds (`trio.current_time`).
      wall_at: that moment, as the wall clock had it.
      servers: those that agreed.
      faults: what was wrong with each of the others, by server; one sentence each.
      delays: the shortest round trip to each that answered, in seconds, by server.
    """

    offset: float
    uncertainty: float
    measured_at: float
    wall_at: float
    servers: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    delays: Mapping[str, float] = field(default_factory=dict)

    def moved(self, wall: float, monotonic: float) -> float:
        """Seconds that the wall clock went ahead of the monotonic one since the measurement; negative: fell behind."""
        return (wall - self.wall_at) - (monotonic - self.measured_at)

    def corrected(self, wall: float, monotonic: float) -> float:
        """Unix seconds, given what both clocks show now.

        Where the two clocks have come apart, either the wall clock was set (then the monotonic one leads on from the
        measurement) or the machine slept (then the wall clock does).  Whichever leaves the wall clock less wrong is
        believed; a daemon sets a clock to make it right.
        """
        by_monotonic = self.wall_at + self.offset + (monotonic - self.measured_at)
        return by_monotonic if abs(by_monotonic - wall) <= abs(self.offset) else wall + self.offset

    def uncertainty_at(self, wall: float, monotonic: float) -> float:
        """Seconds by which `corrected` may be wrong: it grows with age, and covers both readings of a moved clock."""
        age = max(monotonic - self.measured_at, 0.0)
        return self.uncertainty + DRIFT * age + abs(self.moved(wall, monotonic))
