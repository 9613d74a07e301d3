"""Which of several servers failed lately: nobody is to wait for these, and they are tried again.

A server that failed is passed over for a while (`Standing.FAILED`): it is tried when the others were.  Then it is tried
in its turn, beside the next one (`Standing.ON_TRIAL`), so that nobody waits for it either, until it has worked or has
failed once more, after which it is passed over for twice as long.

No I/O: methods take `now`, a monotonic time in seconds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from enum import IntEnum
from typing import Final, Generic, TypeVar, final

from .limits import BoundedMap

__all__ = ["Standing", "Standings"]

PASSED_OVER: Final = 2.0
"""Seconds for which a server that failed is passed over at first: what happened once may be over by then."""
PASSED_OVER_MAX: Final = 60.0
"""Seconds of that at most: as long as operators take to notice that their server is back."""
MAX_SERVERS: Final = 64
"""Servers, each with each of its addresses, that are remembered: no more are named in a configuration."""


class Standing(IntEnum):
    """How a server is to be used; the lower, the sooner."""

    GOOD = 0
    """It has not failed lately, as far as is known."""
    ON_TRIAL = 1
    """It has failed, a while ago: in its turn, but nobody waits for it."""
    FAILED = 2
    """It has failed lately: after the others."""


_Key = TypeVar("_Key", bound=Hashable)


@final
class Standings(Generic[_Key]):
    """See the module's page."""

    def __init__(self) -> None:
        self._failed: BoundedMap[_Key, tuple[float, float]] = BoundedMap(MAX_SERVERS)  # until when, and for how long

    def failed(self, server: _Key, now: float) -> None:
        """A server did not do what it was asked; what fails while it is passed over is one failure."""
        until, before = self._failed.get(server) or (now, 0.0)
        if now >= until:
            seconds = min(2 * before, PASSED_OVER_MAX) or PASSED_OVER
            self._failed.put(server, (now + seconds, seconds))

    def worked(self, server: _Key) -> None:
        """It did."""
        self._failed.pop(server)

    def of(self, server: _Key, now: float) -> Standing:
        """How a server is to be used."""
        failed = self._failed.get(server)
        if failed is None:
            return Standing.GOOD
        return Standing.FAILED if now < failed[0] else Standing.ON_TRIAL

    def sorted(self, servers: Iterable[_Key], now: float) -> list[_Key]:
        """Servers in the order in which they are to be used: those that failed lately last, else as they are."""
        return sorted(servers, key=lambda each: self.of(each, now) is Standing.FAILED)
