"""Schedules the searches for a better path of a Link whose path is live, and excludes ways that failed for a while.

A *way* is a plugin, address family and route type.  A search costs both sides packets, and a way that failed a moment
ago mostly fails again.  Hence these rules:

* Searches become ever rarer, and there is none unless the Link has carried data since the last one.  When the network
  has changed, a search is due at once.
* After each change of path there is no search for a while.  After an upgrade, a change to a better path, this pause is
  the longer the more upgrades there were lately, so that a Link does not go back and forth.  Changes away from a dead
  path are not upgrades: a Link that had to take a relay repeatedly should leave it once the trouble is over.
* A way whose path turned out to be bad sits out, unless all paths of the Link are lost later: then the network was the
  cause.
* Sprays are part of the first search, and then rare.

No I/O: methods take `now`, a monotonic time in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from math import inf
from typing import Final, final

__all__ = ["UpgradeSchedule"]

PAUSES: Final = (15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds before each search, after the previous one; the last number holds for all further ones."""
HEAD_START: Final = 0.01
"""Seconds that a search right after the call is delayed in favour of the first bytes: its plans and signals take 5 ms
of processor time."""
POSTPONED: Final = 60.0
"""Seconds after which a postponed search is considered again: a thousand idle Links cost 17 checks a second."""
JITTER: Final = 0.2
"""Share by which the pauses vary at random, so that Links, of one node or of several, do not search in step."""
DWELL: Final = 10.0
"""Seconds after a change of path in which there is no search; after an upgrade, doubled for each recent upgrade before
it."""
DWELL_MAX: Final = 300.0
"""Seconds of `DWELL` at most, however many upgrades there were."""
DWELL_MEMORY: Final = 600.0
"""Seconds after which an upgrade is no longer recent."""
SITS_OUT: Final = 60.0
"""Seconds for which a way is excluded whose path carried no bulk data or failed in its first seconds; each further
failure doubles them."""
SITS_OUT_MAX: Final = 3600.0
"""Seconds of `SITS_OUT` at most: the longest regular pause between searches."""
SPRAYS: Final = 900.0
"""Seconds between two searches that spray, unless the path or the network has changed.  A spray sends hundreds of
packets from as many ports, which a NAT may be short of, and NATs do not change by themselves."""


@final
class UpgradeSchedule:
    """The searches of one Link.

    Args:
      uniform: draws a number between two others (`random.Random.uniform`).
      at_once: the first search is due after `HEAD_START`.

    Attributes:
      next_at: when the next search is due.
    """

    def __init__(self, now: float, *, uniform: Callable[[float, float], float], at_once: bool = False) -> None:
        self._uniform: Final = uniform
        self._step = 0
        self._upgrades: deque[float] = deque()
        self._rests_until = -inf
        self._sitting_out: dict[Hashable, tuple[float, float]] = {}  # until when, and for how long
        self._sprayed_at = -inf
        self.next_at: float = now + HEAD_START
        if not at_once:
            self._wait(now)

    def _wait(self, now: float, *, at_least: float = 0.0) -> None:
        pause = max(PAUSES[min(self._step, len(PAUSES) - 1)], at_least) * self._uniform(1 - JITTER, 1 + JITTER)
        self.next_at = max(now + pause, self._rests_until)

    def searched(self, now: float) -> None:
        """A search has ended."""
        if self.may_spray(now):
            self._sprayed_at = now
        self._step += 1
        self._wait(now)

    def held_up(self, now: float) -> None:
        """A search is due, but no way may be tried: the next one is due when an exclusion ends, at the latest."""
        self._step += 1
        self._wait(now)
        ends = [until for until, _ in self._sitting_out.values() if until > now]
        self.next_at = max(min([self.next_at, *ends]), self._rests_until)

    def may_spray(self, now: float) -> bool:
        """Whether to spray: in the first search since the path or the network has changed, and rarely later."""
        return self._step == 0 or now - self._sprayed_at >= SPRAYS

    def postpone(self, now: float) -> None:
        """A search is due, but there was no data since the last one, or no better path is possible."""
        self._wait(now, at_least=POSTPONED)

    def hint(self, now: float) -> None:
        """The network has changed: search at once, and end all exclusions."""
        self._step = 0
        self._sitting_out.clear()
        self.next_at = max(now, self._rests_until)

    def changed(self, now: float, *, upgraded: bool, found: bool = False) -> None:
        """The Link has changed to another path.

        Args:
          upgraded: the new path is better, and the old one was live.
          found: the new path was found by a search after all others had failed.  This ends all exclusions.
        """
        if found:
            self._sitting_out.clear()
        dwell = DWELL
        if upgraded:
            while self._upgrades and now - self._upgrades[0] >= DWELL_MEMORY:
                self._upgrades.popleft()
            dwell = min(DWELL * 2 ** len(self._upgrades), DWELL_MAX)
            self._upgrades.append(now)
        self._rests_until = max(self._rests_until, now + dwell)
        self._step = 0
        self._wait(now)

    def failed(self, way: Hashable, now: float) -> None:
        """A way led to a bad path: exclude it for a while."""
        _, before = self._sitting_out.get(way, (0.0, 0.0))
        seconds = min(2 * before, SITS_OUT_MAX) or SITS_OUT
        self._sitting_out[way] = (now + seconds, seconds)

    def sits_out(self, way: Hashable, now: float) -> bool:
        """Whether a way is excluded."""
        return now < self._sitting_out.get(way, (-inf, 0.0))[0]
