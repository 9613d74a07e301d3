"""Cancels an operation at each of its checkpoints in turn::

    for cut in cuts():
        async with something() as thing:
            with cut:
                await thing.operation()
            ...  # what must hold, cancelled or not

Cut 0 is cancelled before the operation starts, cut k when the operation's task blocks for the k-th time.  The loop ends
after the first run that completes before its cancellation, so the operation also runs whole once.  `cuts` counts the
checkpoints of that task alone.  `step_cuts` counts all tasks: cut k is cancelled when they have made k steps in all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import final

import trio

MAX_CUTS = 200
"""More checkpoints than any operation here has; one that reaches this number must be looping."""
MAX_STEPS = 20_000
"""The same bound for the steps of all tasks."""


class AnyCut(trio.abc.Instrument, ABC):
    """The cancel scope of one run; `caught` tells afterwards whether the cancellation struck."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._left = number
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None

    @property
    def caught(self) -> bool:
        return self._scope.cancelled_caught

    def __enter__(self) -> AnyCut:
        self._task = trio.lowlevel.current_task()
        self._scope.__enter__()
        trio.lowlevel.add_instrument(self)
        if not self.number:
            self._scope.cancel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        trio.lowlevel.remove_instrument(self)
        return self._scope.__exit__(kind, error, traceback)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio calls this when a task has blocked; a cancellation requested now is delivered to that very wait."""
        if self._counts(task) and self._left:
            self._left -= 1
            if not self._left:
                self._scope.cancel()

    @abstractmethod
    def _counts(self, task: trio.lowlevel.Task) -> bool: ...


@final
class Cut(AnyCut):
    """Counts the checkpoints of the operation's own task."""

    def _counts(self, task: trio.lowlevel.Task) -> bool:
        return task is self._task


@final
class StepCut(AnyCut):
    """Counts the steps of all tasks."""

    def _counts(self, task: trio.lowlevel.Task) -> bool:
        return True


def cuts() -> Iterator[Cut]:
    """Cuts for as long as they strike."""
    for number in range(MAX_CUTS):
        cut = Cut(number)
        yield cut
        if not cut.caught:
            return
    raise AssertionError(f"the operation was cancelled at {MAX_CUTS} checkpoints and has not come to its end")


def step_cuts(stride: int = 1) -> Iterator[StepCut]:
    """Cuts at the steps of all tasks, at every `stride`-th one, for as long as they strike."""
    for number in range(1, MAX_STEPS, stride):
        cut = StepCut(number)
        yield cut
        if not cut.caught:
            return
    raise AssertionError(f"the operation does not come to its end in {MAX_STEPS} steps")
