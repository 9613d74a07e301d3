"""Counts the unacknowledged data that all Links of a node keep, without I/O.

Kept data cannot be discarded, so a Link may hold no more than is still free (dynamic thresholds: Choudhury and Hahne,
1998).  While few Links hold much this has no effect, as each has a bound of its own.  With more of them, all arrive at
the same share, and a Link that comes later still finds memory.  A Link that may hold no more waits for its own peer's
acknowledgement, never for another peer's.
"""

from __future__ import annotations

from typing import Final, final

__all__ = ["ReplayMemory"]

REPLAY_TOTAL: Final = 256 * 1024 * 1024
"""Bytes that all Links of a node keep for peers that do not acknowledge them, including overhead: 31 Links may keep
`REPLAY_MAX` each, a hundred of them 2.5 MiB each."""
REPLAY_FLOOR: Final = 256 * 1024
"""Bytes that each Link may keep whatever the others do: two chunks of a sender, so that one is in flight while the
other is acknowledged."""


@final
class ReplayMemory:
    """The count of one node; each of its Links adds what it keeps, and subtracts what it releases.

    Args:
      total: bytes that all Links together may keep.
      floor: bytes that each Link may keep, whatever the others keep.

    Attributes:
      held: bytes that are kept now.
    """

    __slots__ = ("_floor", "_total", "held")

    def __init__(self, *, total: int = REPLAY_TOTAL, floor: int = REPLAY_FLOOR) -> None:
        self._total = total
        self._floor = floor
        self.held: int = 0

    def allows(self, held: int) -> bool:
        """Whether a Link that keeps `held` bytes may keep more."""
        return held < self._floor or held < self._total - self.held

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes are within the total."""
        return self.held + size <= self._total
