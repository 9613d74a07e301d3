"""Copying between a TCP connection and a Pipe, in both directions.

The end of one stream is passed on as the end of the other one (half-close).  The connection is over when both
directions have ended.  If either stream breaks, or an exception ends the copying, the other one is reset, so that no
program takes an interruption for the end of the data.
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
"""Bytes of the first read from a connection.  The size doubles while the kernel fills it."""
READ_MAX: Final = 1024 * 1024
"""Bytes of the largest read: with it both sides need a sixth less processor time for a byte than with 256 KiB."""
MAX_PIECES: Final = 512
"""Buffers of one sendmsg call.  Linux accepts 1,024; 512 full TLS records are 8 MiB, more than one call sends."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: close sends RST instead of FIN."""


@asynccontextmanager
async def resetting(connection: trio.SocketStream) -> AsyncGenerator[None]:
    """Close a connection when the body ends; reset it when an exception leaves the body."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # macOS: EINVAL when both directions have ended
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.socket.close()
        raise
    connection.socket.close()


async def send_pieces(connection: trio.SocketStream, pieces: Sequence[bytes | memoryview]) -> None:
    """Send pieces without joining them: joining would take 6 to 9 % of a side's processor time of a bulk transfer.

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
    """Copy until both directions have ended.

    Args:
      first: called before the Pipe is read.  Meanwhile data of the connection is sent on the Pipe.
      greeting: sent on the Pipe before any data of the connection.  Data that the Pipe has received already is passed
        to the connection first, so that the target can work while the greeting is sent.

    Raises:
      trio.BrokenResourceError: the connection or the Pipe broke.
      Exception: whatever `first` raises.
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
                for _ in range(3):  # in these turns `receive` starts, reads what has arrived, and sends it
                    await trio.lowlevel.checkpoint()
                await pipe.send_all(greeting)
            size = READ_MIN
            while data := await connection.receive_some(size):
                await pipe.send_all(data)
                if len(data) == size:
                    size = min(2 * size, READ_MAX)
                elif 4 * len(data) < size:
                    size = max(size // 2, READ_MIN)
            # The system reports a reset once.  If the sending task got it, this read sees the end of the stream.  A
            # failing send yields once before it raises and cancels this task: the checkpoints let it.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            await pipe.send_eof()
    except BaseExceptionGroup as group:
        errors = [each for each in leaves(group) if not isinstance(each, trio.Cancelled)]
        broken = [each for each in errors if isinstance(each, trio.BrokenResourceError)]
        if errors and len(errors) - len(broken) <= 1:  # both streams may break at the same moment
            raise next((each for each in errors if each not in broken), errors[0]) from None
        raise
