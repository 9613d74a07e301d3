"""Judges opened messages by their time, by whether they are new, and by their sender's rate.  No I/O, no clock.

Theory of operation.  A message that starts something is stamped by its sender, and accepted within ±300 s of our time.
A message that answers one of ours is accepted because it names that one's id, for two minutes.  Neither is accepted
twice: `warpgate_trio.signal.replays` says how, and defines our time.

Clocks are often wrong.  So a message outside the window, or from before our start, is answered with our time: once per
sender and ten seconds, if the sender is one that we answer at all.  The sender then corrects the stamps of what it
sends *to us*.  Such a correction holds between two peers only: a peer that lies about its clock harms only its own
conversation.

Anybody who can seal to us can also invent senders.  So the total rate of unknown senders is bounded, for each channel
separately, and they never get the last quarter of the table of ids: a flood of theirs does not shut out known senders.
All tables are bounded.  A full table of ids refuses new messages rather than forget old ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import msgspec

from ..limits import BoundedMap, TokenBucket, TokenBuckets
from .core import OWNER, ClockReply
from .message import Header, wire_name
from .replays import ANSWER_TIME, Moment, Replays

__all__ = [
    "Accepted",
    "Inbox",
    "InboxLimits",
    "Judgement",
    "OutsideWindow",
    "Overloaded",
    "PeerClocks",
    "RateLimited",
    "Replayed",
    "TooOld",
    "Unasked",
]

CLOCK_REPLY_INTERVAL = 10.0
"""Seconds between two clock replies to one sender: one is enough, and a second one replaces one that was lost."""
_CHANNELS = 64  # Channels for which unknown senders are counted; a node has a handful.
_PEERS = 4096  # Peers with a clock correction, a sent id, or a bucket; the least recently used are forgotten.

_CLOCK = wire_name(OWNER, ClockReply)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxLimits:
    """Rates are messages per second, sustained; bursts are messages at once.

    Attributes:
      rate: signals opened in total: a tenth of a core at 0.18 ms for a genuine one; junk costs 54 µs.  Signals beyond
        that rate wait in their channel's queue, and are dropped when it is full.
      burst: signals opened at once: 50 ms.
      sender_rate: messages of one sender, counted once the sender is known.
      sender_burst: messages of one sender at once.
      stranger_rate: messages of all unknown senders together that are accepted by one channel.
      stranger_burst: messages of all unknown senders together that are accepted by one channel at once.
      clock_rate: our clock replies to all unknown senders together.
      ids: remembered message ids.  A quarter of them is reserved for known senders; the rest is more than the unknown
        senders of one channel fill in the 1,200 s for which an id is kept at most.
    """

    rate: float = 500.0
    burst: int = 250
    sender_rate: float = 30.0
    sender_burst: int = 60
    stranger_rate: float = 40.0
    stranger_burst: int = 100
    clock_rate: float = 20.0
    ids: int = 65_536

    @property
    def stranger_ids(self) -> int:
        """Remembered ids above which messages of unknown senders are refused."""
        return self.ids * 3 // 4


_DEFAULT_LIMITS = InboxLimits()


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@final
class Accepted(msgspec.Struct, frozen=True):
    """Fresh, new, and within the rates."""


@final
class Replayed(msgspec.Struct, frozen=True):
    """The id was seen before: another server delivered it too, or somebody replays it."""


@final
class RateLimited(msgspec.Struct, frozen=True):
    """This sender sends too much, or all unknown senders together do."""


@final
class TooOld(msgspec.Struct, frozen=True):
    """Stamped before this process started: whether it was seen before cannot be known."""

    needs_clock_reply: bool


@final
class OutsideWindow(msgspec.Struct, frozen=True):
    """Stamped more than 300 s from our clock."""

    needs_clock_reply: bool


@final
class Unasked(msgspec.Struct, frozen=True):
    """It answers a message that we have not sent to its sender, or have sent more than two minutes ago."""


@final
class Overloaded(msgspec.Struct, frozen=True):
    """No room to remember the id, so the message is refused."""


Judgement: TypeAlias = Accepted | Replayed | RateLimited | TooOld | OutsideWindow | Unasked | Overloaded


# --- Parts ------------------------------------------------------------------------------------------------------------


@final
class PeerClocks:
    """The peers' clocks, as known from their clock replies, and which peers were sent our own time.

    A peer's clock is kept as an offset to *our monotonic clock*, which changes of our wall clock do not affect.
    """

    def __init__(self) -> None:
        self._sent: BoundedMap[bytes, tuple[bytes, float]] = BoundedMap(_PEERS)
        self._ahead: BoundedMap[bytes, float] = BoundedMap(_PEERS)
        self._told: BoundedMap[bytes, float] = BoundedMap(_PEERS)

    def note_sent(self, message_id: bytes, peer: bytes, now: Moment) -> None:
        """We send `peer` (its key) a message: an answer to it is accepted for `ANSWER_TIME`."""
        self._sent.put(message_id, (peer, now.monotonic))

    def expects(self, peer: bytes, in_reply_to: bytes | None, now: Moment) -> bool:
        """Whether `in_reply_to` is the id of a message that we have sent to `peer` within `ANSWER_TIME`."""
        sent = self._sent.use(in_reply_to) if in_reply_to is not None else None
        return sent is not None and sent[0] == peer and 0.0 <= now.monotonic - sent[1] <= ANSWER_TIME

    def on_clock_reply(self, peer: bytes, in_reply_to: bytes | None, peer_time_ms: int, now: Moment) -> float | None:
        """Take the time that `peer` has replied.  Returns the seconds by which its clock is ahead of ours; None if the
        reply answers no message of ours.

        The peer's time is taken as that of the midpoint between our message and its reply.  Each message allows one
        reply.
        """
        if in_reply_to is None or not self.expects(peer, in_reply_to, now):
            return None
        sent = self._sent.pop(in_reply_to)
        assert sent is not None
        self._ahead.put(peer, peer_time_ms / 1000 - (sent[1] + now.monotonic) / 2)
        return self.time_of(peer, now) - now.wall

    def may_tell(self, peer: bytes, now: Moment) -> bool:
        """Whether `peer` was sent our time `CLOCK_REPLY_INTERVAL` ago or earlier, or never."""
        last = self._told.use(peer)
        return last is None or now.monotonic - last >= CLOCK_REPLY_INTERVAL

    def note_told(self, peer: bytes, now: Moment) -> None:
        """`peer` is sent our time."""
        self._told.put(peer, now.monotonic)

    def note_unheard(self, peer: bytes) -> None:
        """Our clock reply found nobody: a peer whose call came with its WebSocket request may not have registered yet.
        Its next message may be answered again."""
        self._told.pop(peer)

    def time_of(self, peer: bytes, now: Moment) -> float:
        """Unix seconds on the peer's clock; on ours if nothing is known of it."""
        ahead = self._ahead.use(peer)
        return now.wall if ahead is None else now.monotonic + ahead


@final
class Inbox:
    """Judges opened messages.  One per node, for all its channels.

    Args:
      started: when the process started.
      limits: rates and sizes.
      clocks: what we have sent, and the peers' clocks; shared with the `SignalSender`, which stamps what we send.
    """

    def __init__(
        self, started: Moment, limits: InboxLimits = _DEFAULT_LIMITS, clocks: PeerClocks | None = None
    ) -> None:
        self.clocks: PeerClocks = clocks if clocks is not None else PeerClocks()
        self.limits: InboxLimits = limits
        self._replays = Replays(started.monotonic)
        self._senders: TokenBuckets[bytes] = TokenBuckets(limits.sender_rate, limits.sender_burst, _PEERS)
        self._strangers: TokenBuckets[str] = TokenBuckets(limits.stranger_rate, limits.stranger_burst, _CHANNELS)
        self._clock_replies = TokenBucket(limits.clock_rate, limits.clock_rate)

    def time(self, now: Moment) -> float:
        """The time that stamps are compared with and clock replies carry, in Unix seconds."""
        return self._replays.time(now)

    def check(self, header: Header, now: Moment, *, known: bool = False, via: str = "") -> Judgement:
        """Judge an opened message.  Only `Accepted` ones may have an effect; their ids are remembered.

        Args:
          known: the node has dealings with the sender already.
          via: the channel that the message came by.
        """
        self._replays.forget(now)
        if header.message_id in self._replays:
            return Replayed()
        if not self._senders.take(header.sender, now.monotonic):
            return RateLimited()
        stamp = header.time_ms / 1000
        if header.in_reply_to is not None:
            if not self.clocks.expects(header.sender, header.in_reply_to, now):
                return Unasked()
        elif not self._replays.in_window(stamp, now):
            return OutsideWindow(self._needs_clock_reply(header, now, known=known))
        elif self._replays.is_too_old(stamp, now):
            return TooOld(self._needs_clock_reply(header, now, known=known))
        elif not known and not self._strangers.take(via, now.monotonic):
            return RateLimited()
        known = known or header.in_reply_to is not None
        if len(self._replays) >= (self.limits.ids if known else self.limits.stranger_ids):
            return Overloaded()
        if header.in_reply_to is not None:
            self._replays.remember_answer(header.message_id, now)
        else:
            self._replays.remember_stamped(header.message_id, stamp)
        return Accepted()

    def _needs_clock_reply(self, header: Header, now: Moment, *, known: bool) -> bool:
        if header.type == _CLOCK:
            return False  # two wrong clocks must not answer each other forever
        if not self.clocks.may_tell(header.sender, now):
            return False
        if not known and not self._clock_replies.take(now.monotonic):
            return False
        self.clocks.note_told(header.sender, now)
        return True
