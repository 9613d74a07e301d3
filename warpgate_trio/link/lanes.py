"""Which of a Link's carriers each side sends on, without I/O.

Each side chooses the lane that it speaks on, which is the one that it sends the stream on.  A *turn* makes both sides
choose the same lane.  A side that changes over adds one to the highest turn that it knows, and sends the result on the
new lane (AT).  A side that receives a higher turn than it knows follows to that lane.  Where both change over at once,
with the same turn, the responder follows the initiator: without that rule both would swap for ever.

Changing over needs no agreement.  A new lane starts with what the peer has not acknowledged, and the receiver drops
what it has already; or the old lane still brings that (`warpgate_trio.link.ahead`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from .frames import At
from .lane import LaneProtocol

__all__ = ["MAX_LANES", "Lanes"]

MAX_LANES: Final = 3
"""Carriers that a Link may have: the one that it speaks on, and one that each side adds."""


@final
class Lanes:
    """The carriers of one Link.

    Args:
      first: the lane that the Link was made on; we speak on it.
      initiator: whether this side called; None while that is not known.

    Attributes:
      active: the lane that we speak on; None while there is none.
      turn: the highest turn that was sent or received.
      followed: we speak on `active` because the peer does.
      theirs: the lane that the peer has changed over to last.
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
        """The lane of that number, or None."""
        return self._all.get(number)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self._all) >= MAX_LANES

    def name(self) -> int:
        """A number for a lane that we offer: odd ones for the Link's initiator, even ones for its responder."""
        self._named = max(self._named, *self._all, 1) + 1
        self._named += (self._named % 2 == 1) is not bool(self.initiator)
        return self._named

    def is_name_of_the_peer(self, number: int) -> bool:
        """Whether the peer may give this number to a lane that it offers."""
        return number > 1 and number not in self._all and (number % 2 == 1) is not bool(self.initiator)

    def join(self, lane: LaneProtocol) -> None:
        """Add a lane; we speak on it only once `promote` or `speak_on` is called."""
        self._all[lane.number] = lane

    def lose(self, lane: LaneProtocol) -> None:
        """Remove a lane that is gone."""
        self._all.pop(lane.number, None)
        if self.active is lane:
            self.active = None

    def least_wanted(self) -> LaneProtocol | None:
        """The lane that makes room for another: of those that we do not speak on, the one silent for longest."""
        others = [lane for lane in self._all.values() if lane is not self.active]
        return min(others, key=lambda lane: lane.life.heard_at, default=None)

    def choose(self) -> LaneProtocol | None:
        """Another lane to speak on, where `active` is gone or does not carry; None: stay.

        A suspected lane that may only be late is kept.  The exception is a peer that speaks on another lane, which is
        well: then nothing that arrives on `active` would clear it.
        """
        active, theirs = self.active, self.theirs
        alone = theirs is not active and theirs in self and theirs.is_well
        if active is not None and not active.is_to_be_left and (active.is_well or not alone):
            return None
        return self.another()

    def another(self) -> LaneProtocol | None:
        """The best of the other lanes that are well: the newest, but any before one whose relay will shut down."""
        others = [lane for lane in self._all.values() if lane is not self.active and lane.is_well]
        return max(others, key=lambda lane: (not lane.leaving, lane.number), default=None)

    def promote(self, lane: LaneProtocol, *, keep: bool = False) -> None:
        """Speak on this lane by our own choice, with a new turn; see `speak_on`."""
        self.turn += 1
        self.speak_on(lane, followed=False, keep=keep)

    def hear(self, lane: LaneProtocol, at: At) -> bool:
        """The peer has changed over to a lane.  Returns whether we are to follow it there."""
        self.theirs = lane
        ours = at.turn == self.turn and lane is self.active  # the peer has followed us
        if at.turn < self.turn or ours or (at.turn == self.turn and self.initiator):
            return False
        self.turn = at.turn
        return lane is not self.active

    def speak_on(self, lane: LaneProtocol, *, followed: bool, keep: bool = False) -> None:
        """Speak on this lane.

        Args:
          lane: the lane.
          followed: the peer has chosen it.
          keep: the previous lane still brings what was sent there.
        """
        if self.active is not None and not keep:
            self.active.said = None
            self.active.life.excuse()
        self.active = lane
        lane.life.rests = False
        self.followed = followed
