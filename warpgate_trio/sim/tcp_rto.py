"""The retransmission timeout of a TCP sender (RFC 6298), within the bounds of Linux."""

from __future__ import annotations

from typing import Final, final

MIN_RTO: Final = 0.2  # Linux's TCP_RTO_MIN
MAX_RTO: Final = 120.0  # Linux's TCP_RTO_MAX
FIRST_RTO: Final = 1.0  # RFC 6298, section 2.1


@final
class RetransmissionTimeout:
    """The retransmission timeout of one connection, computed from measured round-trip times.

    Attributes:
      srtt: the smoothed round-trip time in seconds; 0 before the first measurement.
      seconds: the timeout.
    """

    __slots__ = ("_rttvar", "seconds", "srtt")

    def __init__(self) -> None:
        self.srtt: float = 0.0
        self.seconds: float = FIRST_RTO
        self._rttvar = 0.0

    def measured(self, rtt: float) -> None:
        """Add a measured round-trip time, which ends the backoff."""
        if not self.srtt:
            self.srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self.srtt - rtt) - self._rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.seconds = min(max(self.srtt + max(4 * self._rttvar, MIN_RTO), MIN_RTO), MAX_RTO)

    def back_off(self) -> None:
        """Double the timeout after it has expired (section 5.5)."""
        self.seconds = min(self.seconds * 2, MAX_RTO)
