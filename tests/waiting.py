"""Waiting for a condition that no event announces, because other tasks, threads or processes bring it about."""

from __future__ import annotations

from collections.abc import Callable

import trio
import trio.testing

from tests.hangs import HANG


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` holds, even for a moment, and then until all tasks are blocked."""
    with trio.fail_after(HANG):
        while not condition():  # noqa: ASYNC110  # see above: there is no event for it
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
