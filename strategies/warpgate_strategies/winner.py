"""Which of a race's candidates wins: the first that has proven itself."""

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
    """The place for one winner: a carrier that we dialled, or a Link that the peer proved itself on.

    For the time of a ``with`` block.  What `first` gave outlives it, unless it is left by an exception; all else that
    was offered is closed.
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
        # Cancelled on the way out, what was taken is in nobody's hands.
        if self._found is not None and (exc_type is not None or not self._taken):
            self._found.close_nowait()

    def offer(self, candidate: Carrier | Link) -> None:
        """It has proven itself, and belongs to this place from now on: it is closed at once where it comes late."""
        if self._found is not None or self._over:
            candidate.close_nowait()
        else:
            self._found = candidate
            self._arrived.set()

    async def first(self) -> Carrier | Link:
        """Wait for the winner, for as long as it takes."""
        await self._arrived.wait()
        assert self._found is not None
        self._taken = True
        return self._found
