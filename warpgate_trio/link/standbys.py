"""Relayed paths that Links of a node have left, and keep in case the better path fails.

A path that was left is closed once it was silent for a while.  A relayed one is worth keeping: it reaches any peer, and
survives what breaks a direct one.  But it costs the relay something, and each connection to a server has only so many
circuits.  So a node keeps few of them; one too many closes the one that has stood by for longest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, final

__all__ = ["MAX_STANDBYS", "Standbys"]

MAX_STANDBYS: Final = 16
"""Relayed paths that stand by for the Links of a node: a quarter of the circuits of one connection to a rendezvous
server (`servers.relay_core`), so that the others are free for calls."""


@final
class Standbys:
    """The standby paths of one node, the oldest first; `most` of them."""

    def __init__(self, *, most: int = MAX_STANDBYS) -> None:
        self._most = most
        self._close: dict[Hashable, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._close)

    @property
    def keeps_any(self) -> bool:
        """Whether any are kept."""
        return self._most > 0

    def keep(self, lane: Hashable, close: Callable[[], object]) -> bool:
        """Have a lane stand by; `close` is called when it has to make room.  Returns whether it stands by now."""
        if lane not in self._close and self._most:
            self._close[lane] = close
            if len(self._close) > self._most:
                oldest = next(iter(self._close))
                self._close.pop(oldest)()
        return lane in self._close

    def discard(self, lane: Hashable) -> None:
        """The lane is gone, or is spoken on."""
        self._close.pop(lane, None)
