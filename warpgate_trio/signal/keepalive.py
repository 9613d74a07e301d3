"""Asking a signal server now and then whether it is still there, and at once when there is reason to doubt it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, final

import trio

__all__ = ["CHECK_TIMEOUT", "KeepAlive"]

CHECK_TIMEOUT: Final = 2.0
"""Seconds for the answer when there is reason to doubt, at most: the machine's addresses have changed, a send hangs, or
the path to a peer is gone.  A round trip by satellite and a segment that was lost; who is cut off wrongly connects
anew."""
CHECK_TRIPS: Final = 3
"""Round trips that the answer has, where they are known, with `CHECK_SLACK`: one, and a segment that was lost."""
CHECK_SLACK: Final = 0.5
"""Seconds beside them: two of Linux's least retransmission timeouts."""


@final
class KeepAlive:
    """One channel's questions.

    Args:
      heard: when the server last said anything (`trio.current_time`).  While it does, an answer may wait behind that,
        as behind what a relay brings on a slow line, and is waited for anew.
    """

    def __init__(self, heard: Callable[[], float] = lambda: -math.inf) -> None:
        self._heard = heard
        self._doubted = trio.Event()
        self._asking: trio.CancelScope | None = None
        self._rtt: float | None = None

    @property
    def _patience(self) -> float:
        return CHECK_TIMEOUT if self._rtt is None else min(CHECK_TRIPS * self._rtt + CHECK_SLACK, CHECK_TIMEOUT)

    def check(self) -> None:
        """Ask now, and wait for `CHECK_TIMEOUT` at most; what is being asked already gets no longer either."""
        if self._asking is None:
            self._doubted.set()
        else:
            self._asking.deadline = min(self._asking.deadline, trio.current_time() + self._patience)

    async def run(
        self, ask: Callable[[], Awaitable[None]], on_rtt: Callable[[float], None], *, interval: float, timeout: float
    ) -> NoReturn:
        """Ask every `interval` seconds, until cancelled; `on_rtt` is told the seconds of each round trip.

        Raises:
          trio.TooSlowError: no answer in time, and nothing else either; the text says within how many seconds.
          Whatever `ask` raises.
        """
        patience = timeout
        while True:
            asked = trio.current_time()
            with trio.CancelScope(deadline=asked + patience) as self._asking:
                await ask()
            patience = self._asking.deadline - asked  # a doubt may have shortened it
            late, self._asking = self._asking.cancelled_caught, None
            if late and self._heard() > asked:
                continue
            if late:
                raise trio.TooSlowError(f"within {patience:.3g} s")
            self._rtt = trio.current_time() - asked
            on_rtt(self._rtt)
            patience = timeout
            with trio.move_on_after(interval):
                await self._doubted.wait()
                patience = min(timeout, self._patience)
            self._doubted = trio.Event()
