"""What a Link remembers about one channel: its two directions, its credit, and the bytes that wait to be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, cast, final

from .states import DirectionState

if TYPE_CHECKING:
    from .frames import Refuse

__all__ = ["LOOSE_PIECES", "PIECE_MEAN", "Channel", "Observer", "joined"]

LOOSE_PIECES: Final = 64
"""Received pieces that may wait in a buffer as they came, however small they are."""
PIECE_MEAN: Final = 4096
"""Bytes that more pieces than that have to hold on average, or they are joined: a piece costs 200 bytes and can keep a
whole TLS record alive, so a peer that sends single bytes would fill a multiple of its window.  Bulk data comes in whole
records of 16 KiB and is never joined."""


class Observer(Protocol):
    """Whoever waits for a channel: told after `LinkProtocol.receive` when anything about it changed."""

    def wake(self) -> None: ...


def joined(pieces: Sequence[bytes | memoryview]) -> bytes:
    """One object of them, which is copied only where it has to be."""
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


@final
class Channel:
    """One channel's two directions and the bytes that wait to be read.  Its states change in `LinkProtocol` only."""

    __slots__ = (
        "accepted",
        "buffer",
        "buffered",
        "closed_here",
        "consumed",
        "failure",
        "granted_at",
        "id",
        "incoming",
        "label",
        "observer",
        "outgoing",
        "receive_limit",
        "received",
        "refusal",
        "send_limit",
        "sent",
        "window",
    )

    def __init__(self, number: int, label: str, *, window: int, receive_limit: int, now: float) -> None:
        self.id: Final = number
        self.label: Final = label
        self.outgoing: DirectionState = DirectionState.IDLE
        self.incoming: DirectionState = DirectionState.IDLE
        self.sent: int = 0
        self.send_limit: int = 0
        self.received: int = 0
        self.consumed: int = 0
        self.receive_limit: int = receive_limit
        self.window: int = window
        self.granted_at: float = now
        self.buffer: deque[bytes | memoryview] = deque()
        self.buffered: int = 0
        self.accepted: bool = False
        self.refusal: Refuse | None = None
        self.closed_here: bool = False
        self.failure: Exception | None = None
        """Why a direction was abandoned that this side did not close."""
        self.observer: Observer | None = None

    @property
    def sendable(self) -> int:
        """Bytes that credit allows now."""
        return self.send_limit - self.sent if self.outgoing is DirectionState.FLOWING else 0

    @property
    def done(self) -> bool:
        """Both directions have ended (what was received may still wait to be read)."""
        ends = (DirectionState.FINISHED, DirectionState.ABANDONED)
        return self.outgoing in ends and self.incoming in ends

    def drop(self) -> None:
        """What was received is of no use."""
        self.buffer.clear()
        self.buffered = 0

    def compact(self) -> None:
        """Give up many small pieces for one large one; see `PIECE_MEAN`."""
        if len(self.buffer) * PIECE_MEAN > self.buffered:
            whole = b"".join(self.buffer)
            self.buffer.clear()
            self.buffer.append(whole)

    def take(self, max_bytes: int | None) -> bytes:
        """Up to `max_bytes` (all for None) of what was received."""
        return joined(self.take_pieces(max_bytes))

    def take_pieces(self, max_bytes: int | None) -> list[bytes | memoryview]:
        """The same as it came."""
        buffer = self.buffer
        if max_bytes is None or self.buffered <= max_bytes:
            pieces = list(buffer)
            buffer.clear()
            self.buffered = 0
            return pieces
        pieces = []
        missing = max_bytes
        while missing:
            piece = buffer.popleft()
            if len(piece) > missing:
                view = memoryview(piece)
                rest = view[missing:]
                # A view keeps all of the piece alive, which may be a whole window.
                buffer.appendleft(rest if 2 * len(rest) > len(cast("bytes", view.obj)) else bytes(rest))
                piece = view[:missing]
            pieces.append(piece)
            missing -= len(piece)
        self.buffered -= max_bytes
        return pieces
