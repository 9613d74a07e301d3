"""One carrier of a Link, without I/O: its handshake, and all that concerns the carrier rather than the Link.

A lane has

* frames of its own, which are never sent again on another lane: PROOF, COMMIT or ATTACH and their answers, PING, PONG,
  ACK, AT;
* a reader, which cuts the carrier's bytes into frames;
* a judge of its life;
* two positions: how far the peer's stream has come on it, and how far ours.

All other frames belong to the Link: `receive` returns them for `LinkProtocol`.
"""

from __future__ import annotations

import math
from typing import Final, final

from ..errors import LocalProtocolError, RemoteProtocolError
from .budget import NEWS_COST, OPEN_COST, FrameBudget
from .frame_codec import encode, kind_of, padding
from .frame_reader import FrameReader
from .frames import (
    Accept,
    Attach,
    Attached,
    Commit,
    Data,
    Frame,
    FrameType,
    Item,
    News,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    RefuseReason,
)
from .life import Life, LifeJudge
from .pace import Pace
from .states import LinkState, Role, next_link_state

__all__ = ["MAX_OUTBOX", "LaneProtocol"]

MAX_OUTBOX: Final = 8192
"""Control frames that may wait for a peer that makes us answer but does not read: beyond this it is hostile or dead."""
FIRST_PADDING: Final = 2 * 1024
"""Bytes of padding before the first frame: more than a full segment."""
MAX_NEWS_WAITING: Final = 4
"""Signals that may wait to be sent on a lane: on a carrier that accepts no data they would wait for ever."""
TRIAL: Final = 16 * 1024
"""Bytes that a path is tried with before a Link changes over to it from one that is well: more than TCP's initial
window (RFC 6928), so that part of them is sent after an acknowledgement."""
HEAD_START: Final = 8 * 1024
"""Bytes of a trial that are sent with the ATTACH of a carrier that is to be tried at once.  The rest then fits into one
window, so the answer comes a round trip sooner."""

TRIAL_COUNTS: Final = 10.0
"""Seconds for which a trial that began with ATTACH or ATTACHED counts as the one before the change: a few round trips
of the slowest path, including lost flights."""


@final
# long: a carrier's handshake, what goes out and comes in on it, and its timers, by one state
class LaneProtocol:
    """One side of a carrier.

    Args:
      dialler: this side dialled the carrier.
      initiator: this side called; ``None`` until that is known, which is when a PROOF was read.
      now: a monotonic time in seconds, as in every method.
      idle_interval: seconds of silence before a PING.
      padded: a full segment of padding precedes the first frame that we send (a dialler's PROOF, the other side's first
        answer), so that no path wins that does not carry full segments.

    Attributes:
      state: the state of the carrier.
      life: its judge.
      pace: how much is handed to the carrier at once.
      proof, commit, attach, attached, refusal: the frame that was sent or received; None before that.
      outbox, pong: frames of its own that are to be sent, and the token of a PONG that is to be sent.
      ack_due: an ACK is to be sent on this lane.
      received: how far the peer's stream has come on it.
      said: how far our stream was sent on it; None while we do not send the stream here.
      alone_from: the position from which on our stream is sent on this lane alone.
      number: identifies the lane within its Link.
      began: when the carrier's handshake began.
      joined_at: when it became a lane of its Link; minus infinity for the carrier that the Link was made on.
      was_dropped: this side or the peer has dropped it, because it does not carry.
      leaving: it goes by a relay that will shut down before long.
      left_at: since when both sides have left such a lane, as far as was checked; infinity before that.
    """

    def __init__(
        self,
        *,
        dialler: bool,
        initiator: bool | None,
        now: float,
        idle_interval: float,
        padded: bool = False,
    ) -> None:
        self.state: LinkState = LinkState.FRESH
        self.life: Final = LifeJudge(now, interval=idle_interval)
        self.pace: Final = Pace()
        self.proof: Proof | None = None
        self.commit: Commit | None = None
        self.attach: Attach | None = None
        self.attached: Attached | None = None
        self.refusal: Refuse | None = None
        self.received: int = 0
        self.said: int | None = None
        self.alone_from: int = 0
        self.number: int = 1
        self.began: float = now
        self.joined_at: float = -math.inf
        self.was_dropped: bool = False
        self.leaving: bool = False
        self.left_at: float = math.inf
        self.outbox: list[bytes] = []
        self.pong: int | None = None
        self.ack_due: bool = False
        self._trial: int | None = None  # the token of the PING behind the bulk
        self._untried = TRIAL
        self._tried_at = -math.inf  # when a trial began ahead of `begin_trial`
        self._dialler = dialler
        self._padding = padding(FIRST_PADDING) if padded else b""
        self._initiator = initiator
        self._roles = _roles(dialler=dialler, initiator=initiator)
        self._reader = FrameReader()
        self._budget = FrameBudget()
        self._held: list[Item] = []
        self._waits = False  # for its Link to take it, after ATTACH or ATTACHED
        self._news_waiting = 0

    # -- roles and state ---------------------------------------------------------------------------------------------

    def set_role(self, *, initiator: bool, now: float) -> list[Item]:
        """Settle who called, once a listener has read the PROOF and looked up its session.

        Returns what came right behind the PROOF; the state table could not check it without the roles.  Raises what
        `receive` raises.
        """
        if self._initiator is not None and self._initiator is not initiator:
            raise LocalProtocolError("the session's roles are settled already")
        self._initiator = initiator
        self._roles = _roles(dialler=self._dialler, initiator=initiator)
        return self._take_held(now)

    def join(self, now: float) -> list[Item]:
        """The lane now belongs to the Link that its ATTACH names.  Returns what came behind the ATTACH or ATTACHED."""
        self._waits = False
        return self._take_held(now)

    def _take_held(self, now: float) -> list[Item]:
        held, self._held = self._held, []
        return self._sort(held, now)

    def step(self, kind: FrameType, *, ours: bool) -> None:
        """Move the state by a frame; raises `ProtocolError` where the table has no such transition."""
        self.state = next_link_state(self.state, self._roles[ours], kind, ours=ours)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is sent or received."""
        return self.state is LinkState.ENDED

    @property
    def is_well(self) -> bool:
        """Whether it carries what is sent, as far as is known."""
        return self.life.life is Life.WELL and not self.is_over

    @property
    def is_to_be_left(self) -> bool:
        """Whether to change over to another lane that is well: this one is over, or suspected and not only late."""
        return self.is_over or not (self.life.life is Life.WELL or self.life.is_late)

    def end(self) -> None:
        """Nothing more is sent or received."""
        self.state = LinkState.ENDED
        self.pong = None

    def say(self, frame: Frame) -> None:
        """Queue a frame of the lane's own."""
        self.outbox.append(encode(frame))

    # -- handshake, our part -----------------------------------------------------------------------------------------

    def send_proof(self, proof: Proof) -> None:
        """Prove our identity."""
        self.step(FrameType.PROOF, ours=True)
        self.proof = proof
        self._say_first(proof)

    def send_commit(self, commit: Commit, now: float) -> None:
        """Choose this carrier for a new Link.

        Silence counts from now on: while the carrier waited for this choice, it was not asked for signs of life.
        """
        self.step(FrameType.COMMIT, ours=True)
        self.life.begin(now)
        self.commit = commit
        self.said = 0
        self._say_first(commit)

    def send_accept(self, accept: Accept) -> None:
        """Take the COMMIT."""
        self._answer(FrameType.ACCEPT)
        self.said = 0
        self._say_first(accept)

    def send_attach(self, attach: Attach, now: float) -> None:
        """Offer this carrier to an existing Link."""
        self.step(FrameType.ATTACH, ours=True)
        self.life.begin(now)
        self.attach = attach
        self._say_first(attach)

    def send_attached(self, attached: Attached) -> None:
        """Take the ATTACH."""
        self.step(FrameType.ATTACHED, ours=True)
        self._say_first(attached)

    def send_refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Refuse; the lane ends."""
        self._answer(FrameType.REFUSE)
        self.say(Refuse(channel=0, reason=reason, text=text))

    def _say_first(self, frame: Frame) -> None:
        """Queue a frame of the handshake; the padding, if any, precedes the first one."""
        self.outbox.append(self._padding + encode(frame))
        self._padding = b""

    def _answer(self, kind: FrameType) -> None:
        if self.state is LinkState.OPEN:  # there the table takes the same frames as answers to an OPEN
            raise LocalProtocolError(f"{kind.name}, but the COMMIT is answered already")
        self.step(kind, ours=True)

    def send_ping(self, now: float) -> None:
        """Send a PING unless one is unanswered; the answer also measures the round trip."""
        if not self.life.asking and self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
            self.say(Ping(token=self.life.ask(now)))

    def ask(self, now: float) -> int:
        """Send a PING for a caller, even if others are unanswered.  Returns its token.

        Once `LifeJudge.answered` reaches the token, the peer has read everything that was sent here before the PING,
        since it answers in order.
        """
        self.step(FrameType.PING, ours=True)
        token = self.life.ask(now)
        self.say(Ping(token=token))
        return token

    def begin_trial_early(self, now: float, *, hurried: bool) -> None:
        """Send a first part of the trial, behind the ATTACH; where it is `hurried`, a shorter trial as a whole."""
        if hurried:
            self.begin_own_trial(now, hurried=True)
        else:
            self.outbox.append(padding(HEAD_START))
            self._untried -= HEAD_START

    def begin_own_trial(self, now: float, *, hurried: bool) -> None:
        """Begin a trial ahead of `begin_trial`, which takes it for its own within `TRIAL_COUNTS`."""
        if hurried:
            self._untried = HEAD_START
        self.begin_trial(now)
        self._tried_at = now

    def begin_trial(self, now: float) -> None:
        """Send as much padding as a path must carry before it is spoken on, and a PING behind it."""
        tried_at, self._tried_at = self._tried_at, -math.inf
        if now - tried_at <= TRIAL_COUNTS:
            return
        self._say_pong()  # ahead of the padding: the peer measures the round trip by it
        self.outbox.append(padding(self._untried))
        self._untried = TRIAL
        self._trial = self.ask(now)

    @property
    def is_proven(self) -> bool:
        """Whether the peer has answered the PING behind the padding of a trial."""
        return self._trial is not None and self.life.answered >= self._trial

    def hint(self, now: float) -> None:
        """Something has happened that may have killed the carrier: it is asked at once, see `LifeJudge.hint`."""
        if self.state is LinkState.OPEN and self.life.hint(now):
            self.say(Ping(token=self.life.ask(now)))

    def doubt(self, now: float) -> None:
        """What broke another carrier may have broken this one: it is asked at once, see `LifeJudge.doubt`."""
        if self.state is LinkState.OPEN and self.life.doubt(now):
            self.say(Ping(token=self.life.ask(now)))

    # -- the outbox --------------------------------------------------------------------------------------------------

    def take_outbox(self) -> list[bytes]:
        """Take the frames of the lane's own that are to be sent, in order."""
        self._say_pong()
        frames, self.outbox = self.outbox, []
        self._news_waiting = 0
        return frames

    def _say_pong(self) -> None:
        if self.pong is not None:
            self.say(Pong(token=self.pong))
            self.pong = None

    def say_news(self, news: News) -> bool:
        """Queue a signal for the peer.  Returns False if the lane is not open, or too many signals wait on it."""
        if self.state is not LinkState.OPEN or self._news_waiting >= MAX_NEWS_WAITING:
            return False
        self._news_waiting += 1
        self.life.said_unasked = True
        self.say(news)
        return True

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, pieces: list[bytes], now: float) -> list[Item]:
        """Take plaintext from the carrier.  Returns the frames that concern the Link, checked by the state table.

        Raises:
          RemoteProtocolError: the peer broke the protocol; the carrier must be closed.
        """
        self.life.heard(now)
        reader = self._reader
        items = reader.feed(pieces)
        if reader.silent:
            silent, reader.silent = reader.silent, 0
            self.count(silent)
        if len(items) == 1 and isinstance(items[0], Data) and self.state is LinkState.OPEN and not self._waits:
            return items  # the bulk of a transfer
        found = self._sort(items, now)
        if len(self.outbox) > MAX_OUTBOX:
            raise RemoteProtocolError("too many control frames wait for a peer that does not read")
        return found

    @property
    def has_unread(self) -> bool:
        """Whether `receive` left something for its next call, which needs no new bytes."""
        return self._reader.has_unread

    @property
    def is_ahead(self) -> bool:
        """Whether the peer has exceeded its frame budget, so that it is not to be read for a `pause`."""
        return self._budget.is_ahead

    def pause(self, now: float) -> float:
        """Seconds for which the peer is not to be read."""
        return self._budget.pause(now)

    def count(self, frames: int) -> None:
        """Count frames of the peer that no credit pays for."""
        opened = self.state in (LinkState.OPEN, LinkState.ENDED)  # frames in flight to a lane that is over are no fault
        self._budget.count(frames, self.life.heard_at, link_open=opened)

    def _sort(self, items: list[Item], now: float) -> list[Item]:
        found: list[Item] = []
        for index, item in enumerate(items):
            if self.is_over:
                break
            if self._waits or (self._initiator is None and self.state is not LinkState.FRESH):
                self._held += items[index:]
                break
            if isinstance(item, Data):
                if self.state is not LinkState.OPEN:
                    self.step(FrameType.DATA, ours=False)
                    self.count(item.frames)
                found.append(item)
                continue
            kind = kind_of(item)
            self.count(_COSTS.get(type(item), 1))
            self.step(kind, ours=False)
            if isinstance(item, Ping):
                self.pong = item.token
            elif isinstance(item, Pong):
                self.life.receive(item.token, now)
            elif isinstance(item, Proof):
                self.proof = item
            elif isinstance(item, Attach):
                self.attach = item
                self._waits = True
            elif isinstance(item, Attached):
                self.attached = item
                self._waits = True
            elif isinstance(item, Refuse) and self.state is LinkState.ENDED:
                self.refusal = item
            else:
                found.append(item)
        return found

    # -- timers ------------------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        """Send a PING where one is due; `life` has the verdict."""
        if self.life.judge(now):
            question = Ping(token=self.life.ask(now))  # even if it cannot be sent any more: else it would stay due
            if self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
                self.say(question)


_COSTS: Final = {Open: OPEN_COST, News: NEWS_COST}


def _roles(*, dialler: bool, initiator: bool | None) -> dict[bool, frozenset[Role]]:
    """The roles of the peer (False) and of this side (True)."""
    found: dict[bool, frozenset[Role]] = {}
    for ours in (False, True):
        roles = {Role.DIALLER if dialler is ours else Role.LISTENER}
        if initiator is not None:
            roles.add(Role.INITIATOR if initiator is ours else Role.RESPONDER)
        found[ours] = frozenset(roles)
    return found
