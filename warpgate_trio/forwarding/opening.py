"""Opening a Pipe for a TCP connection, with the connection's first bytes sent right behind the OPEN.

A client that sends first therefore has its answer after one round trip.  Until the peer accepts the Pipe, these bytes
are read with MSG_PEEK and stay in the connection.  If the peer refuses, nothing is lost and the caller may try again.
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
"""Bytes of a connection that are sent before the peer accepts the Pipe: a request with its headers.  It is half of what
the peer has room for."""


async def open_pipe_for(connection: trio.SocketStream, pipe: Pipe, label: str) -> Pipe:
    """Open a further Pipe on the Link of `pipe`, and send the first bytes of a connection on it.

    Raises:
      PeerRefused, trio.ClosedResourceError: as `Pipe.open_pipe`.
      trio.BrokenResourceError: the Link or the connection broke.
    """
    early = await _look(connection) if connection.socket.is_readable() else b""
    try:
        further = pipe.open_pipe_nowait(label)
    except trio.WouldBlock:
        await pipe.wait_accepted()
        further = pipe.open_pipe_nowait(label)
    try:
        if early:  # sent in one packet with the OPEN
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
    """Read from a connection without removing the bytes from it."""
    try:
        return await connection.socket.recv(MAX_EARLY, socket.MSG_PEEK)
    except OSError as error:
        raise trio.BrokenResourceError(f"the connection broke: {error.strerror or error}") from error


async def _send(early: bytes, further: Pipe) -> None:
    with suppress(trio.BrokenResourceError):  # refused or broken: `wait_accepted` raises the reason
        await further.send_all(early)


async def _send_what_comes(connection: trio.SocketStream, further: Pipe) -> int:
    """Send data of the connection until the peer accepts the Pipe; returns the number of bytes sent."""
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
