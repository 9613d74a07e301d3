"""How many frames a peer may say that nothing pays for.

DATA is paid for with credit; everything else could be sent for nothing, and costs us more than the peer.  Before the
Link is open a peer may say `HANDSHAKE_FRAMES` frames, early data included; one more is an error, since nobody has asked
the application about that peer yet.  From then on a Link has frames that carry nothing for the application at
`CONTROL_RATE`; a peer that is ahead of that is left unread for a while.  Waiting is kinder than an error, and costs
that peer alone: its own system stops it.
"""

from __future__ import annotations

from typing import Final, final

from ..errors import RemoteProtocolError
from ..limits import TokenBucket

__all__ = ["FrameBudget"]

HANDSHAKE_FRAMES: Final = 64
"""Frames of a peer before the Link is open, 1 KiB each at most, and the early data.  It has PROOF, COMMIT, one DATA and
some PINGs to say."""
CONTROL_RATE: Final = 100_000.0
"""Frames per second that are no DATA for a channel that stands: they cost what bulk costs, a third of a core.  A
transfer of 1 GB/s needs 2,000 of them for its credit, and who asks for a PONG waits for it."""
CONTROL_BURST: Final = 16 * 1024
"""Of them at once: all channels opened, written to and closed, once over."""
OPEN_COST: Final = 8
"""Frames that an OPEN counts for, since it makes a channel: 12,500 a second, ten times what Python can do with them."""
NEWS_COST: Final = 32
"""Frames that a NEWS counts for, since a signal is 16 KiB at most, where they are one: 3,000 a second.  How many of
them are opened, which is what costs, is bounded with those that servers pass on (`warpgate_trio.signal.router`)."""
TURN_COST: Final = 1000
"""Frames that a change of lane counts for, since the application is told of each: 100 a second; a path that comes and
goes has one in some seconds."""


@final
class FrameBudget:
    """What one peer has said on one Link, and may say yet.

    Attributes:
      is_ahead: it has said more than it may, and there may be a `pause`.
    """

    __slots__ = ("_before", "_bucket", "is_ahead")

    def __init__(self) -> None:
        self._before = 0  # frames before the Link was open
        self._bucket = TokenBucket(CONTROL_RATE, CONTROL_BURST)  # below zero it is ahead of its rate
        self.is_ahead: bool = False

    def count(self, frames: int, now: float, *, link_open: bool) -> None:
        """Frames that nothing pays for; RemoteProtocolError where there are too many before the Link is open."""
        if link_open:
            self._bucket.earn(now)
            self._bucket.spend(frames)
            self.is_ahead = self.pause(now) > 0
            return
        self._before += frames
        if self._before > HANDSHAKE_FRAMES:
            raise RemoteProtocolError(f"more than {HANDSHAKE_FRAMES} frames before the link is open")

    def pause(self, now: float) -> float:
        """Seconds for which the peer is to be left unread."""
        pause = self._bucket.seconds_until(now, 0.0)
        self.is_ahead = pause > 0
        return pause
