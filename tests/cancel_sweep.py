"""Cancels an operation at each of its checkpoints in turn::

    for cut in cuts():
        async with something() as thing:
            with cut:
                await thing.operation()
            ...  # what must hold, cancelled or not

Cut 0 is cancelled before the operation starts, cut k when its task has blocked for the k-th time; the loop ends after
the first run that was not cancelled in time, so the operation is seen whole once.  What other tasks do does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import final

import trio

MAX_CUTS = 200
"""More checkpoints than any operation here has; beyond that it must be hanging in a loop."""


@final
class Cut(trio.abc.Instrument):
    """The scope of one run; `caught` tells afterwards whether the cancellation struck."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._left = number
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None

    @property
    def caught(self) -> bool:
        return self._scope.cancelled_caught

    def __enter__(self) -> Cut:
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
        """Trio calls this when a task has blocked: here a cancellation is delivered to that very wait."""
        if task is self._task and self._left:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


def cuts() -> Iterator[Cut]:
    """Cuts for as long as they strike."""
    for number in range(MAX_CUTS):
        cut = Cut(number)
        yield cut
        if not cut.caught:
            return
    raise AssertionError(f"the operation was cancelled at {MAX_CUTS} checkpoints and has not come to its end")
