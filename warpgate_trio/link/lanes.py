"""Which of a Link's carriers each side speaks on, without I/O.

Each side chooses the lane that it speaks on; a *turn* makes both choose the same one.  Whoever changes over takes the
highest turn that it knows and one more, and says so on the new lane (AT).  Who hears a higher turn than it knows
follows to that lane.  Where both change over at once, with the same turn, the Link's initiator is followed: without
that rule both would swap for ever.

What is said on a lane begins at what the peer has acknowledged, so changing over needs no agreement: what comes twice
is dropped there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from .frames import At
from .lane import LaneProtocol

__all__ = ["MAX_LANES", "Lanes"]

MAX_LANES: Final = 3
"""Carriers that a Link may have: the one that it speaks on, and the next one of each side."""


@final
class Lanes:
    """The carriers of one Link.

    Args:
      first: the one that it was made on; we speak on it.
      initiator: whether this side called; None as long as that is not known.

    Attributes:
      active: the one that we speak on; None while there is none.
      turn: the highest that was said or heard.
      followed: we speak on `active` because the peer does.
      theirs: that the peer has begun to speak on last.
    """

    def __init__(self, first: LaneProtocol, *, initiator: bool | None) -> None:
        self.active: LaneProtocol | None = first
        self.turn: int = 0
        self.followed: bool = False
        self.theirs: LaneProtocol = first
        self.initiator: bool | None = initiator
        self._all: dict[int, LaneProtocol] = {first.number: first}
        self._named = first.number

    def __iter__(self) -> Iterator[LaneProtocol]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, lane: object) -> bool:
        return lane in self._all.values()

    def get(self, number: int) -> LaneProtocol | None:
        """The lane of that name."""
        return self._all.get(number)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self._all) >= MAX_LANES

    def name(self) -> int:
        """A name for a lane that we offer: odd ones are the Link's initiator's, even ones its responder's."""
        self._named = max(self._named, *self._all, 1) + 1
        self._named += (self._named % 2 == 1) is not bool(self.initiator)
        return self._named

    def is_name_of_the_peer(self, number: int) -> bool:
        """Whether the peer may give this name to a lane that it offers."""
        return number > 1 and number not in self._all and (number % 2 == 1) is not bool(self.initiator)

    def join(self, lane: LaneProtocol) -> None:
        """One more; we speak on it once `promote` says so."""
        self._all[lane.number] = lane

    def lose(self, lane: LaneProtocol) -> None:
        """It is gone."""
        self._all.pop(lane.number, None)
        if self.active is lane:
            self.active = None

    def least_wanted(self) -> LaneProtocol | None:
        """The lane that gives way to one more: where we do not speak, and the peer was silent for longest."""
        others = [lane for lane in self._all.values() if lane is not self.active]
        return min(others, key=lambda lane: lane.life.heard_at, default=None)

    def choose(self) -> LaneProtocol | None:
        """Another lane to speak on, where the one that we speak on is gone or no good; None: stay.

        What is only late is waited for, but where the peer speaks on another one it will not say here that it is well.
        """
        active, theirs = self.active, self.theirs
        alone = theirs is not active and theirs in self and theirs.is_well
        if active is not None and not active.is_to_be_left and (active.is_well or not alone):
            return None
        return self.another()

    def another(self) -> LaneProtocol | None:
        """The best of the other lanes that are well: the newest one, unless its relay will be gone before long."""
        others = [lane for lane in self._all.values() if lane is not self.active and lane.is_well]
        return max(others, key=lambda lane: (not lane.leaving, lane.number), default=None)

    def promote(self, lane: LaneProtocol, *, keep: bool = False) -> None:
        """Speak on this lane, of our own accord; see `speak_on`."""
        self.turn += 1
        self.speak_on(lane, followed=False, keep=keep)

    def hear(self, lane: LaneProtocol, at: At) -> bool:
        """The peer has begun to speak on a lane; whether we are to follow it there."""
        self.theirs = lane
        ours = at.turn == self.turn and lane is self.active  # it has followed us
        if at.turn < self.turn or ours or (at.turn == self.turn and self.initiator):
            return False
        self.turn = at.turn
        return lane is not self.active

    def speak_on(self, lane: LaneProtocol, *, followed: bool, keep: bool = False) -> None:
        """Speak on this lane, whoever has chosen it; `keep`: what was said on the one before is still to come there."""
        if self.active is not None and not keep:
            self.active.said = None
            self.active.life.excuse()
        self.active = lane
        lane.life.rests = False
        self.followed = followed
