"""What runs beside the phases: combos that outlast their phase, and the request for the peer's present address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
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
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


@final
class Beside:
    """Combos and a request that no phase waits for.

    Args:
      nursery: the walk's nursery.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._combos: dict[Combo, _Running] = {}
        self._question: _Running | None = None

    def start(self, combo: Combo, run: Work) -> trio.Event:
        """Start a combo; the returned event is set when it ends."""
        running = self._combos[combo] = self._start(run)
        return running.ended

    async def end(self, combos: Iterable[Combo]) -> None:
        """Cancel some of the combos, and wait until they have ended."""
        running = [self._combos[combo] for combo in combos]
        for each in running:
            each.scope.cancel(reason="no phase follows theirs")
        for each in running:
            await each.ended.wait()

    def refresh(self, ask: Work) -> None:
        """Request the peer's present address, if no such request is under way."""
        if self._question is None or self._question.ended.is_set():
            self._question = self._start(ask)

    def _start(self, work: Work) -> _Running:
        running = _Running(trio.current_time())

        async def run() -> None:
            try:
                with running.scope:
                    await work()
            finally:
                running.ended.set()

        self._nursery.start_soon(run)
        return running

    async def wait_refreshed(self) -> None:
        """Wait for the end of the request: the combos that a new address adds have begun, or the request has failed."""
        if self._question is not None:
            await self._question.ended.wait()

    async def wait_ended(self, *, likely: float, elsewhere: float) -> None:
        """Wait for the combos, each for so many seconds from its start: `elsewhere` towards another network, else
        `likely`.
        """
        for combo, running in list(self._combos.items()):
            with trio.move_on_at(running.since + (elsewhere if combo.elsewhere else likely)):
                await running.ended.wait()
