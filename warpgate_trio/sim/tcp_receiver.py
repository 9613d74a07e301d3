"""The receiving half of a TCP connection: bytes that are not yet read, and segments that arrived out of order.

Sequence numbers are unbounded integers here, as in tcp_sender.py.  A receiver keeps out-of-order segments, reports them
in selective acknowledgements, and never shrinks a window that it has advertised.
"""

from __future__ import annotations

from typing import Final, final

_BLOCKS: Final = 3  # blocks of selective acknowledgements that fit beside a timestamp


@final
class Receiver:
    """The received bytes of one connection."""

    __slots__ = ("_advertised", "_early", "buffer", "capacity", "fin", "next", "stamp")

    def __init__(self, irs: int, capacity: int) -> None:
        self.next: int = irs + 1  # the next number expected
        self.capacity: int = capacity
        self.buffer: bytearray = bytearray()
        self.fin: int | None = None  # the number of the peer's FIN
        self.stamp: float | None = None  # the timestamp that acknowledgements echo: TS.Recent of RFC 7323, section 4.3
        self._early: dict[int, bytes] = {}  # out-of-order segments: number -> bytes, the latest arrival last
        self._advertised = self.next  # the right edge of the advertised window

    @property
    def window(self) -> int:
        """The receive window in bytes; never less than was advertised."""
        free = self.capacity - len(self.buffer)
        return max(free, self._advertised - self.next, 0)

    def advertise(self) -> int:
        """The window, which counts as advertised from now on."""
        window = self.window
        self._advertised = self.next + window
        return window

    def would_update(self, mss: int) -> bool:
        """Whether the window has grown enough since it was last advertised to send an update."""
        grown = self.capacity - len(self.buffer) - (self._advertised - self.next)
        return grown >= min(2 * mss, self.capacity // 2)

    def accepts(self, seq: int, length: int) -> bool:
        """Whether any part of a segment lies in the window (RFC 9293, section 3.10.7.4, first check)."""
        window = self.window
        if length == 0:
            return self.next <= seq < self.next + max(window, 1)
        return window > 0 and seq < self.next + window and seq + length > self.next

    def note_stamp(self, seq: int, stamp: float | None) -> None:
        """Keep a segment's timestamp if an acknowledgement is to echo it."""
        if stamp is not None and seq <= self.next and (self.stamp is None or stamp >= self.stamp):
            self.stamp = stamp

    def arrived(self) -> tuple[tuple[int, int], ...]:
        """Out-of-order data as (first number, one after the last), at most three blocks, latest first (RFC 2018)."""
        blocks: list[tuple[int, int]] = []
        for start, data in sorted(self._early.items()):
            end = start + len(data)
            if blocks and start <= blocks[-1][1]:
                blocks[-1] = (blocks[-1][0], max(blocks[-1][1], end))
            else:
                blocks.append((start, end))
        latest = next(reversed(self._early), 0)
        blocks.sort(key=lambda block: not block[0] <= latest < block[1])
        return tuple(blocks[:_BLOCKS])

    def take(self, seq: int, data: bytes, *, fin: bool) -> bool:
        """Store a segment's bytes; returns whether there is something new to read, or the end."""
        end = seq + len(data)
        if fin and self.fin is None:
            self.fin = end
        limit = self.next + self.window
        if seq > self.next:
            if data and end <= limit:
                known = self._early.pop(seq, b"")
                self._early[seq] = max(known, data, key=len)
            return False
        before = self.next
        self._append(seq, data[: limit - seq])
        while self._early:
            ready = [start for start in self._early if start <= self.next]
            if not ready:
                break
            for start in sorted(ready):
                self._append(start, self._early.pop(start))
        if self.fin is not None and self.next == self.fin:
            self.next += 1
        return self.next > before

    @property
    def finished(self) -> bool:
        """Whether the peer's FIN and everything before it has been received."""
        return self.fin is not None and self.next > self.fin

    @property
    def has_gap(self) -> bool:
        return bool(self._early)

    def _append(self, seq: int, data: bytes) -> None:
        fresh = data[self.next - seq :]
        if fresh:
            self.buffer += fresh
            self.next += len(fresh)
