"""How long a TCP sender waits for an acknowledgement (RFC 6298), within the bounds that Linux sets."""

from __future__ import annotations

from typing import Final, final

MIN_RTO: Final = 0.2  # Linux's TCP_RTO_MIN
MAX_RTO: Final = 120.0  # Linux's TCP_RTO_MAX
FIRST_RTO: Final = 1.0  # RFC 6298, section 2.1


@final
class RetransmissionTimeout:
    """The timeout of one connection, from the round trips that were measured.

    Attributes:
      srtt: the smoothed round-trip time; 0 until one was measured.
      seconds: the timeout.
    """

    __slots__ = ("_rttvar", "seconds", "srtt")

    def __init__(self) -> None:
        self.srtt: float = 0.0
        self.seconds: float = FIRST_RTO
        self._rttvar = 0.0

    def measured(self, rtt: float) -> None:
        """Take a round trip; it ends the back-off."""
        if not self.srtt:
            self.srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self.srtt - rtt) - self._rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        self.seconds = min(max(self.srtt + max(4 * self._rttvar, MIN_RTO), MIN_RTO), MAX_RTO)

    def back_off(self) -> None:
        """Double the timeout, since it has passed (section 5.5)."""
        self.seconds = min(self.seconds * 2, MAX_RTO)
