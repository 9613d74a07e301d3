"""The combos that are under way in a walk, for those that hold back while a better one may still succeed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, final

import trio

from ..combos import Combo

__all__ = ["HELD_BACK", "YIELD", "UnderWay"]

YIELD: Final = 0.3
"""Seconds that a combo holds back for another plugin's (`Combo.yields_to`): three round trips of 100 ms, enough for a
TURN allocation and the signal that tells the peer of it."""
HELD_BACK: Final = 0.15
"""Seconds for which a relay-first Pipe is held back at most while a likely direct combo is under way.  A direct path
needs no later change, and nobody notices a delay this short."""


@final
class UnderWay:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._combos: Final[list[Combo]] = []
        self._changed: Final = trio.lowlevel.ParkingLot()

    def begin(self, combos: Iterable[Combo]) -> None:
        """Add combos that are about to run, each in `until_ended`."""
        self._combos.extend(combos)

    @contextmanager
    def until_ended(self, combo: Combo) -> Iterator[None]:
        """Scope of a combo's run; the combo is removed at its end."""
        try:
            yield
        finally:
            self._combos.remove(combo)
            self._changed.unpark_all()

    async def wait_none(self, is_meant: Callable[[Combo], bool]) -> None:
        """Return when no combo for which `is_meant` is true is under way."""
        while any(map(is_meant, self._combos)):
            await self._changed.park()

    def look_again(self) -> None:
        """Have all waiters evaluate their `is_meant` again, whose answer may have changed."""
        self._changed.unpark_all()

    async def wait_turn(self, combo: Combo) -> None:
        """Wait for the combo's delay (`Combo.delay`); for one by a rendezvous server, less where no earlier one of the
        same plugin is under way any more.
        """
        if combo.server is None:
            await trio.sleep(combo.delay)
        else:
            await self._wait_ended(lambda each: each.plugin == combo.plugin and each.delay < combo.delay, combo.delay)

    async def yield_to(self, plugin: str) -> None:
        """Return when no combo of a plugin is under way, after `YIELD` seconds at the latest."""
        await self._wait_ended(lambda combo: combo.plugin == plugin, YIELD)

    async def yield_to_direct(self, signal_rtt: float | None, *, dials: bool = False) -> None:
        """Return when no likely direct combo is under way, after a signal round trip or `HELD_BACK` seconds at the
        latest, whichever is shorter.

        Args:
          dials: wait only for combos that dial themselves, not for those that ask the peer to dial.  Where the relay's
            call was sent before signals could be, such a path comes two and a half round trips after the relay's.
        """
        seconds = HELD_BACK if signal_rtt is None else min(signal_rtt, HELD_BACK)
        await self._wait_ended(
            lambda combo: combo.phase == "direct" and combo.likely and not (dials and combo.asks), seconds
        )

    async def _wait_ended(self, is_meant: Callable[[Combo], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.wait_none(is_meant)
