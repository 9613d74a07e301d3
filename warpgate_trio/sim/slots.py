"""Slots in which one task waits until a socket is readable or writable."""

from __future__ import annotations

from typing import final

import trio


@final
class Slot:
    """A place for one waiting task, as Trio has one per file descriptor and direction."""

    __slots__ = ("_closed", "_doing", "_task")

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._task: trio.lowlevel.Task | None = None
        self._closed = False

    async def wait(self) -> None:
        """Sleep until `wake`, which may be spurious; trio.BusyResourceError if another task already waits here."""
        if self._task is not None:
            await trio.lowlevel.checkpoint()
            raise trio.BusyResourceError(f"another task is already {self._doing} this socket")

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        if self._closed:
            raise trio.ClosedResourceError("another task closed this socket")

    def wake(self) -> None:
        """Wake the waiting task, if there is one."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def close(self) -> None:
        """Raise trio.ClosedResourceError in the waiting task, if there is one."""
        self._closed = True
        self.wake()
