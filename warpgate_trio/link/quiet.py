"""For how long the UDP paths of a node may be silent: what its NATs are known to bear, without I/O.

A NAT forgets the mapping of a path on which nothing is said, and tells nobody.  All are taken to bear the interval that
a path begins with (`carrier.quic.IDLE_INTERVAL`); most bear twice that, for half of the questions.  There is no way to
find out but to be silent, so one idle path is, for all that leave this machine by the same uplink: if it lives, the
longer interval is theirs from then on; if not, that Link looks for another path, as ever, and no other one tries again
for an hour.

Both ends' NATs have to bear it, and either end asks after the shorter interval unless it knows that its own does, or
tries it.  So a path is silent for longer only where both do, and no end's NAT is tried by the other end alone.

Who asks opens the own NAT anew, and may be answered by a path that was dead for whatever the peer would have said.  So
what proves a NAT is to be heard behind it unasked, and an end that tries waits for longer than one that knows: where
both try, the first question proves the peer's NAT, and the peer, which knows, asks next.

What names an uplink is the local address, and whether the peer's is one of the internet: the way to others leads
through other NATs, or none.  What is known of it is forgotten when the machine has moved, or may have.
"""

from __future__ import annotations

import math
from typing import Final, final

from ..limits import BoundedMap
from ..sockaddr import parse_ip

__all__ = ["GROWTH", "MARGIN", "QUIET_ROUNDS", "TOO_LONG_FOR", "TRIAL_FOR", "TRIAL_WAITS", "TRUST", "Uplink", "Uplinks"]

GROWTH: Final = 2
"""By how much longer a path is silent whose NATs bear it: a question each 50 s, which are two in each two minutes.
Once more would cost a change of QUIC's idle timeout, and paths behind many more NATs."""
QUIET_ROUNDS: Final = 2
"""Questions in a row between which nothing was heard but the answer, before an idle path tries a longer silence."""
TRIAL_WAITS: Final = 1.2
"""How much longer still a path is silent that tries, so that an end that knows asks first, be it the responder."""
TRIAL_FOR: Final = 300.0
"""Seconds that one path has to find out, then another one may: until the peer's end tries, too, its questions break the
silence, four of them; then there is one question of either end."""
TOO_LONG_FOR: Final = 3600.0
"""Seconds for which nobody tries again what was not borne: a path an hour is what it may cost."""
TRUST: Final = 2
"""Paths in a row that have to be lost until what has been borne again and again is so no more: the peer's NAT may have
failed, or its machine."""
MARGIN: Final = 1.0
"""Seconds by which a silence may be off: timers are late, and packets take their time."""
MAX_UPLINKS: Final = 64
"""Local addresses that are remembered; IPv6 brings new ones each day."""


@final
class Uplink:
    """What is known of one."""

    __slots__ = ("_too_long_until", "_trial_until", "_trier", "_trust")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """It may be another one by now."""
        self._trust = 0
        self._too_long_until = -math.inf
        self._trier: object | None = None
        self._trial_until = -math.inf

    @property
    def bears(self) -> bool:
        """Whether paths live through the longer interval."""
        return self._trust > 0

    def growth(self, path: object) -> float:
        """By how much longer than at first a path may be silent."""
        if self.bears:
            return GROWTH
        return GROWTH * TRIAL_WAITS if self._trier is path else 1.0

    def begin_trial(self, path: object, now: float) -> None:
        """A path that is idle tries, unless it is known what would come of it, or another path does."""
        if not self.bears and now >= self._too_long_until and (self._trier is None or now >= self._trial_until):
            self._trier = path
            self._trial_until = now + TRIAL_FOR

    def end_trial(self, path: object) -> None:
        """It is idle no more; nothing was learnt."""
        if self._trier is path:
            self._trier = None

    def note_borne(self, *, asked: bool) -> None:
        """A path has lived through the longer interval; the peer was heard then, asked by us or not."""
        if self.bears or not asked:
            self._trust = min(self._trust + 1, TRUST)
            self._trier = None

    def note_lost(self, now: float) -> None:
        """A path has not lived through a silence that was longer than at first."""
        self._trust -= 1
        if not self.bears:
            self._give_up(now)

    def note_unclear(self, path: object, now: float) -> None:
        """A path is heard, and something else may have opened its NATs anew: no trial is to end like that twice."""
        if self._trier is path:
            self._give_up(now)

    def _give_up(self, now: float) -> None:
        self.forget()
        self._too_long_until = now + TOO_LONG_FOR


@final
class Uplinks:
    """Those of one node."""

    def __init__(self) -> None:
        self._known: BoundedMap[tuple[str, bool], Uplink] = BoundedMap(MAX_UPLINKS)

    def get(self, local: str, remote: str) -> Uplink:
        """That of a path between two addresses."""
        key = local, parse_ip(remote).is_global
        uplink = self._known.use(key)
        if uplink is None:
            self._known.put(key, uplink := Uplink())
        return uplink

    def forget(self) -> None:
        """The machine may be elsewhere."""
        for key in self._known:
            if uplink := self._known.get(key):
                uplink.forget()
