"""``--echo-test``: sends bytes and checks that they come back unchanged.

Each block is a running number and the same random body.  Making and checking a block costs two copies, and unlike with
a repeated pattern, a lost, duplicated or swapped block is detected.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final, final

import trio

from .. import host
from .runner import run_both

__all__ = ["STALL", "EchoFailed", "EchoTest", "Numbered", "NumberedCheck", "echo"]

BLOCK: Final = 256 * 1024
_NUMBER: Final = 8
STALL: Final = 10.0
"""Seconds without an echoed byte after which the peer is considered not to echo."""
_LINGER: Final = 5.0
"""Seconds to wait for the peer's end of stream after everything has come back; not part of the result."""


class EchoFailed(Exception):
    """The echo differs from what was sent, or is missing; the text is one sentence."""


@final
class Numbered:
    """An endless stream of bytes, any part of which can be made again."""

    def __init__(self, block: int = BLOCK) -> None:
        self._body = host.current().random.randbytes(block - _NUMBER)
        self._size = block

    def part(self, start: int, length: int) -> memoryview:
        """The bytes from `start` on: at least one, at most `length`, never beyond the block they are in."""
        index, offset = divmod(start, self._size)
        block = memoryview(index.to_bytes(_NUMBER, "big") + self._body)
        return block[offset : offset + length]


@final
class NumberedCheck:
    """Compares received bytes with the first `total` bytes of a `Numbered`."""

    def __init__(self, sent: Numbered, total: int) -> None:
        self._sent = sent
        self._total = total
        self.received: int = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Check the next received bytes.  Raises `EchoFailed` at the first byte that is wrong or surplus."""
        view = memoryview(data)
        if self.received + len(view) > self._total:
            raise EchoFailed(f"more came back than the {self._total} bytes that were sent")
        while view:
            expected = self._sent.part(self.received, len(view))
            if view[: len(expected)] != expected:
                raise EchoFailed(f"what came back differs within {len(expected)} bytes from byte {self.received} on")
            self.received += len(expected)
            view = view[len(expected) :]


@final
class EchoTest:
    """One test on one Pipe.

    Args:
      total: number of bytes to send.
      early: number of these bytes that the caller sends with the call.

    Attributes:
      early_data: the bytes that the caller sends with the call.
      first_byte_at: the `trio.current_time` at which the first byte came back; None before.
      mb_per_s: the rate in 10^6 bytes per second; None before all bytes have come back.
    """

    def __init__(self, total: int, *, early: int = 0) -> None:
        self._total = total
        self._sent = Numbered(min(BLOCK, max(total, 64)))
        self.early_data: Final = bytes(self._sent.part(0, min(early, total))) if early else b""
        self.first_byte_at: float | None = None
        self.mb_per_s: float | None = None

    async def run(self, pipe: trio.abc.HalfCloseableStream) -> None:
        """Send the rest, and compare everything that comes back.

        Raises:
          EchoFailed: the echo is wrong, too short, or does not come.
          trio.BrokenResourceError: the Pipe broke.
        """
        started = trio.current_time()

        async def receive() -> None:
            await self._receive(pipe)
            self.mb_per_s = self._total / max(trio.current_time() - started, 1e-9) / 1e6
            with trio.move_on_after(_LINGER):
                if await pipe.receive_some():
                    raise EchoFailed(f"more came back than the {self._total} bytes that were sent")

        await run_both(receive, partial(self._send, pipe))

    async def _send(self, pipe: trio.abc.HalfCloseableStream) -> None:
        position = len(self.early_data)
        while position < self._total:
            part = self._sent.part(position, self._total - position)
            await pipe.send_all(part)
            position += len(part)
        await pipe.send_eof()

    async def _receive(self, pipe: trio.abc.HalfCloseableStream) -> None:
        check = NumberedCheck(self._sent, self._total)
        with trio.CancelScope(deadline=trio.current_time() + STALL) as patience:
            while check.received < self._total:
                data = await pipe.receive_some()
                now = trio.current_time()
                patience.deadline = now + STALL
                if self.first_byte_at is None and data:
                    self.first_byte_at = now
                if not data:
                    raise EchoFailed(f"the peer ended after {check.received} of {self._total} bytes")
                check.feed(data)
        if patience.cancelled_caught:
            raise EchoFailed(f"nothing more came back for {STALL:g} s, after {check.received} of {self._total} bytes")


async def echo(pipe: trio.abc.HalfCloseableStream) -> int:
    """Send everything back until the peer ends its stream; returns the number of bytes.

    Raises:
      trio.BrokenResourceError: the Pipe broke before the end of the peer's stream.
    """
    total = 0
    async for data in pipe:
        await pipe.send_all(data)
        total += len(data)
    with suppress(trio.BrokenResourceError):  # the peer has everything, and has closed the Pipe already
        await pipe.send_eof()
    return total
