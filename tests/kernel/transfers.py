"""Sends bytes through `connect` to an echo and back, at a steady pace, while something happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tests.end_to_end.processes import Command

__all__ = ["PACE", "PIECE", "PIECES", "echo_in_pieces"]

PIECE: Final = 16 * 1024
PIECES: Final = 150
PACE: Final = 0.02
"""Seconds between pieces: 0.8 MB/s, so that a transfer of `PIECES` takes three seconds plus its interruptions."""
PATIENCE: Final = 60.0
"""Seconds without a byte after which a transfer has failed."""


def piece(number: int) -> bytes:
    return number.to_bytes(4, "big") * (PIECE // 4)


async def echo_in_pieces(
    caller: Command, happens: Callable[[], Awaitable[None]], *, pieces: int = PIECES, pace: float = PACE
) -> float:
    """Have `pieces` pieces echoed; `happens` runs after a third of them.  Returns the longest silence in seconds."""
    silence = 0.0
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(pieces):
                await caller.stdin.send_all(piece(number))
                await trio.sleep(pace)
                if number == pieces // 3:
                    nursery.start_soon(happens)
            await caller.stdin.aclose()

        async def watch() -> None:
            nonlocal silence
            size, since = 0, trio.current_time()
            while size < PIECE * pieces:
                await trio.sleep(0.02)  # the interval of looking at the output
                now = trio.current_time()
                if len(caller.out) > size:
                    size, since = len(caller.out), now
                elif size:
                    silence = max(silence, now - since)
                assert now - since < PATIENCE, f"{size} bytes came\n{caller.stderr_text}"

        nursery.start_soon(send)
        nursery.start_soon(watch)
    assert await caller.code() == 0, caller.stderr_text
    assert bytes(caller.out) == b"".join(map(piece, range(pieces)))
    return silence
