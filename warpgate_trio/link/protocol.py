"""The session between two peers on one carrier, without I/O: plaintext and ``now`` in, events and control frames out.

`LinkProtocol` owns the Link's state, its channels and their credit.  The shell around it (`warpgate_trio.link.link`)
owns the carrier: it feeds what it reads to `receive`, sends what `transmit` hands out, calls `handle_timer` at
`deadline`, and puts DATA on the carrier itself after `note_data_sent`, so that payload is never copied here.

Credit.  A sender may go up to an absolute offset; the receiver moves it when the *application* has read, so a reader
that stops holds at most one window.  One of which a half is used up within two round trips doubles: then it, not the
path, limits the speed.  Who sends past its limit has its channel reset.

What is ignored on purpose: frames of channels that ended, because the two sides' ends cross on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from ..errors import LocalProtocolError, PeerAborted, RemoteProtocolError
from .budget import OPEN_COST, FrameBudget
from .channel import LOOSE_PIECES, Channel
from .frames import (
    Accept,
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
    ResetCode,
    encode,
    padding,
)
from .liveness import Liveness
from .states import DirectionState, LinkState, Role, next_direction_state, next_link_state

__all__ = ["EARLY_DATA_LIMIT", "ChannelOpened", "LinkProtocol"]

WINDOW_MIN: Final = 1024 * 1024
"""Bytes of a channel's first window, where there are not many channels."""
WINDOW_MAX: Final = 8 * 1024 * 1024
"""Bytes up to which a window doubles, while a half of it is used up within two round trips."""
WINDOWS_TOTAL: Final = 64 * 1024 * 1024
"""Bytes that one peer can make this side hold: all windows of a Link, and what ended channels still hold unread."""
WINDOW_FLOOR: Final = 128 * 1024
"""Bytes kept free for every channel that is still to come: `MAX_CHANNELS` of them are half of `WINDOWS_TOTAL`."""
MAX_CHANNELS: Final = 256
"""Channels alive at once on a Link: bounds what a peer can make us remember."""
EARLY_DATA_LIMIT: Final = 64 * 1024
"""Bytes that may ride behind a COMMIT before it is accepted: a responder holds them until it has decided."""
MAX_OUTBOX: Final = 2048
"""Control frames that wait for a peer that makes us answer but does not read: beyond this it is hostile or dead."""


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """The peer asks for a further Pipe: answer with `LinkProtocol.accept_channel` or `refuse_channel`."""

    channel: Channel


@final
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
        self, *, dialler: bool, initiator: bool | None, now: float, idle_interval: float, padded: bool = False
    ) -> None:
        self.state: LinkState = LinkState.FRESH
        self.channels: dict[int, Channel] = {}
        self._ended: dict[int, Channel] = {}  # both directions, and not closed here: no more than the application holds
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
        self._outbox: list[bytes] = []
        self._credits: dict[int, int] = {}
        self._pong: int | None = None
        self._touched: list[Channel] = []
        self._opened: list[ChannelOpened] = []
        self._next_id = 0
        self._highest_theirs = 0
        self._windows = 0
        self.liveness: Final = Liveness(now, interval=idle_interval)

    # -- roles and state ---------------------------------------------------------------------------------------------

    def set_role(self, *, initiator: bool, now: float) -> None:
        """Settle who called, once a listener has read the PROOF and looked its session up.

        What came right behind the PROOF waited for this, since the table cannot judge it before; so this raises what
        `receive` raises.
        """
        if self._initiator is not None and self._initiator is not initiator:
            raise LocalProtocolError("the session's roles are settled already")
        self._initiator = initiator
        self._roles = _roles(dialler=self._dialler, initiator=initiator)
        held, self._held = self._held, []
        self._take_items(held, now)

    def _step(self, kind: FrameType, *, ours: bool) -> None:
        self.state = next_link_state(self.state, self._roles[ours], kind, ours=ours)

    # -- handshake, our part -----------------------------------------------------------------------------------------

    def send_proof(self, proof: Proof) -> None:
        self._step(FrameType.PROOF, ours=True)
        self.proof = proof
        self._say_first(encode(proof))

    def send_commit(self, *, session_id: bytes, link_id: bytes, epoch: int, now: float) -> Channel:
        """Choose this carrier; the main channel may carry `EARLY_DATA_LIMIT` bytes at once.

        `silence` counts from here on: a carrier that waited for its turn was not asked for signs of life.
        """
        self._step(FrameType.COMMIT, ours=True)
        self.liveness.begin(now)
        channel = self._add_channel(0, "", window=WINDOW_MIN, receive_limit=WINDOW_MIN, now=now)
        channel.outgoing, channel.send_limit = DirectionState.FLOWING, EARLY_DATA_LIMIT
        self._next_id = 1
        self.commit = Commit(session_id=session_id, link_id=link_id, epoch=epoch, credit=channel.receive_limit)
        self._say_first(encode(self.commit))
        return channel

    def send_accept(self, *, now: float) -> Channel:
        """Take the COMMIT; returns the main channel, with the early data in it."""
        self._answer_commit(FrameType.ACCEPT)
        channel = self.channels[0]
        channel.outgoing = DirectionState.FLOWING
        channel.accepted = True
        channel.receive_limit = channel.received + channel.window
        channel.granted_at = now
        self._say_first(encode(Accept(channel=0, credit=channel.receive_limit)))
        return channel

    def _say_first(self, frame: bytes) -> None:
        """A frame of the handshake, the first one behind the padding: the stream is in order."""
        self._outbox += [self._padding, frame] if self._padding else [frame]
        self._padding = b""

    def send_refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Say no to the session; the Link ends."""
        self._answer_commit(FrameType.REFUSE)
        self._outbox.append(encode(Refuse(channel=0, reason=reason, text=text)))

    def _answer_commit(self, kind: FrameType) -> None:
        if self.state is LinkState.OPEN:  # where the table knows the same frames as answers to an OPEN
            raise LocalProtocolError(f"{kind.name} of a commit that was answered before")
        self._step(kind, ours=True)

    def send_go_away(self) -> None:
        """The last frame of this side; a no-op where there is nobody to tell."""
        if self.state in (LinkState.PROVEN, LinkState.COMMITTED, LinkState.OPEN):
            self._step(FrameType.GOAWAY, ours=True)
            self._outbox.append(encode(GoAway()))

    def send_ping(self, now: float) -> None:
        """Ask for a sign of life, which also measures the round trip; one question at a time."""
        if not self.liveness.asking and self.state is not LinkState.FRESH and self.state is not LinkState.ENDED:
            self._outbox.append(encode(Ping(token=self.liveness.ask(now))))

    def ask(self, now: float) -> int:
        """A PING on somebody's behalf, whatever else is under way; `Liveness.answered` reaches the returned token.

        The peer answers in order, so by then it has read everything that was sent before.
        """
        self._step(FrameType.PING, ours=True)
        token = self.liveness.ask(now)
        self._outbox.append(encode(Ping(token=token)))
        return token

    # -- channels, our part ------------------------------------------------------------------------------------------

    def open_channel(self, label: str, *, now: float) -> Channel:
        """Ask for a further Pipe.  Raises `LocalProtocolError` when the Link is not open or has no room for it."""
        self._step(FrameType.OPEN, ours=True)
        window = self._first_window()
        if not window:
            raise LocalProtocolError("this link has no room for a further channel")
        number = self._next_id or 2
        self._next_id = number + 2
        channel = self._add_channel(number, label, window=window, receive_limit=window, now=now)
        self._outbox.append(encode(Open(channel=number, credit=channel.receive_limit, label=label)))
        return channel

    def accept_channel(self, channel: Channel) -> None:
        if channel.done:  # closed again before it was answered
            return
        channel.outgoing = channel.incoming = DirectionState.FLOWING
        channel.accepted = True
        self._outbox.append(encode(Accept(channel=channel.id, credit=channel.receive_limit)))

    def refuse_channel(self, channel: Channel, reason: RefuseReason) -> None:
        channel.outgoing = channel.incoming = DirectionState.ABANDONED
        self._forget(channel)
        self._outbox.append(encode(Refuse(channel=channel.id, reason=reason)))

    def note_data_sent(self, channel: Channel, size: int) -> None:
        """Account for a DATA frame that the shell puts on the carrier now."""
        if size > channel.sendable:
            raise LocalProtocolError("more data than credit")
        channel.sent += size

    def finish(self, channel: Channel) -> None:
        """Half-close: no more data from us.  Idempotent, and silent where that direction has ended otherwise."""
        if channel.outgoing is DirectionState.FLOWING:
            channel.outgoing = next_direction_state(channel.outgoing, FrameType.FIN, ours=True)
            self._outbox.append(encode(Fin(channel=channel.id, final_offset=channel.sent)))
            self._forget_if_done(channel)

    def close_channel(self, channel: Channel, *, abort: bool = False) -> None:
        """Both ends: FIN where our data is whole, RESET where the peer could still send.  Idempotent.

        With `abort` our data is not whole: RESET without a FIN.
        """
        if channel.closed_here:
            return
        channel.closed_here = True
        self._ended.pop(channel.id, None)
        channel.buffer.clear()
        channel.buffered = 0
        if self.state is LinkState.ENDED:
            return
        if channel.done:
            self._release(channel, channel.window)
            return
        if abort:
            self._abandon(channel, ResetCode.ABORTED)
            return
        self.finish(channel)
        if channel.incoming in (DirectionState.FLOWING, DirectionState.IDLE):
            self._abandon(channel, ResetCode.CLOSED)

    def _abandon(self, channel: Channel, code: ResetCode) -> None:
        channel.incoming = next_direction_state(channel.incoming, FrameType.RESET, ours=True)
        if channel.outgoing in (DirectionState.FLOWING, DirectionState.IDLE):
            channel.outgoing = next_direction_state(channel.outgoing, FrameType.RESET, ours=True)
        self._credits.pop(channel.id, None)
        self._outbox.append(encode(Reset(channel=channel.id, code=code)))
        self._forget_if_done(channel)

    def note_read(self, channel: Channel, size: int, now: float) -> None:
        """The application read `size` bytes: give the sender credit again when half a window is used up."""
        channel.consumed += size
        if self.state is not LinkState.OPEN:
            return
        if channel.incoming is not DirectionState.FLOWING:
            if channel.done:
                self._release(channel, size)
            return
        if channel.receive_limit - channel.consumed > channel.window // 2:
            return
        if (
            (rtt := self.liveness.rtt) is not None
            and now - channel.granted_at < 2 * rtt
            and channel.window < WINDOW_MAX
            and channel.window <= self._spare()
        ):
            self._windows += channel.window
            channel.window *= 2
        channel.granted_at = now
        channel.receive_limit = channel.consumed + channel.window
        self._credits[channel.id] = channel.receive_limit

    def _spare(self) -> int:
        """What windows may still take once every channel to come has its floor."""
        return WINDOWS_TOTAL - self._windows - WINDOW_FLOOR * (MAX_CHANNELS - len(self.channels))

    def _first_window(self) -> int:
        """The window of one more channel; 0 when there is no room for it."""
        if len(self.channels) >= MAX_CHANNELS:
            return 0
        if self._spare() + WINDOW_FLOOR >= WINDOW_MIN:
            return WINDOW_MIN
        return WINDOW_FLOOR if self._windows + WINDOW_FLOOR <= WINDOWS_TOTAL else 0

    def _add_channel(self, number: int, label: str, *, window: int, receive_limit: int, now: float) -> Channel:
        channel = Channel(number, label, window=window, receive_limit=receive_limit, now=now)
        self._windows += window
        self.channels[number] = channel
        return channel

    def _forget(self, channel: Channel) -> None:
        if self.channels.pop(channel.id, None) is not None:
            self._release(channel, channel.window - channel.buffered)  # the rest as it is read
            self._credits.pop(channel.id, None)
            if channel.accepted and not channel.closed_here:
                self._ended[channel.id] = channel

    def _release(self, channel: Channel, size: int) -> None:
        channel.window -= size
        self._windows -= size

    def _forget_if_done(self, channel: Channel) -> None:
        if channel.done:
            self._forget(channel)

    # -- the outbox --------------------------------------------------------------------------------------------------

    @property
    def has_outbox(self) -> bool:
        """Whether `transmit` has anything."""
        return bool(self._outbox or self._credits or self._pong is not None)

    def transmit(self, now: float) -> bytes:
        """Every control frame that is to be sent, in order; they go out before the next DATA."""
        frames = self._outbox
        self._outbox = []
        if self._pong is not None:
            frames.append(encode(Pong(token=self._pong)))
            self._pong = None
        if self._credits:
            frames += [encode(Credit(channel=number, limit=limit)) for number, limit in self._credits.items()]
            self._credits.clear()
        return b"".join(frames)

    # -- input -------------------------------------------------------------------------------------------------------

    def receive(self, pieces: list[bytes], now: float) -> None:
        """Take plaintext from the carrier.  What it changed is in `take_touched` and `take_opened`.

        Raises:
          RemoteProtocolError: the peer broke the protocol; the Link is over and its carrier must be closed.
        """
        self.liveness.heard(now)
        self._budget.earn(now)
        items = self._reader.feed(pieces)
        silent, self._reader.silent = self._reader.silent, 0
        self._count(silent)
        self._take_items(items, now)
        if len(self._outbox) > MAX_OUTBOX:
            raise RemoteProtocolError("the peer makes us answer but does not read the answers")

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
            if isinstance(item, Data):
                self._receive_data(item)
            else:
                self._receive_frame(item, now)

    def _receive_data(self, data: Data) -> None:
        if self.state is not LinkState.OPEN:
            self._step(FrameType.DATA, ours=False)
            self._count(data.frames)
        channel = self.channels.get(data.channel)
        if channel is None:
            self._check_was_open(data.channel)
            self._count(data.frames)
            return
        if channel.incoming is not DirectionState.FLOWING:
            self._count(data.frames)
            channel.incoming = next_direction_state(channel.incoming, FrameType.DATA, ours=False)
            return
        channel.received += data.size
        if channel.received > channel.receive_limit:
            if not channel.accepted:
                raise RemoteProtocolError(f"more than {EARLY_DATA_LIMIT} bytes of early data")
            channel.failure = RemoteProtocolError("the peer sent more than it had credit for")
            self._abandon(channel, ResetCode.OVERRUN)
        else:
            channel.buffer.extend(data.pieces)
            channel.buffered += data.size
            if len(channel.buffer) > LOOSE_PIECES:
                channel.compact()
        self._touched.append(channel)

    def _check_was_open(self, number: int) -> None:
        """A frame for a channel that we do not know: fine if it ended, an error if it never was."""
        ours = number != 0 and (number % 2 == 1) is bool(self._initiator)
        highest = (self._next_id or 2) - 2 if ours else self._highest_theirs
        if number > highest:
            raise RemoteProtocolError(f"a frame for channel {number}, which was never opened")

    def _receive_frame(self, frame: Frame, now: float) -> None:
        kind = _KIND[type(frame)]
        self._count(OPEN_COST if kind is FrameType.OPEN else 1)
        self._step(kind, ours=False)
        if isinstance(frame, Ping):
            self._pong = frame.token
        elif isinstance(frame, Pong):
            self.liveness.receive(frame.token, now)
        elif isinstance(frame, Proof):
            self.proof = frame
        elif isinstance(frame, Commit):
            self._on_commit(frame, now)
        elif isinstance(frame, GoAway):
            self.break_all(RemoteProtocolError("the peer ended the link"))
        elif isinstance(frame, Open):
            self._on_open(frame, now)
        elif isinstance(frame, Refuse) and self.state is LinkState.ENDED:
            self.refusal = frame
        else:
            self._on_channel_frame(frame, kind)

    def _on_commit(self, frame: Commit, now: float) -> None:
        self.commit = frame
        channel = self._add_channel(0, "", window=WINDOW_MIN, receive_limit=EARLY_DATA_LIMIT, now=now)
        channel.incoming = DirectionState.FLOWING
        channel.send_limit = frame.credit
        self._next_id = 2

    def _on_open(self, frame: Open, now: float) -> None:
        number = frame.channel
        if number == 0 or (number % 2 == 1) is bool(self._initiator) or number <= self._highest_theirs:
            raise RemoteProtocolError(f"OPEN of channel {number}, which is not the peer's next one")
        self._highest_theirs = number
        window = self._first_window()
        if not window:
            self._outbox.append(encode(Refuse(channel=number, reason=RefuseReason.BUSY)))
            return
        channel = self._add_channel(number, frame.label, window=window, receive_limit=window, now=now)
        channel.send_limit = frame.credit
        self._opened.append(ChannelOpened(channel))
        if len(self._opened) > 2 * MAX_CHANNELS:  # whoever takes its OPENs back while we decide
            self._opened = self.take_opened()

    def _on_channel_frame(self, frame: Accept | Refuse | Credit | Fin | Reset, kind: FrameType) -> None:
        channel = self.channels.get(frame.channel)
        if channel is None:
            self._check_was_open(frame.channel)
            if isinstance(frame, Reset) and frame.code == ResetCode.ABORTED and frame.channel in self._ended:
                # Our FIN had not come to it: it did not get all, whatever it said of its own direction.
                self._ended[frame.channel].failure = _reset_failure(frame.code)
            return
        if isinstance(frame, Accept):
            ours = channel.id == 0 or (channel.id % 2 == 1) is bool(self._initiator)
            if channel.accepted or not ours:
                raise RemoteProtocolError(f"ACCEPT of channel {channel.id}, which nobody asked for")
            channel.accepted = True
            channel.incoming = next_direction_state(channel.incoming, kind, ours=False)
            if channel.outgoing is DirectionState.IDLE:
                channel.outgoing = next_direction_state(channel.outgoing, kind, ours=False)
            channel.send_limit = max(channel.send_limit, frame.credit)
        elif isinstance(frame, Refuse):
            channel.refusal = frame
            channel.outgoing = next_direction_state(channel.outgoing, kind, ours=False)
            channel.incoming = next_direction_state(channel.incoming, kind, ours=False)
        elif isinstance(frame, Credit):
            channel.outgoing = next_direction_state(channel.outgoing, kind, ours=False)
            channel.send_limit = max(channel.send_limit, frame.limit)
        elif isinstance(frame, Fin):
            channel.incoming = next_direction_state(channel.incoming, kind, ours=False)
            if channel.incoming is DirectionState.FINISHED and frame.final_offset != channel.received:
                raise RemoteProtocolError(f"FIN at {frame.final_offset} after {channel.received} bytes")
        else:
            self._on_reset(channel, frame)
        self._touched.append(channel)
        self._forget_if_done(channel)

    def _on_reset(self, channel: Channel, frame: Reset) -> None:
        channel.failure = channel.failure or _reset_failure(frame.code)
        channel.outgoing = next_direction_state(channel.outgoing, FrameType.RESET, ours=False)
        channel.incoming = next_direction_state(channel.incoming, FrameType.RESET, ours=False)

    def take_touched(self) -> list[Channel]:
        """Channels about which anything changed since the last call; one may be named more than once."""
        touched, self._touched = self._touched, []
        return touched

    @property
    def has_opened(self) -> bool:
        """Whether an OPEN of the peer waits for its answer."""
        return bool(self._opened)

    def take_opened(self) -> list[ChannelOpened]:
        """What to answer; who took its OPEN back at once wants no answer any more."""
        opened, self._opened = self._opened, []
        return [each for each in opened if not each.channel.done]

    # -- ends and timers ---------------------------------------------------------------------------------------------

    def break_all(self, failure: Exception) -> None:
        """The Link is over: every direction that had not ended is broken by `failure`.  Idempotent."""
        self.state = LinkState.ENDED
        self.failure = self.failure or failure
        for channel in list(self.channels.values()):
            for direction in ("outgoing", "incoming"):
                if getattr(channel, direction) in (DirectionState.FLOWING, DirectionState.IDLE):
                    setattr(channel, direction, DirectionState.ABANDONED)
                    channel.failure = channel.failure or failure
            self._touched.append(channel)
        self.channels.clear()
        self._ended.clear()
        self._credits.clear()
        self._pong = None

    @property
    def deadline(self) -> float:
        """When `handle_timer` wants to be called; infinity once the peer is lost."""
        return self.liveness.deadline

    def handle_timer(self, now: float) -> None:
        """Send a PING where one is due; `Liveness.lost` where the peer has missed too many."""
        if now >= self.deadline:
            self.liveness.handle_timer(now)
            if not self.liveness.lost:
                self.send_ping(now)


def _reset_failure(code: int) -> Exception:
    """What a RESET of the peer means to whoever uses the channel."""
    if code == ResetCode.ABORTED:
        return PeerAborted("the peer aborted it")
    reason = "closed its end" if code == ResetCode.CLOSED else f"reset the channel (code {code})"
    return RemoteProtocolError(f"the peer {reason}")


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
}
