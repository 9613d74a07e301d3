"""The side that asks for a port of the peer's: connections that come there are led to a target of this side's."""

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
    """Have the peer listen on a port of its machine for as long as this runs.

    Connections come as Pipes out of this node's listener, for `handle_bound`.  The value of ``nursery.start`` is where
    the peer listens, as it says.

    Args:
      pipe: one to the peer; the port is asked for by a further one.
      bound: an address of the peer's machine and a port; port 0 is the peer's choice.

    Raises:
      TargetRefused: the peer does not listen there for us.
      PeerRefused: the peer has no room.
      trio.BrokenResourceError: the path is gone, or the peer listens no more.
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
    """Lead a connection that has come to a port of the peer's to a target of ours: a handler for Pipes that begin with
    the label of one.

    Args:
      target: chosen by us, so no list is asked.
      patience: seconds for its name and its connection.
      on_problem: told why it was not reached; None: it is logged.

    Raises:
      trio.BrokenResourceError: one of the two connections broke.
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
