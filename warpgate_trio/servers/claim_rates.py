"""How often codes may be tried from one place, whoever they belong to.  No I/O.

Who wants to guess a code, or to spend other people's by wrong tries, has one place or a few to do it from.  So tries
are counted by tiers (`limits`): of IPv6 the /64, the /56 and the /48, of IPv4 the address and the /24; the narrow ones
are soon used up, the wide ones, which many may share, somewhat later.  Of each prefix:

* so many claims, of any kind, at once and over time (a token each, which a pairing gives back);
* so many tries under way, one less for each wrong one: what is under way cannot be taken back when it proves wrong;
* a wait behind each *wrong* try but the first few, twice as long each time, up to an hour.  A try counts as wrong, too,
  whose time was over with a proof posted and not judged: else whoever posts late would guess for nothing.

From one /48 or /24 that is at most 10 wrong tries in any hour: three codes spent, at three tries each.  Wrong tries are
forgotten two hours after the last one.  What honest people try is right, costs nothing, and is over within a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

from ..limits import BoundedMap, TokenBucket, prefixes

__all__ = ["ClaimRates", "Tier"]

FIRST_WAIT: Final = 60.0
"""Seconds from a wrong try to the next one, behind those that are free: enough to ask again for the code."""
LONGEST_WAIT: Final = 3600.0
"""Seconds of the longest such wait, which doubles with each wrong try."""
WRONG_MEMORY: Final = 7200.0
"""Seconds after the last wrong try from a place in which all of them are forgotten: twice the longest wait, so that
waiting for it gains nothing."""
REMEMBERED: Final = 16_384
"""Prefixes that are remembered; the one that was used longest ago gives way, and begins anew."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What one prefix may do.

    Attributes:
      claims: at once.
      seconds: for one more.
      under_way: tries at a time.
      free: wrong tries that nobody waits for.
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
    """What one prefix has done."""

    __slots__ = ("claims", "tier", "under_way", "until", "wrong", "wrong_at")

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.claims = TokenBucket(1 / tier.seconds, tier.claims)
        self.under_way = 0
        self.wrong = 0
        self.wrong_at = -math.inf
        self.until = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until it may try again; 0.0: it may now."""
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
    """The rates of all places.  `begin` a try, then `end` it, whatever came of it."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._sources: BoundedMap[bytes, _Source] = BoundedMap(size)

    def begin(self, host: str, now: float) -> float:
        """A try from a host begins, unless it has to wait: returns for how many seconds, 0.0 for none.

        Of a try that has to wait nothing is remembered: a network that is refused has 65,536 /64s to be refused from,
        and all of those together would have other people's wrong tries forgotten.
        """
        known = [self._sources.use(key) for key in prefixes(host)]
        wait = max((source.wait(now) for source in known if source is not None), default=0.0)
        if wait <= 0:
            for source in self._of(host):
                source.claims.take(now)
                source.under_way += 1
        return wait

    def end(self, host: str, now: float, *, paired: bool = False, wrong: bool = False) -> None:
        """A try from a host is over; `wrong`: the code was, or nobody said in time that it was not."""
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
