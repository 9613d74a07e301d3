"""When the running phase ends: by its budget, which can be held open or suspended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

__all__ = ["HOLD", "PhaseClock"]

HOLD: Final = 1.0
"""Seconds that a phase waits for a handshake that is under way when its budget ends: a round trip and one loss.
Without it, at 5 % loss, two of 600 paths were cut short that had just answered."""


@final
class PhaseClock:
    """The deadline of a phase's cancel scope; while no phase runs, the methods have no effect.

    Attributes:
      deadline: the deadline of the running phase, or of the last one, on Trio's clock.
    """

    def __init__(self) -> None:
        self.deadline: float = math.inf
        self._scope: trio.CancelScope | None = None
        self._budget_ends: float = math.inf
        self._held_until: float = -math.inf
        self._suspended = False

    @contextmanager
    def phase(self, budget: float) -> Iterator[None]:
        """Scope of a phase: it ends after `budget` seconds, unless that is held or suspended."""
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
        """Let the budget end in `budget` seconds from now, if that is earlier and the budget is not suspended."""
        if not self._suspended:
            self._budget_ends = min(self._budget_ends, trio.current_time() + budget)
            self._set_deadline()

    def hold(self) -> None:
        """Keep the phase open for `HOLD` seconds from now, but not longer than `HOLD` seconds beyond its budget."""
        self._held_until = trio.current_time() + HOLD
        self._set_deadline()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the phase's budget while a commit is under way: it is for finding paths, and one was found.

        The commit has its own bound (the peer's silence), and the walk's deadline still holds.
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
