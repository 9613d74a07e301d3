"""Reverse forwarding, requesting side: the peer listens on a port whose connections lead to a target of this side."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import trio

from ..errors import TargetRefused
from ..link import Pipe
from .copying import copy_both_ways, resetting
from .reaching import TARGET_PATIENCE, reach
from .targets import Target
from .wire import BIND, BOUND, receive_answer

__all__ = ["handle_bound", "serve_reverse"]

logger: logging.Logger = logging.getLogger(__name__)


async def serve_reverse(
    pipe: Pipe, bound: Target, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Have the peer listen on a port of its machine while this runs.

    Each connection arrives as a Pipe from this node's listener, for `handle_bound`.  ``nursery.start`` returns the
    address on which the peer listens, as the peer reports it.

    Args:
      pipe: a Pipe to the peer; the request is sent on a further Pipe of the same Link.
      bound: an address of the peer's machine and a port; with port 0 the peer's system chooses one.

    Raises:
      TargetRefused: the peer refuses to listen there, or cannot.
      PeerRefused: the peer does not listen, or has too many Pipes.
      trio.BrokenResourceError: the Link broke, or the peer has stopped listening.
    """
    async with await pipe.open_pipe(f"{BIND}{bound}") as further:
        task_status.started(await receive_answer(further))
        async for _ in further:
            pass
        raise trio.BrokenResourceError(f"the peer does not listen on {bound} any more")


async def handle_bound(
    pipe: Pipe,
    target: Target,
    *,
    patience: float = TARGET_PATIENCE,
    on_problem: Callable[[Exception], object] | None = None,
) -> None:
    """Forward a connection to the peer's port to a target of this side: a handler for Pipes with a ``bound:`` label.

    Args:
      target: where to connect; this side has chosen it, so no list is checked.
      patience: seconds for looking up its name and connecting.
      on_problem: called with the reason for which the target was not reached; None: the reason is logged.

    Raises:
      ValueError: the Pipe has another label.
      trio.BrokenResourceError: the Pipe or the connection to the target broke.
    """
    tell = on_problem or partial(logger.info, "a connection from %s… to %s: %s", pipe.peer_id[:8], target)
    if not pipe.label.startswith(BOUND):
        raise ValueError(f"{pipe.label!r} is no connection to a port of the peer's")
    try:
        connection = await reach(target, None, patience, peer_id=pipe.peer_id)
    except TargetRefused as error:
        tell(error)
        pipe.abort()
        return
    async with resetting(connection):
        await copy_both_ways(connection, pipe)
