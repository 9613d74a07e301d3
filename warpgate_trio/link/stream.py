"""What one side of a Link sends, as one numbered stream above its carriers, without I/O.

Positions.  The stream consists of *units*: each byte of DATA payload is one, and so is each other frame about channels
(OPEN and its answers, CREDIT, FIN, RESET) and GOAWAY.  Positions begin with 0 at the COMMIT.  Frames about a carrier
itself (PROOF, COMMIT and its answers, PING, PONG, ACK, padding) are not counted, and never sent again.

`Outgoing` keeps what the peer has not acknowledged, so that another carrier can continue where the last one broke.
`Incoming` takes the items of a carrier, each at its position.  It drops what was received already, of a DATA frame
perhaps a part, so every unit is taken once.  No unit can be missing: a carrier begins at or before what was
acknowledged, and is in order from there on.

`bytes` are kept by reference, since they are immutable; anything else is copied.  Small writes are joined.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf
from typing import Final, final

import msgspec

from ..errors import RemoteProtocolError
from .frame_codec import data_header
from .frames import Accept, Credit, Data, Fin, GoAway, Item, Open, Refuse, Reset
from .replay import ReplayMemory

__all__ = ["ACK_DELAY", "ACK_UNITS", "MAX_FRAMES", "REPLAY_MAX", "Chunk", "Incoming", "Outgoing", "units"]

REPLAY_MAX: Final = 8 * 1024 * 1024
"""Bytes that a Link keeps for a peer that does not acknowledge them: the largest window of a channel, so that a sender
waits for this only where it would wait for credit."""
ENTRY_COST: Final = 256
"""Bytes that each kept entry is charged on top of its content, about what Python needs for it."""
SMALL: Final = 4096
"""Bytes up to which a write is copied into a block with its neighbours, which costs less than an entry of its own."""
BLOCK: Final = 16 * 1024
"""Bytes of a block of small writes, at most."""
PINNED_MAX: Final = 16 * 1024 * 1024
"""Bytes of the largest object of which a part is kept by reference, since that keeps the whole object alive."""
MAX_FRAMES: Final = 16 * 1024
"""Frames other than DATA that may be unacknowledged: a peer that causes more does not process what it receives."""
ACK_UNITS: Final = 5 * 1024 * 1024
"""New units after which an ACK is due at the latest.  An ACK goes with each CREDIT, and with the largest window a
CREDIT is sent every 4 MiB, so bulk needs no ACK of its own.  Each costs the two sides 60 µs; one for each MiB takes
4 % of a transfer on loopback."""
ACK_DELAY: Final = 0.1
"""Seconds after which the first new unit is acknowledged at the latest; the ACK also tells a sending peer that its path
still carries."""


_COUNTED: Final = frozenset({Open, Credit, Fin, Reset, GoAway})


def units(item: Item) -> int:
    """How many units of the stream an item counts."""
    if isinstance(item, Data):
        return item.size
    if isinstance(item, (Accept, Refuse)):
        return 1 if item.channel else 0  # on channel 0 they answer the COMMIT
    return 1 if type(item) in _COUNTED else 0


@final
class Chunk(msgspec.Struct, frozen=True):
    """A part of the stream that is to be sent again: payload of `channel`, or if that is None, another whole frame."""

    position: int
    channel: int | None
    body: bytes | memoryview

    @property
    def parts(self) -> tuple[bytes | memoryview, ...]:
        """The bytes to put on the carrier."""
        return (self.body,) if self.channel is None else (data_header(self.channel, len(self.body)), self.body)


@final
class Outgoing:
    """What this side has sent and the peer has not acknowledged.

    Attributes:
      end: the position of the next unit.
      acknowledged: the peer has received all units before this position.
      held: bytes that are kept, including overhead (`ENTRY_COST`).
      limit: value of `held` from which on it is `full`.
      closed: `put_last` was called: nothing more is to be sent.
      frames: how many of the kept entries are frames other than DATA.
    """

    __slots__ = (
        "_bodies",
        "_channels",
        "_memory",
        "_pinned",
        "_pinned_rest",
        "_starts",
        "acknowledged",
        "closed",
        "end",
        "frames",
        "held",
        "limit",
    )

    def __init__(self, *, limit: int = REPLAY_MAX) -> None:
        self.end: int = 0
        self.acknowledged: int = 0
        self.held: int = 0
        self.limit: int = limit
        self.closed: bool = False
        self.frames: int = 0
        # Parallel lists, one item in each for each kept entry.
        self._starts: list[int] = []
        self._channels: list[int | None] = []
        self._bodies: list[bytes | bytearray | memoryview] = []
        self._memory = ReplayMemory()
        self._pinned: dict[int, int] = {}  # id of an object of which parts are kept -> total bytes of these parts
        self._pinned_rest = 0  # bytes of those objects that are in no part

    def share(self, memory: ReplayMemory) -> None:
        """Count what is kept in `memory` from now on, together with what other Links keep."""
        kept = self.held + self._pinned_rest
        self._memory.held -= kept
        self._memory = memory
        memory.held += kept

    def drop(self) -> None:
        """Keep nothing any more: the Link is over."""
        self._starts, self._channels, self._bodies = [], [], []
        self.acknowledged = self.end
        self._pinned.clear()
        self._hold(-self.held)
        self._rest(-self._pinned_rest)
        self.frames = 0

    def _hold(self, size: int) -> None:
        self.held += size
        self._memory.held += size

    def _rest(self, size: int) -> None:
        self._pinned_rest += size
        self._memory.held += size

    @property
    def full(self) -> bool:
        """Whether a sender is to wait until the peer has acknowledged something."""
        held = self.held
        return held >= self.limit or not self._memory.allows(held)

    @property
    def payload(self) -> int:
        """Bytes of payload that are not acknowledged."""
        return self.end - self.acknowledged - self.frames

    def put(self, channel: int, data: memoryview) -> None:
        """Keep payload of a DATA frame."""
        size = len(data)
        if size > SMALL:
            obj = data.obj
            whole = type(obj) is bytes and len(obj) == size
            self._add(channel, data if whole or self._may_pin(data, size) else bytes(data), size)
            return
        block = self._bodies[-1] if self._channels and self._channels[-1] == channel else None
        if type(block) is bytearray and len(block) + size <= BLOCK:
            block += data
            self._hold(size)
            self.end += size
        else:
            self._add(channel, bytearray(data), size)

    def _may_pin(self, data: memoryview, size: int) -> bool:
        """Whether to keep a part of `bytes` by reference.  That keeps the whole object alive, which is then counted."""
        obj = data.obj
        if type(obj) is not bytes or len(obj) > PINNED_MAX:
            return False
        kept = self._pinned.get(id(obj))
        if kept is None:
            if not self._memory.has_room(len(obj)):
                return False
            kept = 0
            self._rest(len(obj))
        self._pinned[id(obj)] = kept + size
        self._rest(-size)
        return True

    def _unpin(self, body: memoryview) -> None:
        obj = body.obj
        assert isinstance(obj, bytes)
        size, kept = len(body), self._pinned.get(id(obj))
        if kept is None or size == len(obj):
            return
        if kept > size:
            self._pinned[id(obj)] = kept - size
            self._rest(size)
        else:
            del self._pinned[id(obj)]
            self._rest(size - len(obj))

    def put_frame(self, frame: bytes) -> None:
        """Keep a counted frame other than DATA."""
        self._add(None, frame, 1)
        self.frames += 1

    def put_last(self, frame: bytes) -> None:
        """Keep the last frame of the stream."""
        self.put_frame(frame)
        self.closed = True

    @property
    def done(self) -> bool:
        """Whether the peer has acknowledged everything up to the last frame."""
        return self.closed and self.acknowledged == self.end

    def _add(self, channel: int | None, body: bytes | bytearray | memoryview, moves: int) -> None:
        self._starts.append(self.end)
        self._channels.append(channel)
        self._bodies.append(body)
        cost = len(body) + ENTRY_COST
        self.held += cost
        self._memory.held += cost
        self.end += moves

    def acknowledge(self, position: int) -> bool:
        """The peer has received all units before `position`.  Returns False if that is not new.

        Raises:
          RemoteProtocolError: the peer acknowledges what was not sent.
        """
        if position > self.end:
            raise RemoteProtocolError(f"the peer acknowledges {position} units, but only {self.end} were sent")
        if position <= self.acknowledged:
            return False
        self.acknowledged = position
        starts = self._starts
        count = len(starts) if position == self.end else max(bisect_right(starts, position) - 1, 0)
        if not count:
            return True
        gone = self._bodies[:count]
        freed = count * ENTRY_COST
        if self.frames or self._pinned:
            frames = self._channels[:count].count(None)
            self.frames -= frames
            freed += sum(map(len, gone))
            for body in gone if self._pinned else ():
                if type(body) is memoryview:
                    self._unpin(body)
        else:
            freed += (starts[count] if count < len(starts) else self.end) - starts[0]
        self._hold(-freed)
        del starts[:count], self._channels[:count], self._bodies[:count]
        return True

    def read(self, position: int, limit: int) -> list[Chunk]:
        """The unacknowledged stream from `position` on: at most `limit` bytes of it, but at least one entry."""
        found: list[Chunk] = []
        index = max(bisect_right(self._starts, position) - 1, 0)
        while index < len(self._starts) and limit > 0:
            start, channel, body = self._starts[index], self._channels[index], self._bodies[index]
            index += 1
            if channel is None:
                chunk = Chunk(start, None, bytes(body))
            else:
                skipped = max(position - start, 0)
                part = memoryview(body)[skipped : skipped + limit]
                # A block may still grow after it was read, which a view of it would prevent.
                chunk = Chunk(start + skipped, channel, bytes(part) if type(body) is bytearray else part)
                part.release() if type(body) is bytearray else None
            if channel is not None and not chunk.body:
                continue
            found.append(chunk)
            limit -= len(chunk.body)
        return found


@final
class Incoming:
    """How much of the peer's stream this side has received, and when it has to acknowledge that.

    Attributes:
      received: all units before this position were received.
      timer_began: `deadline` has become sooner.  Whoever waits for the deadline sets this to False.
    """

    __slots__ = ("_acknowledged", "_due_at", "received", "timer_began")

    def __init__(self) -> None:
        self.received: int = 0
        self.timer_began: bool = False
        self._acknowledged = 0
        self._due_at = inf

    def take(self, position: int, item: Item, now: float) -> Item | None:
        """The new part of an item that a carrier has brought at `position`; None if nothing of it is new.

        The carrier's position after the item is `position + units(item)`.
        """
        moves = units(item)
        if not moves:
            return item  # a frame about the carrier
        missing = position + moves - self.received
        if missing <= 0:
            return None
        new = _behind(item, moves - missing) if missing < moves and isinstance(item, Data) else item
        self.advance(missing, now)
        return new

    def advance(self, moves: int, now: float) -> None:
        """Count units that were received for the first time."""
        self.received += moves
        if self._due_at == inf:
            self._due_at = now + ACK_DELAY
            self.timer_began = True

    @property
    def deadline(self) -> float:
        """When `ack_due` becomes true by itself; infinity while everything is acknowledged."""
        return self._due_at

    def ack_due(self, now: float) -> bool:
        """Whether an ACK is to be sent."""
        return now >= self._due_at or self.received - self._acknowledged >= ACK_UNITS

    def acknowledge(self) -> int:
        """Returns the position of an ACK that is sent now."""
        self._acknowledged = self.received
        self._due_at = inf
        return self.received


def _behind(data: Data, skipped: int) -> Data:
    """DATA without its first bytes."""
    pieces: list[bytes | memoryview] = []
    for piece in data.pieces:
        if skipped < len(piece):
            pieces.append(bytes(memoryview(piece)[skipped:]) if skipped else piece)
        skipped = max(skipped - len(piece), 0)
    return Data(data.channel, pieces, sum(map(len, pieces)), data.frames)
