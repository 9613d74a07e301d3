"""Which of several servers failed lately, so that nothing waits for them and they are still tried again.

A server that failed is tried after all others for a while (`Standing.FAILED`).  Then it is tried in its regular place,
but together with the next server (`Standing.ON_TRIAL`), so that nothing waits for it.  Once it works it is good again.
If it fails, it is `FAILED` for twice as long as before.

No I/O: methods take `now`, a monotonic time in seconds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from enum import IntEnum
from typing import Final, Generic, TypeVar, final

from .limits import BoundedMap

__all__ = ["Standing", "Standings"]

PASSED_OVER: Final = 2.0
"""Seconds for which a server is `FAILED` at first: a single incident may be over by then."""
PASSED_OVER_MAX: Final = 60.0
"""Seconds for which a server is `FAILED` at most: as long as operators take to notice that it is back."""
MAX_SERVERS: Final = 64
"""Servers that are remembered, each of their addresses counted: no configuration names more."""


class Standing(IntEnum):
    """How a server is to be used; a lower value means sooner."""

    GOOD = 0
    """It is not known to have failed since it last worked."""
    ON_TRIAL = 1
    """It failed a while ago: use it in its place, but do not wait for it."""
    FAILED = 2
    """It failed lately: use it after the others."""


_Key = TypeVar("_Key", bound=Hashable)


@final
class Standings(Generic[_Key]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._failed: BoundedMap[_Key, tuple[float, float]] = BoundedMap(MAX_SERVERS)  # until when, and for how long

    def failed(self, server: _Key, now: float) -> None:
        """Note that a server failed; further failures while it is `FAILED` do not count."""
        until, before = self._failed.get(server) or (now, 0.0)
        if now >= until:
            seconds = min(2 * before, PASSED_OVER_MAX) or PASSED_OVER
            self._failed.put(server, (now + seconds, seconds))

    def worked(self, server: _Key) -> None:
        """Note that a server worked: it is good again."""
        self._failed.pop(server)

    def of(self, server: _Key, now: float) -> Standing:
        """The standing of a server."""
        failed = self._failed.get(server)
        if failed is None:
            return Standing.GOOD
        return Standing.FAILED if now < failed[0] else Standing.ON_TRIAL

    def sorted(self, servers: Iterable[_Key], now: float) -> list[_Key]:
        """Servers in the order of their use: those that failed lately come last; otherwise the order is kept."""
        return sorted(servers, key=lambda each: self.of(each, now) is Standing.FAILED)
