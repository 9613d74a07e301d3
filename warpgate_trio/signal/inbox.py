"""What makes an opened message acceptable: its time, its novelty, and how much its sender has sent.  No I/O, no clock.

Theory of operation.  A message is stamped by its sender and accepted within ±300 s of our clock.  Its id is remembered
for as long as its stamp stays acceptable, so within the window nothing is accepted twice; outside it the stamp decides.
A restart
forgets the ids, so nothing that was stamped before the process started is accepted either: both rules are one, a
*horizon* up to which stamps are refused because their ids are not, or no longer, remembered.

Clocks are often wrong, so a message outside the window (or behind the horizon) is answered with our time, once per
sender and ten seconds; the sender then stamps what it sends *to us* accordingly, and reads our stamps accordingly.
Such a correction
holds between two peers only: a peer that lies about its clock spoils nothing but its own conversation.  A `Clock` reply
is itself outside the window of whoever needs it; it is accepted as the answer to a message that we sent just now.

All times are Unix seconds on our own corrected clock, and all tables are bounded.  With the default limits the table of
ids cannot fill, as 600 s (the longest that an id is kept) of the highest total rate stay below its size; with others a
full table refuses new messages rather than forget old ones.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, final

from .core import OWNER, Clock
from .message import Header, wire_name

__all__ = [
    "Accepted",
    "Inbox",
    "InboxLimits",
    "OutsideWindow",
    "Overloaded",
    "PeerClocks",
    "RateLimited",
    "Replayed",
    "TokenBucket",
    "TooOld",
    "Verdict",
]

WINDOW = 300.0
"""Seconds by which a stamp may differ from our clock."""
START_SLACK = 2.0
"""Seconds before our start that a stamp may lie: what two NTP-disciplined clocks differ, and a message takes."""
CLOCK_REPLY_INTERVAL = 10.0
"""Seconds between two clock replies to one sender: one is enough, the next only in case it was lost."""
_RECENT = 60.0  # Seconds in which a clock reply must come: a signal that took longer helps nobody any more.
_PEERS = 4096  # Peers with a clock correction, a sent id, or a bucket; the least recently used are forgotten.

_CLOCK = wire_name(OWNER, Clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxLimits:
    """Rates are messages per second, sustained; bursts are messages at once.

    Attributes:
      rate, burst: in all, counted before anything is decrypted.
      sender_rate, sender_burst: of one sender, counted once it is known who that is.
      clock_rate: our clock replies in all.
      ids: remembered message ids.
    """

    rate: float = 100.0
    burst: int = 300
    sender_rate: float = 30.0
    sender_burst: int = 60
    clock_rate: float = 20.0
    ids: int = 65_536


_DEFAULT_LIMITS = InboxLimits()


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Accepted:
    """Fresh, new, and within the rates."""


@final
@dataclass(frozen=True, slots=True)
class Replayed:
    """The id was seen before: another server delivered it too, or somebody repeats it."""


@final
@dataclass(frozen=True, slots=True)
class RateLimited:
    """This sender sends too much."""


@final
@dataclass(frozen=True, slots=True)
class TooOld:
    """Stamped before this process started: whether it was seen before cannot be known."""

    needs_clock_reply: bool


@final
@dataclass(frozen=True, slots=True)
class OutsideWindow:
    """Stamped more than 300 s from our clock."""

    needs_clock_reply: bool


@final
@dataclass(frozen=True, slots=True)
class Overloaded:
    """No room to remember the id, so the message is refused."""


Verdict: TypeAlias = Accepted | Replayed | RateLimited | TooOld | OutsideWindow | Overloaded


# --- Parts ------------------------------------------------------------------------------------------------------------


@final
class TokenBucket:
    """`burst` at once, `rate` per second after that.  A clock that goes back earns nothing and costs nothing."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@final
class _Recent(Generic[_Key, _Value]):
    """A bounded mapping that forgets the least recently used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)

    def pop(self, key: _Key) -> _Value | None:
        return self._items.pop(key, None)

    def items(self) -> list[tuple[_Key, _Value]]:
        """Least recently used first."""
        return list(self._items.items())


@final
class PeerClocks:
    """How far each peer's clock is from ours, as far as clock replies have told."""

    def __init__(self) -> None:
        self._sent: _Recent[bytes, tuple[bytes, float]] = _Recent(_PEERS)
        self._offsets: _Recent[bytes, float] = _Recent(_PEERS)

    def note_sent(self, message_id: bytes, peer: bytes, now: float) -> None:
        """We send `peer` (its key) a message: a clock reply to it is welcome for a minute."""
        self._sent.put(message_id, (peer, now))

    def expects(self, peer: bytes, in_reply_to: bytes | None, now: float) -> bool:
        """Whether `in_reply_to` is the id of a message that we sent to `peer` within the last minute."""
        sent = self._sent.get(in_reply_to) if in_reply_to is not None else None
        return sent is not None and sent[0] == peer and 0.0 <= now - sent[1] <= _RECENT

    def on_clock_reply(self, peer: bytes, in_reply_to: bytes | None, peer_time_ms: int, now: float) -> float | None:
        """`peer` says what time it is there.  Returns its new offset, or None when we did not ask.

        The peer's time is taken to be that of the middle between our message and its reply.  Each message allows one
        reply.
        """
        if in_reply_to is None or not self.expects(peer, in_reply_to, now):
            return None
        sent = self._sent.pop(in_reply_to)
        assert sent is not None
        offset = peer_time_ms / 1000 - (sent[1] + now) / 2
        self._offsets.put(peer, offset)
        return offset

    def clock_stepped(self, seconds: float) -> None:
        """Our corrected clock was moved by `seconds`; the peers' were not."""
        for message_id, (peer, sent_at) in self._sent.items():
            self._sent.put(message_id, (peer, sent_at + seconds))
        for peer, offset in self._offsets.items():
            self._offsets.put(peer, offset - seconds)

    def offset(self, peer: bytes) -> float:
        """Seconds to add to our clock for the peer's; 0.0 when nothing is known."""
        return self._offsets.get(peer) or 0.0


@final
class Inbox:
    """Judges opened messages.  One per node, for all its channels.

    Args:
      started_at: when the process started.
      limits: rates and sizes.
      clocks: corrections per peer, shared with whoever stamps what we send.
    """

    def __init__(
        self, started_at: float, limits: InboxLimits = _DEFAULT_LIMITS, clocks: PeerClocks | None = None
    ) -> None:
        self.clocks: PeerClocks = clocks if clocks is not None else PeerClocks()
        self._limits = limits
        self._horizon = started_at - START_SLACK
        self._ids: set[bytes] = set()
        self._expiries: list[tuple[float, bytes]] = []  # a heap of (when the stamp leaves the window, id)
        self._all = TokenBucket(limits.rate, limits.burst, started_at)
        self._senders: _Recent[bytes, TokenBucket] = _Recent(_PEERS)
        self._clock_replies = TokenBucket(limits.clock_rate, limits.clock_rate, started_at)
        self._clock_replied: _Recent[bytes, float] = _Recent(_PEERS)

    def admit(self, now: float) -> bool:
        """Whether a further blob may be decrypted now.  Ask once per blob, before anything else is done with it."""
        return self._all.take(now)

    def check(self, header: Header, now: float) -> Verdict:
        """Judge an opened message.  Only `Accepted` ones may have an effect; those are remembered."""
        self._forget(now)
        if header.message_id in self._ids:
            return Replayed()
        if not self._sender(header.sender, now).take(now):
            return RateLimited()
        stamp = header.time_ms / 1000 - self.clocks.offset(header.sender)
        if header.type == _CLOCK and self.clocks.expects(header.sender, header.in_reply_to, now):
            stamp = now  # what it says about time is its point; `in_reply_to` proves that it is fresh
        elif abs(stamp - now) > WINDOW:
            return OutsideWindow(self._needs_clock_reply(header, now))
        elif stamp <= self._horizon and not self.clocks.expects(header.sender, header.in_reply_to, now):
            # An answer to what we have just asked is fresh, whatever our clock and the peer's make of its stamp.
            return TooOld(self._needs_clock_reply(header, now))
        if len(self._ids) >= self._limits.ids:
            return Overloaded()
        self._ids.add(header.message_id)
        heapq.heappush(self._expiries, (stamp + WINDOW, header.message_id))
        return Accepted()

    def clock_stepped(self, seconds: float) -> None:
        """Our corrected clock was moved by `seconds` (NTP was heard): what is known in its time moves with it."""
        self._horizon += seconds
        self.clocks.clock_stepped(seconds)

    def _forget(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] < now:
            expiry, message_id = heapq.heappop(self._expiries)
            self._ids.discard(message_id)
            # Whatever the clock does later: a stamp whose id is forgotten is never accepted again.
            self._horizon = max(self._horizon, expiry - WINDOW)

    def _sender(self, sender: bytes, now: float) -> TokenBucket:
        bucket = self._senders.get(sender)
        if bucket is None:
            bucket = TokenBucket(self._limits.sender_rate, self._limits.sender_burst, now)
            self._senders.put(sender, bucket)
        return bucket

    def _needs_clock_reply(self, header: Header, now: float) -> bool:
        if header.type == _CLOCK:
            return False  # two wrong clocks must not answer each other forever
        last = self._clock_replied.get(header.sender)
        if last is not None and 0.0 <= now - last < CLOCK_REPLY_INTERVAL:
            return False
        if not self._clock_replies.take(now):
            return False
        self._clock_replied.put(header.sender, now)
        return True
