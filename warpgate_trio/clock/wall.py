"""The interface of the wall clock for the rest of a node."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Clock"]


class Clock(Protocol):
    """The node's corrected wall-clock time."""

    def now(self) -> float:
        """Unix seconds, corrected as well as possible."""

    def uncertainty(self, at: float | None = None) -> float:
        """Seconds by which that may be wrong now, or at time `at`; infinite while no NTP server has answered."""
