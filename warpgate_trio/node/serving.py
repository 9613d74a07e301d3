"""`serve_pipes` runs a handler for each Pipe that peers open, as `trio.serve_listeners` does for connections."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

import trio

from ..nurseries import leaves, open_background_nursery, require_trio

if TYPE_CHECKING:
    from ..link import Pipe
    from .node import Node

__all__ = ["serve_pipes"]

logger: logging.Logger = logging.getLogger(__name__)


async def serve_pipes(
    handler: Callable[[Pipe], Awaitable[object]],
    node: Node,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Run ``handler(pipe)`` for every Pipe that peers open to `node`, each in its own task, until cancelled.

    A Pipe is closed when its handler returns.  It is aborted when the handler raises or is cancelled, so that the peer
    does not mistake this for the end of the stream.

    An `Exception` of a handler is logged and affects nothing else.  A `trio.BrokenResourceError` is logged in one line,
    anything else with its traceback.

    Raises:
      RuntimeError: the caller does not run under Trio.
      trio.ClosedResourceError: the node or its listener was closed, or the node was opened without ``authorize``;
        handlers that still run are cancelled.
    """
    require_trio("serve_pipes")
    async with open_background_nursery() as nursery:
        task_status.started()
        while True:
            nursery.start_soon(_serve, handler, await node.listener.accept())


async def _serve(handler: Callable[[Pipe], Awaitable[object]], pipe: Pipe) -> None:
    try:
        async with pipe:
            await handler(pipe)
            pipe.close_nowait()  # its work is done, though we may be cancelled by now
    except Exception as error:
        if all(isinstance(leaf, trio.BrokenResourceError) for leaf in leaves(error)):
            logger.info("a handler ended, %r: %s", pipe, next(leaves(error)))
        else:
            logger.exception("a handler failed, %r", pipe)
