"""Combines the answers of several servers to one offset with an uncertainty.  No I/O, no clock.

Theory of operation.  Each server's answer is an interval that contains the true offset if the server is right.  So the
intervals of all right servers have a point in common (Marzullo's algorithm, on which the selection in RFC 5905 section
11.2.1 is based).  The best guess is the middle of the part that most intervals have in common.  A liar that agrees with
the others a little can shift this middle.  So the uncertainty is wider: it covers every point on which *some* majority
agrees.  The true offset is such a point as long as most servers are right, whatever the others say.  Only a majority
can outvote.  If two servers contradict each other, either may be the liar, so there is no estimate and neither moves
our clock.

An estimate ages.  The oscillators of two hosts drift apart by up to `DRIFT` seconds per second.  The estimate also
becomes wrong when the wall clock is moved: by the host's time daemon, by hand, or by a sleep in which the monotonic
clock stood still.  So a `ClockEstimate` remembers both clocks, and detects by their difference that one was moved.
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
    """The offset according to one server: `offset` ± `uncertainty` seconds."""

    source: str
    offset: float
    uncertainty: float

    def aged(self, seconds: float) -> Interval:
        """The same interval `seconds` later, widened by the drift."""
        return Interval(self.source, self.offset, self.uncertainty + DRIFT * max(seconds, 0.0))


@final
@dataclass(frozen=True, slots=True)
class Offset:
    """The offset on which a majority agrees.

    Attributes:
      offset: seconds to add to the local clock.
      uncertainty: seconds by which that may be wrong.
      agreeing: the sources whose intervals overlap the points on which some majority agrees.
      outvoted: the other sources.
    """

    offset: float
    uncertainty: float
    agreeing: tuple[str, ...]
    outvoted: tuple[str, ...]


def intersect(intervals: Sequence[Interval]) -> Offset | None:
    """The offset that most intervals have in common; None when no majority overlaps, or there are no intervals."""
    edges = sorted(
        [(each.offset - each.uncertainty, 0) for each in intervals]  # of equal edges, beginnings come before ends
        + [(each.offset + each.uncertainty, 1) for each in intervals]
    )
    depths = accumulate(-1 if ends else 1 for _, ends in edges)
    stretches = [(depth, low, high) for depth, (low, _), (high, _) in zip(depths, edges, edges[1:], strict=False)]
    agreed = [stretch for stretch in stretches if stretch[0] * 2 > len(intervals)]
    if not agreed:
        return None
    deepest = [stretch for stretch in agreed if stretch[0] == max(agreed)[0]]
    offset = (deepest[0][1] + deepest[-1][2]) / 2  # equally large groups count together, with the gap between them
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
    """The error of this host's wall clock at one moment, from which later errors follow.

    Attributes:
      offset: seconds to add to the wall clock.
      uncertainty: seconds by which the corrected time may have been wrong at that moment.
      measured_at: that moment, in monotonic seconds (`trio.current_time`).
      wall_at: that moment on the wall clock, in Unix seconds.
      servers: the servers that agreed.
      faults: by server, one sentence on what was wrong with each of the others.
      delays: by server, the shortest round trip in seconds to each that answered.
    """

    offset: float
    uncertainty: float
    measured_at: float
    wall_at: float
    servers: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    delays: Mapping[str, float] = field(default_factory=dict)

    def moved(self, wall: float, monotonic: float) -> float:
        """Seconds by which the wall clock has gained on the monotonic one since the measurement; may be negative."""
        return (wall - self.wall_at) - (monotonic - self.measured_at)

    def corrected(self, wall: float, monotonic: float) -> float:
        """Unix seconds, from the present times of both clocks.

        Where the clocks have diverged, there are two explanations.  If the wall clock was set, the time follows from
        the measurement and the monotonic clock.  If the host slept, it follows from the wall clock and the offset.  The
        explanation by which the wall clock is less wrong is used, as a daemon sets a clock to make it right.
        """
        by_monotonic = self.wall_at + self.offset + (monotonic - self.measured_at)
        return by_monotonic if abs(by_monotonic - wall) <= abs(self.offset) else wall + self.offset

    def uncertainty_at(self, wall: float, monotonic: float) -> float:
        """Seconds by which `corrected` may be wrong: it grows with age, and allows for both causes of a moved clock."""
        age = max(monotonic - self.measured_at, 0.0)
        return self.uncertainty + DRIFT * age + abs(self.moved(wall, monotonic))
