"""What runs beside the phases: combos that outlast theirs, and the question where the peer is now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import final

import trio

from ..combos import Combo

__all__ = ["Beside"]

Work = Callable[[], Awaitable[None]]


@final
@dataclass(frozen=True, slots=True)
class _Running:
    since: float
    ended: trio.Event = field(default_factory=trio.Event)


@final
class Beside:
    """Combos and a question that no phase waits for.

    Args:
      nursery: the walk's own.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._combos: dict[Combo, _Running] = {}
        self._refreshed: trio.Event | None = None

    def start(self, combo: Combo, run: Work) -> trio.Event:
        """Run a combo from now on; the event tells its end."""
        running = self._combos[combo] = _Running(trio.current_time())
        self._start(run, running.ended)
        return running.ended

    def refresh(self, ask: Work) -> None:
        """Ask where the peer is, if nobody does so now."""
        if self._refreshed is None or self._refreshed.is_set():
            self._refreshed = trio.Event()
            self._start(ask, self._refreshed)

    def _start(self, work: Work, ended: trio.Event) -> None:
        async def run() -> None:
            try:
                await work()
            finally:
                ended.set()

        self._nursery.start_soon(run)

    async def wait_refreshed(self) -> None:
        """Wait until the peer has told where it is, and what that has added is under way; or until it will not."""
        if self._refreshed is not None:
            await self._refreshed.wait()

    async def wait_ended(self, *, likely: float, elsewhere: float) -> None:
        """Wait for the combos, for so many seconds from the start of each."""
        for combo, running in list(self._combos.items()):
            with trio.move_on_at(running.since + (elsewhere if combo.elsewhere else likely)):
                await running.ended.wait()
