"""What a walk needs of its node."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from ..report import Verdict
from .attempt import AttemptHome
from .verdicts import ThisSide, Unresolved

__all__ = ["WalkHome"]


class WalkHome(AttemptHome, Protocol):
    """See the module's docstring."""

    @property
    def strict(self) -> bool:
        """Whether a plugin's unexpected exception ends the walk and reaches the caller."""

    def call(self) -> AbstractContextManager[None]:
        """Scope of a call, which ends with the node: it raises `trio.ClosedResourceError` then."""

    async def wait_signals(self) -> None:
        """Wait until a signal server is connected; `SignalUnavailable` where none is configured."""

    def has_signals(self) -> bool:
        """Whether a signal server is connected."""

    def this_side(self) -> ThisSide:
        """What this side has for walks: signal servers, STUN servers, and why no signal server is connected."""

    def unresolved(self) -> Unresolved:
        """The host names of servers that DNS does not resolve now."""

    def count_walk(self, verdict: Verdict) -> None:
        """Count a walk that ended with this verdict."""
