"""How far a peer's clock is from ours, from the times of one signal and its answer (docs/punching.md, law 7).

The four timestamps are NTP's, with the peer for a server.  The true offset is within half the round trip of the
computed one, however unevenly the two directions shared it; this is arithmetic, and trusts only that the peer reads its
own clock.  (A peer that does not spoils its own punch.)

Where both sides asked time servers, their corrected clocks differ by no more than the sum of their uncertainties.  Of
the two bounds the tighter is used, unless they exclude each other: then some time server spoke untrue, and arithmetic
holds.
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
    """Seconds to add to our corrected clock for the peer's, ± `uncertainty`; where it comes from."""

    offset: float
    uncertainty: float
    source: Literal["ntp", "signal"]

    def to_peer(self, ours: float) -> float:
        """A time of ours on the peer's clock."""
        return ours + self.offset

    def to_ours(self, theirs: float) -> float:
        """A time of the peer's on our clock."""
        return theirs - self.offset


def from_signal(
    sent: float, peer_received: float, peer_sent: float, received: float, *, resolution: float = 1e-6
) -> PeerOffset:
    """The offset from one signal and its answer.

    Args:
      sent, received: ours, on our corrected clock: when the signal was sent, when its answer came.
      peer_received, peer_sent: the peer's, on its own: when the signal came, when the answer was sent.
      resolution: seconds between two values that a timestamp can have: 0.001 for those of an envelope, under a
        microsecond for a float.

    Raises:
      ValueError: the times are no round trip: one is not a number, the peer claims to have held the signal for less
        than no time, or for longer than we waited.
    """
    if not all(map(math.isfinite, (sent, peer_received, peer_sent, received))):
        raise ValueError("a timestamp is not a finite number")
    held, waited = peer_sent - peer_received, received - sent
    if waited < -resolution or held < -resolution or waited - held < -2 * resolution - _MAX_RATE * abs(waited):
        raise ValueError(f"no round trip: the peer held for {held:.3f} s what took {waited:.3f} s")
    offset = ((peer_received - sent) + (peer_sent - received)) / 2
    uncertainty = max(waited - held, 0.0) / 2 + resolution + 2 * DRIFT * max(waited, 0.0)
    return PeerOffset(offset, uncertainty, "signal")


def combine(ours: float | None, theirs: float | None, signal: PeerOffset | None) -> PeerOffset | None:
    """The better of what is known; None when nothing is.

    Args:
      ours, theirs: the uncertainty of either corrected clock, in seconds; None or infinite: not measured.
      signal: what `from_signal` made of a round trip between these corrected clocks.

    Raises:
      ValueError: an uncertainty is negative or not a number.
    """
    total = math.inf
    if ours is not None and theirs is not None:
        total = ours + theirs
        if not (ours >= 0 and theirs >= 0):
            raise ValueError(f"an uncertainty is not negative: {ours}, {theirs}")
    if signal is None:
        return PeerOffset(0.0, total, "ntp") if math.isfinite(total) else None
    contradicts = abs(signal.offset) > total + signal.uncertainty
    if contradicts or signal.uncertainty <= total:
        return signal
    return PeerOffset(0.0, total, "ntp")
