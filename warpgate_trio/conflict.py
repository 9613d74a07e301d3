"""`Conflict`: detects that two tasks do what only one may do at a time."""

from __future__ import annotations

from typing import Final, final

import trio

__all__ = ["Conflict"]


@final
class Conflict:
    """Admits one task at a time; the next one gets `trio.BusyResourceError` (trio's own helper is private)."""

    __slots__ = ("_held", "_message")

    def __init__(self, message: str) -> None:
        self._message: Final = message
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._message)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
