"""For how long the UDP paths of a node may be silent: what its NATs are known to bear, without I/O.

A NAT drops the mapping of a path on which nothing is sent, and tells nobody.  Every NAT is assumed to bear the interval
that a path begins with (`carrier.quic.IDLE_INTERVAL`).  Most bear twice that, which takes half as many PINGs.  Only
silence can show it, so one idle path stays silent on behalf of all paths that leave this host by the same uplink.  If
it survives, all of them use the longer interval from then on.  If not, its Link looks for another path as usual, and no
path tries again for an hour.

The NATs of both ends have to bear the silence.  Each end sends a PING after the shorter interval, unless it knows that
its own NATs bear the longer one, or is trying that.  So a path is silent for longer only where both ends agree, and
neither end's NAT is tried by the other end alone.

An end that sends a PING renews the mapping of its own NAT.  So the PONG may arrive where a message that the peer sends
unasked would not have.  Only an unasked message proves the NAT that it comes through.  For that reason an end that
tries waits for longer than one that knows.  Where both try, the first PING proves the NAT of the other end, which knows
from then on, and so sends the next PING first.

An uplink is identified by the local address, and by whether the peer's address is a global one: paths to other
addresses go through other NATs, or through none.  What is known of an uplink is forgotten when the host has moved, or
may have.
"""

from __future__ import annotations

import math
from typing import Final, final

from ..address.scope import is_public
from ..limits import BoundedMap
from ..sockaddr import parse_ip

__all__ = ["GROWTH", "MARGIN", "QUIET_ROUNDS", "TOO_LONG_FOR", "TRIAL_FOR", "TRIAL_WAITS", "TRUST", "Uplink", "Uplinks"]

GROWTH: Final = 2
"""How many times longer a path stays silent whose NATs bear it: a PING each 50 s, which is two in two minutes.
Doubling it again would need a longer idle timeout of QUIC, and lose paths behind many more NATs."""
QUIET_ROUNDS: Final = 2
"""PINGs in a row between which only the PONG arrived, before an idle path tries a longer silence."""
TRIAL_WAITS: Final = 1.2
"""How many times longer still a path that tries stays silent, so that an end that knows sends the PING first, even if
that is the responder."""
TRIAL_FOR: Final = 300.0
"""Seconds that one path has for its trial before another one may try: until the peer tries too, its PINGs break the
silence, four of them; then each end sends one PING."""
TOO_LONG_FOR: Final = 3600.0
"""Seconds for which no path tries again a silence that was not borne: trials cost at most one path an hour."""
TRUST: Final = 2
"""Paths in a row that must be lost before an interval that was borne repeatedly is given up: the peer's NAT or host may
have been what failed."""
MARGIN: Final = 1.0
"""Seconds by which a measured silence may be off: timers are late, and packets take time."""
MAX_UPLINKS: Final = 64
"""Uplinks that are remembered; IPv6 brings new local addresses each day."""


@final
class Uplink:
    """What is known of the NATs of one uplink."""

    __slots__ = ("_too_long_until", "_trial_until", "_trier", "_trust")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget everything: other NATs may be on the way by now."""
        self._trust = 0
        self._too_long_until = -math.inf
        self._trier: object | None = None
        self._trial_until = -math.inf

    @property
    def bears(self) -> bool:
        """Whether paths are known to survive the longer interval."""
        return self._trust > 0

    def growth(self, path: object) -> float:
        """How many times longer than at first a path may be silent."""
        if self.bears:
            return GROWTH
        return GROWTH * TRIAL_WAITS if self._trier is path else 1.0

    def begin_trial(self, path: object, now: float) -> None:
        """Let an idle path try the longer interval, unless the result is known or another path is trying."""
        if not self.bears and now >= self._too_long_until and (self._trier is None or now >= self._trial_until):
            self._trier = path
            self._trial_until = now + TRIAL_FOR

    def end_trial(self, path: object) -> None:
        """End the trial of a path that is no longer idle; nothing was learnt."""
        if self._trier is path:
            self._trier = None

    def note_borne(self, *, asked: bool) -> None:
        """A path has survived the longer interval; `asked`: the peer was heard only after a PING of ours."""
        if self.bears or not asked:
            self._trust = min(self._trust + 1, TRUST)
            self._trier = None

    def note_lost(self, now: float) -> None:
        """A path has not survived a silence longer than the first interval."""
        self._trust -= 1
        if not self.bears:
            self._give_up(now)

    def note_unclear(self, path: object, now: float) -> None:
        """A path was heard, but other traffic may have renewed its mappings: its trial ends, as if it had failed."""
        if self._trier is path:
            self._give_up(now)

    def _give_up(self, now: float) -> None:
        self.forget()
        self._too_long_until = now + TOO_LONG_FOR


@final
class Uplinks:
    """The uplinks of one node."""

    def __init__(self) -> None:
        self._known: BoundedMap[tuple[str, bool], Uplink] = BoundedMap(MAX_UPLINKS)

    def get(self, local: str, remote: str) -> Uplink:
        """The uplink of a path between two addresses."""
        key = local, is_public(parse_ip(remote))
        uplink = self._known.use(key)
        if uplink is None:
            self._known.put(key, uplink := Uplink())
        return uplink

    def forget(self) -> None:
        """Forget what is known of all uplinks: the host may have moved."""
        for key in self._known:
            if uplink := self._known.get(key):
                uplink.forget()
