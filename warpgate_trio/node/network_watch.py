"""What happens to the machine that leaves connections behind of whose end nobody tells: it moves, or it sleeps.

Where the system tells of a change, it is looked at once; in any case now and then, since nobody tells of a sleep.  What
is only of containers and virtual machines on this machine, and what the configuration leaves out, is not looked at: no
path goes there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, final

import trio

from ..host import Host, Interface

__all__ = ["NetworkWatch"]

logger: logging.Logger = logging.getLogger(__name__)

LOOK_INTERVAL: Final = 2.0
"""Seconds between looks at whether the machine's addresses have changed; one takes 0.3 ms."""
DAMPING: Final = 0.1
"""Seconds between a system's word that something has changed and the look at it: changes come in groups."""
SLEEP_INTERVAL: Final = 0.5
"""Seconds between looks at whether the machine has slept, which nobody tells; one takes some microseconds."""
SLEPT: Final = 2.0
"""Seconds by which the wall clock and the monotonic one, which stands still meanwhile, come apart between two looks
where the machine has slept.  A clock that was set looks the same; one that is slewed is 1 ms off by then (500 ppm)."""
NAP: Final = 0.01
"""The same in seconds where the system counts them (`Host.asleep`), so that nothing else looks like it."""


@final
class NetworkWatch:
    """A service of the node.

    Args:
      on_change: called when the machine has moved or slept.
      on_look: called after each look.
    """

    def __init__(self, host: Host, *, on_change: Callable[[], None], on_look: Callable[[], None]) -> None:
        self._host: Final = host
        self._on_change: Final = on_change
        self._on_look: Final = on_look
        self._interfaces: tuple[Interface, ...] | None = None
        self._clocks: tuple[float, float, float] | None = None  # Trio's, the wall's, and what it leaves out

    async def run(self) -> None:
        """Look, until cancelled; a machine that does not tell its interfaces moves unnoticed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_sleep)
            nursery.start_soon(self._watch_addresses)

    async def _watch_addresses(self) -> None:
        while True:
            try:
                moved = self.has_moved()
            except Exception as error:
                logger.debug("the machine's addresses cannot be told: %s", error)
                return
            if moved:
                logger.info("the machine's addresses have changed")
                self._on_change()
            self._on_look()
            with trio.move_on_after(LOOK_INTERVAL):
                try:
                    await self._host.wait_change()
                except Exception as error:
                    logger.debug("nothing tells when the machine's addresses change: %s", error)
                    await trio.sleep_forever()  # until it is time to look
                await trio.sleep(DAMPING)

    async def _watch_sleep(self) -> None:
        while True:
            if self.has_slept():
                logger.info("the machine has slept, or its clock was set")
                self._on_change()
            await trio.sleep(SLEEP_INTERVAL)

    def has_moved(self) -> bool:
        """Whether its addresses are others than at the last look; not at the first one."""
        interfaces = tuple(each for each in self._host.interfaces() if each.is_used)
        moved, self._interfaces = self._interfaces not in (None, interfaces), interfaces
        return moved

    def has_slept(self) -> bool:
        """Whether it has since the last look, and sleeps no more: who looks in mid-sleep is early."""
        clocks = trio.current_time(), self._host.wall_time(), self._host.asleep()
        before, self._clocks = self._clocks or clocks, clocks
        went, jumped, slept = (now - then for now, then in zip(clocks, before, strict=True))
        return abs(jumped - went) > SLEPT or (slept > NAP and abs(slept - went) > NAP)
