"""Which combos are under way in a walk, for those that hold back while a better one may still succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

from ..combos import Combo

__all__ = ["HELD_BACK", "YIELD", "UnderWay"]

YIELD: Final = 0.3
"""Seconds that a combo holds back for another plugin's (`Combo.yields_to`): three round trips of 100 ms, in which a
TURN server has given an address and a signal has said it."""
HELD_BACK: Final = 0.15
"""Seconds for which the Pipe of a relay that was asked for first is held back at most, while a likely direct combo is
under way: a direct one needs no changing over, and this long nobody notices."""


@final
class UnderWay:
    """See the module's page."""

    def __init__(self) -> None:
        self._combos: Final[list[Combo]] = []
        self._changed: Final = trio.lowlevel.ParkingLot()

    def begin(self, combos: Iterable[Combo]) -> None:
        """These are about to run, each `until_ended`."""
        self._combos.extend(combos)

    @contextmanager
    def until_ended(self, combo: Combo) -> Iterator[None]:
        """The time of one of them."""
        try:
            yield
        finally:
            self._combos.remove(combo)
            self._changed.unpark_all()

    async def wait_none(self, is_meant: Callable[[Combo], bool]) -> None:
        """Return when none of those that are meant is under way."""
        while any(map(is_meant, self._combos)):
            await self._changed.park()

    def look_again(self) -> None:
        """Which ones are meant may have changed."""
        self._changed.unpark_all()

    async def wait_turn(self, combo: Combo) -> None:
        """Pacing, see `Combo.delay`; a relay's server need not wait where none before it is under way any more."""
        if combo.server is None:
            await trio.sleep(combo.delay)
        else:
            await self._wait_ended(lambda each: each.plugin == combo.plugin and each.delay < combo.delay, combo.delay)

    async def yield_to(self, plugin: str) -> None:
        """Return when none of a plugin's combos is under way, after `YIELD` seconds at the latest."""
        await self._wait_ended(lambda combo: combo.plugin == plugin, YIELD)

    async def yield_to_direct(self, signal_rtt: float | None, *, dials: bool = False) -> None:
        """Return when no likely direct combo is under way, after a round trip and `HELD_BACK` seconds at the latest.

        Args:
          dials: wait for none that asks the peer to dial: where signals came up behind the relay's call, such a path is
            there two and a half round trips behind the relay's.
        """
        seconds = HELD_BACK if signal_rtt is None else min(signal_rtt, HELD_BACK)
        await self._wait_ended(
            lambda combo: combo.phase == "direct" and combo.likely and not (dials and combo.asks), seconds
        )

    async def _wait_ended(self, is_meant: Callable[[Combo], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.wait_none(is_meant)
