"""Runs a command under Trio with a clean shutdown.

SIGINT and SIGTERM cancel the command's scope instead of raising an exception at an arbitrary place.  Every ``async
with`` cleans up, the node sends its goodbyes (within ``budgets.goodbye``), and no code has to catch KeyboardInterrupt.
A second signal kills the process at once.
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
      command: returns its exit code; None means OK.
      service: whether the command runs until it is terminated, so that SIGTERM means exit code 0.

    Raises:
      Whatever the command raises, without an exception group around it.
    """
    try:
        return trio.run(_supervised, command, service)
    except BaseExceptionGroup as group:
        # A KeyboardInterrupt before or after the time of our own signal handlers may come in a group with others.
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
    if not received or not scope.cancelled_caught:  # a signal after the command's last step has no effect
        return ExitCode.OK if code is None else code
    if service and received[0] == signal.SIGTERM:
        return ExitCode.OK
    raise CommandFailed(ExitCode.INTERRUPTED, "interrupted")


async def _settle_heap() -> None:
    """Freeze all objects of loaded modules (gc.freeze), and restore the usual thresholds of the garbage collector.

    This runs when the command waits for the first time; its modules are loaded by then.  A collection of their objects,
    none of which is ever garbage, takes some 40 ms and would otherwise happen during the first call.
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
    """Run two functions concurrently until both have ended.  An exception of one cancels the other and is raised
    without an exception group.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
    except BaseExceptionGroup as group:
        failure = next((leaf for leaf in leaves(group) if not isinstance(leaf, trio.Cancelled)), None)
        if failure is None:
            raise
        raise failure from None
