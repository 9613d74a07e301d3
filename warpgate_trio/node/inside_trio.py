"""Whether Trio runs here: said by those that people call first, before something inside fails for the want of it."""

from __future__ import annotations

import sys

import trio

__all__ = ["require_trio"]


def require_trio(function: str) -> None:
    """Raise `RuntimeError`, which names the function and what to do, unless a Trio task calls."""
    if trio.lowlevel.in_trio_task():
        return
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{function} needs Trio, and this is asyncio: start the program with trio.run(main)")
    raise RuntimeError(f"{function} needs Trio: call it in an async function that trio.run(main) has started")
