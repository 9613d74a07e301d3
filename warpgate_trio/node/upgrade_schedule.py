"""When a better path is looked for, for a Link whose path is well, and which ways to one are left alone for a while.

A search costs both sides packets, and what did not work a moment ago mostly does not work now.  So searches come ever
more rarely, and only where something was said since the last one; where the network has changed, at once.  After a
change of path there is none for a while, and after one to a better path the longer the more of these there were lately,
so that a Link does not go back and forth.  Flights from what is dead do not count there: who had to take a relay again
and again in trouble wants to leave it once that is over.  A way that turned out to be no good sits out, unless all
paths of the Link were lost after that: then it was the network.  Sprays come in the first search, and then rarely.

No I/O: methods take `now`, a monotonic time in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from math import inf
from typing import Final, final

__all__ = ["UpgradeSchedule"]

PAUSES: Final = (15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds before each search, after the one before it; the last one is for all further ones."""
HEAD_START: Final = 0.01
"""Seconds that the first bytes of a call have before a search that begins right behind it, whose plans and signals take
the processor for 5 ms."""
POSTPONED: Final = 60.0
"""Seconds after which one that was not worth it is thought of again: a thousand idle Links cost 17 looks a second."""
JITTER: Final = 0.2
"""Share by which these vary: the Links of a node, and those of two, do not search in step."""
DWELL: Final = 10.0
"""Seconds after a change of path in which there is no search; after one to a better path, each of these that there was
lately doubles them."""
DWELL_MAX: Final = 300.0
"""Seconds of that at most."""
DWELL_MEMORY: Final = 600.0
"""Seconds after which a change to a better path is forgotten."""
SITS_OUT: Final = 60.0
"""Seconds for which a way is left alone whose path carried no bulk, or was no good in its first seconds; each further
failure doubles them."""
SITS_OUT_MAX: Final = 3600.0
"""Seconds of that at most: as rarely as a search comes by itself."""
SPRAYS: Final = 900.0
"""Seconds between two searches that spray, unless the path or the network has changed: a spray sends hundreds of
packets from as many ports, which a NAT may be short of, and NATs do not change by themselves."""


@final
class UpgradeSchedule:
    """The searches of one Link.

    Args:
      uniform: draws a number between two (`random.Random.uniform`).
      at_once: the first one is due as soon as the first bytes have had their `HEAD_START`.

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
        """One has ended."""
        if self.may_spray(now):
            self._sprayed_at = now
        self._step += 1
        self._wait(now)

    def held_up(self, now: float) -> None:
        """One is due, and nothing is to be tried: the next one comes once a way that sits out may be, at the latest."""
        self._step += 1
        self._wait(now)
        ends = [until for until, _ in self._sitting_out.values() if until > now]
        self.next_at = max(min([self.next_at, *ends]), self._rests_until)

    def may_spray(self, now: float) -> bool:
        """Whether sprays are worth it: in the first search since path or network has changed, and rarely later."""
        return self._step == 0 or now - self._sprayed_at >= SPRAYS

    def postpone(self, now: float) -> None:
        """One is due and not worth it: nothing was said since the last one, or nothing better can be."""
        self._wait(now, at_least=POSTPONED)

    def hint(self, now: float) -> None:
        """The network has changed: what did not work may work now."""
        self._step = 0
        self._sitting_out.clear()
        self.next_at = max(now, self._rests_until)

    def changed(self, now: float, *, upgraded: bool, found: bool = False) -> None:
        """The Link speaks on another path.

        Args:
          upgraded: on a better one, while nothing was wrong.
          found: on one that was searched for, as none was well: what has failed before, has failed with all others.
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
        """A way led to a path that was no good."""
        _, before = self._sitting_out.get(way, (0.0, 0.0))
        seconds = min(2 * before, SITS_OUT_MAX) or SITS_OUT
        self._sitting_out[way] = (now + seconds, seconds)

    def sits_out(self, way: Hashable, now: float) -> bool:
        """Whether a way is left alone."""
        return now < self._sitting_out.get(way, (-inf, 0.0))[0]
