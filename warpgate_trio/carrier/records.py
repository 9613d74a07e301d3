"""How large TLS records are: the first ones small, while TCP does not send a whole one at once.

Nothing of a record can be read before its last byte is there.  A new connection, or one that was silent, may have ten
segments on the way (RFC 6928, RFC 5681 §4.1), and a full record is longer: its end leaves a round trip later.  So the
first bytes go in records of a segment each.  In bulk, full records cost less: one is sealed and opened in one go.  What
fits into one is joined for it, with its header: a record costs each side 5 µs, and a copy of so little less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, final

from ..ports.segments import MAX_PACKET

if TYPE_CHECKING:
    from ._carrier import Buffer

__all__ = ["FIRST_FLIGHT", "FIRST_RECORD", "IDLE", "RECORD", "RecordSizes"]

RECORD: Final = 16 * 1024
"""Bytes of plaintext in one TLS record at most (RFC 8446 §5.1)."""
FIRST_RECORD: Final = MAX_PACKET - 60 - 12 - 22
"""Bytes in a small record: a segment's without the headers of IPv6 and TCP, TCP's timestamps, and the record's own."""
FIRST_FLIGHT: Final = 12 * FIRST_RECORD
"""Bytes that go in small records: with what those have of their own, RFC 6928's largest initial window, 14,600."""
IDLE: Final = 1.0
"""Seconds without a write after which the window counts as initial again.  TCP says: after a retransmission timeout
(RFC 5681 §4.1), which RFC 6298 §2.4 does not want below a second."""


@final
class RecordSizes:
    """One connection's outgoing plaintext, cut into what is to be a record or several full ones."""

    def __init__(self) -> None:
        self._left = 0
        self._written_at = -math.inf

    def cut(self, parts: Iterable[Buffer], now: float) -> Iterable[Buffer]:
        """What is to be written at `now`, in order; none of it is empty."""
        if now - self._written_at >= IDLE:
            self._left = FIRST_FLIGHT
        self._written_at = now
        if not self._left and sum(map(len, parts)) > RECORD:
            return filter(len, parts)
        whole = memoryview(b"".join(parts))
        first = min(len(whole), self._left)
        self._left -= first
        pieces = [whole[start : min(start + FIRST_RECORD, first)] for start in range(0, first, FIRST_RECORD)]
        return pieces if first == len(whole) else [*pieces, whole[first:]]
