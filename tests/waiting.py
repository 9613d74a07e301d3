"""Waiting for what no event tells: what other tasks, threads or processes do in their own time."""

from __future__ import annotations

from collections.abc import Callable

import trio
import trio.testing

from tests.hangs import HANG


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` holds, be it for a moment, and then until no task can go on by itself."""
    with trio.fail_after(HANG):
        while not condition():  # noqa: ASYNC110  # see above: there is no event for it
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
