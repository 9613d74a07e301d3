"""The session between two peers on one carrier, without I/O: plaintext and ``now`` in, events and control frames out.

`LinkProtocol` owns the Link's state; `Channels` has its channels and their credit, `LifeJudge` judges its path, and
`Outgoing` and `Incoming` number what is said where both sides acknowledge it.  The shell around it
(`warpgate_trio.link.link`) owns the carrier: it feeds what it reads to `receive`, sends what `transmit` hands out,
calls `handle_timer` at `deadline`, and puts DATA on the carrier itself after `note_data_sent`, so that payload is
never copied here.
"""

from __future__ import annotations

import math
from typing import Final, final

from ..errors import LocalProtocolError, RemoteProtocolError
from .budget import OPEN_COST, FrameBudget
from .channel import Channel
from .channels import ChannelOpened, Channels
from .frames import (
    Accept,
    Ack,
    Commit,
    Credit,
    Data,
    Fin,
    Frame,
    FrameReader,
    FrameType,
    GoAway,
    Item,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    RefuseReason,
    Reset,
    Terms,
    encode,
    padding,
)
from .life import LifeJudge
from .states import LinkState, Role, next_link_state
from .stream import MAX_FRAMES, Incoming, Outgoing, units

__all__ = ["LinkProtocol"]

MAX_OUTBOX: Final = 2048
"""Control frames that wait for a peer that makes us answer but does not read: beyond this it is hostile or dead."""


@final
# long: what each frame does to a Link, in one place
class LinkProtocol:
    """One side of a Link.

    Args:
      dialler: this side dialled the carrier.
      initiator: this side called; ``None`` as long as that is not known, which is until a PROOF was read.
      now: a monotonic time in seconds, as in every method.
      idle_interval: seconds of silence before a PING.
      padded: what we say first comes behind a full segment, so that nobody wins on a path that carries none: PROOF of
        the dialler; COMMIT or ACCEPT of the other side.
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
        self.channels: Final = Channels(self._say, initiator=initiator)
        self.life: Final = LifeJudge(now, interval=idle_interval)
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.terms: Terms | None = None
        """What we offered, and with it both streams, where the peer did too; the initiator has them until it knows."""
        self.proof: Proof | None = None
        self.commit: Commit | None = None
        self.refusal: Refuse | None = None
        self.failure: Exception | None = None
        self._dialler = dialler
        self._padding = padding() if padded else b""
        self._initiator = initiator
        self._roles = _roles(dialler=dialler, initiator=initiator)
        self._reader = FrameReader()
        self._budget = FrameBudget()
        self._held: list[Item] = []
        self._outbox: list[tuple[bytes, int]] = []  # frames, and by how much each moves our stream on
        self._position = 0  # of the carrier in the peer's stream
        self._ack_due = False
        self._pong: int | None = None

    # -- roles and state ---------------------------------------------------------------------------------------------

    def set_role(self, *, initiator: bool, now: float) -> None:
        """Settle who called, once a listener has read the PROOF and looked its session up.

        What came right behind the PROOF waited for this, since the table cannot judge it before; so this raises what
        `receive` raises.
        """
        if self._initiator is not None and self._initiator is not initiator:
            raise LocalProtocolError("the session's roles are settled already")
        self._initiator = self.channels.initiator = initiator
        self._roles = _roles(dialler=self._dialler, initiator=initiator)
        held, self._held = self._held, []
        self._take_items(held, now)

    def _step(self, kind: FrameType, *, ours: bool) -> None:
        self.state = next_link_state(self.state, self._roles[ours], kind, ours=ours)

    def _say(self, frame: Frame) -> None:
        self._outbox.append((encode(frame), units(frame)))

    # -- handshake, our part -----------------------------------------------------------------------------------------

    def send_proof(self, proof: Proof) -> None:
        self._step(FrameType.PROOF, ours=True)
        self.proof = proof
        self._say_first(encode(proof))

    def send_commit(
        self, *, session_id: bytes, link_id: bytes, epoch: int, now: float, terms: Terms | None = None
    ) -> Channel:
        """Choose this carrier; the main channel may carry `EARLY_DATA_LIMIT` bytes at once.

        `silence` counts from here on: a carrier that waited for its turn was not asked for signs of life.
        """
        self._step(FrameType.COMMIT, ours=True)
        self.life.begin(now)
        channel = self.channels.commit(now)
        self.commit = Commit(
            session_id=session_id, link_id=link_id, epoch=epoch, credit=channel.receive_limit, terms=terms
        )
        self._say_first(encode(self.commit))
        if terms is not None:
            self.terms, self.outgoing, self.incoming = terms, Outgoing(), Incoming()
        return channel

    def send_accept(self, *, now: float, terms: Terms | None = None) -> Channel:
        """Take the COMMIT; returns the main channel, with the early data in it."""
        self._answer_commit(FrameType.ACCEPT)
        channel = self.channels.accept_commit(now)
        if self.incoming is None:  # the peer offers no terms
            terms = None
        self._say_first(encode(Accept(channel=0, credit=channel.receive_limit, terms=terms)))
        self.terms = terms
        if terms is None:
            self.incoming = None
        else:
            self.outgoing = Outgoing()
            self.life.begin_acknowledged(now, responder=True)
        return channel

    def _say_first(self, frame: bytes) -> None:
        """A frame of the handshake, the first one behind the padding: the stream is in order."""
        self._outbox.append((self._padding + frame, 0))
        self._padding = b""

    def send_refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Say no to the session; the Link ends."""
        self._answer_commit(FrameType.REFUSE)
        self._say(Refuse(channel=0, reason=reason, text=text))

    def _answer_commit(self, kind: FrameType) -> None:
        if self.state is LinkState.OPEN:  # where the table knows the same frames as answers to an OPEN
            raise LocalProtocolError(f"{kind.name} of a commit that was answered before")
        self._step(kind, ours=True)

    def send_go_away(self) -> None:
        """The last frame of this side; a no-op where there is nobody to tell."""
        if self.state in (LinkState.PROVEN, LinkState.COMMITTED, LinkState.OPEN):
            self._step(FrameType.GOAWAY, ours=True)
            self._say(GoAway())

    def send_ping(self, now: float) -> None:
        """Ask for a sign of life, which also measures the round trip; one question at a time."""
        if not self.life.asking and self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
            self._say(Ping(token=self.life.ask(now)))

    def ask(self, now: float) -> int:
        """A PING on somebody's behalf, whatever else is under way; `Liveness.answered` reaches the returned token.

        The peer answers in order, so by then it has read everything that was sent before.
        """
        self._step(FrameType.PING, ours=True)
        token = self.life.ask(now)
        self._say(Ping(token=token))
        return token

    def hint(self, now: float) -> None:
        """Something has happened that may have killed the path: it is asked at once, see `LifeJudge.hint`."""
        if self.state is LinkState.OPEN and self.life.hint(now):
            self._say(Ping(token=self.life.ask(now)))

    # -- channels ----------------------------------------------------------------------------------------------------

    def open_channel(self, label: str, *, now: float) -> Channel:
        """Ask for a further Pipe.  Raises `LocalProtocolError` when the Link is not open or has no room for it."""
        self._step(FrameType.OPEN, ours=True)
        return self.channels.open(label, now)

    def accept_channel(self, channel: Channel) -> None:
        """Yes to the peer's OPEN."""
        self.channels.accept(channel)

    def refuse_channel(self, channel: Channel, reason: RefuseReason) -> None:
        """No to the peer's OPEN."""
        self.channels.refuse(channel, reason)

    def note_data_sent(self, channel: Channel, data: memoryview, now: float) -> None:
        """Account for a DATA frame that the shell puts on the carrier now."""
        if len(data) > channel.sendable:
            raise LocalProtocolError("more data than credit")
        channel.sent += len(data)
        if self.outgoing is not None:
            self.outgoing.put(channel.id, data)
            self.life.sent(now)

    @property
    def is_full(self) -> bool:
        """Whether DATA has to wait until the peer acknowledges what it was sent."""
        return self.outgoing is not None and self.outgoing.full

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
            self.channels.grant(channel, size, now, rtt=self.life.rtt)

    def take_touched(self) -> list[Channel]:
        """See `Channels.take_touched`."""
        return self.channels.take_touched()

    @property
    def has_opened(self) -> bool:
        """See `Channels.has_opened`."""
        return self.channels.has_opened

    def take_opened(self) -> list[ChannelOpened]:
        """See `Channels.take_opened`."""
        return self.channels.take_opened()

    # -- the outbox --------------------------------------------------------------------------------------------------

    @property
    def has_outbox(self) -> bool:
        """Whether `transmit` has anything."""
        return bool(self._outbox or self.channels.has_credits or self._pong is not None or self._ack_due)

    def transmit(self, now: float) -> bytes:
        """Every control frame that is to be sent, in order; they go out before the next DATA."""
        if self._pong is not None:
            self._say(Pong(token=self._pong))
            self._pong = None
        for credit in self.channels.take_credits():
            self._say(credit)
        if self.incoming is not None and self.state is LinkState.OPEN and self.incoming.deadline < math.inf:
            self._say(Ack(position=self.incoming.acknowledge()))
        self._ack_due = False
        frames, self._outbox = self._outbox, []
        if self.outgoing is not None:
            for frame, moves in frames:
                if moves:
                    self.outgoing.put_frame(frame)
                    self.life.sent(now)
        return b"".join([frame for frame, _ in frames])

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, pieces: list[bytes], now: float) -> None:
        """Take plaintext from the carrier.  What it changed is in `take_touched` and `take_opened`.

        Raises:
          RemoteProtocolError: the peer broke the protocol; the Link is over and its carrier must be closed.
        """
        self.life.heard(now)
        self._budget.earn(now)
        items = self._reader.feed(pieces)
        silent, self._reader.silent = self._reader.silent, 0
        self._count(silent)
        self._take_items(items, now)
        if len(self._outbox) > MAX_OUTBOX:
            raise RemoteProtocolError("the peer makes us answer but does not read the answers")
        if self.outgoing is not None and self.outgoing.frames > MAX_FRAMES:
            raise RemoteProtocolError("the peer makes us answer but does not acknowledge the answers")
        if self.incoming is not None and self.incoming.ack_due(now):
            self._ack_due = self.state is LinkState.OPEN

    @property
    def has_unread(self) -> bool:
        """Whether `receive` left something for its next turn, which wants no new bytes."""
        return self._reader.has_unread

    def pause(self, now: float) -> float:
        """Seconds for which the peer is to be left unread: it says more than it may."""
        return self._budget.pause(now)

    def _count(self, frames: int) -> None:
        """Frames of the peer that are not paid for with credit."""
        self._budget.count(frames, link_open=self.state is LinkState.OPEN)

    def _take_items(self, items: list[Item], now: float) -> None:
        for index, item in enumerate(items):
            if self.state is LinkState.ENDED:
                return
            if self._initiator is None and self.state is not LinkState.FRESH:
                self._held += items[index:]
                return
            if self.incoming is None:
                self._take(item, now)
                continue
            position, self._position = self._position, self._position + units(item)
            new = self.incoming.take(position, item, now)
            if new is not None:
                self._take(new, now)

    def _take(self, item: Item, now: float) -> None:
        if isinstance(item, Data):
            self._receive_data(item)
        else:
            self._receive_frame(item, now)

    def _receive_data(self, data: Data) -> None:
        if self.state is not LinkState.OPEN:
            self._step(FrameType.DATA, ours=False)
            self._count(data.frames)
        if not self.channels.receive_data(data):
            self._count(data.frames)

    def _receive_frame(self, frame: Frame, now: float) -> None:
        kind = _KIND[type(frame)]
        self._count(OPEN_COST if kind is FrameType.OPEN else 1)
        self._step(kind, ours=False)
        if isinstance(frame, Ping):
            self._pong = frame.token
        elif isinstance(frame, Pong):
            self.life.receive(frame.token, now)
        elif isinstance(frame, Proof):
            self.proof = frame
        elif isinstance(frame, Commit):
            self.commit = frame
            self.channels.receive_commit(frame.credit, now)
            self.incoming = None if frame.terms is None else Incoming()
        elif isinstance(frame, Ack):
            self._receive_ack(frame.position, now)
        elif isinstance(frame, GoAway):
            self.break_all(RemoteProtocolError("the peer ended the link"))
        elif isinstance(frame, Open):
            self.channels.receive_open(frame, now)
        elif isinstance(frame, Refuse) and self.state is LinkState.ENDED:
            self.refusal = frame
        else:
            if isinstance(frame, Accept) and not frame.channel and self.terms is not None:
                self._learn_terms(frame.terms, now)
            self.channels.receive_frame(frame, kind)

    def _learn_terms(self, terms: Terms | None, now: float) -> None:
        """What the responder offers, with its ACCEPT of our COMMIT."""
        if terms is None:
            self.terms = self.outgoing = self.incoming = None
        else:
            self.life.begin_acknowledged(now, responder=False)

    def _receive_ack(self, position: int, now: float) -> None:
        if self.outgoing is None:
            raise RemoteProtocolError("an ACK on a link that has none")
        was_full = self.outgoing.full
        if self.outgoing.acknowledge(position):
            self.life.acknowledged(now, all_of_it=position == self.outgoing.end)
        if was_full and not self.outgoing.full:
            self.channels.touch_all()

    # -- ends and timers ---------------------------------------------------------------------------------------------

    def break_all(self, failure: Exception) -> None:
        """The Link is over: every direction that had not ended is broken by `failure`.  Idempotent."""
        self.state = LinkState.ENDED
        self.failure = self.failure or failure
        self.channels.break_all(failure)
        self._pong = None

    @property
    def deadline(self) -> float:
        """When `handle_timer` wants to be called."""
        if self.incoming is None or self._ack_due or self.state is not LinkState.OPEN:
            return self.life.deadline
        return min(self.life.deadline, self.incoming.deadline)

    def handle_timer(self, now: float) -> None:
        """Send a PING or an ACK where one is due; `life` says what became of the path."""
        if self.life.judge(now) and self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
            self._say(Ping(token=self.life.ask(now)))
        if self.incoming is not None and self.incoming.ack_due(now):
            self._ack_due = self.state is LinkState.OPEN


def _roles(*, dialler: bool, initiator: bool | None) -> dict[bool, frozenset[Role]]:
    """The roles of the peer (False) and ours (True)."""
    found: dict[bool, frozenset[Role]] = {}
    for ours in (False, True):
        roles = {Role.DIALLER if dialler is ours else Role.LISTENER}
        if initiator is not None:
            roles.add(Role.INITIATOR if initiator is ours else Role.RESPONDER)
        found[ours] = frozenset(roles)
    return found


_KIND: Final[dict[type, FrameType]] = {
    Proof: FrameType.PROOF,
    Commit: FrameType.COMMIT,
    Accept: FrameType.ACCEPT,
    Refuse: FrameType.REFUSE,
    Open: FrameType.OPEN,
    Credit: FrameType.CREDIT,
    Fin: FrameType.FIN,
    Reset: FrameType.RESET,
    Ping: FrameType.PING,
    Pong: FrameType.PONG,
    GoAway: FrameType.GOAWAY,
    Ack: FrameType.ACK,
}
