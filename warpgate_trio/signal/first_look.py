"""A cheap check whether a blob may be a signal at all; others get no place in a queue."""

from __future__ import annotations

from collections import Counter
from typing import Final, final

from ..errors import SignalError
from .message import check_blob

__all__ = ["FirstLook"]


@final
class FirstLook:
    """Checks each received blob of a node's channels before it is queued.

    Attributes:
      counters: how many blobs were discarded, by the class of error.
      ours: the last `Here` of this process, which comes back to it and is discarded.
    """

    def __init__(self) -> None:
        self.counters: Final[Counter[str]] = Counter()
        self.ours: bytes | None = None

    def passes(self, blob: bytes) -> bool:
        """Whether the blob is to be queued."""
        if blob == self.ours:
            return False
        try:
            check_blob(blob)
        except SignalError as error:
            self.counters[type(error).__name__] += 1
            return False
        return True
