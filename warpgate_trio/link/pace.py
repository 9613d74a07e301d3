"""How much a sender hands to a carrier at once, depending on how fast the carrier accepts it, without I/O.

Data that was handed over cannot be taken back, and everything sent later waits behind it: frames of other channels,
ACKs for what the peer sends, answers to its PINGs.  On a fast path large chunks cost least.  On a slow one a large
chunk delays all of that for seconds, and the peer takes a path for dead that is only full of this side's bulk.  So a
chunk is what the carrier accepts in `CHUNK_TIME`, and the carrier is asked to buffer no more than one unsent chunk
(`Carrier.limit_unsent`).  Then bulk delays an ACK by two chunks, and by what is in flight.

The rate is the amount handed over, divided by the time that senders waited for the carrier to accept it.  A chunk grows
where four of them were accepted within `CHUNK_TIME`: a larger buffer cannot have absorbed more than two of those.
"""

from __future__ import annotations

from typing import Final, final

__all__ = ["CHUNK_MAX", "CHUNK_MIN", "CHUNK_START", "CHUNK_TIME", "Pace"]

CHUNK_MAX: Final = 128 * 1024
"""Bytes of the largest chunk, which is encrypted as a whole before another channel has its turn: no more than the
kernel holds unsent (`carrier.tls.UNSENT_MAX`).  Each chunk costs a pass through Trio's loop, so 64 KiB are a fifth
slower where both cores are busy.  The receiver decrypts meanwhile, so 256 KiB are slower where they are free."""
CHUNK_MIN: Final = 4 * 1024
"""Bytes of the smallest chunk: with as many unsent, one second of a path that carries 64 kbit/s.  With 16 KiB there are
twice as many false alarms on the worst links (docs/live_links.md)."""
CHUNK_START: Final = 16 * 1024
"""Bytes of the first chunks: a TLS record, and about TCP's initial window (RFC 6928)."""
CHUNK_TIME: Final = 0.05
"""Seconds that a carrier should need for a chunk: less than a round trip on most paths, and many passes through the
loop."""
GROWS_AFTER: Final = 4
"""Chunks that are accepted within `CHUNK_TIME` before the size doubles."""


@final
class Pace:
    """The chunk size of one carrier.

    Attributes:
      size: bytes that are to be handed over at once.
    """

    __slots__ = ("_began", "_bytes", "_waited", "size")

    def __init__(self) -> None:
        self.size: int = CHUNK_START
        self._began = 0.0
        self._waited = 0.0
        self._bytes = 0

    @property
    def is_slow(self) -> bool:
        """Whether the carrier has not shown that it takes the largest chunks in time."""
        return self.size < CHUNK_MAX

    def handed(self, size: int, began: float, ended: float) -> bool:
        """`size` bytes were handed over between two times.  Returns whether that has changed the chunk size."""
        if not self._bytes:
            self._began = began
        self._bytes += size
        self._waited += ended - began
        took = ended - self._began
        if took >= CHUNK_TIME:
            # A sender that was idle for longer than it was blocked was not limited by the carrier.
            held_up = 2 * self._waited >= took
            chunk = min(int(self._bytes * CHUNK_TIME / self._waited), 2 * self.size) if held_up else self.size
        elif self._bytes >= GROWS_AFTER * self.size:
            chunk = 2 * self.size
        else:
            return False
        self._bytes, self._waited = 0, 0.0
        before, self.size = self.size, min(max(chunk, CHUNK_MIN), CHUNK_MAX)
        return self.size != before
