"""Detects that the host has moved to another network or has slept, after which connections may be dead unnoticed.

The addresses are compared whenever the system notifies of a change, and every two seconds in any case.  Sleep is
detected by comparing clocks, since no notification tells of it.  Interfaces that only serve containers and virtual
machines on this host, and those that the configuration excludes, are ignored: no path uses them.
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
"""Seconds between checks whether the host's addresses have changed; a check takes 0.3 ms."""
DAMPING: Final = 0.1
"""Seconds between a notification of a change and the check: changes come in groups."""
SLEEP_INTERVAL: Final = 0.5
"""Seconds between checks whether the host has slept; a check takes some microseconds."""
SLEPT: Final = 2.0
"""Seconds by which the wall clock and the monotonic clock, which stops during sleep, must diverge between two checks to
mean that the host has slept.  A clock that was set looks the same; one slewed by 500 ppm is 1 ms off by then."""
NAP: Final = 0.01
"""Seconds of sleep that count where the system measures it (`Host.asleep`), so that it cannot be mistaken."""


@final
class NetworkWatch:
    """A service of the node.

    Args:
      on_change: called when the host has moved or slept.
      on_look: called after each check of the addresses.
    """

    def __init__(self, host: Host, *, on_change: Callable[[], None], on_look: Callable[[], None]) -> None:
        self._host: Final = host
        self._on_change: Final = on_change
        self._on_look: Final = on_look
        self._interfaces: tuple[Interface, ...] | None = None
        self._clocks: tuple[float, float, float] | None = None  # Trio's, the wall clock, and the time asleep

    async def run(self) -> None:
        """Watch, until cancelled.  Where the host's interfaces cannot be listed, a move is not detected."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_sleep)
            nursery.start_soon(self._watch_addresses)

    async def _watch_addresses(self) -> None:
        while True:
            try:
                moved = self.has_moved()
            except Exception as error:
                logger.debug("the machine's addresses cannot be listed: %s", error)
                return
            if moved:
                logger.info("the machine's addresses have changed")
                self._on_change()
            self._on_look()
            with trio.move_on_after(LOOK_INTERVAL):
                try:
                    await self._host.wait_change()
                except Exception as error:
                    logger.debug("the system does not notify of address changes: %s", error)
                    await trio.sleep_forever()  # until the next check is due
                await trio.sleep(DAMPING)

    async def _watch_sleep(self) -> None:
        while True:
            if self.has_slept():
                logger.info("the machine has slept, or its clock was set")
                self._on_change()
            await trio.sleep(SLEEP_INTERVAL)

    def has_moved(self) -> bool:
        """Whether the addresses differ from those at the last check; False at the first one."""
        interfaces = tuple(each for each in self._host.interfaces() if each.is_used)
        moved, self._interfaces = self._interfaces not in (None, interfaces), interfaces
        return moved

    def has_slept(self) -> bool:
        """Whether the host has slept since the last check.

        The time asleep is compared with the time that Trio's clock has advanced: where that clock runs on during sleep,
        a check in the middle of one is too early.
        """
        clocks = trio.current_time(), self._host.wall_time(), self._host.asleep()
        before, self._clocks = self._clocks or clocks, clocks
        went, jumped, slept = (now - then for now, then in zip(clocks, before, strict=True))
        return abs(jumped - went) > SLEPT or (slept > NAP and abs(slept - went) > NAP)
