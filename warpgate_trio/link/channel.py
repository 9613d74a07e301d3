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
"""Received pieces that may wait in a buffer unjoined, however small they are."""
PIECE_MEAN: Final = 4096
"""Bytes that more than `LOOSE_PIECES` pieces must hold on average, or they are joined.  A piece costs 200 bytes and can
keep a whole TLS record alive, so a peer that sends single bytes would use a multiple of its window.  Bulk data comes in
whole records of 16 KiB and is never joined."""


class Observer(Protocol):
    """What waits for a channel: woken after `LinkProtocol.receive` when anything about the channel has changed."""

    def wake(self) -> None: ...


def joined(pieces: Sequence[bytes | memoryview]) -> bytes:
    """The pieces as one `bytes` object; a single `bytes` piece is not copied."""
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
        """Why a direction was abandoned, if this side did not close it."""
        self.observer: Observer | None = None

    @property
    def sendable(self) -> int:
        """Bytes that credit allows now."""
        return self.send_limit - self.sent if self.outgoing is DirectionState.FLOWING else 0

    @property
    def done(self) -> bool:
        """Whether both directions have ended (received data may still wait to be read)."""
        ends = (DirectionState.FINISHED, DirectionState.ABANDONED)
        return self.outgoing in ends and self.incoming in ends

    def drop(self) -> None:
        """Discard what was received."""
        self.buffer.clear()
        self.buffered = 0

    def compact(self) -> None:
        """Join many small pieces into a large one; see `PIECE_MEAN`."""
        if len(self.buffer) * PIECE_MEAN > self.buffered:
            whole = b"".join(self.buffer)
            self.buffer.clear()
            self.buffer.append(whole)

    def take(self, max_bytes: int | None) -> bytes:
        """Up to `max_bytes` (all for None) of what was received."""
        return joined(self.take_pieces(max_bytes))

    def take_pieces(self, max_bytes: int | None) -> list[bytes | memoryview]:
        """The same as a list of pieces, as they came."""
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
                # A view keeps the whole piece alive, which may be as large as a window.
                buffer.appendleft(rest if 2 * len(rest) > len(cast("bytes", view.obj)) else bytes(rest))
                piece = view[:missing]
            pieces.append(piece)
            missing -= len(piece)
        self.buffered -= max_bytes
        return pieces
