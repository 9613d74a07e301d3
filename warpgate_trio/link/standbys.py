"""Relays on which Links of a node have begun, and which are kept for the case that what replaced them fails.

A path that was left is closed once it was silent for a while.  A relay's is worth more: it leads to any peer, and is
not lost with what took a direct one.  It costs the relay something, and each connection to a server has only so many
circuits, so a node keeps few of them; one more has the one that has stood by for longest closed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, final

__all__ = ["MAX_STANDBYS", "Standbys"]

MAX_STANDBYS: Final = 16
"""Relays that stand by for the Links of a node: a quarter of the circuits of one connection to a rendezvous server
(`servers.relay_core`), so that the others are free for calls."""


@final
class Standbys:
    """Those of one node, the oldest first; `most` of them."""

    def __init__(self, *, most: int = MAX_STANDBYS) -> None:
        self._most = most
        self._close: dict[Hashable, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._close)

    @property
    def keeps_any(self) -> bool:
        """Whether there are to be some."""
        return self._most > 0

    def keep(self, lane: Hashable, close: Callable[[], object]) -> bool:
        """Whether a lane stands by, from now on or as before; `close` is called when it has to give way."""
        if lane not in self._close and self._most:
            self._close[lane] = close
            if len(self._close) > self._most:
                oldest = next(iter(self._close))
                self._close.pop(oldest)()
        return lane in self._close

    def discard(self, lane: Hashable) -> None:
        """It is gone, or is spoken on."""
        self._close.pop(lane, None)
