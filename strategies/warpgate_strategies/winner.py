"""The winner of a race: the first candidate that is proven."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

if TYPE_CHECKING:
    from types import TracebackType

    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link

__all__ = ["Winner"]


@final
class Winner:
    """Holds one winner during a ``with`` block: a carrier that we dialled, or a Link whose peer is proven.

    The result of `first` outlives the block, unless the block is left by an exception.  All other candidates that were
    offered are closed.
    """

    def __init__(self) -> None:
        self._found: Carrier | Link | None = None
        self._arrived = trio.Event()
        self._taken = False
        self._over = False

    def __enter__(self) -> Winner:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        # Where the block was left by an exception, nobody has the winner any more.
        if self._found is not None and (exc_type is not None or not self._taken):
            self._found.close_nowait()

    def offer(self, candidate: Carrier | Link) -> None:
        """Offer a proven candidate, which this object owns from now on.  One that comes late is closed at once."""
        if self._found is not None or self._over:
            candidate.close_nowait()
        else:
            self._found = candidate
            self._arrived.set()

    async def first(self) -> Carrier | Link:
        """Wait for the winner, without a time limit."""
        await self._arrived.wait()
        assert self._found is not None
        self._taken = True
        return self._found
