"""Runs a command under Trio, so that it ends well however it ends.

SIGINT and SIGTERM cancel the command's scope instead of raising somewhere in the middle: every ``async with`` on the
way out does its work, the node says its goodbyes (``budgets.goodbye`` bounds them), and nothing has to catch
KeyboardInterrupt.  A second signal kills the process on the spot, as the user by then expects.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import trio

from ..nurseries import leaves, open_background_nursery
from .exits import CommandFailed, ExitCode
from .main import USUAL_THRESHOLDS, WHILE_LOADING

__all__ = ["run", "run_both"]


def run(command: Callable[[], Awaitable[int | None]], *, service: bool = False) -> int:
    """Run a command and return its exit code.

    Args:
      command: None means OK.
      service: it has no end of its own, so that SIGTERM is its proper one: exit code 0.

    Raises:
      Whatever the command raises, bare.
    """
    try:
        return trio.run(_supervised, command, service)
    except BaseExceptionGroup as group:
        # A KeyboardInterrupt that came before or after the time of our own handlers may be in company.
        interrupt = next((leaf for leaf in leaves(group) if isinstance(leaf, KeyboardInterrupt)), None)
        if interrupt is not None:
            raise interrupt from None
        raise


async def _supervised(command: Callable[[], Awaitable[int | None]], service: bool) -> int:
    received: list[int] = []
    code: int | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrivals, trio.CancelScope() as scope:
        async with open_background_nursery() as nursery:
            nursery.start_soon(_settle_heap)
            nursery.start_soon(_cancel_on_signal, arrivals, received, scope)
            code = await command()
    if not received or not scope.cancelled_caught:  # a signal after the last step of the command changes nothing
        return ExitCode.OK if code is None else code
    if service and received[0] == signal.SIGTERM:
        return ExitCode.OK
    raise CommandFailed(ExitCode.INTERRUPTED, "interrupted")


async def _settle_heap() -> None:
    """Have the garbage collector look as often as usual, with all that has been loaded out of its sight.

    It runs when the command waits for the first time, which is when its modules are loaded.  To look through them takes
    the collector some 40 ms, and that would come in the midst of a first call; none of them is ever garbage.
    """
    if gc.get_threshold()[0] == WHILE_LOADING:
        gc.freeze()
        gc.set_threshold(*USUAL_THRESHOLDS)


async def _cancel_on_signal(arrivals: AsyncIterator[int], received: list[int], scope: trio.CancelScope) -> None:
    received.append(await anext(arrivals))
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, OSError):
            signal.signal(number, signal.SIG_DFL)
    scope.cancel()


async def run_both(first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[object]]) -> None:
    """Run two functions at a time until both have ended; what one raises ends the other and leaves bare."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
    except BaseExceptionGroup as group:
        failure = next((leaf for leaf in leaves(group) if not isinstance(leaf, trio.Cancelled)), None)
        if failure is None:
            raise
        raise failure from None
