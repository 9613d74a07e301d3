"""Whose turn it is to search, where many Links of a node look for paths at once, as after the machine has moved.

A search costs both sides connections, handshakes and signals, so a node makes a bounded number at a time.  Those for
Links that somebody waits for go before all others.  The others do not begin in the same moment: their signals, and what
peers do about them, would come in one burst, and hold up the first ones.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, final

import trio

__all__ = ["SearchTurns"]

SPREAD: Final = 0.5
"""Seconds over which the searches that nobody waits for begin, where there are more than can be made at a time; the
fewer there are, the sooner: one alone begins at once."""


@final
class SearchTurns:
    """The searches of one node.

    Args:
      limit: how many there are at a time.
      uniform: draws a number between two (`random.Random.uniform`).
    """

    def __init__(self, limit: int, *, uniform: Callable[[float, float], float]) -> None:
        self._limit: Final = limit
        self._uniform: Final = uniform
        self._free = limit
        self._spread = 0  # wait before they queue up
        self._waiting: dict[trio.Event, Callable[[], bool]] = {}  # whether each is busy; the first to come first

    @asynccontextmanager
    async def turn(self, is_busy: Callable[[], bool]) -> AsyncGenerator[None]:
        """The time of a search, which begins when it is its turn.

        Args:
          is_busy: whether somebody waits for what is searched for, which may change meanwhile.
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
            begins = min(self._waiting, key=self._is_idle)  # of those that are alike the first
            del self._waiting[begins]
            self._free -= 1
            begins.set()

    def _is_idle(self, begins: trio.Event) -> bool:
        return not self._waiting[begins]()
