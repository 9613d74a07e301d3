"""The one heap of events and the one task that lets virtual time pass.

Everything that happens between programs (a packet that arrives, a timer of TCP, a fault that sets in) is an entry
``(time, number, function)`` of one heap; the number keeps ties in the order in which they were made.  One task sleeps
until the first entry is due and then runs all that are due, in order, also those that they cause for the same
instant.  A packet therefore costs a heap entry, not a task, and an instant costs one pass of Trio's loop, however
much happens in it.

While entries run, `now` is the time of the entry, so that causes come before effects even where a test has moved the
clock by hand.  `at_end_of_instant` is for work that many entries of an instant share, such as one acknowledgement
for a burst of segments.
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
        """Seconds on the run's clock; inside an entry, the time that it is due; after the end, the end's."""
        if self.ended is not None:
            return self.ended
        return self._now if self._running else trio.current_time()

    @property
    def pending(self) -> int:
        """The number of entries that wait."""
        return len(self._heap)

    def at(self, when: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` at a time; one in the past is due at once."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, fn, args))
        if not self._running:
            scope = self._scope
            if scope is not None and when < scope.deadline:
                self._interrupt(when, scope)

    def after(self, delay: float, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run `fn(*args)` after a delay in seconds; 0 means within this instant, after what is due already."""
        self.at(self.now + delay, fn, *args)

    def at_end_of_instant(self, fn: Callable[[], object]) -> None:
        """Run `fn()` when nothing else is due at this time."""
        self._late.append(fn)
        if not self._running and self._scope is not None:
            self._interrupt(-inf, self._scope)

    def stop(self, failure: Exception) -> bool:
        """Let `run` raise `failure` in place of letting time pass; False when it does not run (any more)."""
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
        """Let things happen until cancelled.  What an entry raises ends this task."""
        over = False

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            # Awake without an exception, which would cost more than what there is to do: each instant ends this way.
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
            # One scope serves until its deadline comes: being woken for something earlier costs no new one.
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
        """Run `fn(*args)` and what it causes in this instant before returning, as the kernel does in a system call.

        What `fn` raises comes out, and what it has put on the wire by then still happens.
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
