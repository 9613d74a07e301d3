"""Keeps memory that bulk transfers free for their next blocks.

glibc allocates objects above one threshold directly from the system, and returns them when they are freed.  It also
returns the end of the heap where more than another threshold of it is free (mallopt(3)).  The kernel then clears and
maps each of those pages anew.  A transfer holds some megabytes that the peer has not acknowledged, and frees them at
once.  It would spend a twentieth to a tenth of its processor time on that.

Both thresholds grow when a large object is freed.  Allocating and freeing one that was never written to costs two
system calls.  Where the user has set the thresholds (``MALLOC_TRIM_THRESHOLD_``), and with other allocators, nothing
changes.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Final

__all__ = ["keep_freed_memory"]

LARGEST: Final = 31 * 1024 * 1024
"""Bytes of the object that is allocated and freed once to raise the thresholds.  glibc adapts these to objects of up to
32 MiB, and then keeps up to twice as much: at most what the process has used, and no more than 62 MiB."""


@cache
def keep_freed_memory() -> None:
    """Raise the thresholds for the rest of the process; called by code that transfers bulk data."""
    with suppress(MemoryError):
        bytes(LARGEST)
