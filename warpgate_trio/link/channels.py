"""The channels of one Link and their credit, without I/O: what the frames about them do, and which frames answer them.

Credit is the flow control of a channel.  A sender may send up to an absolute offset.  The receiver raises it when the
*application* has read, so at most one window waits for a reader that stops.  A window doubles if half of it is used up
within two round trips: then the window, not the path, limits the speed.  A channel whose sender exceeds its limit is
reset.

Frames for channels that have ended are ignored on purpose: the two sides' ends cross on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, final

from ..errors import LocalProtocolError, PeerAborted, RemoteProtocolError
from .channel import LOOSE_PIECES, Channel
from .frames import Accept, Credit, Data, Fin, Frame, FrameType, Open, Refuse, RefuseReason, Reset, ResetCode
from .states import DirectionState, next_direction_state

__all__ = ["EARLY_DATA_LIMIT", "ChannelOpened", "Channels"]

WINDOW_MIN: Final = 1024 * 1024
"""Bytes of a channel's first window, unless there are many channels."""
WINDOW_MAX: Final = 8 * 1024 * 1024
"""Bytes up to which a window doubles, while half of it is used up within two round trips."""
WINDOWS_TOTAL: Final = 64 * 1024 * 1024
"""Bytes that one peer can make this side hold: all windows of a Link, and unread data of ended channels."""
WINDOW_FLOOR: Final = 32 * 1024
"""Bytes kept free for each channel that may still be opened: for `MAX_CHANNELS` that is half of `WINDOWS_TOTAL`."""
MAX_CHANNELS: Final = 1024
"""Channels alive at once on a Link: bounds what a peer can make us remember.  A browser or a connection pool has
hundreds of connections, and each forwarded one is a channel."""
EARLY_DATA_LIMIT: Final = 64 * 1024
"""Bytes that may follow a COMMIT before it is accepted: a responder holds them until it has decided.  Behind an OPEN
the limit is `WINDOW_FLOOR`, for which every channel has room."""


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """The peer asks for a further Pipe: answer with `LinkProtocol.accept_channel` or `refuse_channel`."""

    channel: Channel


@final
# long: what every frame about a channel does to it, and how its credit is granted
class Channels(Mapping[int, Channel]):
    """The channels that are alive, by number; `LinkProtocol` has the Link's own state.

    Args:
      say: puts a frame into the Link's outbox.

    Attributes:
      initiator: whether this side called, which decides whose channels have odd numbers; None: not known yet.
      credits: limits that `take_credits` will return, by channel.
      opened: OPENs that `take_opened` will return.
      may_be_early: whether the peer takes DATA before it has answered the OPEN.
      ended: channels that have ended in both directions but were not closed here: no more than the application holds.
      sent_before, received_before: bytes on channels that are no longer alive.
    """

    def __init__(self, say: Callable[[Frame], object], *, initiator: bool | None) -> None:
        self.initiator = initiator
        self._say = say
        self._alive: dict[int, Channel] = {}
        self.ended: dict[int, Channel] = {}
        self.credits: dict[int, int] = {}
        self._touched: list[Channel] = []
        self.opened: list[ChannelOpened] = []
        self.may_be_early = False
        self._next_id = 0
        self._highest_theirs = 0
        self._windows = 0
        self.sent_before: int = 0
        self.received_before: int = 0

    def __getitem__(self, number: int) -> Channel:
        return self._alive[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._alive)

    def __len__(self) -> int:
        return len(self._alive)

    # -- the main channel --------------------------------------------------------------------------------------------

    def commit(self, now: float) -> Channel:
        """Make the initiator's main channel, which may carry `EARLY_DATA_LIMIT` bytes at once."""
        channel = self._add(0, "", window=WINDOW_MIN, receive_limit=WINDOW_MIN, now=now)
        channel.outgoing, channel.send_limit = DirectionState.FLOWING, EARLY_DATA_LIMIT
        self._next_id = 1
        return channel

    def receive_commit(self, credit: int, now: float) -> None:
        """Make the responder's main channel, which takes early data."""
        channel = self._add(0, "", window=WINDOW_MIN, receive_limit=EARLY_DATA_LIMIT, now=now)
        channel.incoming = DirectionState.FLOWING
        channel.send_limit = credit
        self._next_id = 2

    def accept_commit(self, now: float) -> Channel:
        """Accept the COMMIT.  Returns the responder's main channel, with the early data in it."""
        channel = self._alive[0]
        channel.outgoing = DirectionState.FLOWING
        channel.accepted = True
        channel.receive_limit = channel.received + channel.window
        channel.granted_at = now
        return channel

    # -- our part ----------------------------------------------------------------------------------------------------

    def open(self, label: str, now: float) -> Channel:
        """Ask for a further channel.  Raises `LocalProtocolError` when there is no room for it."""
        window = self._first_window()
        if not window:
            raise LocalProtocolError("this link has no room for a further pipe; close another one first")
        number = self._next_id or 2
        self._next_id = number + 2
        channel = self._add(number, label, window=window, receive_limit=window, now=now)
        if self.may_be_early:
            channel.outgoing, channel.send_limit = DirectionState.FLOWING, WINDOW_FLOOR
        self._say(Open(channel=number, credit=channel.receive_limit, label=label))
        return channel

    def accept(self, channel: Channel) -> None:
        """Accept the peer's OPEN."""
        if channel.done:  # closed again before it was answered
            return
        channel.outgoing = DirectionState.FLOWING
        channel.accepted = True
        self._say(Accept(channel=channel.id, credit=channel.receive_limit))

    def refuse(self, channel: Channel, reason: RefuseReason) -> None:
        """Refuse the peer's OPEN."""
        channel.outgoing = channel.incoming = DirectionState.ABANDONED
        self._forget(channel)
        self._say(Refuse(channel=channel.id, reason=reason))

    def finish(self, channel: Channel) -> None:
        """Half-close: no more data from us.  Idempotent; does nothing if that direction has ended otherwise."""
        if channel.outgoing is DirectionState.FLOWING:
            channel.outgoing = next_direction_state(channel.outgoing, FrameType.FIN, ours=True)
            self._say(Fin(channel=channel.id, final_offset=channel.sent))
            self._forget_if_done(channel)

    def close(self, channel: Channel, *, abort: bool, link_over: bool) -> None:
        """Close both directions: FIN for our data, RESET if the peer could still send.  Idempotent.

        With `abort` our data is incomplete: RESET without a FIN.  With `link_over` nothing is sent.
        """
        if channel.closed_here:
            return
        channel.closed_here = True
        self.ended.pop(channel.id, None)
        channel.drop()
        if link_over:
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
        self.credits.pop(channel.id, None)
        self._say(Reset(channel=channel.id, code=code))
        self._forget_if_done(channel)

    # -- credit ------------------------------------------------------------------------------------------------------

    def grant(self, channel: Channel, size: int, now: float, *, rtt: float | None) -> None:
        """The application has read `size` bytes: give the sender new credit when half a window is used up."""
        if channel.incoming is not DirectionState.FLOWING:
            if channel.done:
                self._release(channel, size)
            return
        if channel.receive_limit - channel.consumed > channel.window // 2:
            return
        if (
            rtt is not None
            and now - channel.granted_at < 2 * rtt
            and channel.window < WINDOW_MAX
            and channel.window <= self._spare()
        ):
            self._windows += channel.window
            channel.window *= 2
        channel.granted_at = now
        channel.receive_limit = channel.consumed + channel.window
        self.credits[channel.id] = channel.receive_limit

    def take_credits(self) -> list[Credit]:
        """The CREDIT frames to send now: for each channel only the latest limit."""
        due, self.credits = self.credits, {}
        return [Credit(channel=number, limit=limit) for number, limit in due.items()]

    def _spare(self) -> int:
        """Bytes that windows may still take, apart from the floor of every channel that may still be opened."""
        return WINDOWS_TOTAL - self._windows - WINDOW_FLOOR * (MAX_CHANNELS - len(self._alive))

    def _first_window(self) -> int:
        """The window of one more channel; 0 when there is no room for it."""
        if len(self._alive) >= MAX_CHANNELS:
            return 0
        if self._spare() + WINDOW_FLOOR >= WINDOW_MIN:
            return WINDOW_MIN
        return WINDOW_FLOOR if self._windows + WINDOW_FLOOR <= WINDOWS_TOTAL else 0

    def _add(self, number: int, label: str, *, window: int, receive_limit: int, now: float) -> Channel:
        channel = Channel(number, label, window=window, receive_limit=receive_limit, now=now)
        self._windows += window
        self._alive[number] = channel
        return channel

    def _forget(self, channel: Channel) -> None:
        if not channel.accepted:
            channel.drop()  # nobody will read the early data
        if self._alive.pop(channel.id, None) is not None:
            self.sent_before += channel.sent
            self.received_before += channel.received
            self._release(channel, channel.window - channel.buffered)  # the rest is released as it is read
            self.credits.pop(channel.id, None)
            if channel.accepted and not channel.closed_here:
                self.ended[channel.id] = channel

    def _release(self, channel: Channel, size: int) -> None:
        channel.window -= size
        self._windows -= size

    def _forget_if_done(self, channel: Channel) -> None:
        if channel.done:
            self._forget(channel)

    # -- the peer's part ---------------------------------------------------------------------------------------------

    def receive_data(self, data: Data) -> bool:
        """Take DATA.  Returns False if no open channel takes it, so that no credit pays for it."""
        channel = self._alive.get(data.channel)
        if channel is None:
            self._check_was_open(data.channel)
            return False
        if channel.incoming is not DirectionState.FLOWING:
            channel.incoming = next_direction_state(channel.incoming, FrameType.DATA, ours=False)
            return False
        channel.received += data.size
        if channel.received > channel.receive_limit:
            if not channel.accepted:
                raise RemoteProtocolError(f"more than {channel.receive_limit} bytes of early data")
            channel.failure = RemoteProtocolError("the peer sent more than it had credit for")
            self._abandon(channel, ResetCode.OVERRUN)
        else:
            channel.buffer.extend(data.pieces)
            channel.buffered += data.size
            if len(channel.buffer) > LOOSE_PIECES:
                channel.compact()
        self._touched.append(channel)
        return True

    def receive_open(self, frame: Open, now: float) -> None:
        """Take the peer's OPEN: it waits in `take_opened`, or is refused if there is no room."""
        number = frame.channel
        if number == 0 or (number % 2 == 1) is bool(self.initiator) or number <= self._highest_theirs:
            raise RemoteProtocolError(f"OPEN of channel {number}: not a valid new channel number for the peer")
        self._highest_theirs = number
        window = self._first_window()
        if not window:
            self._say(Refuse(channel=number, reason=RefuseReason.BUSY))
            return
        channel = self._add(number, frame.label, window=window, receive_limit=window, now=now)
        channel.send_limit = frame.credit
        channel.incoming = DirectionState.FLOWING
        self.opened.append(ChannelOpened(channel))
        if len(self.opened) > 2 * MAX_CHANNELS:  # forget those that the peer has closed while we decide
            self.opened = self.take_opened()

    def receive_frame(self, frame: Accept | Refuse | Credit | Fin | Reset, kind: FrameType) -> None:
        """Take a frame about one channel."""
        channel = self._alive.get(frame.channel)
        if channel is None:
            self._check_was_open(frame.channel)
            if isinstance(frame, Reset) and frame.code == ResetCode.ABORTED and frame.channel in self.ended:
                # The peer aborted before our FIN came, so it did not get all of our data, even if it sent a FIN.
                self.ended[frame.channel].failure = _reset_failure(frame.code)
            return
        if isinstance(frame, (Accept, Refuse)):
            ours = channel.id == 0 or (channel.id % 2 == 1) is bool(self.initiator)
            if channel.accepted or not ours:
                raise RemoteProtocolError(f"{kind.name} of channel {channel.id} without a pending OPEN")
        if isinstance(frame, Accept):
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
                raise RemoteProtocolError(f"FIN at offset {frame.final_offset}, but {channel.received} bytes came")
        else:
            channel.failure = channel.failure or _reset_failure(frame.code)
            channel.outgoing = next_direction_state(channel.outgoing, FrameType.RESET, ours=False)
            channel.incoming = next_direction_state(channel.incoming, FrameType.RESET, ours=False)
        self._touched.append(channel)
        self._forget_if_done(channel)

    def _check_was_open(self, number: int) -> None:
        """Check a frame for an unknown channel: raises `RemoteProtocolError` if the channel was never opened."""
        ours = number != 0 and (number % 2 == 1) is bool(self.initiator)
        highest = (self._next_id or 2) - 2 if ours else self._highest_theirs
        if number > highest:
            raise RemoteProtocolError(f"a frame for channel {number}, which was never opened")

    def take_touched(self) -> list[Channel]:
        """Channels that have changed since the last call; a channel may occur more than once."""
        touched, self._touched = self._touched, []
        return touched

    def touch_all(self) -> None:
        """Mark every channel as changed."""
        self._touched.extend(self._alive.values())

    def take_opened(self) -> list[ChannelOpened]:
        """OPENs of the peer to answer, except those whose channel the peer has closed again."""
        opened, self.opened = self.opened, []
        return [each for each in opened if not each.channel.done]

    def break_all(self, failure: Exception) -> None:
        """Break every direction that has not ended, by `failure`."""
        for channel in list(self._alive.values()):
            for direction in ("outgoing", "incoming"):
                if getattr(channel, direction) in (DirectionState.FLOWING, DirectionState.IDLE):
                    setattr(channel, direction, DirectionState.ABANDONED)
                    channel.failure = channel.failure or failure
            self._touched.append(channel)
        self._alive.clear()
        self.ended.clear()
        self.credits.clear()


def _reset_failure(code: int) -> Exception:
    """The exception that users of a channel get after a RESET of the peer."""
    if code == ResetCode.ABORTED:
        return PeerAborted("the peer aborted it")
    reason = "closed its end" if code == ResetCode.CLOSED else f"reset the channel (code {code})"
    return RemoteProtocolError(f"the peer {reason}")
