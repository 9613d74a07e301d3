"""The life of one mapping at one gateway, without I/O: when to ask, renew, check, and what after a refusal.

    state    what is due at `deadline`         granted  refused          checked: stands / does not
    MISSING  MAP, for `claim`                  HELD     MISSING, later   -
    HELD     RENEW at half of what was given,  HELD     HELD until its   HELD / MISSING, now
             or CHECK, whichever is sooner              lifetime ends

The internal port never changes; the external one is the same where that is at least 1024.  Where somebody else has it,
three others are tried.  A mapping is renewed with the port that was given, not the one that was asked for: the gateway
would make a second one.  What is held is what was *given*: a gateway that shortens the lifetime is asked sooner.
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
"""Seconds that are asked for: what a killed process leaves behind is gone after that."""
CHECK_INTERVAL: Final = 600.0
"""Seconds between two looks at a mapping: some routers clear what they think unused, and say nothing."""
MIN_PORT: Final = 1024
"""External ports below are for the router's own services; some search for seconds when asked for one."""
MAX_CONFLICTS: Final = 3
"""Other ports that are tried where somebody has ours: a full table refuses them all."""
RETRY_FIRST: Final = 60.0
"""Seconds until a gateway that refused is asked again; doubles up to `RETRY_LAST`."""
RETRY_LAST: Final = 3600.0
"""Seconds of the longest such pause, and of the one after a refusal that only the router's user can change."""
SOONEST: Final = 5.0
"""Seconds between two renewals: a gateway that gives less is asked no more often."""


class Step(Enum):
    """What is due."""

    MAP = "map"
    RENEW = "renew"
    CHECK = "check"


@final
class Lease:
    """See the module's page.

    Args:
      claim: the first one; its external port is chosen here.
      choose: another external port.
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
        """The gateway has mapped, or renewed."""
        self.grant = grant
        self.claim = replace(self.claim, external=grant.external)
        self._ends = now + grant.lifetime if grant.lifetime else math.inf
        self._renews = now + max(grant.lifetime / 2, SOONEST) if grant.lifetime else math.inf
        self._checks = now + CHECK_INTERVAL
        self._pause, self._conflicts = RETRY_FIRST, 0

    def failed(self, now: float, *, conflict: bool = False, denied: bool = False) -> None:
        """The gateway has refused, or not answered."""
        if self.grant is not None and now < self._ends:
            left = self._ends - now  # RFC 6887 §11.2.1: at half of what is left, then at half of that
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
        if ended and not denied:  # some gateways renew nothing, and map anew what is over
            self._asks = now + SOONEST
            return
        self._asks = now + (RETRY_LAST if denied else self._pause)
        self._pause = min(2 * self._pause, RETRY_LAST)

    def checked(self, found: Found, now: float) -> None:
        """The gateway has said whether the mapping stands."""
        if self.grant is None:
            return
        if not found.stands:
            self.lost(now)
            return
        if found.ip is not None:
            self.grant = replace(self.grant, ip=found.ip)
        self._checks = now + CHECK_INTERVAL

    def lost(self, now: float) -> None:
        """The gateway has forgotten it: ask again at once."""
        self.grant, self._asks = None, now

    def look_again(self, now: float) -> None:
        """Something was announced: renew now, or ask now.

        Not check: a gateway that has restarted twice within seconds does not show it by its epoch.
        """
        if self.grant is None:
            self._asks = min(self._asks, now)
        else:
            self._renews = min(self._renews, now)
