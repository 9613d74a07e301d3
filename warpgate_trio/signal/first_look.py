"""Whether a blob may be a signal at all, as far as can be told at a glance: others get no place in a queue."""

from __future__ import annotations

from collections import Counter
from typing import Final, final

from ..errors import SignalError
from .message import check_blob

__all__ = ["FirstLook"]


@final
class FirstLook:
    """What a node's channels show a blob to before it is queued.

    Attributes:
      counters: how many ended here, by what was wrong with them.
      ours: what this process has said to all of its key, which comes back to it.
    """

    def __init__(self) -> None:
        self.counters: Final[Counter[str]] = Counter()
        self.ours: bytes | None = None

    def passes(self, blob: bytes) -> bool:
        """Whether the blob is worth a place."""
        if blob == self.ours:
            return False
        try:
            check_blob(blob)
        except SignalError as error:
            self.counters[type(error).__name__] += 1
            return False
        return True
