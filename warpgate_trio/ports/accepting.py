"""Listeners: the socket option that all of them set before their bind, and the accept loop of all servers and the node.

When the process has no file descriptor left, ``accept`` fails at once, and again: the connection stays in the backlog,
so the socket stays readable.  Nothing signals that a descriptor is free again.  So the loop pauses between tries, as
`trio.serve_listeners` does, but logs the error once a minute instead of ten tracebacks a second.
"""

from __future__ import annotations

import errno
import logging
import math
import sys
from collections.abc import Callable
from typing import Any, Final

import trio

__all__ = ["accept_connections", "rebind"]

logger: logging.Logger = logging.getLogger(__name__)

PAUSE: Final = 0.1
"""Seconds after an ``accept`` that failed."""
REPORT_INTERVAL: Final = 60.0
"""Seconds between two log lines about a failing ``accept``."""
_OF_ONE_CONNECTION: Final = frozenset(
    # accept(2): errors of the connection that was waiting; the next one may be fine.
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
)


def rebind(listener: trio.socket.SocketType) -> None:
    """Allow a listener to bind to a port while connections of an earlier listener on it are still closing.

    Call it before the bind.  Windows allows that by default; there, SO_REUSEADDR would allow a port on which another
    program listens.
    """
    if sys.platform != "win32":
        listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)


async def accept_connections(
    listener: trio.socket.SocketType, take: Callable[[trio.socket.SocketType, Any], object]
) -> None:
    """Accept connections until the listener is closed.

    Args:
      take: called with each connection and its source address; owns the connection, and starts the task that serves it.
    """
    reported_at = -math.inf
    while True:
        try:
            connection, source = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            if listener.fileno() < 0 or error.errno == errno.EBADF:  # closed between two accepts
                return
            if error.errno in _OF_ONE_CONNECTION:
                await trio.lowlevel.checkpoint()
                continue
            if trio.current_time() - reported_at >= REPORT_INTERVAL:
                reported_at = trio.current_time()
                logger.error("no connection can be accepted: %s; trying again", error.strerror or error)
            await trio.sleep(PAUSE)
            continue
        take(connection, source)
