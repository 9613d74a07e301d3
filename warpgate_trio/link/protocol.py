"""The session between two peers, above the carriers that it travels on, without I/O.

`LinkProtocol` owns what outlives a carrier: the channels (`Channels`), the data that was sent and is not acknowledged
(`Outgoing`), and how much of the peer's stream was received (`Incoming`).  Each carrier is a lane (`LaneProtocol`);
`warpgate_trio.link.moving` describes how a lane joins, and which one we speak on.  The shell
(`warpgate_trio.link.link`) owns the carriers.  It feeds what it reads to `receive` and sends what `transmit` returns.
It puts DATA on a carrier itself, after `note_data_sent`, so that payload is never copied here.

A peer of an older release acknowledges nothing: its Link has one lane and keeps nothing.
"""

from __future__ import annotations

import math
from typing import Final, final

from ..errors import LocalProtocolError, RemoteProtocolError
from .ahead import AHEAD_UNITS, Ahead
from .channel import Channel
from .channels import ChannelOpened, Channels
from .ends import GoAwayCode, why_ended
from .frame_codec import encode, kind_of
from .frames import Accept, Ack, At, Commit, Data, Drop, Frame, FrameType, GoAway, Item, News, Open, RefuseReason, Terms
from .lane import MAX_OUTBOX, LaneProtocol
from .moving import Moving
from .states import LinkState
from .stream import MAX_FRAMES, Incoming, Outgoing, units

__all__ = ["CATCH_UP", "LinkProtocol"]

CATCH_UP: Final = 64 * 1024
"""Bytes that are sent again in one go, and no more than a chunk; then other frames and senders have their turn."""


@final
# long: what each frame does to a Link, in one place
class LinkProtocol(Moving):
    """One side of a Link.  See `Moving` for more of its attributes.

    Args:
      lane: the first carrier.
      initiator: this side called; ``None`` until that is known, which is when a PROOF was read.

    Attributes:
      channels: the channels of the Link.
      failure: why the Link is over; None while it is not.
      news: signals that `take_news` will return.
    """

    def __init__(self, lane: LaneProtocol, *, initiator: bool | None) -> None:
        super().__init__(lane, initiator=initiator)
        self.channels: Final = Channels(self._say, initiator=initiator)
        self.failure: Exception | None = None
        self.news: list[bytes] = []
        self._outbox: list[tuple[bytes, int]] = []  # frames of the stream, and the units that each counts
        self._heard_on = lane  # the lane on which the peer's stream arrived last
        self._opened = False
        self._over = False

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> LinkState:
        """The state of the first carrier until the Link is open; ENDED once the Link is over."""
        if self._over:
            return LinkState.ENDED
        if self.outgoing is not None and self.outgoing.closed:
            return LinkState.ENDED if self.outgoing.done else LinkState.CLOSING
        return LinkState.OPEN if self._opened else self._first.state

    def set_role(self, *, initiator: bool, now: float) -> None:
        """See `LaneProtocol.set_role`."""
        items = self._first.set_role(initiator=initiator, now=now)
        self.lanes.initiator = self.channels.initiator = initiator
        self._take_items(self._first, items, now)

    def _say(self, frame: Frame) -> None:
        if self.outgoing is not None and self.outgoing.closed:
            return  # GOAWAY was the last frame
        self._outbox.append((encode(frame), units(frame)))

    # -- handshake ---------------------------------------------------------------------------------------------------

    def send_commit(
        self, *, session_id: bytes, link_id: bytes, epoch: int, now: float, terms: Terms | None = None
    ) -> Channel:
        """Choose the carrier for a new Link; the main channel may carry `EARLY_DATA_LIMIT` bytes at once."""
        channel = self.channels.commit(now)
        commit = Commit(session_id=session_id, link_id=link_id, epoch=epoch, credit=channel.receive_limit, terms=terms)
        self._first.send_commit(commit, now)
        self._link_id = link_id
        if terms is not None:
            self.terms, self.outgoing, self.incoming = terms, Outgoing(), Incoming()
        return channel

    def send_accept(self, *, now: float, terms: Terms | None = None) -> Channel:
        """Accept the COMMIT.  Returns the main channel, with the early data in it."""
        commit = self._first.commit
        theirs = None if commit is None else commit.terms
        if theirs is None:
            terms = None
        window = self.channels[0].received + self.channels[0].window if 0 in self.channels else 0
        self._first.send_accept(Accept(channel=0, credit=window, terms=terms))
        channel = self.channels.accept_commit(now)
        self._opened = True
        if terms is None or theirs is None:
            self.incoming = None
        else:
            self.outgoing = Outgoing()
            self.channels.may_be_early = theirs.takes_early_data
            self._agree(terms, theirs, now)
        return channel

    def send_refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Refuse the session; the Link ends."""
        self._first.send_refuse(reason, text)

    def send_go_away(self, code: GoAwayCode = GoAwayCode.CLOSED) -> None:
        """Send GOAWAY, the last frame of this side.  A no-op before PROOF and once the Link is over or closing."""
        if self.state in (LinkState.PROVEN, LinkState.COMMITTED, LinkState.OPEN):
            if self.lanes.active is not None:
                self.lanes.active.step(FrameType.GOAWAY, ours=True)
            self._over = True
            self._say(GoAway(code=code))

    @property
    def is_acknowledged(self) -> bool:
        """Whether the peer has acknowledged everything, including the GOAWAY."""
        return self.failure is None and self.outgoing is not None and self.outgoing.done

    def close(self) -> None:
        """Send GOAWAY, and end once the peer has acknowledged it; only for a Link that is `movable`."""
        for frame, _ in self._outbox:
            self._kept.put_frame(frame)
        self._outbox.clear()
        self._kept.put_last(encode(GoAway()))

    # -- channels ----------------------------------------------------------------------------------------------------

    def open_channel(self, label: str, *, now: float) -> Channel:
        """Ask for a further Pipe.  Raises `LocalProtocolError` when the Link is not open or has no room for it."""
        self._check_open(FrameType.OPEN)
        return self.channels.open(label, now)

    def _check_open(self, kind: FrameType) -> None:
        if self.state is not LinkState.OPEN:
            raise LocalProtocolError(f"{kind.name} while the link is {self.state.value}")

    def accept_channel(self, channel: Channel) -> None:
        """Accept the peer's OPEN."""
        self.channels.accept(channel)

    def refuse_channel(self, channel: Channel, reason: RefuseReason) -> None:
        """Refuse the peer's OPEN."""
        self.channels.refuse(channel, reason)

    def note_data_sent(self, lane: LaneProtocol, channel: Channel, data: memoryview, now: float) -> bool:
        """Account for a DATA frame.

        Returns whether it is to be sent on the lane now.  Otherwise the Link keeps it, and `transmit` sends it later.
        """
        if len(data) > channel.sendable:
            raise LocalProtocolError("more data than credit")
        channel.sent += len(data)
        outgoing = self.outgoing
        if outgoing is None:
            return True
        before = outgoing.end
        now_or_later = lane.said == before and self.lanes.active is lane
        if now_or_later and self._tail is not None:
            now_or_later = self._tail.take(len(data))
        outgoing.put(channel.id, data)
        if now_or_later:
            lane.said = outgoing.end
            lane.life.sent(now, before)
        return now_or_later

    def finish(self, channel: Channel) -> None:
        """See `Channels.finish`."""
        self.channels.finish(channel)

    def close_channel(self, channel: Channel, *, abort: bool = False) -> None:
        """See `Channels.close`."""
        self.channels.close(channel, abort=abort, link_over=self.state is LinkState.ENDED)

    def note_read(self, channel: Channel, size: int, now: float) -> None:
        """The application read `size` bytes: credit follows."""
        channel.consumed += size
        if self.state is LinkState.OPEN:
            active = self.lanes.active
            self.channels.grant(channel, size, now, rtt=None if active is None else active.life.rtt)

    def take_touched(self) -> list[Channel]:
        """See `Channels.take_touched`."""
        return self.channels.take_touched()

    def take_opened(self) -> list[ChannelOpened]:
        """See `Channels.take_opened`."""
        return self.channels.take_opened()

    # -- what goes out -----------------------------------------------------------------------------------------------

    def has_outbox(self, lane: LaneProtocol) -> bool:
        """Whether `transmit` has anything for a lane."""
        if lane.ack_due or lane.outbox or lane.pong is not None:
            return True
        if lane is not self.lanes.active or not (self._opened or self._over):
            return False
        return bool(self._outbox or self.channels.credits) or self._lags(lane)

    def _lags(self, lane: LaneProtocol) -> bool:
        outgoing, said, tail = self.outgoing, lane.said, self._tail
        if outgoing is None or said is None:
            return False
        if tail is None:
            return said < outgoing.end
        return tail.room > 0 and said < outgoing.end - outgoing.closed  # GOAWAY ends the carrier that it is sent on

    def transmit(self, lane: LaneProtocol, now: float) -> bytes:
        """The frames that are to be sent on a lane, in order, before the next DATA."""
        found = lane.take_outbox()
        if lane is self.lanes.active and (self._opened or self._over):  # before the ACCEPT there is only early data
            for credit in self.channels.take_credits():
                self._say(credit)
            found += self._take_outbox(lane, now)
        incoming = self.incoming
        if incoming is not None and self.is_up:
            if lane is self.lanes.active and (lane.ack_due or incoming.deadline < math.inf):
                found.append(encode(Ack(position=incoming.acknowledge())))
            elif lane.ack_due:  # it may get lost on this lane, so it stays due on the one that we speak on
                found.append(encode(Ack(position=incoming.received)))
        lane.ack_due = False
        return b"".join(found)

    def _take_outbox(self, lane: LaneProtocol, now: float) -> list[bytes]:
        """New frames of the stream; while the lane lags behind the stream, some of what comes before them instead."""
        frames, self._outbox = self._outbox, []
        outgoing = self.outgoing
        if outgoing is None:
            return [frame for frame, _ in frames]
        before = outgoing.end
        lags = lane.said is not None and lane.said < before
        for frame, moves in frames:
            if moves:
                outgoing.put_frame(frame)
        if lags or self._tail is not None:
            return self._catch_up(lane, now) if self._lags(lane) else []
        if frames:
            lane.said = outgoing.end
            lane.life.sent(now, before)
        return [frame for frame, _ in frames]

    def _catch_up(self, lane: LaneProtocol, now: float) -> list[bytes]:
        """Some of the stream that the lane lags behind with, beginning after what the peer has acknowledged by now."""
        outgoing = self._kept
        assert lane.said is not None
        found: list[bytes] = []
        if lane.said < outgoing.acknowledged:
            lane.said = outgoing.acknowledged
            found.append(encode(At(position=lane.said, turn=self.lanes.turn)))
        tail, before = self._tail, lane.said
        limit = min(CATCH_UP, lane.pace.size, AHEAD_UNITS if tail is None else tail.room)
        for chunk in outgoing.read(before, limit):
            moves = 1 if chunk.channel is None else len(chunk.body)
            if tail is not None and not (self._lags(lane) and tail.take(moves)):
                break
            found += [bytes(part) for part in chunk.parts]
            lane.said = chunk.position + moves
        if lane.said > outgoing.acknowledged:
            lane.life.sent(now, before)
        return found

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, lane: LaneProtocol, pieces: list[bytes], now: float) -> None:
        """Take plaintext from a carrier.  `take_touched` and `take_opened` return what has changed by it.

        Raises:
          RemoteProtocolError: the peer broke the protocol; the Link is over and its carriers must be closed.
        """
        self._take_items(lane, lane.receive(pieces, now), now)
        if lane.pong is not None and lane is not self.lanes.active and self.incoming is not None:
            lane.ack_due = True  # the peer may ask because no ACK comes on the lane that it speaks on
        if len(self._outbox) > MAX_OUTBOX:
            raise RemoteProtocolError("too many control frames wait for a peer that does not read")
        if self.outgoing is not None and self.outgoing.frames > MAX_FRAMES:
            raise RemoteProtocolError("too many control frames are not acknowledged by the peer")
        if self.incoming is not None and self.incoming.ack_due(now):
            self._owe_ack()
        if self._trial is not None or lane is not self.lanes.active:  # `lane` may be well again, and the active one not
            self.choose(now)

    def _take_items(self, lane: LaneProtocol, items: list[Item], now: float) -> None:
        for item in items:
            if self._over:
                return
            incoming = self.incoming
            if incoming is None:
                self._take(lane, item, now)
                continue
            position, moves = lane.received, units(item)
            lane.received += moves
            new: Item | None = item
            if moves and position == incoming.received:
                incoming.advance(moves, now)
            elif moves and position > incoming.received:
                self._ahead.setdefault(lane, Ahead(position)).put(position, item)
                continue
            elif moves:
                new = incoming.take(position, item, now)
            if new is not None:
                if moves:
                    self._heard_on = lane
                self._take(lane, new, now)
            else:
                lane.count(item.frames if isinstance(item, Data) else 0)  # sent again: no credit pays for it
        if self._ahead:
            self._take_what_was_ahead(now)

    def _take_what_was_ahead(self, now: float) -> None:
        """Process what lanes have brought ahead of the stream, once another lane has brought what was missing."""
        incoming = self._taken
        while due := [lane for lane, ahead in self._ahead.items() if ahead.start <= incoming.received]:
            lane = due[0]
            lane.ack_due = True  # the peer waits for this if it has sent as much as may be ahead
            for position, item in self._ahead.pop(lane).items:
                new = None if self._over else incoming.take(position, item, now)
                if new is not None:
                    self._heard_on = lane
                    self._take(lane, new, now)

    def _take(self, lane: LaneProtocol, item: Item, now: float) -> None:
        if isinstance(item, Data):
            if not self.channels.receive_data(item):
                lane.count(item.frames)
        elif isinstance(item, Ack):
            self._receive_ack(lane, item.position, now)
        elif isinstance(item, Commit):
            lane.commit = item
            self._link_id = item.link_id
            self.channels.receive_commit(item.credit, now)
            self.incoming = None if item.terms is None else Incoming()
        elif isinstance(item, GoAway):
            self.break_all(why_ended(item.code))
            if self.is_lasting:  # the peer's side goes on until it receives this
                lane.say(Ack(position=self._taken.acknowledge()))
        elif isinstance(item, Open):
            self.channels.receive_open(item, now)
        elif isinstance(item, At):
            self._receive_at(lane, item, now)
        elif isinstance(item, Drop):
            self._receive_drop(item)
        elif isinstance(item, News):
            self.news.append(item.payload)
        else:
            if isinstance(item, Accept) and not item.channel and not self._opened:
                self._opened = True
                self._learn_terms(item.terms, now)
            self.channels.receive_frame(item, kind_of(item))  # type: ignore[arg-type]  # those that are left

    def take_news(self) -> list[bytes]:
        """Sealed signals that have come from the peer since the last call."""
        news, self.news = self.news, []
        return news

    def _learn_terms(self, theirs: Terms | None, now: float) -> None:
        """Take the terms that the responder offers with its ACCEPT of our COMMIT."""
        if self.terms is None:
            return
        if theirs is None:
            if self.outgoing is not None:
                self.outgoing.drop()  # early data, which counts towards what all Links of the node keep
            self.terms = self.outgoing = self.incoming = None
        else:
            self.channels.may_be_early = theirs.takes_early_data
            self._agree(self.terms, theirs, now)

    def _receive_ack(self, lane: LaneProtocol, position: int, now: float) -> None:
        outgoing = self.outgoing
        if outgoing is None:
            raise RemoteProtocolError("unexpected ACK: the link was made without acknowledgements")
        was_full = outgoing.full
        if outgoing.acknowledge(position):
            active, tail = self.lanes.active, self._tail
            if active is not None:
                all_of_it = position >= (active.said or 0)
                if active is lane:
                    active.life.acknowledged(now, all_of_it=all_of_it)
                elif position > active.alone_from:
                    active.life.acknowledged_elsewhere(position, now, all_of_it=all_of_it)
            if tail is not None:  # on other lanes we send nothing, so an ACK tells nothing about our direction there
                tail.lane.life.acknowledged(now, all_of_it=position >= tail.until)
                if position >= tail.until:
                    self._forget_tail()
        if was_full and not outgoing.full:
            self.channels.touch_all()

    # -- ends and timers ---------------------------------------------------------------------------------------------

    def break_all(self, failure: Exception) -> None:
        """End the Link: every direction that has not ended is broken by `failure`.  Idempotent."""
        self._over = True
        self.failure = self.failure or failure
        self.channels.break_all(failure)
        for lane in self.lanes:
            lane.end()
            lane.said = None
        if self.outgoing is not None:
            self.outgoing.drop()
        self._ahead.clear()

    def _owe_ack(self) -> None:
        active = self.lanes.active
        if active is not None and self.is_up:
            active.ack_due = True
            # Our lane may lose everything.  Without an ACK the peer would then suspect the lane that it speaks on.
            if self._heard_on is not active and self._heard_on in self.lanes:
                self._heard_on.ack_due = True

    def deadline(self, lane: LaneProtocol) -> float:
        """When `handle_timer` is to be called for a lane."""
        if self.incoming is None or lane is not self.lanes.active or lane.ack_due or not self.is_up:
            return min(lane.life.deadline, self._question_at(lane))
        return min(lane.life.deadline, self.incoming.deadline)

    def handle_timer(self, lane: LaneProtocol, now: float) -> None:
        """Send a PING or an ACK where one is due, and change over where the lane that we speak on does not carry."""
        self._blame_the_tail(lane, now)
        lane.handle_timer(now)
        if self.incoming is not None and self.incoming.ack_due(now):
            self._owe_ack()
        self._ask_others(now)
        self.choose(now)
