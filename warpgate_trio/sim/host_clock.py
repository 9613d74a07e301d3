"""The clock of one host's kernel: CLOCK_MONOTONIC of Linux, which stands still while the host sleeps.

TCP takes all its times and timers from it.  A retransmission that was due in a second when the host fell asleep is due
in a second after it wakes, and no measured round-trip time includes a sleep.

The programs of a sleeping host should not run.  But all hosts of a network share Trio's clock, which cannot be stopped
for one of them.  So a task on a sleeping host stops at its next socket call or name lookup, which returns when the host
wakes; non-blocking calls report that they would block (EAGAIN).  Deadlines and `trio.sleep` still expire during the
sleep.  What the task does then without the network happens too early, but it sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVarTuple, final

import trio

from .wire import Wire

Ts = TypeVarTuple("Ts")


@final
class HostClock:
    """The time on a host, and its timers."""

    __slots__ = ("_awake", "_fell_asleep_at", "_held", "_sleeps", "_slept", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._slept = 0.0  # seconds, without a sleep that still lasts
        self._sleeps = 0  # calls of `stop` without a `go_on`
        self._fell_asleep_at = 0.0
        self._held: list[tuple[float, Callable[..., object], tuple[object, ...]]] = []
        self._awake = trio.Event()

    @property
    def now(self) -> float:
        """Seconds that the host has been awake."""
        return (self._fell_asleep_at if self._sleeps else self._wire.now) - self._slept

    def slept(self) -> float:
        """Seconds that the host has slept, including a sleep that still lasts."""
        return self._wire.now - self._fell_asleep_at + self._slept if self._sleeps else self._slept

    def at(self, when: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` at a time of this clock."""
        self._wire.at(when + self._slept, self._due, when, fn, args)

    def _due(self, when: float, fn: Callable[..., object], args: tuple[object, ...]) -> None:
        if self._sleeps:
            self._held.append((when, fn, args))
        elif when + self._slept > self._wire.now:  # the host has slept in the meantime
            self.at(when, fn, *args)
        else:
            fn(*args)

    def at_end_of_instant(self, fn: Callable[[], object]) -> None:
        """Run `fn()` when nothing else is due at the current time."""
        self._wire.at_end_of_instant(fn)

    def stop(self) -> bool:
        """Stop the clock until `go_on` has been called as often; returns whether it stood still already."""
        self._sleeps += 1
        if self._sleeps > 1:
            return True
        self._fell_asleep_at = self._wire.now
        self._awake = trio.Event()
        return False

    def go_on(self) -> bool:
        """Undo one `stop`; returns whether the clock still stands still."""
        self._sleeps -= 1
        if self._sleeps:
            return True
        self._slept += self._wire.now - self._fell_asleep_at
        held, self._held = self._held, []
        for when, fn, args in held:
            self.at(when, fn, *args)
        self._awake.set()
        return False

    async def wait(self) -> None:
        """Wait until the clock runs.  Not always a checkpoint."""
        while self._sleeps:
            await self._awake.wait()
