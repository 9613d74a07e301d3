"""Asking a signal server now and then whether it is still there, and at once when there is reason to doubt it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, final

import trio

__all__ = ["CHECK_TIMEOUT", "KeepAlive"]

CHECK_TIMEOUT: Final = 2.0
"""Seconds for the answer when there is reason to doubt: the machine's addresses have changed, or a send hangs.  A round
trip by satellite and a segment that was lost; who is cut off wrongly connects anew."""


@final
class KeepAlive:
    """One channel's questions."""

    def __init__(self) -> None:
        self._doubted = trio.Event()
        self._asking: trio.CancelScope | None = None

    def check(self) -> None:
        """Ask now, and wait for `CHECK_TIMEOUT` alone; what is being asked already gets no longer either."""
        if self._asking is None:
            self._doubted.set()
        else:
            self._asking.deadline = min(self._asking.deadline, trio.current_time() + CHECK_TIMEOUT)

    async def run(
        self, ask: Callable[[], Awaitable[None]], on_rtt: Callable[[float], None], *, interval: float, timeout: float
    ) -> NoReturn:
        """Ask every `interval` seconds, until cancelled; `on_rtt` is told the seconds of each round trip.

        Raises:
          trio.TooSlowError: no answer in time; the text says within how many seconds.
          Whatever `ask` raises.
        """
        patience = timeout
        while True:
            asked = trio.current_time()
            with trio.CancelScope(deadline=asked + patience) as self._asking:
                await ask()
            late, self._asking = self._asking.cancelled_caught, None
            if late:
                raise trio.TooSlowError(f"within {patience:.0f} s")
            on_rtt(trio.current_time() - asked)
            patience = timeout
            with trio.move_on_after(interval):
                await self._doubted.wait()
                patience = min(timeout, CHECK_TIMEOUT)
            self._doubted = trio.Event()
