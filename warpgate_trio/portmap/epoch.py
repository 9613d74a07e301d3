"""Detects that a gateway has restarted, and lost its mappings, by its count of seconds (its epoch).  Pure.

The gateway's clock may run slower than ours by an eighth (RFC 6886 §3.6) or a sixteenth (RFC 6887 §8.5), and two
seconds of delay are allowed for.  Local times are monotonic, so setting the host's clock has no effect.
"""

from __future__ import annotations

from typing import Final, final

__all__ = ["Epoch"]

SLACK: Final = 2.0
"""Seconds by which an answer may be later than the one before."""
DRIFT: Final = 1 / 8
"""Part of the elapsed time by which the two clocks may differ: that of RFC 6886, the more tolerant of the two RFCs."""


@final
class Epoch:
    """The last epoch that a gateway has reported."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def is_continued(self, epoch: int, now: float) -> bool:
        """Whether `epoch`, received at `now`, continues the previous one; the next one is compared with it."""
        before, self._last = self._last, (epoch, now)
        if before is None:
            return True
        theirs, ours = epoch - before[0], now - before[1]
        return theirs >= -1 and theirs + SLACK >= ours * (1 - DRIFT)
