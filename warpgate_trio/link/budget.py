"""How many frames a peer may send that no credit pays for.

Credit pays for DATA.  All other frames could be sent without limit, and cost the receiver more than the sender.

Before the Link is open, a peer may send `HANDSHAKE_FRAMES` frames, including early data.  One more is an error, since
the application has not been asked about that peer yet.  From then on, frames other than DATA are limited to
`CONTROL_RATE`.  A peer that exceeds it is not read for a while.  That is milder than an error, and affects that peer
alone: flow control stops it.
"""

from __future__ import annotations

from typing import Final, final

from ..errors import RemoteProtocolError
from ..limits import TokenBucket

__all__ = ["FrameBudget"]

HANDSHAKE_FRAMES: Final = 64
"""Frames of a peer before the Link is open, 1 KiB each at most, and the early data: PROOF, COMMIT, one DATA and some
PINGs are needed."""
CONTROL_RATE: Final = 100_000.0
"""Frames per second other than DATA for an existing channel: they cost as much as bulk does, a third of a core.  A
transfer of 1 GB/s needs 2,000 of them for its credit, and a peer that sends a PING waits for its PONG."""
CONTROL_BURST: Final = 16 * 1024
"""Frames of that kind at once: enough to open, write to and close all channels once."""
OPEN_COST: Final = 8
"""Frames that an OPEN counts for, since it makes a channel: 12,500 a second, ten times what Python can process."""
NEWS_COST: Final = 32
"""Frames that a NEWS counts for, since a signal has up to 16 KiB rather than 1 KiB: 3,000 a second.  What costs is to
open signals; how many are opened is bounded together with those from servers (`warpgate_trio.signal.router`)."""
TURN_COST: Final = 1000
"""Frames that a change of lane counts for, since the application is told of each: 100 a second; an unstable path has
one in some seconds."""


@final
class FrameBudget:
    """What one peer has sent on one carrier, and may still send.

    Attributes:
      is_ahead: the peer has exceeded its rate, and there may be a `pause`.
    """

    __slots__ = ("_before", "_bucket", "is_ahead")

    def __init__(self) -> None:
        self._before = 0  # frames before the Link was open
        self._bucket = TokenBucket(CONTROL_RATE, CONTROL_BURST)  # below zero it is ahead of its rate
        self.is_ahead: bool = False

    def count(self, frames: int, now: float, *, link_open: bool) -> None:
        """Count frames that no credit pays for.

        Raises:
          RemoteProtocolError: there are too many before the Link is open.
        """
        if link_open:
            self._bucket.earn(now)
            self._bucket.spend(frames)
            self.is_ahead = self.pause(now) > 0
            return
        self._before += frames
        if self._before > HANDSHAKE_FRAMES:
            raise RemoteProtocolError(f"more than {HANDSHAKE_FRAMES} frames before the link is open")

    def pause(self, now: float) -> float:
        """Seconds for which the peer is not to be read."""
        pause = self._bucket.seconds_until(now, 0.0)
        self.is_ahead = pause > 0
        return pause
