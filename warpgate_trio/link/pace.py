"""How much a sender hands to a carrier at once, by how fast that takes it, without I/O.

What was handed over cannot be taken back, and everything that is said after it waits behind it: the frames of other
channels, an ACK for what the peer sends, the answer to its PING.  On a fast path large chunks cost least.  On a slow
one a large chunk holds all of that up for seconds, and the peer takes a path for dead that carries its own sender's
bulk.  So a chunk is what the carrier takes in `CHUNK_TIME`, and the carrier is asked to keep no more than a chunk that
it has not sent (`Carrier.limit_unsent`): a sender's own bulk holds an ACK up for two chunks, and for what is in flight.

The rate is how much was handed over in the time that a sender had to wait for it.  A chunk grows where four of them
were taken in that time, of which a larger buffer cannot have swallowed more than two.
"""

from __future__ import annotations

from typing import Final, final

__all__ = ["CHUNK_MAX", "CHUNK_MIN", "CHUNK_START", "CHUNK_TIME", "Pace"]

CHUNK_MAX: Final = 128 * 1024
"""Bytes that are encrypted before they are sent, and after which another channel may have its turn: no more than the
kernel holds unsent (`carrier.tls.UNSENT_MAX`).  A chunk costs a pass through Trio's loop, so that 64 KiB are a fifth
slower where both cores are busy; the receiver decrypts meanwhile, so that 256 KiB are slower where they are free."""
CHUNK_MIN: Final = 4 * 1024
"""Bytes that are handed over at once on the slowest path: a second of one that carries 64 kbit/s, with as many unsent.
With 16 KiB there are twice as many false alarms on the worst links (docs/live_links.md)."""
CHUNK_START: Final = 16 * 1024
"""Bytes that the first chunks have: a TLS record, and about what TCP sends unasked (RFC 6928)."""
CHUNK_TIME: Final = 0.05
"""Seconds that a carrier takes for a chunk: less than a round trip on most paths, and many passes through the loop."""
GROWS_AFTER: Final = 4
"""Chunks that are taken in that time before the next one is twice as large."""


@final
class Pace:
    """Of one carrier.

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
        """`size` bytes were handed over between two times; whether the chunk has changed by that."""
        if not self._bytes:
            self._began = began
        self._bytes += size
        self._waited += ended - began
        took = ended - self._began
        if took >= CHUNK_TIME:
            # Where a sender had more pauses than it was held up, it was not the carrier that it waited for.
            held_up = 2 * self._waited >= took
            chunk = min(int(self._bytes * CHUNK_TIME / self._waited), 2 * self.size) if held_up else self.size
        elif self._bytes >= GROWS_AFTER * self.size:
            chunk = 2 * self.size
        else:
            return False
        self._bytes, self._waited = 0, 0.0
        before, self.size = self.size, min(max(chunk, CHUNK_MIN), CHUNK_MAX)
        return self.size != before
