"""What a walk needs of its node."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from ..report import Verdict
from .attempt import AttemptHome
from .verdicts import ThisSide, Unresolved

__all__ = ["WalkHome"]


class WalkHome(AttemptHome, Protocol):
    """See the module's page."""

    @property
    def strict(self) -> bool:
        """Whether a plugin's unexpected exception ends the walk and reaches the caller."""

    def call(self) -> AbstractContextManager[None]:
        """The time of a call, which ends with the node; raises `trio.ClosedResourceError`."""

    async def wait_signals(self) -> None:
        """Wait until a signal server is connected; `SignalUnavailable` when there is none to wait for."""

    def has_signals(self) -> bool:
        """Whether a signal server is connected."""

    def this_side(self) -> ThisSide:
        """What this side has of what a walk may need."""

    def unresolved(self) -> Unresolved:
        """The names of servers that DNS does not resolve now."""

    def count_walk(self, verdict: Verdict) -> None:
        """A walk has ended so."""
