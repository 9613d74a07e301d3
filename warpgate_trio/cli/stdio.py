"""stdin and stdout as Trio sees them, and joined to a Pipe.

Both are read and written by worker threads, one call of the system each.  Making the descriptors non-blocking instead
would change the terminal or pipe for every other process that has it open, and a regular file is nothing that epoll
can wait for.  A thread costs some 50 µs per 64 KiB.  Python's own buffers stand aside: what `write` has returned from
is with the system, and an abandoned read holds no lock that the interpreter wants at exit.
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
"""Bytes per read: pipes give at most 64 KiB, files as much as is asked for."""
PEER_GONE_POLL: Final = 0.25
"""Seconds between looks whether a peer that has ended its direction is still there, while stdin is silent."""


@final
class StandardInput:
    """Reads ahead by one chunk from the first `read` on; made by `open_standard_input`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._wanted = trio.Event()
        self._chunks, self._ready = trio.open_memory_channel[bytes](0)
        self._failure: CommandFailed | None = None

    async def read(self) -> bytes:
        """Wait for data; ``b""`` at the end.  A cancelled call loses nothing.

        Raises:
          CommandFailed: it cannot be read, which is no end.
        """
        self._wanted.set()
        try:
            return await self._ready.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            return b""

    async def run(self) -> None:
        """The reading task.  Its thread is abandoned when it is cancelled: nothing wakes a read of a terminal."""
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
            except BlockingIOError:  # somebody else made it non-blocking
                await trio.lowlevel.wait_readable(self._descriptor)
            except OSError as error:
                if error.errno == errno.EBADF:  # there is none, or nohup's, which is open for writing only
                    return b""
                raise


@asynccontextmanager
async def open_standard_input(descriptor: int = 0) -> AsyncGenerator[StandardInput]:
    """stdin for the time of the body; nothing is read before somebody asks."""
    async with open_background_nursery() as nursery:
        standard_input = StandardInput(descriptor)
        nursery.start_soon(standard_input.run)
        yield standard_input


def look_ahead(most: int, descriptor: int = 0) -> bytes:
    """The first bytes of stdin, which are left there; empty where it is no file, or none can be read."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""  # what a pipe has given cannot be put back for who comes after us
        return os.pread(descriptor, most, os.lseek(descriptor, 0, os.SEEK_CUR))
    except (OSError, AttributeError):  # whoever reads it says what is wrong; Windows has no pread
        return b""


def skip(size: int, descriptor: int = 0) -> None:
    """Go on behind what `look_ahead` has shown."""
    if size:
        os.lseek(descriptor, size, os.SEEK_CUR)


@final
class StandardOutput:
    """stdout, whole writes one after the other."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._lock = trio.Lock()

    async def write(self, data: bytes | bytearray) -> None:
        """Write all of it.

        Raises:
          OutputClosed: nobody reads any more.
          CommandFailed: it cannot be written, on a full disk, say.
        """
        view = memoryview(data)
        async with self._lock:
            while view:
                try:
                    # Abandoned when cancelled: a reader that does not read must not keep us from ending.
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
    """Copy stdin to the Pipe and the Pipe to stdout until both have ended; the end of one is half-close of the other.

    A peer that has closed for good ends it too, though nothing more may come from stdin to find that out with.
    `on_data` is called when bytes have been taken from either, before they go on.

    Raises:
      trio.BrokenResourceError: the Pipe broke, the peer aborted it, or it closed it while it was being sent to.
      OutputClosed: nobody reads stdout any more.
      CommandFailed: stdin cannot be read, or stdout not be written.
    """
    await _Joint(pipe, source, sink, on_data).run()


async def wait_delivered(pipe: Pipe) -> None:
    """Wait until the peer's node has all that was sent: on a slow line much of it is still in this machine's buffers,
    and the goodbyes of a node are bounded.  A peer that has closed already had what it wanted.

    Raises:
      trio.BrokenResourceError: the path broke.
    """
    try:
        await pipe.ping()
    except trio.BrokenResourceError as error:
        if _is_interruption(error):
            raise


def _is_interruption(error: trio.BrokenResourceError) -> bool:
    """Whether the peer was interrupted or cut off, or shuts us out, rather than said that it wants no more."""
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
            self._failure = error  # after `_receive` has had what the peer still sent
        except _PeerGone:
            pass

    async def _next_input(self) -> bytes:
        while True:
            deadline = trio.current_time() + PEER_GONE_POLL if self._peer_ended else math.inf
            with trio.CancelScope(deadline=deadline) as self._reading:
                return await self._source.read()
            # Only a use of the Pipe tells whether the peer ended its direction or everything.
            try:
                await self._pipe.wait_send_all_might_not_block()
            except trio.BrokenResourceError as error:
                if _is_interruption(error):
                    raise
                raise _PeerGone from None


class _PeerGone(Exception):
    """The peer has closed the Pipe while we had nothing to send."""
