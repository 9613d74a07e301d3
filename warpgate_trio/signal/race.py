"""One send by several signal channels at once: the message, the answers so far, and which are still awaited."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import final

import trio

from ..errors import SignalUnavailable, panics_as_errors
from .channel import Delivery

__all__ = ["Letter", "Race", "Roll"]

logger: logging.Logger = logging.getLogger(__name__)


@final
class Race:
    """The answers to one send: the best so far, and whether a better one may still come."""

    def __init__(self) -> None:
        self.best: Delivery | None = None
        self.failures: list[str] = []
        self.scope: trio.CancelScope = trio.CancelScope()
        self.over: trio.Event = trio.Event()
        self._running = 0
        self._late = 0
        self._changed = trio.Event()

    def enter(self, nursery: trio.Nursery, attempt: Callable[[], Awaitable[Delivery]], *, late: bool = False) -> None:
        """Start an attempt.  A `late` attempt is waited for only while no other has answered."""
        self._late += late
        self._running += not late
        nursery.start_soon(self._run, attempt, late)

    async def _run(self, attempt: Callable[[], Awaitable[Delivery]], late: bool) -> None:
        try:
            with panics_as_errors():
                answer = await attempt()
            self.best = answer if self.best is None else max(self.best, answer)
        except SignalUnavailable as exc:
            self.failures.append(str(exc))
        except Exception as exc:
            self.failures.append(f"unexpected {type(exc).__name__}")
            logger.exception("a signal could not be sent")
        self._late -= late
        self._running -= not late
        self.notify()

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_over(self) -> None:
        """Wait until no better answer can come."""
        while self.best is not Delivery.DELIVERED and (self._running or (self._late and self.best is None)):
            await self._changed.wait()

    async def wait_answered(self) -> None:
        """Wait until a server has queued or delivered the message, or the race is over."""
        while not self.over.is_set() and (self.best is None or self.best < Delivery.QUEUED):
            await self._changed.wait()


@final
@dataclass(frozen=True, slots=True)
class Letter:
    """What is sent, and to whom.  `topic` names the process at brokers, as `instance` does at other servers
    (`instances.topic_of`)."""

    receiver_key: bytes
    payload: bytes
    instance: bytes | None
    topic: bytes | None


@final
class Roll:
    """Finds out whether any of the channels of a race, which are all used at once, has the instance that is meant."""

    def __init__(self, race: Race, channels: int) -> None:
        self._race = race
        self._left = channels
        self._all = trio.Event()

    def note(self) -> None:
        """One more channel has answered, or failed."""
        self._left -= 1
        if not self._left:
            self._all.set()

    async def is_missing(self) -> bool:
        """Wait until all have answered or failed; return whether none has said that it has the instance."""
        await self._all.wait()
        return self._race.best in (None, Delivery.NOBODY_HOME, Delivery.QUEUED)
