"""What keeps a message from being accepted twice, whatever the wall clock does meanwhile.  No I/O, no clock.

Theory of operation.  A message that starts something is judged by its stamp: accepted within `WINDOW` of our time, and
its id remembered until the stamp has left the window.  From then on the stamp itself keeps it out, as long as our time
does not go back over it.  A wall clock goes back, though: NTP puts it right by a tenth of a second, people by an hour.
So the *time that stamps are compared with* is the wall clock's, but never less than what would let a forgotten stamp in
again; where the wall clock has fallen behind that, the time walks on at half speed until the clock has caught up.
Peers whose clocks are right are then outside the window for a while, and are told by a ``Clock`` reply which time we go
by: they are heard with one round trip more, not shut out.  A clock that goes forward takes the time along at once.

An answer is not judged by its stamp at all: it names the id of what we have said to its sender, 16 random bytes that
nobody else knew, so it is fresh on any clock.  Its id is remembered for as long as an answer is waited for, in
monotonic seconds.

A restart forgets the ids, so a stamp from before the start is refused.  The start is so many *monotonic* seconds ago: a
clock that is put right moves it along.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import final

__all__ = ["ANSWER_TIME", "CATCH_UP", "START_SLACK", "WINDOW", "Moment", "Replays"]

WINDOW = 300.0
"""Seconds by which a stamp may differ from our time."""
START_SLACK = 2.0
"""Seconds before our start that a stamp may lie: what two NTP-disciplined clocks differ, and a message takes."""
ANSWER_TIME = 120.0
"""Seconds after a message of ours in which an answer to it counts: several times ``budgets.total``."""
CATCH_UP = 0.5
"""How fast our time goes while the wall clock, put back, is behind it."""


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """Now.

    Attributes:
      wall: Unix seconds on our corrected clock, which may be moved.
      monotonic: seconds of a clock that nobody moves (`trio.current_time`).
    """

    wall: float
    monotonic: float


@final
class Replays:
    """The ids of what was accepted.

    Args:
      started: when the process started, in monotonic seconds.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._floor: Moment | None = None  # our time was at least `wall` at `monotonic`; both only ever grow
        self._forgotten = -math.inf  # the latest stamp whose id is not remembered any more
        self._stamped: set[bytes] = set()
        self._stamps: list[tuple[float, bytes]] = []  # a heap
        self._answers: dict[bytes, float] = {}  # id -> until when, in the order of coming

    def __len__(self) -> int:
        return len(self._stamped) + len(self._answers)

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._stamped or message_id in self._answers

    def time(self, now: Moment) -> float:
        """What stamps are compared with, and what a peer is told for our time; Unix seconds."""
        floor = self._floor
        if floor is None:
            return now.wall
        return max(now.wall, floor.wall + CATCH_UP * (now.monotonic - floor.monotonic))

    def in_window(self, stamp: float, now: Moment) -> bool:
        """Whether a stamp is near enough to our time."""
        return abs(stamp - self.time(now)) <= WINDOW

    def is_too_old(self, stamp: float, now: Moment) -> bool:
        """Whether the id of a message with this stamp may have been forgotten: by us, or by the process before us."""
        start = now.wall - (now.monotonic - self._started)
        return stamp <= start - START_SLACK or stamp <= self._forgotten

    def remember_stamped(self, message_id: bytes, stamp: float) -> None:
        """A message was accepted for its stamp."""
        self._stamped.add(message_id)
        heapq.heappush(self._stamps, (stamp, message_id))

    def remember_answer(self, message_id: bytes, now: Moment) -> None:
        """A message was accepted as the answer to one of ours."""
        self._answers[message_id] = now.monotonic + ANSWER_TIME

    def forget(self, now: Moment) -> None:
        """Forget what cannot be accepted again."""
        time = self.time(now)
        while self._stamps and self._stamps[0][0] + WINDOW < time:
            stamp, message_id = heapq.heappop(self._stamps)
            self._stamped.discard(message_id)
            self._forgotten = stamp
            floor = self._floor
            if floor is None or stamp + WINDOW > floor.wall + CATCH_UP * (now.monotonic - floor.monotonic):
                self._floor = Moment(stamp + WINDOW, now.monotonic)
        while self._answers:
            message_id, until = next(iter(self._answers.items()))
            if until >= now.monotonic:
                return
            del self._answers[message_id]
