"""One carrier of a Link, without I/O: its handshake, and all that is about the carrier and not about the Link.

A lane has frames of its own (PROOF, COMMIT or ATTACH and what answers them, PING, PONG, ACK, AT), which are never said
again on another one, a reader that cuts its bytes into frames, a judge of its life, and two positions: how far the
peer's stream has come on it, and how far ours.  What is said on it beyond that belongs to the Link, `LinkProtocol`,
which takes it from `receive`.
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
"""Control frames that wait for a peer that makes us answer but does not read: beyond this it is hostile or dead."""
FIRST_PADDING: Final = 2 * 1024
"""Bytes that say nothing before the first frame: more than a full segment."""
MAX_NEWS_WAITING: Final = 4
"""Signals that wait to go out on a lane: a carrier that takes nothing would have them wait for ever."""
TRIAL: Final = 16 * 1024
"""Bytes that a path is tried with before a Link changes over to it from one that is well: more than is sent before the
first acknowledgement (RFC 6928), so that it has carried something behind one."""
HEAD_START: Final = 8 * 1024
"""Bytes of them that go with the ATTACH where the carrier is to be tried at once: the rest fits into one window then,
so that the answer comes a round trip sooner."""

TRIAL_COUNTS: Final = 10.0
"""Seconds for which a trial that was begun with ATTACH or ATTACHED stands for the one before the change: a few round
trips of the slowest path, on which flights are lost."""


@final
# long: a carrier's handshake, what goes out and comes in on it, and its timers, by one state
class LaneProtocol:
    """One side of a carrier.

    Args:
      dialler: this side dialled the carrier.
      initiator: this side called for it; ``None`` as long as that is not known, which is until a PROOF was read.
      now: a monotonic time in seconds, as in every method.
      idle_interval: seconds of silence before a PING.
      padded: what we say first comes behind a full segment, so that nobody wins on a path that carries none: PROOF of
        the dialler; what the other side says first.

    Attributes:
      state: of the carrier.
      life: who judges it.
      pace: how much is handed to it at once.
      proof, commit, attach, attached, refusal: what was said or heard.
      outbox, pong: frames of its own that are to be sent, and a PONG with that token.
      ack_due: the peer is to be told on this lane how far we are.
      received: how far the peer's stream has come on it.
      said: how far ours has; None while we say nothing of it here.
      alone_from: what is said from here on is said on this lane alone.
      number: what names it among the lanes of its Link.
      began: when the carrier's handshake did.
      joined_at: when it became one of them; of the one that the Link was made on, long ago.
      was_dropped: it was found to be no good, by us or by the peer.
      leaving: it goes by a relay that will be gone before long.
      left_at: since when both sides speak elsewhere then, as far as was looked at.
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
        self._trial: int | None = None  # the PING behind the bulk
        self._untried = TRIAL
        self._tried_at = -math.inf  # by itself, before it is to be spoken on
        self._dialler = dialler
        self._padding = padding(FIRST_PADDING) if padded else b""
        self._initiator = initiator
        self._roles = _roles(dialler=dialler, initiator=initiator)
        self._reader = FrameReader()
        self._budget = FrameBudget()
        self._held: list[Item] = []
        self._waits = False  # for the Link that it is to belong to
        self._news_waiting = 0

    # -- roles and state ---------------------------------------------------------------------------------------------

    def set_role(self, *, initiator: bool, now: float) -> list[Item]:
        """Settle who called, once a listener has read the PROOF and looked its session up.

        What came right behind the PROOF waited for this, since the table cannot judge it before; it is returned, and
        this raises what `receive` raises.
        """
        if self._initiator is not None and self._initiator is not initiator:
            raise LocalProtocolError("the session's roles are settled already")
        self._initiator = initiator
        self._roles = _roles(dialler=self._dialler, initiator=initiator)
        return self._take_held(now)

    def join(self, now: float) -> list[Item]:
        """It belongs to the Link that its ATTACH names: what came behind that."""
        self._waits = False
        return self._take_held(now)

    def _take_held(self, now: float) -> list[Item]:
        held, self._held = self._held, []
        return self._sort(held, now)

    def step(self, kind: FrameType, *, ours: bool) -> None:
        """A frame moves the state; raises `ProtocolError` where the table has no such step."""
        self.state = next_link_state(self.state, self._roles[ours], kind, ours=ours)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is said or heard."""
        return self.state is LinkState.ENDED

    @property
    def is_well(self) -> bool:
        """Whether it carries what is said, as far as is known."""
        return self.life.life is Life.WELL and not self.is_over

    @property
    def is_to_be_left(self) -> bool:
        """Whether another one is to be spoken on that is well: it is over, or suspected and not only late."""
        return self.is_over or not (self.life.life is Life.WELL or self.life.is_late)

    def end(self) -> None:
        """Nothing more is said or heard."""
        self.state = LinkState.ENDED
        self.pong = None

    def say(self, frame: Frame) -> None:
        """A frame of the lane's own, for `transmit`."""
        self.outbox.append(encode(frame))

    # -- handshake, our part -----------------------------------------------------------------------------------------

    def send_proof(self, proof: Proof) -> None:
        """Say who we are."""
        self.step(FrameType.PROOF, ours=True)
        self.proof = proof
        self._say_first(proof)

    def send_commit(self, commit: Commit, now: float) -> None:
        """Choose this carrier for a new Link.

        Silence counts from here on: a carrier that waited for its turn was not asked for signs of life.
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
        """Offer this carrier to a Link that there is."""
        self.step(FrameType.ATTACH, ours=True)
        self.life.begin(now)
        self.attach = attach
        self._say_first(attach)

    def send_attached(self, attached: Attached) -> None:
        """Take the ATTACH."""
        self.step(FrameType.ATTACHED, ours=True)
        self._say_first(attached)

    def send_refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Say no; the lane ends."""
        self._answer(FrameType.REFUSE)
        self.say(Refuse(channel=0, reason=reason, text=text))

    def _say_first(self, frame: Frame) -> None:
        """A frame of the handshake, the first one behind the padding: the stream is in order."""
        self.outbox.append(self._padding + encode(frame))
        self._padding = b""

    def _answer(self, kind: FrameType) -> None:
        if self.state is LinkState.OPEN:  # where the table knows the same frames as answers to an OPEN
            raise LocalProtocolError(f"{kind.name} of a commit that was answered before")
        self.step(kind, ours=True)

    def send_ping(self, now: float) -> None:
        """Ask for a sign of life, which also measures the round trip; one question at a time."""
        if not self.life.asking and self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
            self.say(Ping(token=self.life.ask(now)))

    def ask(self, now: float) -> int:
        """A PING on somebody's behalf, whatever else is under way; `LifeJudge.answered` reaches the returned token.

        The peer answers in order, so by then it has read everything that was sent here before.
        """
        self.step(FrameType.PING, ours=True)
        token = self.life.ask(now)
        self.say(Ping(token=token))
        return token

    def begin_trial_early(self, now: float, *, hurried: bool) -> None:
        """A part of the trial that will follow, behind the ATTACH; where it is `hurried`, that is all of it."""
        if hurried:
            self.begin_own_trial(now, hurried=True)
        else:
            self.outbox.append(padding(HEAD_START))
            self._untried -= HEAD_START

    def begin_own_trial(self, now: float, *, hurried: bool) -> None:
        """The trial, which counts for the next `begin_trial` if that comes soon."""
        if hurried:
            self._untried = HEAD_START
        self.begin_trial(now)
        self._tried_at = now

    def begin_trial(self, now: float) -> None:
        """Say as much as a path has to carry that is to be spoken on, nothing with it, and ask whether it has come."""
        tried_at, self._tried_at = self._tried_at, -math.inf
        if now - tried_at <= TRIAL_COUNTS:
            return
        self._say_pong()  # which the peer measures the round trip by
        self.outbox.append(padding(self._untried))
        self._untried = TRIAL
        self._trial = self.ask(now)

    @property
    def is_proven(self) -> bool:
        """Whether the peer has answered behind the bulk of a trial."""
        return self._trial is not None and self.life.answered >= self._trial

    def hint(self, now: float) -> None:
        """Something has happened that may have killed the carrier: it is asked at once, see `LifeJudge.hint`."""
        if self.state is LinkState.OPEN and self.life.hint(now):
            self.say(Ping(token=self.life.ask(now)))

    def doubt(self, now: float) -> None:
        """What took another carrier may have taken this one: it is asked at once, see `LifeJudge.doubt`."""
        if self.state is LinkState.OPEN and self.life.doubt(now):
            self.say(Ping(token=self.life.ask(now)))

    # -- the outbox --------------------------------------------------------------------------------------------------

    def take_outbox(self) -> list[bytes]:
        """Every frame of the lane's own that is to be sent, in order."""
        self._say_pong()
        frames, self.outbox = self.outbox, []
        self._news_waiting = 0
        return frames

    def _say_pong(self) -> None:
        if self.pong is not None:
            self.say(Pong(token=self.pong))
            self.pong = None

    def say_news(self, news: News) -> bool:
        """A signal for the peer, before whatever else is sent here; False where too many wait, or none can."""
        if self.state is not LinkState.OPEN or self._news_waiting >= MAX_NEWS_WAITING:
            return False
        self._news_waiting += 1
        self.life.said_unasked = True
        self.say(news)
        return True

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, pieces: list[bytes], now: float) -> list[Item]:
        """Take plaintext from the carrier; returns what is not about the carrier alone, each checked by the table.

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
            raise RemoteProtocolError("the peer makes us answer but does not read the answers")
        return found

    @property
    def has_unread(self) -> bool:
        """Whether `receive` left something for its next turn, which wants no new bytes."""
        return self._reader.has_unread

    @property
    def is_ahead(self) -> bool:
        """Whether the peer says more than it may, so that it is to be left unread for a `pause`."""
        return self._budget.is_ahead

    def pause(self, now: float) -> float:
        """Seconds for which the peer is to be left unread."""
        return self._budget.pause(now)

    def count(self, frames: int) -> None:
        """Frames of the peer that are not paid for with credit."""
        opened = self.state in (LinkState.OPEN, LinkState.ENDED)  # what was on its way to one that is over is no fault
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
        """Send a PING where one is due; `life` says what became of the carrier."""
        if self.life.judge(now):
            question = Ping(token=self.life.ask(now))  # also where nothing is said any more: what is due stays due else
            if self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
                self.say(question)


_COSTS: Final = {Open: OPEN_COST, News: NEWS_COST}


def _roles(*, dialler: bool, initiator: bool | None) -> dict[bool, frozenset[Role]]:
    """The roles of the peer (False) and ours (True)."""
    found: dict[bool, frozenset[Role]] = {}
    for ours in (False, True):
        roles = {Role.DIALLER if dialler is ours else Role.LISTENER}
        if initiator is not None:
            roles.add(Role.INITIATOR if initiator is ours else Role.RESPONDER)
        found[ours] = frozenset(roles)
    return found
