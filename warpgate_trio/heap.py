"""Memory that bulk has freed is kept for the next block.

glibc takes an object above one threshold from the system and gives it back when it is freed, and gives the end of the
heap back where more than another threshold of it is free (mallopt(3)).  The kernel clears and maps each of those pages
anew.  A transfer holds some megabytes that the peer has not acknowledged and frees them at a time, so that it would
spend a twentieth to a tenth of its processor time on that.

Both thresholds grow when a large object is freed.  One that nobody has written to costs two system calls.  Where the
user has set them (``MALLOC_TRIM_THRESHOLD_``), and with other allocators, nothing changes.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Final

__all__ = ["keep_freed_memory"]

LARGEST: Final = 31 * 1024 * 1024
"""Bytes of the object: glibc follows up to 32 MiB, and then keeps twice as many: what a process has used at most, and
no more than 62 MiB of it."""


@cache
def keep_freed_memory() -> None:
    """For the rest of the process; called by whatever moves bulk."""
    with suppress(MemoryError):
        bytes(LARGEST)
