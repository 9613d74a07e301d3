"""How large TLS records are: the first ones are small, while TCP does not send a large one at once.

A record cannot be decrypted before its last byte has arrived.  A new connection, or one that was silent, may have ten
segments in flight (RFC 6928, RFC 5681 §4.1).  A full record is longer, so its end would leave a round trip later.  So
the first bytes go in records of one segment each.  In bulk, full records cost less, as each is encrypted and decrypted
in one go.  Parts that fit into one record are joined, a frame's header with its payload: a record costs each side 5 µs,
and copying so little costs less.
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
"""Bytes in a small record: a packet less the headers of IPv6 and TCP, TCP's timestamps, and the record's own bytes."""
FIRST_FLIGHT: Final = 12 * FIRST_RECORD
"""Bytes that go in small records: with the overhead of those, RFC 6928's largest initial window, 14,600."""
IDLE: Final = 1.0
"""Seconds without a write after which the congestion window counts as initial again.  For TCP that is a retransmission
timeout (RFC 5681 §4.1), which should not be below a second (RFC 6298 §2.4)."""


@final
class RecordSizes:
    """Cuts the outgoing plaintext of one connection for TLS writes."""

    def __init__(self) -> None:
        self._left = 0
        self._written_at = -math.inf

    def cut(self, parts: Iterable[Buffer], now: float) -> Iterable[Buffer]:
        """The pieces to write at `now`, in order, none of them empty: each makes one record, or several full ones."""
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
