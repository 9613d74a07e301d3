"""A Pipe for a connection.  What the connection begins with goes to the peer right behind the question for the Pipe, so
that who speaks first has its answer after one round trip.

Until the peer has taken the Pipe those bytes are looked at and not taken off the connection: where it refuses, nothing
is lost, and it may be asked again.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

import trio

from ..link import Pipe
from ..nurseries import open_bare_nursery

__all__ = ["open_pipe_for"]

MAX_EARLY: Final = 16 * 1024
"""Bytes of a connection that go to the peer before it has taken the Pipe: a request with its headers, and half of what
it has room for."""


async def open_pipe_for(connection: trio.SocketStream, pipe: Pipe, label: str) -> Pipe:
    """Open a further Pipe beside another one, with a connection's first bytes sent on it.

    Raises:
      PeerRefused, trio.ClosedResourceError: as `Pipe.open_pipe`.
      trio.BrokenResourceError: the path or the connection is gone.
    """
    early = await _look(connection) if connection.socket.is_readable() else b""
    try:
        further = pipe.open_pipe_nowait(label)
    except trio.WouldBlock:
        await pipe.wait_accepted()
        further = pipe.open_pipe_nowait(label)
    try:
        if early:  # which goes in one packet with the question
            await _send(early, further)
            await further.wait_accepted()
            left = len(early)
        else:
            left = await _send_what_comes(connection, further)
        while left:
            data = await connection.receive_some(left)
            if not data:
                raise trio.BrokenResourceError("the connection was reset")
            left -= len(data)
    except BaseException:
        further.abort()
        raise
    return further


async def _look(connection: trio.SocketStream) -> bytes:
    """What a connection brings, which stays there."""
    try:
        return await connection.socket.recv(MAX_EARLY, socket.MSG_PEEK)
    except OSError as error:
        raise trio.BrokenResourceError(f"the connection broke: {error.strerror or error}") from error


async def _send(early: bytes, further: Pipe) -> None:
    with suppress(trio.BrokenResourceError):  # it was refused, or is broken: that is waited for
        await further.send_all(early)


async def _send_what_comes(connection: trio.SocketStream, further: Pipe) -> int:
    """Send what comes until the peer has taken the Pipe; returns how much."""
    sent = 0
    looking = trio.CancelScope()

    async def look() -> None:
        nonlocal sent
        data = b""
        with looking:
            data = await _look(connection)
        await _send(data, further)
        sent = len(data)

    async with open_bare_nursery() as nursery:
        nursery.start_soon(look)
        await further.wait_accepted()
        looking.cancel()
    return sent
