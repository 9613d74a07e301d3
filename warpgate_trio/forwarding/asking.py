"""The requesting side: local ports that lead to the peer's network, and single connections to it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NoReturn

import trio

from ..errors import PeerRefused, TargetRefused
from ..link import Pipe, RefuseReason
from ..nurseries import open_background_nursery
from ..ports.accepting import accept_connections
from .copying import copy_both_ways, resetting
from .opening import open_pipe_for
from .targets import Target
from .wire import TCP, receive_answer

__all__ = ["open_target", "serve_forward"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_OPENING: Final = 32
"""Connections of one port whose Pipes are being opened at a time: half of the backlog of the peer's listener."""
BUSY_PAUSES: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Seconds between attempts to open a Pipe to a peer that answers BUSY: a burst of connections is accepted by then."""


async def open_target(pipe: Pipe, target: Target) -> Pipe:
    """Open a stream to a target in the peer's network, as a further Pipe of the Link of `pipe`.

    It takes one round trip, and the time in which the peer connects to the target.

    Raises:
      TargetRefused: the peer does not expose the target, or cannot reach it.
      PeerRefused: the peer does not listen, or has too many Pipes.
      trio.BrokenResourceError: the Link broke.
      trio.ClosedResourceError: `pipe` was closed.
    """
    further = await pipe.open_pipe(f"{TCP}{target}")
    try:
        await receive_answer(further)
    except BaseException:
        further.abort()
        raise
    return further


async def serve_forward(
    find_pipe: Callable[[], Pipe],
    target: Target,
    listener: trio.SocketListener,
    *,
    on_problem: Callable[[Exception], object] | None = None,
) -> NoReturn:
    """Forward every connection to a local listener to a target in the peer's network, until cancelled.

    A connection that the peer does not forward is reset.  The caller closes the listener.

    Args:
      find_pipe: returns a Pipe to the peer; called for each connection.
      on_problem: called with the reason for which a connection was not forwarded, or broke; None: the reason is logged.

    Raises:
      trio.ClosedResourceError: the listener was closed.
    """
    opening = trio.CapacityLimiter(MAX_OPENING)
    tell = on_problem or partial(logger.info, "a connection to %s ended: %s", target)
    async with open_background_nursery() as nursery:
        await accept_connections(
            listener.socket,
            lambda sock, _: nursery.start_soon(_lead, trio.SocketStream(sock), find_pipe, target, opening, tell),
        )
        raise trio.ClosedResourceError("the listener was closed")


@asynccontextmanager
async def _slot(room: trio.CapacityLimiter) -> AsyncGenerator[None]:
    """Hold a token of the limiter.  If one is free there is no checkpoint, which would only delay the connection."""
    try:
        room.acquire_nowait()
    except trio.WouldBlock:
        await room.acquire()
    try:
        yield
    finally:
        room.release()


async def _open(connection: trio.SocketStream, find_pipe: Callable[[], Pipe], target: Target) -> Pipe:
    for pause in BUSY_PAUSES:
        try:
            return await open_pipe_for(connection, find_pipe(), f"{TCP}{target}")
        except PeerRefused as error:
            if error.reason != RefuseReason.BUSY:
                raise
            await trio.sleep(pause)  # pacing
    return await open_pipe_for(connection, find_pipe(), f"{TCP}{target}")


async def _lead(
    connection: trio.SocketStream,
    find_pipe: Callable[[], Pipe],
    target: Target,
    opening: trio.CapacityLimiter,
    tell: Callable[[Exception], object],
) -> None:
    try:
        async with resetting(connection):
            async with _slot(opening):
                further = await _open(connection, find_pipe, target)
            async with further:
                await copy_both_ways(connection, further, first=partial(receive_answer, further))
    except (TargetRefused, PeerRefused, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        tell(error)
    except Exception as error:
        logger.exception("a connection to %s failed unexpectedly", target)
        tell(error)
