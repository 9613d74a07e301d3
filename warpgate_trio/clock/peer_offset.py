"""The offset of a peer's clock from ours, from the times of one signal and its answer (docs/punching.md, law 7).

The four timestamps are those of NTP, with the peer as the server.  The true offset is within half the round trip of the
computed one, however the delay is divided between the two directions.  This relies only on the peer's reading its own
clock, and a peer that reports other times spoils its own punch.

Where both sides have asked NTP servers, their corrected clocks differ by no more than the sum of their uncertainties.
The tighter of the two bounds is used.  If they contradict each other, an NTP server was wrong, and the bound from the
signal is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, final

from .estimate import DRIFT

__all__ = ["PeerOffset", "combine", "from_signal"]

_MAX_RATE: Final = (
    1e-3  # Two clocks that are both being slewed, in opposite directions, by the 500 ppm that daemons use.
)


@final
@dataclass(frozen=True, slots=True)
class PeerOffset:
    """The offset of a peer's clock.

    Attributes:
      offset: seconds to add to our corrected clock to get the peer's.
      uncertainty: seconds by which that may be wrong.
      source: what it was computed from: NTP on both sides, or a signal and its answer.
    """

    offset: float
    uncertainty: float
    source: Literal["ntp", "signal"]

    def to_peer(self, ours: float) -> float:
        """Convert a time of our clock to the peer's."""
        return ours + self.offset

    def to_ours(self, theirs: float) -> float:
        """Convert a time of the peer's clock to ours."""
        return theirs - self.offset


def from_signal(
    sent: float, peer_received: float, peer_sent: float, received: float, *, resolution: float = 1e-6
) -> PeerOffset:
    """The offset from one signal and its answer.

    Args:
      sent, received: on our corrected clock, when the signal was sent and when its answer arrived.
      peer_received, peer_sent: on the peer's clock, when the signal arrived and when the answer was sent.
      resolution: the resolution of the timestamps in seconds: 0.001 for those of an envelope, under a microsecond for
        floats.

    Raises:
      ValueError: the times are no round trip: one is not finite, or the peer claims to have held the signal for a
        negative time, or for longer than we waited.
    """
    if not all(map(math.isfinite, (sent, peer_received, peer_sent, received))):
        raise ValueError("a timestamp is not a finite number")
    held, waited = peer_sent - peer_received, received - sent
    if waited < -resolution or held < -resolution or waited - held < -2 * resolution - _MAX_RATE * abs(waited):
        raise ValueError(f"the peer claims to have held the signal for {held:.3f} s of a round trip of {waited:.3f} s")
    offset = ((peer_received - sent) + (peer_sent - received)) / 2
    uncertainty = max(waited - held, 0.0) / 2 + resolution + 2 * DRIFT * max(waited, 0.0)
    return PeerOffset(offset, uncertainty, "signal")


def combine(ours: float | None, theirs: float | None, signal: PeerOffset | None) -> PeerOffset | None:
    """The offset with the tighter bound, by NTP or by a signal; None when neither is known.

    Args:
      ours, theirs: the uncertainty of each corrected clock, in seconds; None or infinite if not measured.
      signal: the result of `from_signal` for a round trip between these corrected clocks; None if there was none.

    Raises:
      ValueError: an uncertainty is negative or not a number.
    """
    total = math.inf
    if ours is not None and theirs is not None:
        total = ours + theirs
        if not (ours >= 0 and theirs >= 0):
            raise ValueError(f"an uncertainty cannot be negative: {ours}, {theirs}")
    if signal is None:
        return PeerOffset(0.0, total, "ntp") if math.isfinite(total) else None
    contradicts = abs(signal.offset) > total + signal.uncertainty
    if contradicts or signal.uncertainty <= total:
        return signal
    return PeerOffset(0.0, total, "ntp")
