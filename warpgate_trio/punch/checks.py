"""Connectivity checks between two peers over UDP: which of the possible paths carry packets both ways.  No I/O.

The rules follow what was measured on real NATs (docs/punching.md, laws 3 to 5):

* **Causality instead of clocks.**  Some NATs deliver unsolicited packets to themselves (``local``).  Such a NAT then
  keeps the port of the first packet that came too early occupied, for as long as such packets keep coming.  So a side
  first sends *openers*, whose TTL takes them through its own NATs but not to the peer's.  Then it tells the peer, by
  signal.  Only then does either side send *probes* with full TTL.
* **Any authenticated source is a candidate** (peer-reflexive, RFC 8445 §7.3.1.3): the mapping that a NAT uses towards
  a peer is often not the one that a STUN server saw.
* **An authentic probe is answered** at once and with full TTL: it has passed our NAT, and the answer is hardly larger.
  Its source address may still be forged, by anybody who knows the key.  So answers count as unsolicited until one of
  our own probes was answered from there.

A *pair* is one of our sockets and one remote address.  What may be sent on a pair depends on the stage:

    stage     an announced pair              a pair with a peer's probe  entered by
    OPENING   openers                        probes                      `PathChecks.add`
    PROBING   probes                         probes                      `PathChecks.probe`
    ENDED     nothing                        answers only                `PathChecks.end`

All unsolicited packets come out of one packet budget per attempt.  Every probe has its own transaction id, so that
replayed and forged packets are recognized.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from ..limits import BoundedMap
from ..sockaddr import TransportAddress
from .probe import Probe, ProbeCodec, ProbeKind

__all__ = [
    "MAX_PACKETS",
    "OPENER_HOPS",
    "Outgoing",
    "Pair",
    "PathChecks",
    "Stage",
]

OPENER_HOPS: Final = 5
"""TTL of an opener: enough for a home NAT and a carrier's NAT two or three hops further on, but not for more than half
of a path between two homes, which is ten to twenty hops long."""
OPENER_TIMES: Final = (0.0, 0.01, 0.03, 0.06)
"""Seconds after the first opener at which the first ones are sent: several before the peer's first probe can arrive,
one and a half round trips later.  At 5 % loss all four are lost once in 160,000 times.  After them there is one each
`OPENER_PERIOD`."""
OPENER_PERIOD: Final = 0.25
"""Seconds between two openers of a pair, after the first few (`OPENER_TIMES`)."""
PROBE_PERIOD: Final = 0.05
"""Seconds between two probes of a pair: the Ta of RFC 8445 §14.2."""
MAX_PROBES: Final = 40
"""Unanswered probes of one pair: two seconds' worth."""
MAX_PACKETS: Final = 2048
"""Openers and probes of one attempt on all pairs: 1,024 openers of a spray and as many again, of 68 bytes each."""
MAX_HEARD: Final = 64
"""Sources that were not announced and are remembered as peer-reflexive candidates: two sides with 256 sockets meet in
a handful of pairs."""
MAX_ANSWERS: Final = 1024
"""Answers to authenticated probes in one attempt, each as large as its probe."""
MAX_TRANSACTIONS: Final = 4096
"""Own probes that wait for an answer, and as many of the peer's transaction ids that are remembered against replays."""
_AT_ONCE: Final = -math.inf


class Stage(Enum):
    """The stage of the checks; see the module's docstring."""

    OPENING = "opening"
    PROBING = "probing"
    ENDED = "ended"


Pair = tuple[int, TransportAddress]
"""The number of one of our sockets, and an address of the peer."""


@final
@dataclass(frozen=True, slots=True)
class Outgoing:
    """A packet to send: from which socket, to where, and with which TTL (None for the default)."""

    socket: int
    data: bytes
    remote: TransportAddress
    hops: int | None


@final
class _PairState:
    __slots__ = ("answered", "due", "heard", "openers", "probes", "silent", "waiting")

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent  # not probed before the peer's probe arrives on it
        self.waiting = False  # its first opener was not sent yet
        self.openers = 0
        self.probes = 0
        self.heard = False
        self.answered = False
        self.due = math.inf


@final
class PathChecks:
    """The checks of one attempt, on one side.

    Args:
      codec: encodes and decodes probes.
      entropy: ``entropy(n)`` returns n unpredictable bytes.
      burst, pause: after `burst` unsolicited packets there is a pause of `pause` seconds; a thousand at once overrun
        queues and tables.
      max_packets: the largest number of openers and probes in all.
      max_probes: the largest number of unanswered probes of one pair.
      allow: called with the destination address of each opener and probe, and of each answer to an address from which
        none of our probes was answered; where it returns False, the packet is not sent.
      on_heard: called with a pair on which an authentic probe of the peer arrived, once per pair.
      on_confirmed: called with a pair that carries packets both ways and its round-trip time in seconds, once per pair.

    Attributes:
      packets: the number of openers and probes sent.
      mapped: by socket, the mapping of ours that the peer sees, as its answers say.
    """

    def __init__(
        self,
        codec: ProbeCodec,
        *,
        entropy: Callable[[int], bytes],
        burst: int = MAX_PACKETS,
        pause: float = 0.0,
        max_packets: int = MAX_PACKETS,
        max_probes: int = MAX_PROBES,
        allow: Callable[[str], bool] = lambda _: True,
        on_heard: Callable[[Pair], None] = lambda _: None,
        on_confirmed: Callable[[Pair, float], None] = lambda *_: None,
    ) -> None:
        self._codec = codec
        self._entropy = entropy
        self._burst = burst
        self._pause = pause
        self._max_packets = max_packets
        self._max_probes = max_probes
        self._allow = allow
        self._on_heard = on_heard
        self._on_confirmed = on_confirmed
        self._pairs: dict[Pair, _PairState] = {}
        self._queue: list[tuple[float, int, Pair]] = []
        self._order = 0
        self._free_at = -math.inf  # when the next burst may go
        self._sent: BoundedMap[bytes, tuple[Pair, float]] = BoundedMap(MAX_TRANSACTIONS)
        self._seen: BoundedMap[bytes, Pair] = BoundedMap(MAX_TRANSACTIONS)
        self._unopened = 0
        self._heard = 0
        self._outbox: list[Outgoing] = []
        self._announced: set[str] = set()
        self._answers = 0
        self.stage: Stage = Stage.OPENING
        self.packets: int = 0
        self.mapped: dict[int, TransportAddress] = {}

    # -- input from the attempt --------------------------------------------------------------------------------------

    def add(self, pairs: Iterable[Pair], now: float, *, silent: bool = False, opening: bool = True) -> None:
        """Add announced pairs; known pairs are not changed.

        Args:
          silent: do not probe the pairs before a probe of the peer arrives on them: the peer may send from there, but
            probably cannot be reached there.
          opening: send openers (on a silent pair only one); otherwise nothing is sent before `probe`.
        """
        for pair in pairs:
            self._announced.add(pair[1][0])
            if pair not in self._pairs and self.stage is not Stage.ENDED:
                state = self._pairs[pair] = _PairState(silent=silent)
                if opening or (self.stage is Stage.PROBING and not silent):
                    self._schedule(pair, now)
                    state.waiting = opening
                    self._unopened += opening

    @property
    def unopened(self) -> int:
        """Pairs that still wait for their first opener."""
        return self._unopened if self.packets < self._max_packets else 0

    def probe(self, now: float) -> None:
        """Begin to send probes: both sides have opened their NATs."""
        if self.stage is Stage.OPENING:
            self.stage = Stage.PROBING
            for pair, state in self._pairs.items():
                if not state.silent:
                    self._schedule(pair, now)

    def end(self) -> None:
        """Send nothing unsolicited any more, but answer probes, since the peer may not have received ours yet."""
        self.stage = Stage.ENDED
        self._queue.clear()
        self._unopened = 0
        self._sent.clear()  # a megabyte after a spray, and this object lives as long as the port of the Link
        self._pairs.clear()

    # -- time and what is sent ---------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity when there is nothing to send unsolicited."""
        if not self._queue:
            return math.inf
        at = self._queue[0][0]
        return at if at == _AT_ONCE else max(at, self._free_at)

    def transmit(self, now: float) -> list[Outgoing]:
        """Return the packets that are to be sent now."""
        packets, self._outbox = self._outbox, []
        return packets

    def handle_timer(self, now: float) -> None:
        """Queue the openers and probes that are due, at most one burst."""
        packets: list[Outgoing] = []
        while self._queue and self._queue[0][0] <= now and len(packets) < self._burst:
            if now < self._free_at and self._queue[0][0] != _AT_ONCE:
                break
            at, _, pair = heapq.heappop(self._queue)
            state = self._pairs[pair]
            if at != state.due:
                continue  # the pair was rescheduled
            state.due = math.inf
            self._unopened -= state.waiting
            state.waiting = False
            if self.packets >= self._max_packets:
                self._queue.clear()
                break
            packet = self._unasked(pair, state, now)
            if packet is not None:
                packets.append(packet)
                self.packets += 1
        if len(packets) == self._burst:
            self._free_at = now + self._pause
        self._outbox += packets

    def _unasked(self, pair: Pair, state: _PairState, now: float) -> Outgoing | None:
        if state.answered:
            return None
        if state.heard or (self.stage is Stage.PROBING and not state.silent):
            if state.probes >= self._max_probes:
                return None
            state.probes += 1
            self._schedule(pair, now + PROBE_PERIOD)
            return self._request(pair, now, None)
        state.openers += 1
        if not state.silent:
            times = OPENER_TIMES
            wait = times[state.openers] - times[state.openers - 1] if state.openers < len(times) else OPENER_PERIOD
            self._schedule(pair, now + wait)
        return self._request(pair, now, OPENER_HOPS)

    def _schedule(self, pair: Pair, at: float) -> None:
        state = self._pairs[pair]
        state.due = at
        self._order += 1  # packets that are due at the same time are sent in the order of their scheduling
        heapq.heappush(self._queue, (at, self._order, pair))

    def _request(self, pair: Pair, now: float, hops: int | None) -> Outgoing | None:
        if not self._allow(pair[1][0]):
            return None
        transaction = self._entropy(12)
        self._sent.put(transaction, (pair, now))
        return Outgoing(pair[0], self._codec.request(transaction), pair[1], hops)

    # -- packets -----------------------------------------------------------------------------------------------------

    def receive(self, socket: int, data: bytes, source: TransportAddress, now: float) -> None:
        """Process a datagram that looks like STUN; `transmit` returns the answer, if there is one.

        Anything but an authentic probe or answer of the peer is ignored.
        """
        probe = self._codec.read(data)
        if probe is None:
            return
        if probe.kind is ProbeKind.RESPONSE:
            self._answered(socket, probe, source, now)
        else:
            self._asked(socket, probe, source, now)

    def _answered(self, socket: int, probe: Probe, source: TransportAddress, now: float) -> None:
        pair, sent_at = self._sent.get(probe.transaction) or (None, now)
        if pair != (socket, source):
            return  # replayed, too old, or not from where the probe was sent to
        self._sent.pop(probe.transaction)
        if probe.mapped is not None:
            self.mapped[socket] = probe.mapped
        state = self._pairs[pair]
        if not state.answered:
            state.answered = True
            if self.stage is not Stage.ENDED:
                self._on_confirmed(pair, now - sent_at)

    def _asked(self, socket: int, probe: Probe, source: TransportAddress, now: float) -> None:
        pair = (socket, source)
        if self._seen.get(probe.transaction) not in (None, pair) and source[0] not in self._announced:
            # Seen on another pair before: a replay.  (From an announced address, the other one was the replay.)
            return
        self._seen.put(probe.transaction, pair)
        if self._answers >= MAX_ANSWERS:
            return
        state = self._pairs.get(pair)
        if self.stage is not Stage.ENDED and (state is None or not state.heard):
            if state is None:
                if self._heard >= MAX_HEARD:
                    return
                self._heard += 1
                state = self._pairs[pair] = _PairState(silent=False)
            state.heard = True
            if not state.answered:
                # Our probe back is sent before all others, even in a pause: the triggered check of RFC 8445 §7.3.1.4.
                self._schedule(pair, _AT_ONCE)
            self._on_heard(pair)
        if not (state is not None and state.answered) and not self._allow(source[0]):
            return
        self._answers += 1
        self._outbox.append(Outgoing(socket, self._codec.response(probe.transaction, source), source, None))
