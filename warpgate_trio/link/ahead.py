"""How a Link goes on on another carrier while the one before it still brings what was said there, without I/O.

Who changes over from a carrier that is well goes on where it is, and not at what the peer has acknowledged, so that
nothing is said twice: on a full line that would take its time a second time.  What it has said on the old carrier and
the peer has not acknowledged is the *tail*.  What comes on the new one before the tail has come is *ahead*, and the
receiver keeps it until then.

Where the carrier of the tail ends, or is suspected, the sender goes back: it says AT on the new carrier once more, with
what is acknowledged, and all from there on.  The receiver then forgets what it has kept of that carrier.  So whatever
becomes of the two, no other frame is needed.

Both sides count what is ahead.  The sender stops at the bounds until the tail has come, and the receiver takes no more.
"""

from __future__ import annotations

from typing import Final, final

from ..errors import RemoteProtocolError
from .channel import LOOSE_PIECES, PIECE_MEAN, joined
from .frames import Data, Item
from .lane import LaneProtocol
from .stream import units

__all__ = ["AHEAD_FRAMES", "AHEAD_UNITS", "Ahead", "Tail"]

AHEAD_UNITS: Final = 1024 * 1024
"""Units that may be ahead: as many as the first window of a channel has bytes.  The tail flows meanwhile, so a sender
that has to stop leaves no silence behind."""
AHEAD_FRAMES: Final = 2048
"""Frames that may be: what one costs its receiver beside its payload, 0.3 KiB, adds up to no more than the payload.
Small pieces of DATA are joined (`channel.PIECE_MEAN`)."""


@final
class Tail:
    """What a side has said on a carrier that it has left, and is to come there.

    Args:
      lane: the carrier.
      until: the position of the first unit that is not said there.
    """

    __slots__ = ("_frames", "lane", "room", "until")

    def __init__(self, lane: LaneProtocol, until: int) -> None:
        self.lane: Final = lane
        self.until: Final = until
        self.room: int = AHEAD_UNITS
        """Units that may still go ahead of it."""
        self._frames = AHEAD_FRAMES

    def take(self, size: int) -> bool:
        """A frame of so many units is to go ahead; whether it may."""
        if size > self.room:
            return False
        self.room -= size
        self._frames -= 1
        if not self._frames:
            self.room = 0
        return True


@final
class Ahead:
    """What has come on a carrier before what is before it.

    Args:
      start: the position of the first unit.

    Attributes:
      items: each with its position.
    """

    __slots__ = ("_frames", "_units", "items", "start")

    def __init__(self, start: int) -> None:
        self.start: Final = start
        self.items: Final[list[tuple[int, Item]]] = []
        self._units = 0
        self._frames = 0

    def put(self, position: int, item: Item) -> None:
        """One more.

        Raises:
          RemoteProtocolError: the peer says more than may be ahead.
        """
        self._units += units(item)
        self._frames += item.frames if isinstance(item, Data) else 1
        if self._units > AHEAD_UNITS or self._frames > AHEAD_FRAMES:
            raise RemoteProtocolError("the peer goes on, and what it said before on another carrier does not come")
        if isinstance(item, Data) and self.items:
            before, last = self.items[-1]
            if isinstance(last, Data) and last.channel == item.channel and before + last.size == position:
                _extend(last, item)
                return
        self.items.append((position, item))


def _extend(data: Data, more: Data) -> None:
    """What adjoins is one item, and small pieces are one: one frame may come in as many reads as it has bytes."""
    data.pieces += more.pieces
    data.size += more.size
    data.frames += more.frames
    if len(data.pieces) > LOOSE_PIECES and len(data.pieces) * PIECE_MEAN > data.size:
        data.pieces[:] = [joined(data.pieces)]
