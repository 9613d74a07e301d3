"""The life of one mapping at one gateway: when to request, renew and check it, and what follows a refusal.  No I/O.

    state    what is due at `deadline`         granted  refused          checked: stands / does not
    MISSING  MAP, for `claim`                  HELD     MISSING, later   -
    HELD     RENEW at half of what was given,  HELD     HELD until its   HELD / MISSING, now
             or CHECK, whichever is sooner              lifetime ends

The internal port never changes.  The external port equals it where that is at least 1024.  If another host has that
port, three others are tried.  A mapping is renewed with the port that was *given*, as the gateway would make a second
mapping for the port that was asked for.  The lifetime, too, is the one that was given: if it is shorter, the mapping is
renewed sooner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Final, final

from ..address.endpoint import Transport
from .client import Claim, Found, Grant

__all__ = ["CHECK_INTERVAL", "LIFETIME", "Lease", "Step"]

LIFETIME: Final = 3600
"""Seconds of lifetime that are asked for: a mapping that a killed process leaves behind ends after that."""
CHECK_INTERVAL: Final = 600.0
"""Seconds between two checks of a mapping: some routers delete mappings that seem unused, without notice."""
MIN_PORT: Final = 1024
"""Lowest external port: those below are for the router's own services, and some routers search for seconds when asked
for one."""
MAX_CONFLICTS: Final = 3
"""Other ports that are tried where another host has ours: a full table refuses them all."""
RETRY_FIRST: Final = 60.0
"""Seconds until a gateway that refused is asked again; doubles up to `RETRY_LAST`."""
RETRY_LAST: Final = 3600.0
"""Seconds of the longest pause after a refusal, and of the pause after one that only the router's user can change."""
SOONEST: Final = 5.0
"""Seconds between two renewals at least, also where a gateway gives shorter lifetimes."""


class Step(Enum):
    """The next action for a mapping."""

    MAP = "map"
    RENEW = "renew"
    CHECK = "check"


@final
class Lease:
    """The state of one mapping; see the module's docstring.

    Args:
      transport, internal: the protocol and the local port to map.
      nonce: see `Claim`.
      choose: returns another external port to try.

    Attributes:
      claim: the mapping to ask for, or the one that was granted.
      grant: what the gateway has given; None while there is no mapping.
    """

    def __init__(self, transport: Transport, internal: int, *, nonce: bytes, choose: Callable[[], int]) -> None:
        self._choose = choose
        self._internal: Final = internal
        self.claim: Claim = Claim(transport, internal, self._first_port(), nonce)
        self.grant: Grant | None = None
        self._ends = math.inf
        self._renews = math.inf
        self._checks = math.inf
        self._asks = -math.inf
        self._pause: float = RETRY_FIRST
        self._conflicts = 0

    def _first_port(self) -> int:
        return self._internal if self._internal >= MIN_PORT else self._choose()

    @property
    def deadline(self) -> float:
        """When `step` is due."""
        return self._asks if self.grant is None else min(self._renews, self._checks)

    @property
    def step(self) -> Step:
        """What is due at `deadline`."""
        if self.grant is None:
            return Step.MAP
        return Step.RENEW if self._renews <= self._checks else Step.CHECK

    def granted(self, grant: Grant, now: float) -> None:
        """The gateway has made or renewed the mapping."""
        self.grant = grant
        self.claim = replace(self.claim, external=grant.external)
        self._ends = now + grant.lifetime if grant.lifetime else math.inf
        self._renews = now + max(grant.lifetime / 2, SOONEST) if grant.lifetime else math.inf
        self._checks = now + CHECK_INTERVAL
        self._pause, self._conflicts = RETRY_FIRST, 0

    def failed(self, now: float, *, conflict: bool = False, denied: bool = False) -> None:
        """The gateway has refused, or not answered.

        Args:
          conflict: another host has the external port.
          denied: only the router's user can allow mappings.
        """
        if self.grant is not None and now < self._ends:
            left = self._ends - now  # RFC 6887 §11.2.1: at half of the remaining time, then at half of that
            later = now + (max(left / 2, SOONEST) if left < math.inf else CHECK_INTERVAL)
            if self.step is Step.RENEW:
                self._renews = min(later, self._ends)
                self._checks = max(self._checks, now + SOONEST)
            else:
                self._checks = later
            if not conflict:
                return
        ended = self.grant is not None
        self.grant = None
        if conflict and self._conflicts < MAX_CONFLICTS:
            self._conflicts += 1
            self.claim = replace(self.claim, external=self._choose())
            self._asks = now
            return
        self.claim = replace(self.claim, external=self._first_port())
        self._conflicts = 0
        if ended and not denied:  # some gateways do not renew, but map anew after the end
            self._asks = now + SOONEST
            return
        self._asks = now + (RETRY_LAST if denied else self._pause)
        self._pause = min(2 * self._pause, RETRY_LAST)

    def checked(self, found: Found, now: float) -> None:
        """The gateway has said whether the mapping still exists."""
        if self.grant is None:
            return
        if not found.stands:
            self.lost(now)
            return
        if found.ip is not None:
            self.grant = replace(self.grant, ip=found.ip)
        self._checks = now + CHECK_INTERVAL

    def lost(self, now: float) -> None:
        """The gateway has lost the mapping: ask again at once."""
        self.grant, self._asks = None, now

    def look_again(self, now: float) -> None:
        """Renew or ask at `now`, since the gateway may have lost the mapping.

        A check would not do: its epoch does not show that a gateway has restarted twice within seconds.
        """
        if self.grant is None:
            self._asks = min(self._asks, now)
        else:
            self._renews = min(self._renews, now)
