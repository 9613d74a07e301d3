"""The queue of Pipes that peers have opened, as a `trio.abc.Listener`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, final

import trio

from ..link import Link, Pipe, RefuseReason

__all__ = ["PipeListener"]

MAX_WAITING_PIPES: Final = 64
"""Pipes that wait for ``listener.accept()``; the next peer hears BUSY, as a full backlog does it to TCP."""


@final
class PipeListener(trio.abc.Listener[Pipe]):
    """The Pipes that peers open to this node; for `trio.serve_listeners` or a loop over `accept`."""

    def __init__(self) -> None:
        self._arrivals, self._waiting = trio.open_memory_channel[Pipe](MAX_WAITING_PIPES)
        self._closed: RefuseReason | None = None
        self._kept_for: Pipe | None = None

    async def accept(self) -> Pipe:
        """The next Pipe.  Cancelling loses none.

        Raises:
          trio.ClosedResourceError: the listener or its node was closed.  Nothing else, whatever peers do.
        """
        while True:
            try:
                pipe = await self._waiting.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                raise trio.ClosedResourceError("this listener was closed") from None
            return pipe

    def room(self, ended: Collection[Link] = ()) -> RefuseReason | None:
        """None when a Pipe can be put in, else what to tell the peer, whose call has `ended` these Links."""
        if self._closed is not None:
            return self._closed
        if self._kept_for is not None and not self._kept_for.is_on(ended):
            return RefuseReason.TAKEN
        stats = self._arrivals.statistics()
        free = stats.current_buffer_used < MAX_WAITING_PIPES or stats.tasks_waiting_receive > 0
        return None if free else RefuseReason.BUSY

    @property
    def waiting(self) -> int:
        """Pipes that nobody has taken yet."""
        return self._arrivals.statistics().current_buffer_used

    def put(self, pipe: Pipe) -> None:
        """Hand over an accepted Pipe; `room` was asked in the same step."""
        self._arrivals.send_nowait(pipe)

    def keep_nowait(self, pipe: Pipe) -> None:
        """Accept no more Pipes than the one that takes the place of `pipe`, once its peer was started again.

        A process that was killed leaves a Pipe that waits for a path.  When the next one of that peer calls, the Pipe
        breaks, and the new one is `waiting` by then.  Everybody else hears TAKEN.  Pipes that nobody took are aborted.
        """
        self._kept_for = pipe
        self._abort_waiting()

    def close_nowait(self, reason: RefuseReason = RefuseReason.NOT_ACCEPTING) -> None:
        """Stop accepting; Pipes that nobody took are aborted, and peers hear `reason` from now on."""
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
        """Stop accepting; peers hear NOT_ACCEPTING from now on.  Pipes that nobody took are aborted.

        The node stays open.
        """
        self.close_nowait()
        await trio.lowlevel.checkpoint()
