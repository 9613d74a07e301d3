"""The sending half of a TCP connection: data in flight, loss detection, and retransmission.

Sequence numbers are unbounded integers here, counted from the 32-bit initial one; `unwrap` converts a number of the
wire.  The sender is pure: it holds bytes and state, and the endpoint (tcp.py) calls it.

Each segment in flight is a `_Flight`, until it is acknowledged.  Losses are detected as in Linux, by RACK-TLP
(RFC 8985) and selective acknowledgements (RFC 2018):

* A segment is lost if a segment that was sent later has arrived, and a round-trip time plus a reordering window has
  passed since the segment was sent.  The window is a quarter of the shortest round-trip time, or 0 once three segments
  have arrived out of order.  If it is too early to decide, a timer checks again.
* If no acknowledgement arrives for two round-trip times, the last segment is sent again as a probe: its acknowledgement
  shows what was lost.
* After a retransmission timeout (RFC 6298), all segments in flight count as lost.

At most min(congestion window, peer's window) is in flight.  The congestion window begins with slow start, then grows by
one segment for each round trip, and is halved by a loss (RFC 5681).  Nagle's algorithm is not simulated: the programs
that this carries set TCP_NODELAY.

Round-trip times are measured with timestamps (RFC 7323).  If a SYN-ACK was lost, the answer to the second SYN echoes
the timestamp of the first one.  Such a connection begins with a round-trip time of more than a second and a timeout of
more than three: Linux 6.18 does the same (1.03 s and 3.08 s over loopback).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple, final

from .tcp_rto import RetransmissionTimeout

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31
_INITIAL_WINDOW: Final = 10  # segments, RFC 6928
_ENOUGH_LATER: Final = 3  # out-of-order segments after which the reordering window is 0, RFC 8985, section 6.2
_LONE_DELAY: Final = 0.2  # additional seconds before the probe for a lone segment, whose ACK may be delayed (Linux)
_ROUNDING: Final = 1e-9


def unwrap(seq: int, near: int) -> int:
    """The unbounded sequence number for a 32-bit one, given a number that is less than 2**31 away."""
    return near + ((seq - near + _HALF) & _MASK) - _HALF


class Segment(NamedTuple):
    """A segment to send: the number of its first byte, its bytes, and whether a FIN follows them."""

    number: int
    data: bytes
    fin: bool


@final
class _Flight:
    """A segment in flight, or one that was lost."""

    __slots__ = ("again", "arrived", "at", "end", "lost", "order", "start")

    def __init__(self, start: int, end: int, at: float, order: int) -> None:
        self.start = start  # its first number
        self.end = end  # one after its last number
        self.at = at  # when it was last sent
        self.order = order  # position of that transmission among all
        self.again = False  # whether that was a retransmission
        self.lost = False
        self.arrived = False  # out of order, by selective acknowledgements


@final
class Sender:
    """The outgoing bytes of one connection.

    Attributes:
      una: the first unacknowledged number.
      next: the first number that was never sent.
      base: the number of buffer[0]; the SYN is before it.
      fin: whether a FIN follows the buffer.
      peer_window: the peer's receive window in bytes, from `una` on.
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
        self._in_flight = 0  # bytes of segments that are neither lost nor have arrived
        self._lost = 0  # number of segments that are lost and not yet sent again
        self._order = 0  # number of transmissions so far
        self._delivered = (-1, -inf)  # of the latest transmission that has arrived: (its order, when it was sent)
        self._rtt = 0.0  # the round-trip time of that transmission
        self._min_rtt = inf
        self._cwnd = _INITIAL_WINDOW * mss
        self._ssthresh = inf
        self._recover = iss  # until `una` is here, further losses belong to the same loss event
        self._timed_out = False  # whether that event was a timeout
        self._probed = False  # whether the last segment was sent again as a probe
        self._rto = RetransmissionTimeout()
        self._rto_at = self._probe_at = self._reorder_at = inf

    @property
    def end(self) -> int:
        """One after the last number to send so far."""
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
        """Note that the SYN has been sent; the endpoint retransmits it itself."""
        self.next = max(self.next, self.base)

    # -- out -----------------------------------------------------------------------------------------------------------

    def take_segment(self, now: float, *, probe: bool = False) -> Segment | None:
        """The next segment to send, which then counts as sent; None if the windows allow none.

        Args:
          probe: whether to send at least a byte, regardless of the windows.
        """
        segment = self._again(now, probe=probe) if self._lost else self._new(now, probe=probe)
        if self.end > self.una and self._rto_at == inf:
            self._rto_at = now + self._rto.seconds  # also with a closed window, which is then probed
        return segment

    def _again(self, now: float, *, probe: bool) -> Segment | None:
        if self._in_flight and self._in_flight + self.mss > self._cwnd:
            return None
        index = next(index for index, flight in enumerate(self._flights) if flight.lost)
        flight = self._flights[index]
        if flight.start >= self.una + self.peer_window and not probe:
            return None
        if flight.end - flight.start > self.mss:  # the MSS has shrunk since the segment was sent
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
            # Silly window avoidance (RFC 9293, 3.8.6.2.1): a partial segment is sent only if it is the last.
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
        """Process an acknowledgement.

        Args:
          ack: the acknowledged number, from `una` to `next`.
          round_trip: the round-trip time in seconds by its timestamp, if it has one.
          arrived: its selective acknowledgements, as (first number, one after the last).
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
        """Remove the segments before `ack`: the peer has received them."""
        count = 0
        for flight in self._flights:
            if flight.start >= ack:
                break
            if flight.end <= ack:
                count += 1
            self._arrives(flight, now)
            if flight.end > ack:  # acknowledged in part
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
        if not flight.again or now - flight.at >= self._min_rtt:  # otherwise its first transmission has arrived
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
        """Do what is due at `now`; returns whether the retransmission timeout has expired."""
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
        """Count all segments in flight as lost: they were too large, were not accepted, or were not acknowledged."""
        for flight in self._flights:
            if not flight.lost and not flight.arrived:
                self._lose(flight)

    def _time_out(self, now: float) -> None:
        """Count everything in flight as lost, and double the timeout."""
        self._ssthresh = max((self.next - self.una) // 2, 2 * self.mss)
        self._cwnd = self.mss
        self._recover, self._timed_out = self.next, True
        self.send_again()
        self._rto.back_off()
        self._rto_at = now + self._rto.seconds if self.end > self.una else inf
        self._probe_at = self._reorder_at = inf

    def bound_mss(self, mss: int) -> None:
        """Limit the MSS to the peer's, before anything is sent."""
        if mss < self.mss:
            self.mss = mss
            self._cwnd = _INITIAL_WINDOW * mss

    def shrink_mss(self, mss: int) -> None:
        """Use smaller segments from now on, and send what is in flight again in such segments."""
        self.mss = mss
        self.send_again()

    def _arm_probe(self, now: float) -> None:
        """Set the probe timer (RFC 8985, section 7.2); no timer while lost segments wait, or after a probe."""
        self._probe_at = inf
        if self._flights and self._rto.srtt and not self._probed and self.una >= self._recover:
            lone = _LONE_DELAY if len(self._flights) == 1 else 0.0
            self._probe_at = min(now + 2 * self._rto.srtt + lone, self._rto_at)  # instead of the first timeout, too
