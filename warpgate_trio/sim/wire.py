"""The event queue of a network, and the task that runs it.

Everything that happens between programs (the arrival of a packet, a TCP timer, the start of a fault) is an entry
``(time, number, function)`` of one heap; entries of the same time run in the order of their numbers, in which they were
made.  One task sleeps until the first entry is due, and then runs all due entries, including those that they add for
the same instant.  A packet therefore costs a heap entry instead of a task, and an instant costs one pass of Trio's
loop, regardless of the number of its entries.

While an entry runs, `now` is its time, so that causes precede effects even if a test has moved the clock by hand.
`at_end_of_instant` is for work that many entries of an instant share, such as one acknowledgement for a burst of
segments.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import TypeVarTuple, final

import trio

Ts = TypeVarTuple("Ts")


@final
class Wire:
    """Events of a network in time order."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._number = 0
        self._late: list[Callable[[], object]] = []
        self._now = 0.0
        self._running = False  # whether entries are being run
        self._task: trio.lowlevel.Task | None = None  # the sleeping wire task
        self._scope: trio.CancelScope | None = None
        self._failure: Exception | None = None
        self.ended: float | None = None  # when the network was left

    @property
    def now(self) -> float:
        """Seconds on the run's clock; while an entry runs, the entry's time; after the network's end, its end time."""
        if self.ended is not None:
            return self.ended
        return self._now if self._running else trio.current_time()

    @property
    def pending(self) -> int:
        """The number of waiting entries."""
        return len(self._heap)

    def at(self, when: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` at a time; if it is in the past, at once."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, fn, args))
        if not self._running:
            scope = self._scope
            if scope is not None and when < scope.deadline:
                self._interrupt(when, scope)

    def after(self, delay: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` after a delay in seconds; with 0, in this instant, after the entries that are already due."""
        self.at(self.now + delay, fn, *args)

    def at_end_of_instant(self, fn: Callable[[], object]) -> None:
        """Run `fn()` when nothing else is due at the current time."""
        self._late.append(fn)
        if not self._running and self._scope is not None:
            self._interrupt(-inf, self._scope)

    def stop(self, failure: Exception) -> bool:
        """Make `run` raise `failure` instead of letting time pass; returns False if it is not running."""
        if self._scope is None:
            return False
        self._failure = failure
        self._interrupt(-inf, self._scope)
        return True

    def _interrupt(self, when: float, scope: trio.CancelScope) -> None:
        if when > trio.current_time():
            scope.deadline = when
        elif self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the entries when they are due, until cancelled.  An exception of an entry ends this task."""
        over = False

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            # Wake up without an exception, which would cost more than the work: each instant ends this way.
            nonlocal over
            over = True
            task, self._task = self._task, None
            assert task is not None
            trio.lowlevel.reschedule(task)
            return trio.lowlevel.Abort.FAILED

        task_status.started()
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            over = False
            # One scope is used until its deadline: an earlier wake-up needs no new one.
            with trio.CancelScope() as scope:
                while not over:
                    if self._failure is not None:
                        raise self._failure
                    self._run_due()
                    scope.deadline = self._heap[0][0] if self._heap else inf
                    self._scope, self._task = scope, trio.lowlevel.current_task()
                    try:
                        await trio.lowlevel.wait_task_rescheduled(abort)
                    finally:
                        self._scope = self._task = None

    def act(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` and everything that it causes in this instant, as the kernel does in a system call.

        Exceptions of `fn` propagate; the entries that it has added by then still run.
        """
        if self._running:
            fn(*args)
            return
        self._now = trio.current_time()
        self._running = True
        try:
            fn(*args)
        finally:
            self._running = False
            self._run_due()
            scope = self._scope
            if scope is not None and self._heap and self._heap[0][0] < scope.deadline:
                self._interrupt(self._heap[0][0], scope)

    def _run_due(self) -> None:
        heap, pop = self._heap, heapq.heappop
        limit = trio.current_time()
        self._running = True
        try:
            while True:
                while heap and heap[0][0] <= limit:
                    when, _, fn, args = pop(heap)
                    if when > self._now:
                        self._now = when
                    fn(*args)
                self._now = limit
                if not self._late:
                    return
                late, self._late = self._late, []
                for step in late:
                    step()
        finally:
            self._running = False
