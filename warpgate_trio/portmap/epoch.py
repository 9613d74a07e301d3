"""Whether a gateway has restarted, and forgotten its mappings, by the seconds that it counts (its epoch).  Pure.

RFC 6886 §3.6 and RFC 6887 §8.5: the gateway's clock may run up to an eighth (there: a sixteenth) slower than ours, and
two seconds are lost on the way.  What is counted here is monotonic, so setting the machine's clock changes nothing.
"""

from __future__ import annotations

from typing import Final, final

__all__ = ["Epoch"]

SLACK: Final = 2.0
"""Seconds that an answer may take longer than the one before."""
DRIFT: Final = 1 / 8
"""Part of the time by which the two clocks may differ: RFC 6886's, the more patient of the two."""


@final
class Epoch:
    """What was last heard of a gateway's epoch."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def is_continued(self, epoch: int, now: float) -> bool:
        """Whether `epoch`, heard at `now`, goes on from what was heard before; it is what the next one is held to."""
        before, self._last = self._last, (epoch, now)
        if before is None:
            return True
        theirs, ours = epoch - before[0], now - before[1]
        return theirs >= -1 and theirs + SLACK >= ours * (1 - DRIFT)
