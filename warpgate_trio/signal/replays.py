"""Keeps a message from being accepted twice, whatever the wall clock does meanwhile.  No I/O, no clock.

Theory of operation.  A message that starts something is judged by its stamp.  It is accepted within `WINDOW` of our
time, and its id is remembered until the stamp has left the window.  From then on the stamp itself keeps the message
out, unless our time goes back.  A wall clock does go back: NTP sets it back by a tenth of a second, people by an hour.
So the *time that stamps are compared with* is the wall clock's, but never so early that a forgotten stamp would be in
the window again.  When the wall clock has fallen behind that limit, our time runs at half speed until the clock has
caught up.  Peers whose clocks are right are outside the window for that while.  A ``Clock`` reply then tells them the
time that we use, so they need one more round trip, but are not shut out.  When the clock is set forward, our time
follows at once.

An answer is not judged by its stamp at all.  It names the id of a message that we have sent to its sender: 16 random
bytes that nobody else knew.  So it is fresh on any clock.  Its id is remembered for as long as an answer is accepted,
in monotonic seconds.

A restart forgets the ids, so a stamp from before the start is refused.  The start is kept as a *monotonic* time: when
the wall clock is set, the start moves with it.
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
"""Seconds by which a stamp may precede our start: the offset of two NTP-disciplined clocks, and a message's delay."""
ANSWER_TIME = 120.0
"""Seconds after a message of ours in which an answer to it is accepted: several times ``budgets.total``."""
CATCH_UP = 0.5
"""Speed of our time, relative to the monotonic clock, while the wall clock is behind it after being set back."""


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """The present time on two clocks.

    Attributes:
      wall: Unix seconds on our corrected wall clock, which may be set.
      monotonic: seconds of a clock that is never set (`trio.current_time`).
    """

    wall: float
    monotonic: float


@final
class Replays:
    """The ids of accepted messages.

    Args:
      started: when the process started, in monotonic seconds.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._floor: Moment | None = None  # our time was at least `wall` at `monotonic`; both only ever grow
        self._forgotten = -math.inf  # the latest stamp whose id was forgotten
        self._stamped: set[bytes] = set()
        self._stamps: list[tuple[float, bytes]] = []  # a heap
        self._answers: dict[bytes, float] = {}  # id -> until when it is kept, in the order of arrival

    def __len__(self) -> int:
        return len(self._stamped) + len(self._answers)

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._stamped or message_id in self._answers

    def time(self, now: Moment) -> float:
        """Our time in Unix seconds: stamps are compared with it, and `Clock` replies carry it."""
        floor = self._floor
        if floor is None:
            return now.wall
        return max(now.wall, floor.wall + CATCH_UP * (now.monotonic - floor.monotonic))

    def in_window(self, stamp: float, now: Moment) -> bool:
        """Whether a stamp is within `WINDOW` of our time."""
        return abs(stamp - self.time(now)) <= WINDOW

    def is_too_old(self, stamp: float, now: Moment) -> bool:
        """Whether the id of a message with this stamp may have been forgotten, by us or with an earlier process."""
        start = now.wall - (now.monotonic - self._started)
        return stamp <= start - START_SLACK or stamp <= self._forgotten

    def remember_stamped(self, message_id: bytes, stamp: float) -> None:
        """A message was accepted because of its stamp."""
        self._stamped.add(message_id)
        heapq.heappush(self._stamps, (stamp, message_id))

    def remember_answer(self, message_id: bytes, now: Moment) -> None:
        """A message was accepted as the answer to one of ours."""
        self._answers[message_id] = now.monotonic + ANSWER_TIME

    def forget(self, now: Moment) -> None:
        """Forget the ids of messages that cannot be accepted again."""
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
