"""What the rest of a node sees of the wall clock."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Clock"]


class Clock(Protocol):
    """The node's idea of wall-clock time."""

    def now(self) -> float:
        """Unix seconds, corrected as well as the node knows."""

    def uncertainty(self, at: float | None = None) -> float:
        """Seconds by which that may be wrong; infinite while no time server was heard."""
