"""The clock of one host's kernel: CLOCK_MONOTONIC of Linux, which stands still while the machine sleeps.

TCP takes all its times from it and sets all its timers by it, so a retransmission that was due in a second when the
machine fell asleep is due in a second when it wakes, and no round trip is measured over a sleep.

The programs of a sleeping machine do not run.  All hosts of a network share Trio's clock, however, which nobody can
stop for one of them.  So a task on a sleeping host stops at its next call of a socket (or when it looks up a name),
which returns when the host wakes; calls that cannot wait would block (EAGAIN).  A deadline, and `trio.sleep`, still end
in mid-sleep, and what the task does then without the network, it does too early.  Nothing of it gets out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVarTuple, final

import trio

from .wire import Wire

Ts = TypeVarTuple("Ts")


@final
class HostClock:
    """What time it is on a host, and what is due there."""

    __slots__ = ("_awake", "_fell_asleep_at", "_held", "_sleeps", "_slept", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._slept = 0.0  # seconds, without the sleep that goes on
        self._sleeps = 0  # how many reasons it has to sleep
        self._fell_asleep_at = 0.0
        self._held: list[tuple[float, Callable[..., object], tuple[object, ...]]] = []
        self._awake = trio.Event()

    @property
    def now(self) -> float:
        """Seconds that the host has been awake."""
        return (self._fell_asleep_at if self._sleeps else self._wire.now) - self._slept

    def slept(self) -> float:
        """Seconds that it has slept."""
        return self._wire.now - self._fell_asleep_at + self._slept if self._sleeps else self._slept

    def at(self, when: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` at a time of this clock."""
        self._wire.at(when + self._slept, self._due, when, fn, args)

    def _due(self, when: float, fn: Callable[..., object], args: tuple[object, ...]) -> None:
        if self._sleeps:
            self._held.append((when, fn, args))
        elif when + self._slept > self._wire.now:  # it has slept since
            self.at(when, fn, *args)
        else:
            fn(*args)

    def at_end_of_instant(self, fn: Callable[[], object]) -> None:
        """Run `fn()` when nothing else is due at this time."""
        self._wire.at_end_of_instant(fn)

    def stop(self) -> bool:
        """Stand still until as many `go_on`; whether it stood still already."""
        self._sleeps += 1
        if self._sleeps > 1:
            return True
        self._fell_asleep_at = self._wire.now
        self._awake = trio.Event()
        return False

    def go_on(self) -> bool:
        """Take one `stop` back; whether it still stands."""
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
        """Wait until it goes on, where it stands.  Not always a checkpoint."""
        while self._sleeps:
            await self._awake.wait()
