"""How a Link continues on a new carrier while the old one still delivers what was sent there, without I/O.

A side that changes over from a carrier that is well continues its stream at the current position, not at what the peer
has acknowledged.  So nothing is sent twice, which would take as long again on a full line.  The *tail* is what was sent
on the old carrier and is not acknowledged.  Data that arrives on the new carrier before the tail is *ahead*; the
receiver keeps it until the tail has come.

Where the carrier of the tail ends, or is suspected, the sender goes back.  It sends AT on the new carrier once more,
with the acknowledged position, and everything from there on.  The receiver then discards what it has kept of that
carrier.  So no other frame is needed, whatever happens to the two carriers.

Both sides count what is ahead.  The sender stops at the bounds until the tail has come; the receiver treats more as an
error.
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
"""Units that may be ahead: as many as the first window of a channel has bytes.  The tail flows meanwhile, so data keeps
arriving even if the sender has to stop."""
AHEAD_FRAMES: Final = 2048
"""Frames that may be ahead: each costs the receiver 0.3 KiB beside its payload, in total no more than `AHEAD_UNITS`.
Small pieces of DATA are joined (`channel.PIECE_MEAN`)."""


@final
class Tail:
    """What a side has sent on a carrier that it has left, and that is still to be delivered there.

    Args:
      lane: the carrier.
      until: the position of the first unit that is not sent there.
    """

    __slots__ = ("_frames", "lane", "room", "until")

    def __init__(self, lane: LaneProtocol, until: int) -> None:
        self.lane: Final = lane
        self.until: Final = until
        self.room: int = AHEAD_UNITS
        """Units that may still be sent ahead of the tail."""
        self._frames = AHEAD_FRAMES

    def take(self, size: int) -> bool:
        """Account for a frame of `size` units that is to go ahead.  Returns whether it may."""
        if size > self.room:
            return False
        self.room -= size
        self._frames -= 1
        if not self._frames:
            self.room = 0
        return True


@final
class Ahead:
    """What has come on a carrier ahead of the stream.

    Args:
      start: the position of the first unit.

    Attributes:
      items: the items, each with its position.
    """

    __slots__ = ("_frames", "_units", "items", "start")

    def __init__(self, start: int) -> None:
        self.start: Final = start
        self.items: Final[list[tuple[int, Item]]] = []
        self._units = 0
        self._frames = 0

    def put(self, position: int, item: Item) -> None:
        """Keep one more item.

        Raises:
          RemoteProtocolError: the peer sends more than may be ahead.
        """
        self._units += units(item)
        self._frames += item.frames if isinstance(item, Data) else 1
        if self._units > AHEAD_UNITS or self._frames > AHEAD_FRAMES:
            raise RemoteProtocolError(
                "the peer sends too much on a new path before its earlier data has come on the old one"
            )
        if isinstance(item, Data) and self.items:
            before, last = self.items[-1]
            if isinstance(last, Data) and last.channel == item.channel and before + last.size == position:
                _extend(last, item)
                return
        self.items.append((position, item))


def _extend(data: Data, more: Data) -> None:
    """Append adjoining DATA, and join small pieces: one frame may arrive in as many reads as it has bytes."""
    data.pieces += more.pieces
    data.size += more.size
    data.frames += more.frames
    if len(data.pieces) > LOOSE_PIECES and len(data.pieces) * PIECE_MEAN > data.size:
        data.pieces[:] = [joined(data.pieces)]
