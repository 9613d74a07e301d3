"""Listeners: what all of them say before their bind, and accepting connections for as long as one is open: the one loop
of all servers and of the node.

When the process has no descriptor left, ``accept`` fails at once, and goes on failing: the connection stays in the
backlog, so that the socket stays readable.  Nothing tells when there is a descriptor again.  So the loop waits a moment
between tries, as `trio.serve_listeners` does, but says so once a minute and not ten times a second with a traceback.
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
"""Seconds between two lines about it in the log."""
_OF_ONE_CONNECTION: Final = frozenset(
    # accept(2): what is wrong with the connection that was waiting; the next one may be well.
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
)


def rebind(listener: trio.socket.SocketType) -> None:
    """Let a listener, before its bind, have a port of which connections of an earlier listener are still being closed.

    Windows does so unasked, and by SO_REUSEADDR it lets a listener take a port that another program listens on.
    """
    if sys.platform != "win32":
        listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)


async def accept_connections(
    listener: trio.socket.SocketType, take: Callable[[trio.socket.SocketType, Any], object]
) -> None:
    """Accept connections until the listener is closed.

    Args:
      take: called with each connection, which it owns from then on, and with its source; starts what serves it.
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
