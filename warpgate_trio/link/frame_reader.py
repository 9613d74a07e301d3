"""Cuts a carrier's byte stream into frames.  Bulk DATA, which is nearly all of it, is not copied."""

from __future__ import annotations

from collections import deque
from typing import Final, final

from .frame_codec import HEADER_SIZE, decode, parse_header
from .frames import Data, FrameType, Item

__all__ = ["TURN_FRAMES", "WORTH_KEEPING", "FrameReader"]

TURN_FRAMES: Final = 64
"""Frames that are cut in one go, at 1 to 7 µs each, so that other tasks wait for a fraction of a millisecond at most.
Bulk consists of few frames: 64 KiB come in one or two."""
WORTH_KEEPING: Final = 15 / 16
"""Share of a carrier's piece from which on a payload is kept as a view of it; less is copied, since a view keeps the
whole piece alive.  A whole record has only the header of a frame beside its payload."""
_DATA: Final = int(FrameType.DATA)


@final
class FrameReader:
    """Cuts a byte stream into frames; bulk DATA is not copied.  Holds at most one other payload (16 KiB) itself.

    It cuts at most `TURN_FRAMES` in one go; the rest is kept for the next `feed`.

    Attributes:
      silent: number of frames that have no content and so are not returned: empty DATA, and types that are skipped.
      has_unread: the last `feed` has left bytes for the next one.
    """

    def __init__(self) -> None:
        self._unread: deque[bytes | memoryview] = deque()
        self._partial = bytearray()
        self._kind = -1  # -1: in a header
        self._channel = 0
        self._missing = 0  # bytes of payload still to come
        self._frames = 0  # DATA frames of which no payload has come yet
        self.silent: int = 0
        self.has_unread: bool = False

    # long: every byte of bulk goes through this loop, where a call for each step would cost as much as the step
    def feed(self, pieces: list[bytes]) -> list[Item]:
        """Returns the items in `pieces`.

        Raises:
          RemoteProtocolError: a frame is invalid; the reader must not be fed after that.
        """
        unread, partial = self._unread, self._partial
        kind, channel, missing = self._kind, self._channel, self._missing
        unread.extend(pieces)
        found: list[Item] = []
        run: Data | None = None  # the last item, if it is DATA that the next frame may extend
        if kind == _DATA:
            run = Data(channel, [], 0, self._frames)
            found.append(run)
        begun = 0
        while unread and (begun < TURN_FRAMES or kind >= 0):  # a frame that was begun is read to its end
            if kind == _DATA and run is not None:  # the bulk of a transfer: whole records of payload
                before, keep = missing, run.pieces.append
                while unread and (size := len(unread[0])) <= missing:
                    keep(unread.popleft())
                    missing -= size
                run.size += before - missing
                if not missing:
                    kind = -1
                if not (missing and unread):
                    continue
            view = memoryview(unread.popleft())
            size = len(view)
            while view:
                if kind == _DATA and run is not None:
                    part, view = view[:missing], view[missing:]
                    run.pieces.append(part if len(part) >= size * WORTH_KEEPING else bytes(part))
                    run.size += len(part)
                    missing -= len(part)
                    if not missing:
                        kind = -1
                    continue
                if kind < 0:
                    if begun >= TURN_FRAMES:
                        unread.appendleft(view)
                        break
                    wanted = HEADER_SIZE - len(partial)
                    partial += view[:wanted]
                    view = view[wanted:]
                    if len(partial) < HEADER_SIZE:
                        continue
                    begun += 1
                    kind, channel, missing = parse_header(partial)
                    partial.clear()
                    if kind == _DATA:
                        if not missing:  # an empty DATA frame says nothing
                            kind, run = -1, None
                            self.silent += 1
                            continue
                        if run is None or run.channel != channel:
                            run = Data(channel, [], 0, 0)
                            found.append(run)
                        run.frames += 1
                        continue
                wanted = missing - len(partial)
                partial += view[:wanted]
                view = view[wanted:]
                if len(partial) == missing:
                    frame = decode(kind, channel, bytes(partial))
                    partial.clear()
                    kind = -1
                    if frame is None:
                        self.silent += 1
                    else:
                        found.append(frame)
                        run = None
        self._frames = 0
        if run is not None and not run.size:  # its payload is still to come
            found.pop()
            self._frames = run.frames
        self._kind, self._channel, self._missing = kind, channel, missing
        self.has_unread = bool(unread)
        return found
