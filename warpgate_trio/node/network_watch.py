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
"""Seconds between looks at whether the machine's addresses have changed, or it has slept; one takes 0.3 ms."""
DAMPING: Final = 0.1
"""Seconds between a system's word that something has changed and the look at it: changes come in groups."""
SLEPT: Final = 2.0
"""Seconds by which the wall clock and the monotonic one, which stands still meanwhile, come apart between two looks
where the machine has slept.  A clock that was set looks the same; one that is slewed is 1 ms off by then (500 ppm)."""


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
        self._asleep: float | None = None

    async def run(self) -> None:
        """Look, until cancelled; a machine that does not tell its interfaces moves unnoticed."""
        while True:
            try:
                event = self.look()
            except Exception as error:
                logger.debug("the machine's addresses cannot be told: %s", error)
                return
            if event:
                logger.info("%s", event)
                self._on_change()
            self._on_look()
            with trio.move_on_after(LOOK_INTERVAL):
                try:
                    await self._host.wait_change()
                except Exception as error:
                    logger.debug("nothing tells when the machine's addresses change: %s", error)
                    await trio.sleep_forever()  # until it is time to look
                await trio.sleep(DAMPING)

    def look(self) -> str:
        """What has happened since the last look; empty: nothing, or this is the first."""
        interfaces = tuple(each for each in self._host.interfaces() if each.is_used)
        moved, self._interfaces = self._interfaces not in (None, interfaces), interfaces
        asleep = self._host.wall_time() - trio.current_time()
        slept, self._asleep = self._asleep is not None and abs(asleep - self._asleep) > SLEPT, asleep
        if moved:
            return "the machine's addresses have changed"
        return "the machine has slept, or its clock was set" if slept else ""
