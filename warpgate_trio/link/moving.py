"""The carriers of a Link, without I/O: how one joins, how a side changes over to it, and how it is left.

Joining.  ATTACH offers a proven carrier to the peer's side of the Link; ATTACHED takes it.  Either side may offer.

Changing over.  A side *speaks on* the lane on which it sends its stream.  To change it, there are two cases, and the AT
says which one it is:

* The lane that we speak on is gone, or does not carry.  Another lane that is well is taken at once, and what the peer
  has not acknowledged is sent again there, so nothing is lost.
* The lane is well, and the new one is only better.  The new one is tried first: `TRIAL` bytes of padding, with a PING
  behind them.  Until its PONG comes the old lane carries everything, so a path that does not carry bulk costs nothing.
  Then the stream goes on over the new lane, with new data only (`warpgate_trio.link.ahead`).

The peer does the same with its own direction.

Leaving.  A lane that fails its trial, or is suspected in the first seconds of its life, is dropped: a DROP on another
lane tells the peer, so that both sides close it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final, TypedDict

from msgspec.structs import replace

from ..errors import RemoteProtocolError
from .ahead import Ahead, Tail
from .attaching import LinkSecret
from .budget import TURN_COST
from .frames import At, Attach, Attached, Drop, DropReason, Item, News, RefuseReason, Terms
from .lane import LaneProtocol
from .lanes import Lanes
from .life import Life, LifeJudge
from .states import LinkState
from .stream import Incoming, Outgoing

__all__ = ["ASK_INTERVAL", "YOUNG", "Moving"]

SPARE_FOR: Final = 20.0
"""Seconds of silence after which a lane that nobody speaks on is closed, before a PING on it would be due."""
HANDSHAKE_TRIPS: Final = 2
"""Round trips that a carrier takes to become a lane: its own handshake, then PROOF and ATTACH."""
ASK_INTERVAL: Final = 1.0
"""Seconds between a PONG and the next PING on a lane that is well, while the lane that we speak on is suspected."""
YOUNG: Final = 10.0
"""Seconds of a lane's life in which it is dropped when it does not carry; later it is only left, and may recover."""


class _Where(TypedDict):
    received: int
    turn: int
    session_id: bytes
    server_key: bytes


# long: a lane joins, is spoken on, suspected and left by one table of lanes
class Moving(ABC):
    """The lanes of one side of a Link: see the module's docstring.

    Args:
      first: the first carrier.
      initiator: this side called; None while that is not known.

    Attributes:
      lanes: the carriers, and which one we speak on.
      outgoing, incoming, terms: the two streams, and the terms that we offered; None if the peer acknowledges nothing.
      resume_timeout: seconds for which the Link is kept without a carrier: the lesser of what the two sides offer.
      notice_within: see `LifeJudge`; it applies to each carrier.
      peer_instance: identifies the peer's process, where the peer offers terms.
    """

    def __init__(self, first: LaneProtocol, *, initiator: bool | None) -> None:
        self.lanes: Final = Lanes(first, initiator=initiator)
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.terms: Terms | None = None
        self.resume_timeout: float = 0.0
        self.notice_within: float = math.inf
        self.peer_instance: bytes = b""
        self._first: Final = first
        self._link_id = b""
        self._secret: LinkSecret | None = None
        self._trial: LaneProtocol | None = None  # the lane that we change over to once it has carried bulk
        self._follows = False  # the trial follows one of the peer's
        self._may_say_news = False
        self._may_go_ahead = False
        self._tail: Tail | None = None
        self._ahead: Final[dict[LaneProtocol, Ahead]] = {}

    @property
    @abstractmethod
    def state(self) -> LinkState:
        """The state of the first carrier until the Link is open; ENDED once the Link is over."""

    @property
    def is_up(self) -> bool:
        """Whether the Link uses its carriers: it is open, or still has something to send before it ends."""
        return self.state in (LinkState.OPEN, LinkState.CLOSING)

    @abstractmethod
    def _take_items(self, lane: LaneProtocol, items: list[Item], now: float) -> None:
        """Take what came on a carrier and concerns the Link."""

    @property
    def initiator(self) -> bool:
        """Whether this side called."""
        return bool(self.lanes.initiator)

    @property
    def life(self) -> LifeJudge:
        """The judge of the carrier that we speak on."""
        return (self.lanes.active or self._first).life

    @property
    def is_lasting(self) -> bool:
        """Whether both sides keep the Link while it has no path."""
        return self._secret is not None and self.resume_timeout > 0

    @property
    def movable(self) -> bool:
        """Whether the Link may have further carriers, and outlive those that it has.

        A responder waits for the first PONG to a PING that follows its ACCEPT.  An initiator that has gone by then does
        not know the Link, and will not come back for it.
        """
        return self.is_lasting and (self.initiator or self._first.life.answered > 0)

    def _agree(self, ours: Terms, theirs: Terms, now: float) -> None:
        """Settle what follows from the terms that both sides offer."""
        self.terms = ours
        self.peer_instance = theirs.instance
        self._may_say_news = theirs.hears_news
        self._may_go_ahead = theirs.keeps_ahead
        self.resume_timeout = float(min(ours.resume_timeout, theirs.resume_timeout))
        first, second = (ours, theirs) if self.initiator else (theirs, ours)
        self._secret = LinkSecret(first.secret, second.secret, self._link_id, initiator=self.initiator)
        self._first.life.begin_acknowledged(now, responder=not self.initiator)

    # -- joining -----------------------------------------------------------------------------------------------------

    def attach(
        self, lane: LaneProtocol, *, session_id: bytes, server_key: bytes, now: float, preferred: bool = False
    ) -> None:
        """Offer a proven carrier to the peer's side of this Link.

        With `preferred` its trial begins at once, if the lane that we speak on is well.
        """
        active, where = self.lanes.active, self._where(session_id, server_key)
        attach = self._proof.attach(lane=self.lanes.name(), **where)
        if not preferred or active is None or not active.is_well:
            lane.send_attach(attach, now)
            return
        lane.send_attach(replace(attach, graceful=True, hurried=active.leaving), now)
        lane.begin_trial_early(now, hurried=active.leaving)

    def judge_attach(self, attach: Attach, *, session_id: bytes, server_key: bytes) -> RefuseReason | None:
        """Judge an ATTACH on a carrier on which the peer has proven its identity.

        Returns why it is refused, or None where it is to be taken.
        """
        secret = self._secret
        if secret is None or not self.is_up or not self.movable:
            return RefuseReason.UNKNOWN_LINK
        if not secret.holds(attach, session_id=session_id, server_key=server_key):
            return RefuseReason.UNKNOWN_LINK
        if attach.received > self._kept.end:  # less than it has acknowledged is no fault: an ACK was quicker
            return RefuseReason.UNKNOWN_LINK
        if not self.lanes.is_name_of_the_peer(attach.lane):
            return RefuseReason.UNKNOWN_LINK
        return None

    def take_attach(self, lane: LaneProtocol, *, session_id: bytes, server_key: bytes, now: float) -> None:
        """Take the ATTACH: the carrier becomes a lane of the Link, and what came behind the ATTACH is processed."""
        assert lane.attach is not None
        lane.send_attached(self._proof.attached(lane=lane.attach.lane, **self._where(session_id, server_key)))
        self._kept.acknowledge(lane.attach.received)
        self._join(lane, now)
        if lane.attach.graceful and lane is not self.lanes.active:
            lane.begin_own_trial(now, hurried=lane.attach.hurried)

    def hear_attached(
        self, lane: LaneProtocol, attached: Attached, *, session_id: bytes, server_key: bytes, now: float
    ) -> None:
        """The peer has taken the carrier that we offered.

        Raises:
          RemoteProtocolError: the answer does not prove the peer's side of this Link, or acknowledges unsent data.
        """
        assert lane.attach is not None
        holds = self._proof.holds(attached, session_id=session_id, server_key=server_key)
        if attached.lane != lane.attach.lane or not holds:
            raise RemoteProtocolError(
                "the peer's ATTACHED does not prove that it has the link: wrong lane number or MAC"
            )
        self._kept.acknowledge(attached.received)
        # The peer's turn is not adopted: the AT that announces it may still be in flight, and would look like a tie.
        self._join(lane, now)

    def _where(self, session_id: bytes, server_key: bytes) -> _Where:
        """The fields of an ATTACH or ATTACHED that identify the carrier and say how far we are."""
        return {
            "received": self._taken.received,
            "turn": self.lanes.turn,
            "session_id": session_id,
            "server_key": server_key,
        }

    def _join(self, lane: LaneProtocol, now: float) -> None:
        assert lane.attach is not None
        lane.number = lane.attach.lane
        lane.joined_at = now
        active = self.lanes.active
        if active is not None and active.life.life is Life.SUSPECT:
            active.life.note_pause((now - lane.began) / HANDSHAKE_TRIPS, now)
            lane.life.succeed(active.life)
            active.life.outdone(now)
        lane.life.begin_acknowledged(now, responder=not self.initiator)
        lane.life.notice_within = self.notice_within
        if self.lanes.full and (least := self.lanes.least_wanted()) is not None:
            self._say_drop(least, DropReason.GIVES_WAY)
            self.lanes.lose(least)
        self.lanes.join(lane)
        self._take_items(lane, lane.join(now), now)
        self.choose(now)
        lane.send_ping(now)  # measures the round trip that the lane is judged by

    @property
    def _proof(self) -> LinkSecret:
        assert self._secret is not None
        return self._secret

    @property
    def _kept(self) -> Outgoing:
        assert self.outgoing is not None
        return self.outgoing

    @property
    def _taken(self) -> Incoming:
        assert self.incoming is not None
        return self.incoming

    # -- changing over -----------------------------------------------------------------------------------------------

    def choose(self, now: float) -> bool:
        """Change over where our lane is gone or does not carry, or to a better one whose trial is over.

        Returns whether we have left a lane that is gone or does not carry.
        """
        if self.outgoing is None or not self.is_up:
            return False
        self._judge_trial(now)
        self._judge_tail(now)
        lane = self.lanes.choose()
        if lane is None:
            return False
        left = self.lanes.active
        self.lanes.promote(lane)
        self._stop_following()
        self._begin(lane, now)
        lane.doubt(now)  # what broke the one may have broken the other
        if left is not None and now - left.joined_at < YOUNG:
            self._drop(left)
        return True

    def prefer(self, lane: LaneProtocol, now: float) -> None:
        """Change over to a lane that is better than the one that we speak on, once it has carried bulk."""
        if lane is not self.lanes.active:
            self._try(lane, now, follows=False)
            self.choose(now)  # a trial that was begun before may be answered by now

    def _try(self, lane: LaneProtocol, now: float, *, follows: bool) -> None:
        self._trial, self._follows = lane, follows
        lane.begin_trial(now)

    def _judge_trial(self, now: float) -> None:
        lane = self._trial
        if lane is None or lane not in self.lanes or lane is self.lanes.active:
            self._trial = None
        elif lane.is_proven:
            self._trial = None
            lane.life.new_until = now + YOUNG
            tail = self._leave_a_tail()
            if self._follows:
                self.lanes.speak_on(lane, followed=True, keep=tail is not None)
            else:
                self.lanes.promote(lane, keep=tail is not None)
            self._begin(lane, now, graceful=True, tail=tail)
        elif not lane.is_well:
            self._trial = None
            self._drop(lane)

    def _stop_following(self) -> None:
        """End a trial that follows one of the peer's: one of the two sides has changed its lane meanwhile."""
        if self._follows:
            self._trial, self._follows = None, False

    def _leave_a_tail(self) -> Tail | None:
        """The tail on the lane that is to be left; None where that is not to bring what was sent there."""
        left = self.lanes.active
        if left is None or left.said is None or not left.is_well or not self._may_go_ahead or self._tail is not None:
            return None
        return Tail(left, left.said) if left.said > self._kept.acknowledged else None

    def _forget_tail(self) -> None:
        if self._tail is not None:
            self._tail.lane.said = None
            self._tail.lane.life.excuse()
            self._tail = None

    def _judge_tail(self, now: float) -> None:
        """Where the lane with the tail is gone or not well, send the tail again on the lane that we speak on."""
        if self._tail is None or (self._tail.lane in self.lanes and self._tail.lane.is_well):
            return
        self._forget_tail()
        active = self.lanes.active
        if active is not None:
            self._begin(active, now)

    def _blame_the_tail(self, lane: LaneProtocol, now: float) -> None:
        """Blame the lane of the tail, rather than `lane`, for a lack of progress.

        Nothing that is sent behind a tail is acknowledged before the tail has come.  So where our lane is about to be
        suspected, and the tail has made no progress for as long, the tail is sent again on our lane, and both lanes are
        asked.  Our lane gets the short time of a doubt only where it has been silent as long itself; otherwise it would
        be left for the fault of the other.
        """
        tail = self._tail
        if tail is None or lane is not self.lanes.active or lane.life.asking or not lane.life.is_overdue(now):
            return
        unanswered = lane.life.unanswered(now)
        if tail.lane.life.unanswered(now) >= unanswered:
            tail.lane.doubt(now)
            lane.life.excuse()
            self._begin(lane, now)
            if lane.life.silence(now) >= unanswered:
                lane.doubt(now)
            else:
                lane.send_ping(now)

    def carries_a_tail(self, lane: LaneProtocol) -> bool:
        """Whether we have left the lane, and it is still to bring what was sent there."""
        return self._tail is not None and self._tail.lane is lane

    def has_left(self, lane: LaneProtocol) -> bool:
        """Whether the peer speaks on another lane, and everything that it sent before the change has come."""
        return self.lanes.theirs is not lane and self.lanes.theirs not in self._ahead

    def _begin(self, lane: LaneProtocol, now: float, *, graceful: bool = False, tail: Tail | None = None) -> None:
        """Continue our stream on this lane, from what the peer has acknowledged or from where the tail ends."""
        self._forget_tail()
        self._tail = tail
        lane.said = self._kept.acknowledged if tail is None else tail.until
        lane.alone_from = self._kept.end if tail is None else tail.until
        lane.say(At(position=lane.said, turn=self.lanes.turn, graceful=graceful))
        lane.ack_due = True  # the last ACK may be lost with the lane that we have left
        if self._kept.end > lane.said:
            lane.life.sent(now)

    def _receive_at(self, lane: LaneProtocol, at: At, now: float) -> None:
        if self.incoming is None:
            raise RemoteProtocolError("unexpected AT: the link was made without acknowledgements")
        lane.received = at.position
        self._ahead.pop(lane, None)
        if at.position > self.incoming.received:
            self._ahead[lane] = Ahead(at.position)
        lane.ack_due = True  # on this lane, whichever we speak on: the peer has to learn that it carries
        before, follow = self.lanes.turn, self.lanes.hear(lane, at)
        if self.lanes.turn > before:
            self._stop_following()
            lane.count(TURN_COST)
        if (
            not follow or lane.is_over or (self._follows and lane is self._trial)
        ):  # then the peer has only moved on to a later position
            return
        if at.graceful and self.lanes.active is not None and self.lanes.active.is_well:
            self._try(lane, now, follows=True)
        else:
            if self.lanes.active is not None:
                self.lanes.active.life.note_flight(now)
            self.lanes.speak_on(lane, followed=True)
            self._begin(lane, now)

    # -- leaving -----------------------------------------------------------------------------------------------------

    def lose(self, lane: LaneProtocol, now: float) -> None:
        """Remove a carrier that is gone, and change over where we spoke on it."""
        lane.end()
        self.lanes.lose(lane)
        self._ahead.pop(lane, None)
        self.choose(now)

    def _drop(self, lane: LaneProtocol) -> None:
        """Tell the peer that the lane does not carry; the shell closes it."""
        self._say_drop(lane, DropReason.NO_GOOD)
        lane.was_dropped = True

    def _say_drop(self, lane: LaneProtocol, reason: DropReason) -> None:
        active = self.lanes.active
        if active is not None:
            active.say(Drop(lane=lane.number, reason=reason))
        lane.end()

    def give_way(self, lane: LaneProtocol) -> None:
        """Tell a peer that may still speak on the lane that it is closed here, because its relay will shut down."""
        self._say_drop(lane, DropReason.GIVES_WAY)

    def _receive_drop(self, drop: Drop) -> None:
        lane = self.lanes.get(drop.lane)
        if lane is not None:
            lane.end()
            lane.was_dropped = drop.reason == DropReason.NO_GOOD

    def is_spare(self, lane: LaneProtocol, now: float) -> bool:
        """Whether a lane is not needed: another one is spoken on and well, and this one was silent for `SPARE_FOR`."""
        active = self.lanes.active
        wanted = active is None or active is lane or not active.is_well
        return not wanted and lane.life.silence(now) >= SPARE_FOR

    # -- where the lane that we speak on is suspected ----------------------------------------------------------------

    @property
    def has_spare(self) -> bool:
        """Whether the lane that we speak on is suspected, and another one that is well was heard since."""
        active = self.lanes.active
        if active is None or active.life.life is not Life.SUSPECT:
            return False
        return any(lane.is_well and lane.life.heard_at >= active.life.suspect_at for lane in self.lanes)

    def _question_at(self, lane: LaneProtocol) -> float:
        """When to ask a lane, while the one that we speak on is suspected; infinity otherwise.

        The PONG comes with an ACK, which says how much the peer has received by the suspected lane.
        """
        active = self.lanes.active
        if active is None or active is lane or active.life.life is not Life.SUSPECT or not lane.is_well:
            return math.inf
        return math.inf if lane.life.asking else lane.life.answered_at + ASK_INTERVAL

    def _ask_others(self, now: float) -> None:
        for lane in self.lanes:
            if self._question_at(lane) <= now:
                lane.send_ping(now)

    # -- signals -----------------------------------------------------------------------------------------------------

    def say_news(self, payload: bytes) -> bool:
        """Send a sealed signal to the peer on every lane.  Returns whether a lane that is well takes it."""
        if not self._may_say_news or self.state is not LinkState.OPEN:
            return False
        news = News(payload=payload)
        took = [lane for lane in self.lanes if lane.say_news(news)]
        return any(lane.is_well for lane in took)

    # -- life --------------------------------------------------------------------------------------------------------

    def set_notice_within(self, seconds: float) -> None:
        """Set `LifeJudge.notice_within` for the carriers that there are, and for those to come."""
        self.notice_within = seconds
        for lane in self.lanes:
            lane.life.notice_within = seconds

    def hint(self, now: float) -> None:
        """Something has happened that may have killed the paths: each is asked at once, see `LifeJudge.hint`."""
        if self.is_up:
            for lane in self.lanes:
                lane.hint(now)
