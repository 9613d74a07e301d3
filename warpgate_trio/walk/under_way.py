"""Which plugins have combos under way in a phase, for those that hold back while a better one may still succeed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

from ..combos import Combo

__all__ = ["YIELD", "UnderWay"]

YIELD: Final = 0.3
"""Seconds that a combo holds back for another plugin's (`Combo.yields_to`): three round trips of 100 ms, in which a
TURN server has given an address and a signal has said it."""


@final
class UnderWay:
    """See the module's page."""

    def __init__(self) -> None:
        self._combos: Final[Counter[str]] = Counter()
        self._changed: Final = trio.lowlevel.ParkingLot()

    def begin(self, combos: Iterable[Combo]) -> None:
        """These are about to run, each `until_ended`."""
        self._combos.update(combo.plugin for combo in combos)

    @contextmanager
    def until_ended(self, combo: Combo) -> Iterator[None]:
        """The time of one of them."""
        try:
            yield
        finally:
            self._combos[combo.plugin] -= 1
            self._changed.unpark_all()

    async def yield_to(self, plugin: str) -> None:
        """Return when none of a plugin's combos is under way, after `YIELD` seconds at the latest."""
        with trio.move_on_after(YIELD):
            while self._combos[plugin] > 0:
                await self._changed.park()
