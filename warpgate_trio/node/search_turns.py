"""Limits the concurrent searches of a node, where many Links search at once, as after the host has moved.

A search costs both sides connections, handshakes and signals, so a node runs a bounded number at a time.  Searches for
busy Links, where somebody waits, go first.  The others begin at different times: otherwise their signals, and what
peers do about them, would come in one burst and delay the first ones.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, final

import trio

__all__ = ["SearchTurns"]

SPREAD: Final = 0.5
"""Seconds over which the beginnings of searches for idle Links are spread where there are as many as can run at a time.
With fewer they are closer together; a single one begins at once."""


@final
class SearchTurns:
    """The searches of one node.

    Args:
      limit: how many may run at a time.
      uniform: draws a number between two others (`random.Random.uniform`).
    """

    def __init__(self, limit: int, *, uniform: Callable[[float, float], float]) -> None:
        self._limit: Final = limit
        self._uniform: Final = uniform
        self._free = limit
        self._spread = 0  # searches that wait before they enter the queue
        self._waiting: dict[trio.Event, Callable[[], bool]] = {}  # the queue: whether each is busy, in order of arrival

    @asynccontextmanager
    async def turn(self, is_busy: Callable[[], bool]) -> AsyncGenerator[None]:
        """Scope of a search; it is entered when it is the search's turn.

        Args:
          is_busy: whether somebody waits for the path; the answer may change while the search is queued.
        """
        if not is_busy():
            await self._let_some_time_pass()
        begins = trio.Event()
        self._waiting[begins] = is_busy
        self._give_turns()
        try:
            await begins.wait()
            yield
        finally:
            if self._waiting.pop(begins, None) is None:
                self._free += 1
                self._give_turns()

    async def _let_some_time_pass(self) -> None:
        others = self._limit - self._free + len(self._waiting) + self._spread
        self._spread += 1
        try:
            await trio.sleep(self._uniform(0.0, SPREAD * min(others / self._limit, 1.0)))  # pacing
        finally:
            self._spread -= 1

    def _give_turns(self) -> None:
        while self._free and self._waiting:
            begins = min(self._waiting, key=self._is_idle)  # busy ones first, then in order of arrival
            del self._waiting[begins]
            self._free -= 1
            begins.set()

    def _is_idle(self, begins: trio.Event) -> bool:
        return not self._waiting[begins]()
