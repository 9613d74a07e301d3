"""Bytes between a TCP connection and a Pipe, both ways, each end as it is meant.

A side that has said its last word says so on the other stream too (a half-close), and the connection is over when both
have.  A stream that breaks, or is left by an exception, breaks the other one: a reset, so that nobody takes what was
interrupted for the end.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Final

import trio

from ..heap import keep_freed_memory
from ..link import Pipe
from ..nurseries import leaves

__all__ = ["copy_both_ways", "resetting", "send_pieces"]

READ_MIN: Final = 64 * 1024
"""Bytes of the first read from a connection.  It doubles while the kernel fills it."""
READ_MAX: Final = 1024 * 1024
"""Bytes of the largest read: the two sides take a sixth less processor time for a byte than with 256 KiB."""
MAX_PIECES: Final = 512
"""Pieces that are sent by one call, of the 1,024 that Linux takes: 8 MiB of whole TLS records, more than it sends."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER without a time: close says RST and not FIN."""


@asynccontextmanager
async def resetting(connection: trio.SocketStream) -> AsyncGenerator[None]:
    """Close a connection when the body ends well; reset it when an exception leaves the body."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # EINVAL of macOS, where both sides have ended
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.socket.close()
        raise
    connection.socket.close()


async def send_pieces(connection: trio.SocketStream, pieces: Sequence[bytes | memoryview]) -> None:
    """Send pieces without joining them first, which would be 6 to 9 % of a side's processor time for a byte of bulk.

    Raises `trio.BrokenResourceError`.
    """
    if not hasattr(connection.socket, "sendmsg"):  # Windows
        await connection.send_all(b"".join(pieces))
        return
    left = deque(pieces)
    while left:
        try:
            sent = await connection.socket.sendmsg(list(islice(left, MAX_PIECES)))
        except OSError as error:
            raise trio.BrokenResourceError(f"the connection broke: {error.strerror or error}") from error
        while left and sent >= len(left[0]):
            sent -= len(left.popleft())
        if sent:
            left[0] = memoryview(left[0])[sent:]


async def copy_both_ways(
    connection: trio.SocketStream,
    pipe: Pipe,
    *,
    first: Callable[[], Awaitable[object]] | None = None,
    greeting: bytes = b"",
) -> None:
    """Copy until both sides have ended.

    Args:
      first: what is to be done before the Pipe is read; meanwhile the connection is read, and what it brings is sent.
      greeting: what the Pipe is told before anything that the connection brings.  What has come by the Pipe already
        goes first, so that who gets it works while the greeting is sent.

    Raises:
      trio.BrokenResourceError: one of the two broke, or both at once; what `first` raises.
    """

    keep_freed_memory()

    async def receive() -> None:
        if first is not None:
            await first()
        while pieces := await pipe.receive_pieces():
            await send_pieces(connection, pieces)
        await connection.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            if greeting:
                for _ in range(3):  # the turns in which `receive` begins, takes what has come, and sends it
                    await trio.lowlevel.checkpoint()
                await pipe.send_all(greeting)
            size = READ_MIN
            while data := await connection.receive_some(size):
                await pipe.send_all(data)
                if len(data) == size:
                    size = min(2 * size, READ_MAX)
                elif 4 * len(data) < size:
                    size = max(size // 2, READ_MIN)
            # The system tells of a reset once: where that was said to who was sending, it reads as the end.  A send
            # that fails gives way once before it raises, and that cancels us.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            await pipe.send_eof()
    except BaseExceptionGroup as group:
        errors = [each for each in leaves(group) if not isinstance(each, trio.Cancelled)]
        broken = [each for each in errors if isinstance(each, trio.BrokenResourceError)]
        if errors and len(errors) - len(broken) <= 1:  # what breaks one end may break the other in the same moment
            raise next((each for each in errors if each not in broken), errors[0]) from None
        raise
