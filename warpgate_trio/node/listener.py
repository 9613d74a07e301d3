"""The queue of the Pipes that peers have opened, as a `trio.abc.Listener`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, final

import trio

from ..link import Link, Pipe, RefuseReason

__all__ = ["PipeListener"]

MAX_WAITING_PIPES: Final = 64
"""Pipes that wait for ``listener.accept()``; further peers are refused with BUSY, as with TCP's full backlog."""


@final
class PipeListener(trio.abc.Listener[Pipe]):
    """The Pipes that peers open to this node, for `trio.serve_listeners` or a loop over `accept`."""

    def __init__(self) -> None:
        self._arrivals, self._waiting = trio.open_memory_channel[Pipe](MAX_WAITING_PIPES)
        self._closed: RefuseReason | None = None
        self._kept_for: Pipe | None = None

    async def accept(self) -> Pipe:
        """Wait for the next Pipe.  Cancelling loses none.

        Raises:
          trio.ClosedResourceError: the listener or its node was closed.  Nothing that peers do raises here.
        """
        while True:
            try:
                pipe = await self._waiting.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                raise trio.ClosedResourceError("this listener was closed") from None
            return pipe

    def room(self, ended: Collection[Link] = ()) -> RefuseReason | None:
        """None when there is room for another Pipe, else the reason to refuse the peer with.

        Args:
          ended: the Links that this call of the peer has ended.
        """
        if self._closed is not None:
            return self._closed
        if self._kept_for is not None and not self._kept_for.is_on(ended):
            return RefuseReason.TAKEN
        stats = self._arrivals.statistics()
        free = stats.current_buffer_used < MAX_WAITING_PIPES or stats.tasks_waiting_receive > 0
        return None if free else RefuseReason.BUSY

    @property
    def waiting(self) -> int:
        """The number of Pipes that were not accepted yet."""
        return self._arrivals.statistics().current_buffer_used

    def put(self, pipe: Pipe) -> None:
        """Queue an accepted Pipe.  The caller has checked `room` without a checkpoint in between."""
        self._arrivals.send_nowait(pipe)

    def keep_nowait(self, pipe: Pipe) -> None:
        """From now on accept only one Pipe: the one that replaces `pipe` after its peer's process was restarted.

        A process that was killed leaves a Pipe that waits for a path.  When the peer's new process calls, the old Pipe
        breaks, and by then the new one is `waiting`.  All other calls are refused with TAKEN.  Pipes that were not
        accepted yet are aborted.
        """
        self._kept_for = pipe
        self._abort_waiting()

    def close_nowait(self, reason: RefuseReason = RefuseReason.NOT_ACCEPTING) -> None:
        """Stop accepting: peers are refused with `reason` from now on, and Pipes that were not accepted are aborted."""
        if self._closed is not None:
            return
        self._closed = reason
        self._abort_waiting()
        self._arrivals.close()

    def _abort_waiting(self) -> None:
        while True:
            try:
                self._waiting.receive_nowait().abort()
            except (trio.WouldBlock, trio.EndOfChannel):
                break

    async def aclose(self) -> None:
        """Stop accepting.  The node stays open.

        Peers are refused with NOT_ACCEPTING from now on, and Pipes that were not accepted are aborted.
        """
        self.close_nowait()
        await trio.lowlevel.checkpoint()
