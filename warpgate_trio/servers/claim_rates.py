"""Limits on how often codes may be tried from one network, whoever offers them.  No I/O.

An attacker may want to guess a code, or to void the codes of others by wrong tries, and has one network or a few to do
it from.  So tries are counted per prefix: for IPv6 the /64, the /56 and the /48, for IPv4 the address and the /24.  The
limits of narrow prefixes are tight; wide ones, which many people may share, allow more (`Tier`).  Each prefix has:

* a token bucket for claims of any kind; a successful pairing gives its token back;
* a limit of tries under way, reduced by one for each wrong try, since a try under way may still prove wrong;
* a wait after each *wrong* try beyond the first few, which doubles each time, up to an hour.  A try also counts as
  wrong if it ended by time with a posted proof that was not judged: otherwise late posts would be free guesses.

This allows at most 10 wrong tries in any hour from one /48 or /24, which voids three codes at three tries each.  Wrong
tries are forgotten two hours after the last one.  Honest tries are right: they cost nothing and end within a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

from ..limits import BoundedMap, TokenBucket, prefixes

__all__ = ["ClaimRates", "Tier"]

FIRST_WAIT: Final = 60.0
"""Seconds to wait after the first wrong try that is not free (`Tier.free`): enough to ask for the code again."""
LONGEST_WAIT: Final = 3600.0
"""Seconds to wait at most; the wait doubles with each wrong try."""
WRONG_MEMORY: Final = 7200.0
"""Seconds after the last wrong try of a prefix until its wrong tries are forgotten: twice the longest wait, so that
waiting for it gains nothing."""
REMEMBERED: Final = 16_384
"""Prefixes that are remembered; beyond that the least recently used one is forgotten, and starts afresh."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The limits of one prefix.

    Attributes:
      claims: claims at once.
      seconds: seconds until one more claim is allowed.
      under_way: tries under way at a time.
      free: wrong tries that cause no wait.
    """

    claims: int
    seconds: float
    under_way: int
    free: int


_NARROW: Final = Tier(claims=6, seconds=30.0, under_way=2, free=1)
_MIDDLE: Final = Tier(claims=12, seconds=20.0, under_way=3, free=2)
_WIDE: Final = Tier(claims=24, seconds=10.0, under_way=4, free=3)
_TIERS: Final = {2: (_WIDE, _NARROW), 3: (_WIDE, _MIDDLE, _NARROW)}  # by the number of prefixes, the widest first


@final
class _Source:
    """The counts of one prefix."""

    __slots__ = ("claims", "tier", "under_way", "until", "wrong", "wrong_at")

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.claims = TokenBucket(1 / tier.seconds, tier.claims)
        self.under_way = 0
        self.wrong = 0
        self.wrong_at = -math.inf
        self.until = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until it may try again; 0.0 if it may now."""
        if now - self.wrong_at >= WRONG_MEMORY:
            self.wrong = 0
        if self.under_way >= max(1, self.tier.under_way - self.wrong):
            return 1.0  # until one of them is over
        self.claims.earn(now)
        return max(0.0, self.until - now, self.claims.seconds_until(now))

    def note_wrong(self, now: float) -> None:
        self.wrong += 1
        self.wrong_at = now
        if self.wrong > self.tier.free:
            doubled = FIRST_WAIT * 2.0 ** min(self.wrong - self.tier.free - 1, 10)
            self.until = max(self.until, now) + min(LONGEST_WAIT, doubled)


@final
class ClaimRates:
    """The limits of all prefixes.  For each try that `begin` allows, `end` has to be called."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._sources: BoundedMap[bytes, _Source] = BoundedMap(size)

    def begin(self, host: str, now: float) -> float:
        """Begin a try from a host; returns the seconds that it has to wait, or 0.0 if the try has begun.

        A refused try leaves no trace.  Otherwise a refused /48 could use its 65,536 /64s to push the wrong tries of
        others out of the memory.
        """
        known = [self._sources.use(key) for key in prefixes(host)]
        wait = max((source.wait(now) for source in known if source is not None), default=0.0)
        if wait <= 0:
            for source in self._of(host):
                source.claims.take(now)
                source.under_way += 1
        return wait

    def end(self, host: str, now: float, *, paired: bool = False, wrong: bool = False) -> None:
        """A try from a host is over; `wrong`: its code was wrong, or its proof was not judged in time."""
        for source in self._of(host):
            source.under_way = max(0, source.under_way - 1)
            if paired:
                source.claims.give_back()
            if wrong:
                source.note_wrong(now)

    def _of(self, host: str) -> list[_Source]:
        keys = prefixes(host)
        found: list[_Source] = []
        for key, tier in zip(keys, _TIERS[len(keys)], strict=True):
            source = self._sources.use(key)
            if source is None:
                source = _Source(tier)
                self._sources.put(key, source)
            found.append(source)
        return found
