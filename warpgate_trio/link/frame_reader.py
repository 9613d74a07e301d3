"""Cuts a carrier's byte stream into frames.  Bulk DATA, which is nearly all of it, is not copied."""

from __future__ import annotations

from collections import deque
from typing import Final, final

from .frame_codec import HEADER_SIZE, decode, parse_header
from .frames import Data, FrameType, Item

__all__ = ["TURN_FRAMES", "WORTH_KEEPING", "FrameReader"]

TURN_FRAMES: Final = 64
"""Frames that are cut in one go, at 1 to 7 µs each: other tasks wait a fraction of a millisecond for one that cuts
many.  Bulk is not many: 64 KiB come in a frame or two."""
WORTH_KEEPING: Final = 15 / 16
"""Share of a piece from the carrier from which on a payload is kept as a view of it; what is less is copied, since a
view keeps the whole piece alive.  A whole record has only the header of a frame beside its payload."""


@final
class FrameReader:
    """Cuts a byte stream into frames; bulk DATA is not copied.  Holds at most one other payload (16 KiB) itself.

    It cuts at most `TURN_FRAMES` in one go, however many there are: the rest is kept for the next `feed`.

    Attributes:
      silent: frames that said nothing, so that they are no items: empty DATA, and types that are skipped.
    """

    def __init__(self) -> None:
        self._unread: deque[bytes | memoryview] = deque()
        self._partial = bytearray()
        self._kind = -1  # -1: in a header
        self._channel = 0
        self._missing = 0  # bytes of payload still to come
        self.silent: int = 0

    @property
    def has_unread(self) -> bool:
        """Whether there are bytes that the last `feed` did not come to."""
        return bool(self._unread)

    # long: every byte of bulk goes through this loop, where a call for each step would cost as much as the step
    def feed(self, pieces: list[bytes]) -> list[Item]:
        """Raises `RemoteProtocolError` at the first fault; the reader must not be fed after that."""
        unread = self._unread
        unread.extend(pieces)
        found: list[Item] = []
        run: list[bytes | memoryview] = []
        run_channel, run_size, run_frames = self._channel, 0, 0
        begun = 0

        def end_run() -> None:
            nonlocal run, run_size, run_frames
            if run:
                found.append(Data(run_channel, run, run_size, run_frames))
                run, run_size, run_frames = [], 0, 0

        while unread and (begun < TURN_FRAMES or self._kind >= 0):  # a frame that was begun is read to its end
            piece = unread.popleft()
            size = len(piece)
            if (
                self._kind == FrameType.DATA and size <= self._missing
            ):  # the bulk of a transfer: whole records of payload
                run.append(piece)
                run_size += size
                self._missing -= size
                if not self._missing:
                    self._kind = -1
                continue
            view = memoryview(piece)
            while view:
                if self._kind == FrameType.DATA:
                    part, view = view[: self._missing], view[self._missing :]
                    run.append(part if len(part) >= size * WORTH_KEEPING else bytes(part))
                    run_size += len(part)
                    self._missing -= len(part)
                    if not self._missing:
                        self._kind = -1
                    continue
                if begun >= TURN_FRAMES and self._kind < 0:
                    unread.appendleft(view)
                    break
                wanted = (HEADER_SIZE if self._kind < 0 else self._missing) - len(self._partial)
                self._partial += view[:wanted]
                view = view[wanted:]
                if self._kind < 0 and len(self._partial) == HEADER_SIZE:
                    begun += 1
                    self._kind, self._channel, self._missing = parse_header(self._partial)
                    self._partial.clear()
                    if self._kind == FrameType.DATA and self._channel != run_channel:
                        end_run()
                        run_channel = self._channel
                    if self._kind == FrameType.DATA:
                        run_frames += 1
                        if not self._missing:  # an empty DATA frame says nothing
                            self._kind = -1
                            self.silent += 1
                if self._kind >= 0 and self._kind != FrameType.DATA and len(self._partial) == self._missing:
                    frame = decode(self._kind, self._channel, bytes(self._partial))
                    self._partial.clear()
                    self._kind = -1
                    if frame is None:
                        self.silent += 1
                    else:
                        end_run()
                        found.append(frame)
        end_run()
        return found
