"""Keep-alive of a signal channel: pings its server regularly, and at once when there is reason to doubt it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, final

import trio

__all__ = ["CHECK_TIMEOUT", "KeepAlive"]

CHECK_TIMEOUT: Final = 2.0
"""Seconds for the answer to a check, at most.  A check follows when the host's addresses have changed, a send hangs, or
the path to a peer is gone.  The time allows a round trip by satellite and one lost segment; a connection that is closed
wrongly is opened anew."""
CHECK_TRIPS: Final = 3
"""Round trips for the answer to a check, if the round-trip time is known, plus `CHECK_SLACK`: they allow for one lost
segment."""
CHECK_SLACK: Final = 0.5
"""Seconds added to `CHECK_TRIPS`: more than two of Linux's minimum retransmission timeouts (200 ms)."""


@final
class KeepAlive:
    """The keep-alive of one channel.

    Args:
      heard: returns when the server last sent anything (`trio.current_time`).  While it sends, the answer may be queued
        behind other bytes, such as relayed ones on a slow line.  Then the ping is repeated instead of failing.
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
        """Ping now, with `CHECK_TIMEOUT` at most for the answer; a ping under way gets no longer than that either."""
        if self._asking is None:
            self._doubted.set()
        else:
            self._asking.deadline = min(self._asking.deadline, trio.current_time() + self._patience)

    async def run(
        self, ask: Callable[[], Awaitable[None]], on_rtt: Callable[[float], None], *, interval: float, timeout: float
    ) -> NoReturn:
        """Ping every `interval` seconds, until cancelled.

        Args:
          ask: sends a ping, and returns once it is answered.
          on_rtt: takes each round-trip time, in seconds.
          interval: seconds between an answer and the next ping.
          timeout: seconds for an answer, unless `check` shortens that.

        Raises:
          trio.TooSlowError: neither an answer nor anything else came in time; the text says within how many seconds.
          Whatever `ask` raises.
        """
        patience = timeout
        while True:
            asked = trio.current_time()
            with trio.CancelScope(deadline=asked + patience) as self._asking:
                await ask()
            patience = self._asking.deadline - asked  # `check` may have shortened it
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
