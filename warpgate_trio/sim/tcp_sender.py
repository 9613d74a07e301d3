"""The half of a TCP connection that sends: what is on its way, what is lost, and when to send it again.

Sequence numbers are plain growing integers here, counted from the 32-bit initial one; `unwrap` brings a number of the
wire into that form.  The sender is pure: it holds bytes and answers questions; the endpoint (tcp.py) asks them.

Each segment on its way is a `_Flight`, until it is acknowledged.  Which of them are lost is found as Linux finds it,
by RACK-TLP (RFC 8985) and selective acknowledgements (RFC 2018):

* a segment is lost if one that was sent later has arrived, and a round trip and a quarter of the shortest one have
  passed since it was sent; once three have arrived, the quarter is not waited for; a timer asks again where it is too
  early to tell;
* where nothing arrives, the last segment is sent again after two round trips, so that its acknowledgement tells;
* a timeout (RFC 6298) takes all of them for lost.

At most min(congestion window, peer's window) is on its way; the congestion window starts slowly, then grows by one
segment a round trip, and is halved by a loss (RFC 5681).  Nagle's algorithm is not there: every program that this
carries sets TCP_NODELAY.

Round trips are measured by timestamps (RFC 7323).  Where a SYN-ACK was lost, the answer to the second SYN has the
first one's stamp, so that a connection begins with a round trip of more than a second, and a timeout of more than
three: Linux 6.18 does the same (1.03 s and 3.08 s over loopback).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple, final

from .tcp_rto import RetransmissionTimeout

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31
_INITIAL_WINDOW: Final = 10  # segments, RFC 6928
_ENOUGH_LATER: Final = 3  # segments that arrived out of order until nothing is waited for, RFC 8985, section 6.2
_LONE_DELAY: Final = 0.2  # seconds that a lone segment's probe waits longer, as its answer may be delayed (Linux)
_ROUNDING: Final = 1e-9


def unwrap(seq: int, near: int) -> int:
    """The growing number that a 32-bit one stands for, given one that is less than 2**31 away."""
    return near + ((seq - near + _HALF) & _MASK) - _HALF


class Segment(NamedTuple):
    """What is to be sent: the number of its first byte, its bytes, whether a FIN follows them."""

    number: int
    data: bytes
    fin: bool


@final
class _Flight:
    """A segment on its way, or one that has been lost there."""

    __slots__ = ("again", "arrived", "at", "end", "lost", "order", "start")

    def __init__(self, start: int, end: int, at: float, order: int) -> None:
        self.start = start  # its first number, and one after its last
        self.end = end
        self.at = at  # when it was last sent
        self.order = order  # and its place among all that were sent
        self.again = False  # whether that was not the first time
        self.lost = False
        self.arrived = False  # out of order, as selective acknowledgements say


@final
class Sender:
    """Bytes on their way out.

    Attributes:
      una: the first number that is not acknowledged.
      next: the next number to send that was never sent.
      base: the number of buffer[0]; the SYN is before it.
      fin: whether a FIN follows the buffer.
      peer_window: bytes that the peer has room for, from `una` on.
    """

    __slots__ = (
        "_cwnd",
        "_delivered",
        "_flights",
        "_in_flight",
        "_lost",
        "_min_rtt",
        "_order",
        "_probe_at",
        "_probed",
        "_recover",
        "_reorder_at",
        "_rto",
        "_rto_at",
        "_rtt",
        "_ssthresh",
        "_timed_out",
        "base",
        "buffer",
        "fin",
        "mss",
        "next",
        "peer_window",
        "una",
    )

    def __init__(self, iss: int, mss: int) -> None:
        self.una: int = iss
        self.next: int = iss
        self.base: int = iss + 1
        self.buffer: bytearray = bytearray()
        self.fin: bool = False
        self.mss: int = mss
        self.peer_window: int = 0
        self._flights: list[_Flight] = []
        self._in_flight = 0  # bytes of those that are neither lost nor have arrived
        self._lost = 0  # how many of them are lost, and not sent again yet
        self._order = 0  # how many segments were sent
        self._delivered = (-1, -inf)  # the latest of those that have arrived: (its order, when it was sent)
        self._rtt = 0.0  # the round trip of that one
        self._min_rtt = inf
        self._cwnd = _INITIAL_WINDOW * mss
        self._ssthresh = inf
        self._recover = iss  # until `una` is here, a loss is part of the last one
        self._timed_out = False  # whether that one was a timeout
        self._probed = False  # whether the last segment was sent again as a probe
        self._rto = RetransmissionTimeout()
        self._rto_at = self._probe_at = self._reorder_at = inf

    @property
    def end(self) -> int:
        """One after the last number that there is to send so far."""
        return self.base + len(self.buffer) + self.fin

    @property
    def unsent(self) -> int:
        """Bytes that were never sent."""
        return max(0, self.base + len(self.buffer) - max(self.next, self.base))

    @property
    def deadline(self) -> float:
        """When `tick` is due."""
        return min(self._rto_at, self._probe_at, self._reorder_at)

    def sent_syn(self) -> None:
        """Note that the SYN, which the endpoint repeats by itself, has been sent."""
        self.next = max(self.next, self.base)

    # -- out -----------------------------------------------------------------------------------------------------------

    def take_segment(self, now: float, *, probe: bool = False) -> Segment | None:
        """What is to be sent now, if the windows let something be sent; it then counts as sent.

        Args:
          probe: at least a byte, whatever the windows say.
        """
        segment = self._again(now, probe=probe) if self._lost else self._new(now, probe=probe)
        if self.end > self.una and self._rto_at == inf:
            self._rto_at = now + self._rto.seconds  # also where the window is closed, which is then probed
        return segment

    def _again(self, now: float, *, probe: bool) -> Segment | None:
        if self._in_flight and self._in_flight + self.mss > self._cwnd:
            return None
        index = next(index for index, flight in enumerate(self._flights) if flight.lost)
        flight = self._flights[index]
        if flight.start >= self.una + self.peer_window and not probe:
            return None
        if flight.end - flight.start > self.mss:  # the segments have become smaller since
            rest = _Flight(flight.start + self.mss, flight.end, flight.at, flight.order)
            rest.lost = True
            flight.end = rest.start
            self._flights.insert(index + 1, rest)
        else:
            self._lost -= 1
        flight.lost, flight.again, flight.at, flight.order = False, True, now, self._next_order()
        if not index:
            self._rto_at = now + self._rto.seconds
        self._in_flight += flight.end - flight.start
        return self._cut(flight.start, flight.end)

    def _new(self, now: float, *, probe: bool) -> Segment | None:
        start = self.next
        space = 1 if probe else min(int(self._cwnd) - self._in_flight, self.una + self.peer_window - start)
        left = self.base + len(self.buffer) - start
        if left > 0:
            size = min(left, self.mss, space)
            # No silly windows (RFC 9293, 3.8.6.2.1): part of a segment only when it is the last part.
            if size <= 0 or (size < self.mss and size < left and start > self.una and not probe):
                return None
            end = start + size + (self.fin and size == left)
        elif self.fin and start < self.end:
            end = self.end
        else:
            return None
        self._flights.append(_Flight(start, end, now, self._next_order()))
        self._in_flight += end - start
        self.next = end
        self._rto_at = min(self._rto_at, now + self._rto.seconds)
        self._arm_probe(now)
        return self._cut(start, end)

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _cut(self, start: int, end: int) -> Segment:
        fin = self.fin and end == self.end
        data = bytes(memoryview(self.buffer)[start - self.base : end - fin - self.base])
        return Segment(start, data, fin)

    # -- in ------------------------------------------------------------------------------------------------------------

    def acknowledged(
        self, ack: int, now: float, *, round_trip: float | None, arrived: Iterable[tuple[int, int]] = ()
    ) -> None:
        """Take an acknowledgement.

        Args:
          ack: from `una` to `next`.
          round_trip: how long ago what it answers was sent, if it has a timestamp that says so.
          arrived: the (first, one after the last) numbers of what has arrived after a hole.
        """
        gained = ack - self.una
        known = self._delivered
        if gained > 0:
            self._forget(ack, now)
            if round_trip is not None:
                self._rto.measured(round_trip)
        for first, after in arrived:
            self._note_arrived(first, after, now)
        if self._delivered != known:
            self._rtt = now - self._delivered[1]
            self._min_rtt = min(self._min_rtt, self._rtt)
        if gained > 0:
            self._grow(gained)
            self._rto_at = now + self._rto.seconds if self.end > self.una else inf
            self._probed = False
            self._arm_probe(now)
        self._find_lost(now)

    def _forget(self, ack: int, now: float) -> None:
        """Everything before `ack` is there."""
        count = 0
        for flight in self._flights:
            if flight.start >= ack:
                break
            if flight.end <= ack:
                count += 1
            self._arrives(flight, now)
            if flight.end > ack:  # a part of it
                flight.start, flight.arrived = ack, False
                self._in_flight += flight.end - ack
        del self._flights[:count]
        self.una = ack
        self.next = max(self.next, ack)
        if ack > self.base:
            gone = min(ack - self.base, len(self.buffer))
            del self.buffer[:gone]
            self.base += gone

    def _note_arrived(self, first: int, after: int, now: float) -> None:
        for flight in self._flights:
            if flight.start >= after:
                break
            if first <= flight.start and flight.end <= after:
                self._arrives(flight, now)

    def _arrives(self, flight: _Flight, now: float) -> None:
        if flight.arrived:
            return
        flight.arrived = True
        if flight.lost:
            flight.lost = False
            self._lost -= 1
        else:
            self._in_flight -= flight.end - flight.start
        if not flight.again or now - flight.at >= self._min_rtt:  # else it is the first one that has arrived
            self._delivered = max(self._delivered, (flight.order, flight.at))

    def _grow(self, gained: int) -> None:
        if self.una < self._recover and not self._timed_out:
            return
        if self._cwnd < self._ssthresh:
            self._cwnd += min(gained, self.mss * 2)
        else:
            self._cwnd += max(1, self.mss * self.mss // self._cwnd)

    # -- loss ----------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Do what is due; whether it is a timeout, after which the peer may be gone."""
        if self._reorder_at <= now:
            self._find_lost(now)
        if self._probe_at <= now:
            self._probe_at, self._probed = inf, True
            self._rto_at = now + self._rto.seconds
            last = self._flights[-1]
            if not last.arrived and not last.lost:
                self._lose(last)
        elif self._rto_at <= now:
            self._time_out(now)
            return True
        return False

    def _find_lost(self, now: float) -> None:
        """RFC 8985, section 6.2, step 5; the reordering window is a quarter of the shortest round trip."""
        self._reorder_at = inf
        latest, _ = self._delivered
        later = sum(flight.arrived for flight in self._flights)
        window = 0.0 if later >= _ENOUGH_LATER else self._min_rtt / 4
        losses = False
        for flight in self._flights:
            if flight.arrived or flight.lost or flight.order >= latest:
                continue
            late = flight.at + self._rtt + window
            if late <= now + _ROUNDING:
                self._lose(flight)
                losses = True
            else:
                self._reorder_at = min(self._reorder_at, late)
        if losses and self.una >= self._recover:
            self._recover, self._timed_out = self.next, False
            self._cwnd = self._ssthresh = max(self._cwnd // 2, 2 * self.mss)

    def _lose(self, flight: _Flight) -> None:
        flight.lost = True
        self._lost += 1
        self._in_flight -= flight.end - flight.start

    def send_again(self) -> None:
        """Take all that is on its way for lost: it is too large, or there was no room for it, or nothing was heard."""
        for flight in self._flights:
            if not flight.lost and not flight.arrived:
                self._lose(flight)

    def _time_out(self, now: float) -> None:
        """Take everything for lost and double the timeout."""
        self._ssthresh = max((self.next - self.una) // 2, 2 * self.mss)
        self._cwnd = self.mss
        self._recover, self._timed_out = self.next, True
        self.send_again()
        self._rto.back_off()
        self._rto_at = now + self._rto.seconds if self.end > self.una else inf
        self._probe_at = self._reorder_at = inf

    def bound_mss(self, mss: int) -> None:
        """Take the peer's word, before anything is sent."""
        if mss < self.mss:
            self.mss = mss
            self._cwnd = _INITIAL_WINDOW * mss

    def shrink_mss(self, mss: int) -> None:
        """Use smaller segments from now on and send what is in flight again in them."""
        self.mss = mss
        self.send_again()

    def _arm_probe(self, now: float) -> None:
        """RFC 8985, section 7.2; none while something that is lost waits, or once the last segment was a probe."""
        self._probe_at = inf
        if self._flights and self._rto.srtt and not self._probed and self.una >= self._recover:
            lone = _LONE_DELAY if len(self._flights) == 1 else 0.0
            self._probe_at = min(now + 2 * self._rto.srtt + lone, self._rto_at)  # instead of the first timeout, too
