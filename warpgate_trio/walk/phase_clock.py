"""When the running phase ends: its budget, what holds it open, and what stops its budget for a while."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

__all__ = ["HOLD", "PhaseClock"]

HOLD: Final = 1.0
"""Seconds that a phase waits for a handshake that is under way when its budget ends: a round trip, and a loss in it.
Without, at 5 % loss, two paths in 600 were cut short that had just answered."""


@final
class PhaseClock:
    """The deadline of a phase's cancel scope; where no phase runs, everything here does nothing.

    Attributes:
      deadline: when the running phase is over, or the last one was to be.
    """

    def __init__(self) -> None:
        self.deadline: float = math.inf
        self._scope: trio.CancelScope | None = None
        self._budget_ends: float = math.inf
        self._held_until: float = -math.inf
        self._suspended = False

    @contextmanager
    def phase(self, budget: float) -> Iterator[None]:
        """A phase: it ends in `budget` seconds at the latest, but for what holds or suspends that."""
        with trio.CancelScope() as scope:
            self._scope = scope
            self._budget_ends = trio.current_time() + budget
            self._held_until = -math.inf
            self._set_deadline()
            try:
                yield
            finally:
                self._scope = None

    def shorten(self, budget: float) -> None:
        """The budget is to end in so many seconds, if that is earlier than it would, and it is not suspended."""
        if not self._suspended:
            self._budget_ends = min(self._budget_ends, trio.current_time() + budget)
            self._set_deadline()

    def hold(self) -> None:
        """The phase is not to end within `HOLD` seconds, if that is no more than `HOLD` seconds after its budget."""
        self._held_until = trio.current_time() + HOLD
        self._set_deadline()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """While a commit is under way the phase's budget does not run: it is for finding paths, and one was found.

        The commit has a bound of its own (the peer's silence), and the walk's deadline stands.
        """
        if self._scope is None:
            yield
            return
        began = trio.current_time()
        self._scope.deadline, self._suspended = math.inf, True
        try:
            yield
        finally:
            self._suspended = False
            self._budget_ends += trio.current_time() - began
            self._set_deadline()

    def end(self, reason: str) -> None:
        """End the running phase."""
        if self._scope is not None:
            self._scope.cancel(reason=reason)

    def _set_deadline(self) -> None:
        if self._scope is not None and not self._suspended:
            self.deadline = max(self._budget_ends, min(self._held_until, self._budget_ends + HOLD))
            self._scope.deadline = self.deadline
