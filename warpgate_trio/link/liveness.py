"""Whether the peer is still there, and how long a round trip to it takes: the PINGs of a Link, without I/O.

Any byte of the peer's is a sign of life.  After an idle interval without one it is asked for one, and again after each
further interval, until it has missed too many.
"""

from __future__ import annotations

import math
from typing import Final, final

__all__ = ["MISSES", "Liveness"]

MISSES: Final = 3
"""Idle intervals without a sign of life after which a Link is dead: a path may be away for a minute and come back."""


@final
class Liveness:
    """What is known of one peer.  It says when to ask, by `handle_timer`; who owns it sends the PING.

    Attributes:
      rtt: smoothed round trip in seconds; None before it was measured.
      answered: the highest token whose PONG has come.
      lost: the peer has not been heard for too long.
    """

    def __init__(self, now: float, *, interval: float) -> None:
        self.rtt: float | None = None
        self.answered: int = 0
        self.lost: bool = False
        self._interval = interval
        self._heard_at = now
        self._misses = 0
        self._asked = 0
        self._asked_at: float | None = None  # the last one, while it is not answered

    def heard(self, now: float) -> None:
        """The peer has said something."""
        self._heard_at = now
        self._misses = 0

    def begin(self, now: float) -> None:
        """Silence counts from here on."""
        self._heard_at = now

    @property
    def asking(self) -> bool:
        """Whether a PING waits for its PONG."""
        return self._asked_at is not None

    def ask(self, now: float) -> int:
        """The token of a PING that leaves now."""
        self._asked_at = now
        self._asked += 1
        return self._asked

    def receive(self, token: int, now: float) -> None:
        """A PONG has come."""
        if token <= self._asked:
            self.answered = max(self.answered, token)
        if self._asked_at is not None and token == self._asked:
            sample = max(now - self._asked_at, 1e-6)
            self.rtt = sample if self.rtt is None else 0.875 * self.rtt + 0.125 * sample  # RFC 6298 §2
            self._asked_at = None

    @property
    def deadline(self) -> float:
        """When `handle_timer` wants to be called; infinity once the peer is lost."""
        return math.inf if self.lost else self._heard_at + (1 + self._misses) * self._interval

    def handle_timer(self, now: float) -> None:
        """Time has come: a PING is due, as `asking` says, or the peer is lost."""
        if now < self.deadline:
            return
        if self._misses >= MISSES:
            self.lost = True
            return
        self._misses += 1
        self._asked_at = None  # an unanswered question must not stop the next one

    def silence(self, now: float) -> float:
        """Seconds since the peer was last heard."""
        return now - self._heard_at
