"""The two halves of a TCP connection that move data: what is not yet acknowledged, and what is not yet read.

Sequence numbers are plain growing integers here, counted from the 32-bit initial one; `unwrap` brings a number of the
wire into that form.  Both halves are pure: they hold bytes and answer questions; the endpoint (tcp.py) asks them.

Sender: a window of min(congestion window, peer's window); slow start, then additive increase; three duplicate ACKs
resend the first hole (RFC 6582), a timeout goes back to the first unacknowledged byte.  Round trips are measured as
in RFC 6298. Nagle's algorithm is not there: every program that this carries sets TCP_NODELAY.

Receiver: keeps segments that came early, never shrinks a window that it has advertised.
"""

from __future__ import annotations

from math import inf
from typing import Final, final

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31
MIN_RTO: Final = 0.2  # Linux's TCP_RTO_MIN
MAX_RTO: Final = 120.0  # Linux's TCP_RTO_MAX
FIRST_RTO: Final = 1.0  # RFC 6298, section 2.1
_INITIAL_WINDOW: Final = 10  # segments, RFC 6928


def unwrap(seq: int, near: int) -> int:
    """The growing number that a 32-bit one stands for, given one that is less than 2**31 away."""
    return near + ((seq - near + _HALF) & _MASK) - _HALF


@final
class Sender:
    """Bytes on their way out."""

    __slots__ = (
        "_cwnd",
        "_duplicates",
        "_recover",
        "_rttvar",
        "_srtt",
        "_ssthresh",
        "_timed",
        "base",
        "buffer",
        "fin",
        "highest",
        "mss",
        "next",
        "peer_window",
        "rto",
        "una",
    )

    def __init__(self, iss: int, mss: int) -> None:
        self.una: int = iss  # the first sequence number that is not acknowledged
        self.next: int = iss  # the next one to send
        self.highest: int = iss  # one after the last that was ever sent
        self.base: int = iss + 1  # the number of buffer[0]; the SYN is before it
        self.buffer: bytearray = bytearray()
        self.fin: bool = False  # whether a FIN follows the buffer
        self.mss: int = mss
        self.peer_window: int = 0
        self.rto: float = FIRST_RTO
        self._srtt = 0.0
        self._rttvar = 0.0
        self._timed: tuple[int, float] | None = None  # (number, when it was first sent)
        self._cwnd = _INITIAL_WINDOW * mss
        self._ssthresh = inf
        self._duplicates = 0
        self._recover = iss

    @property
    def end(self) -> int:
        """One after the last number that there is to send so far."""
        return self.base + len(self.buffer) + self.fin

    @property
    def in_flight(self) -> bool:
        return self.una < self.next

    @property
    def unsent(self) -> int:
        """Bytes that were never sent."""
        return max(0, self.base + len(self.buffer) - max(self.highest, self.base))

    def sent(self, number: int, now: float) -> None:
        """Note that everything before `number` has been sent; the first new byte times the round trip."""
        if self._timed is None and number > self.highest:
            self._timed = (number, now)
        self.next = number
        self.highest = max(self.highest, number)

    def segment(self, *, probe: bool = False) -> tuple[int, bytes, bool] | None:
        """The next (number, bytes, FIN) that the windows allow, or None; `probe` ignores the windows."""
        start = self.next
        space = 1 if probe else int(min(self._cwnd, self.peer_window)) - (start - self.una)
        offset = start - self.base
        left = len(self.buffer) - offset
        if left > 0:
            size = min(left, self.mss, space)
            # No silly windows (RFC 9293, 3.8.6.2.1): part of a segment only when it is the last part.
            if size <= 0 or (size < self.mss and size < left and start > self.una and not probe):
                return None
            data = bytes(memoryview(self.buffer)[offset : offset + size])
            return start, data, self.fin and size == left
        if self.fin and start < self.end:
            return start, b"", True
        return None

    def acknowledged(self, ack: int, now: float) -> None:
        """Take an acknowledgement of something new."""
        gained = ack - self.una
        self.una = ack
        self.next = max(self.next, ack)
        if ack > self.base:
            gone = min(ack - self.base, len(self.buffer))
            del self.buffer[:gone]
            self.base += gone
        if self._timed is not None and ack >= self._timed[0]:
            self._measured(now - self._timed[1])
            self._timed = None
        elif self._srtt:
            self._set_rto()  # a timeout's back-off ends with progress
        if self._duplicates >= 3:
            if ack < self._recover:  # a partial acknowledgement: the next hole (RFC 6582)
                self.next = self.una
                self._cwnd = max(self.mss, self._cwnd - gained + self.mss)
                return
            self._cwnd = max(int(self._ssthresh), self.mss)
        elif self._cwnd < self._ssthresh:
            self._cwnd += min(gained, self.mss * 2)
        else:
            self._cwnd += max(1, self.mss * self.mss // self._cwnd)
        self._duplicates = 0

    def duplicate(self) -> bool:
        """Take a duplicate acknowledgement; whether the first hole is to be sent again now."""
        self._duplicates += 1
        if self._duplicates == 3:
            self._recover = self.highest
            self._ssthresh = max((self.next - self.una) / 2, 2 * self.mss)
            self._cwnd = int(self._ssthresh) + 3 * self.mss
            self._timed = None
            return True
        if self._duplicates > 3:
            self._cwnd += self.mss
        return False

    def timed_out(self) -> None:
        """Go back to the first unacknowledged byte and double the timeout."""
        self._ssthresh = max((self.next - self.una) / 2, 2 * self.mss)
        self._cwnd = self.mss
        self._duplicates = 0
        self._timed = None
        self.next = self.una
        self.rto = min(self.rto * 2, MAX_RTO)

    def shrink_mss(self, mss: int) -> None:
        """Use smaller segments from now on and send what is in flight again in them."""
        self.mss = mss
        self._timed = None
        self.next = max(self.una, self.base)

    def _measured(self, rtt: float) -> None:
        if not self._srtt:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self._srtt - rtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8
        self._set_rto()

    def _set_rto(self) -> None:
        self.rto = min(max(self._srtt + max(4 * self._rttvar, MIN_RTO), MIN_RTO), MAX_RTO)


@final
class Receiver:
    """Bytes on their way in."""

    __slots__ = ("_advertised", "_early", "buffer", "capacity", "fin", "next")

    def __init__(self, irs: int, capacity: int) -> None:
        self.next: int = irs + 1  # the next number expected
        self.capacity: int = capacity
        self.buffer: bytearray = bytearray()
        self.fin: int | None = None  # the number of the peer's FIN
        self._early: dict[int, bytes] = {}
        self._advertised = self.next  # the right edge of what was promised

    @property
    def window(self) -> int:
        """Bytes that may still come; never less than was promised."""
        free = self.capacity - len(self.buffer)
        return max(free, self._advertised - self.next, 0)

    def advertise(self) -> int:
        """The window, promised from now on."""
        window = self.window
        self._advertised = self.next + window
        return window

    def would_update(self, mss: int) -> bool:
        """Whether the window grew enough since it was last promised to tell the peer."""
        grown = self.capacity - len(self.buffer) - (self._advertised - self.next)
        return grown >= min(2 * mss, self.capacity // 2)

    def accepts(self, seq: int, length: int) -> bool:
        """Whether any part of a segment lies in the window (RFC 9293, section 3.10.7.4, first check)."""
        window = self.window
        if length == 0:
            return self.next <= seq < self.next + max(window, 1)
        return window > 0 and seq < self.next + window and seq + length > self.next

    def take(self, seq: int, data: bytes, *, fin: bool) -> bool:
        """Take a segment's bytes; whether there is something new to read, or an end."""
        end = seq + len(data)
        if fin and self.fin is None:
            self.fin = end
        limit = self.next + self.window
        if seq > self.next:
            if data and end <= limit:
                known = self._early.get(seq)
                if known is None or len(known) < len(data):
                    self._early[seq] = data
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
        """Whether the peer's FIN and all before it are here."""
        return self.fin is not None and self.next > self.fin

    @property
    def has_gap(self) -> bool:
        return bool(self._early)

    def _append(self, seq: int, data: bytes) -> None:
        fresh = data[self.next - seq :]
        if fresh:
            self.buffer += fresh
            self.next += len(fresh)
