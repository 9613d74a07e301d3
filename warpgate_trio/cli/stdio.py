"""stdin and stdout for Trio, and joining them to a Pipe.

Worker threads read and write them, with one system call each.  Non-blocking descriptors would change the terminal or
pipe for every other process that has it open, and epoll cannot wait for a regular file.  A thread costs some 50 µs per
64 KiB.  Python's own buffers are not used: when `write` returns, the system has the data, and an abandoned read holds
no lock that the interpreter needs at exit.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from ..errors import PeerAborted, PeerRefused
from ..nurseries import open_background_nursery
from .exits import CommandFailed, ExitCode, output_error
from .runner import run_both

if TYPE_CHECKING:
    from ..link import Pipe

__all__ = ["StandardInput", "StandardOutput", "join", "look_ahead", "open_standard_input", "skip", "wait_delivered"]

CHUNK: Final = 256 * 1024
"""Bytes per read: a pipe returns at most 64 KiB, a file as many as requested."""
PEER_GONE_POLL: Final = 0.25
"""Seconds between checks whether a peer that has ended its direction still has the Pipe open, while stdin is idle."""


@final
class StandardInput:
    """Reads ahead by one chunk, beginning with the first `read`; made by `open_standard_input`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._wanted = trio.Event()
        self._chunks, self._ready = trio.open_memory_channel[bytes](0)
        self._failure: CommandFailed | None = None

    async def read(self) -> bytes:
        """Wait for data; ``b""`` at the end.  A cancelled call loses nothing.

        Raises:
          CommandFailed: stdin cannot be read.
        """
        self._wanted.set()
        try:
            return await self._ready.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            return b""

    async def run(self) -> None:
        """The reading task.  On cancellation its thread is abandoned: a read of a terminal cannot be interrupted."""
        await self._wanted.wait()
        async with self._chunks:
            try:
                while data := await self._read_once():
                    await self._chunks.send(data)
            except OSError as error:
                self._failure = CommandFailed(ExitCode.BROKEN, f"stdin cannot be read: {error.strerror or error}")

    async def _read_once(self) -> bytes:
        while True:
            try:
                return await trio.to_thread.run_sync(os.read, self._descriptor, CHUNK, abandon_on_cancel=True)
            except BlockingIOError:  # another process has made it non-blocking
                await trio.lowlevel.wait_readable(self._descriptor)
            except OSError as error:
                if error.errno == errno.EBADF:  # it is closed, or opened by nohup for writing only
                    return b""
                raise


@asynccontextmanager
async def open_standard_input(descriptor: int = 0) -> AsyncGenerator[StandardInput]:
    """stdin during the body; nothing is read before the first `read`."""
    async with open_background_nursery() as nursery:
        standard_input = StandardInput(descriptor)
        nursery.start_soon(standard_input.run)
        yield standard_input


def look_ahead(most: int, descriptor: int = 0) -> bytes:
    """At most `most` first bytes of stdin, without consuming them; empty if it is no regular file, or unreadable."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""  # bytes read from a pipe could not be put back
        return os.pread(descriptor, most, os.lseek(descriptor, 0, os.SEEK_CUR))
    except (OSError, AttributeError):  # the later read reports the error; Windows has no pread
        return b""


def skip(size: int, descriptor: int = 0) -> None:
    """Skip bytes of stdin that `look_ahead` has returned."""
    if size:
        os.lseek(descriptor, size, os.SEEK_CUR)


@final
class StandardOutput:
    """stdout; writes are complete and do not interleave."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._lock = trio.Lock()

    async def write(self, data: bytes | bytearray) -> None:
        """Write all of it.

        Raises:
          OutputClosed: the reader of stdout has gone.
          CommandFailed: stdout cannot be written, for example on a full disk.
        """
        view = memoryview(data)
        async with self._lock:
            while view:
                try:
                    # Abandoned on cancellation: a reader that does not read must not delay the end of the program.
                    size = await trio.to_thread.run_sync(os.write, self._descriptor, view, abandon_on_cancel=True)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._descriptor)
                except OSError as error:
                    raise output_error(error) from error
                else:
                    view = view[size:]


async def join(
    pipe: trio.abc.HalfCloseableStream,
    source: StandardInput,
    sink: StandardOutput,
    *,
    on_data: Callable[[], object] = lambda: None,
) -> None:
    """Copy stdin to the Pipe and the Pipe to stdout until both have ended; the end of stdin half-closes the Pipe.

    If the peer has closed the Pipe, copying ends too, even while stdin is idle.  `on_data` is called when bytes have
    been read from either, before they are written.

    Raises:
      trio.BrokenResourceError: the Pipe broke, the peer aborted it, or closed it while data was being sent to it.
      OutputClosed: the reader of stdout has gone.
      CommandFailed: stdin cannot be read, or stdout cannot be written.
    """
    await _Joint(pipe, source, sink, on_data).run()


async def wait_delivered(pipe: Pipe) -> None:
    """Wait until the peer's node has received everything that was sent.

    On a slow link much of it is still in this machine's buffers, and the time for a node's goodbyes is limited.  If the
    peer has closed the Pipe already, this returns.

    Raises:
      trio.BrokenResourceError: the path broke.
    """
    try:
        await pipe.ping()
    except trio.BrokenResourceError as error:
        if _is_interruption(error):
            raise


def _is_interruption(error: trio.BrokenResourceError) -> bool:
    """Whether the peer was interrupted, cut off, or has refused us, as opposed to having closed the Pipe normally."""
    return isinstance(error.__cause__, PeerAborted | PeerRefused | trio.BrokenResourceError)


@final
class _Joint:
    def __init__(
        self,
        pipe: trio.abc.HalfCloseableStream,
        source: StandardInput,
        sink: StandardOutput,
        on_data: Callable[[], object],
    ) -> None:
        self._pipe = pipe
        self._source = source
        self._sink = sink
        self._on_data = on_data
        self._peer_ended = False
        self._reading = trio.CancelScope()
        self._failure: trio.BrokenResourceError | None = None

    async def run(self) -> None:
        await run_both(self._receive, self._send)
        if self._failure is not None:
            raise self._failure

    async def _receive(self) -> None:
        while data := await self._pipe.receive_some():
            self._on_data()
            await self._sink.write(data)
        self._peer_ended = True
        self._reading.cancel()

    async def _send(self) -> None:
        try:
            while data := await self._next_input():
                self._on_data()
                await self._pipe.send_all(data)
            await self._pipe.send_eof()
        except trio.BrokenResourceError as error:
            self._failure = error  # raised after `_receive` has received the rest of the peer's data
        except _PeerGone:
            pass

    async def _next_input(self) -> bytes:
        while True:
            deadline = trio.current_time() + PEER_GONE_POLL if self._peer_ended else math.inf
            with trio.CancelScope(deadline=deadline) as self._reading:
                return await self._source.read()
            # Only an attempt to send shows whether the peer has half-closed or closed the Pipe.
            try:
                await self._pipe.wait_send_all_might_not_block()
            except trio.BrokenResourceError as error:
                if _is_interruption(error):
                    raise
                raise _PeerGone from None


class _PeerGone(Exception):
    """The peer has closed the Pipe while this side had nothing to send."""
