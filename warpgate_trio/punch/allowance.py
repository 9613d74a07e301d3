"""How much that nobody asked for one address gets of a node, whoever claims to be there (docs/punching.md).  Pure.

A peer says where it is, and may name somebody else.  Openers die on the way and probes are few, but a peer that comes
again and again, or many that name one address, must not add up, and where everybody is let in a peer costs nothing to
make.  So what goes to one address is counted over all peers and attempts of the node.

* *Packets* that are sent unasked, UDP and SYNs alike.  Whoever has answered a probe of ours is there, and is sent no
  more of them.  An authentic packet alone proves nothing: a peer that knows the key can send it under any address.
* *Connections* that are opened because a peer asked, to one address and in all: they cost whoever is there a socket and
  a handshake each.  One that leads to the peer is given back, since it went to nobody else; so is one that was never
  made.
* *Sprays*, which take sockets and ports by the hundred: one at a time for an address, and few for peers.  What they
  take of our own NAT's ports it keeps for minutes, so that is counted over all of them, too.

Under IPv6 a subscriber has a whole /64, and a liar 2**64 addresses to name there, so a /64 counts as one address.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final, final

from ..address.nat_profile import TransportProfile
from ..limits import TokenBucket, subscriber
from .spray import MAX_SHARE

__all__ = [
    "BURST",
    "DIALS",
    "DIALS_REFILL",
    "MAX_SPRAYS",
    "MAX_TARGETS",
    "PORTS_KEPT",
    "REFILL",
    "TARGET_DIALS",
    "TARGET_DIALS_REFILL",
    "Allowance",
    "DialBudget",
    "Sprays",
]

BURST: Final = 4096
"""Packets to one address at once: two sprays of 1,024 openers and as many probes, 230 kB in all."""
REFILL: Final = BURST / 120
"""Packets per second after that: a spray a minute, 2 kB/s."""
MAX_TARGETS: Final = 4096
"""Addresses that are counted at a time.  Those whose burst is whole again are forgotten for others; while there are
none such, a new address gets nothing, or a liar could have one forgotten by naming many."""
TARGET_DIALS: Final = 40
"""Connections to one address at once: a `tcp_punch` has up to 38 under way, to foretold ports from two of its own."""
TARGET_DIALS_REFILL: Final = 0.5
"""Connections to one address per second after that."""
DIALS: Final = 256
"""Connections to all addresses at once, on behalf of peers: four of each attempt that runs for one."""
DIALS_REFILL: Final = 16.0
"""Connections to all addresses per second after that: a network is scanned at leisure, if at all."""

MAX_SPRAYS: Final = 2
"""Sprays for peers at a time: each may take 256 sockets, and peers that name ever other addresses all of them."""
PORTS_KEPT: Final = 300.0
"""Seconds for which a NAT is taken to keep a port that a spray has used: RFC 4787 REQ-5 recommends five minutes or
more, and carriers take 65 s in the median (Richter et al. 2016)."""


@final
class Allowance:
    """Counts by address: `burst` at once, `refill` per second after that.  `key` says what counts as one address."""

    def __init__(self, *, burst: float = BURST, refill: float = REFILL, key: Callable[[str], str] = subscriber) -> None:
        self._burst = burst
        self._refill = refill
        self._key = key
        self._left: dict[str, TokenBucket] = {}

    def take(self, ip: str, now: float, packets: int = 1) -> bool:
        """Whether so many more may go to `ip`; then they count."""
        key = self._key(ip)
        bucket = self._left.get(key)
        if bucket is None:
            if not self._make_room(now):
                return False
            bucket = self._left[key] = TokenBucket(self._refill, self._burst)
        return bucket.take(now, packets)

    def give_back(self, ip: str) -> None:
        """One that was taken did not go there."""
        bucket = self._left.get(self._key(ip))
        if bucket is not None:
            bucket.give_back()

    def _make_room(self, now: float) -> bool:
        if len(self._left) >= MAX_TARGETS:
            self._left = {key: bucket for key, bucket in self._left.items() if not bucket.is_full(now)}
        return len(self._left) < MAX_TARGETS


@final
class DialBudget:
    """Counts the connections that a node opens because peers asked, whichever peers these were."""

    def __init__(self) -> None:
        self._targets = Allowance(burst=TARGET_DIALS, refill=TARGET_DIALS_REFILL)
        self._all = Allowance(burst=DIALS, refill=DIALS_REFILL, key=lambda _: "all")

    def take(self, ip: str, now: float) -> bool:
        """Whether one more connection may be opened to `ip`; then it counts, until it is given back."""
        if not self._targets.take(ip, now):
            return False
        if not self._all.take(ip, now):
            self._targets.give_back(ip)
            return False
        return True

    def give_back(self, ip: str) -> None:
        """One that was taken was not made, or led to the peer who asked for it."""
        self._targets.give_back(ip)
        self._all.give_back(ip)


@final
class Sprays:
    """Those that a node has under way, and the ports that they have taken of its own NAT."""

    def __init__(self) -> None:
        self._held: list[tuple[bytes, str, bool]] = []
        self._ports: deque[tuple[float, int, Collection[object]]] = deque()  # until when, how many, of which addresses

    def has_ports(self, count: int, ours: TransportProfile, now: float) -> bool:
        """Whether so many more ports of our own NAT leave the subscriber a share of them (`MAX_SHARE`).

        A carrier gives out a block of some thousand, and all else that the subscriber does lives on the rest: what a
        relay needs, too.  Of another NAT, which is seen at other addresses, nothing is taken yet.
        """
        while self._ports and self._ports[0][0] <= now:
            self._ports.popleft()
        here = set(ours.external)
        taken = sum(each for _, each, there in self._ports if not (here and there) or not here.isdisjoint(there))
        return taken + count <= max(int(ours.ports * MAX_SHARE), 1)

    def take_ports(self, count: int, ours: TransportProfile, now: float) -> bool:
        """The same; then they count, for `PORTS_KEPT`."""
        if not self.has_ports(count, ours, now):
            return False
        self._ports.append((now + PORTS_KEPT, count, ours.external))
        return True

    @contextmanager
    def hold(self, ip: str, session: bytes, *, for_peer: bool) -> Iterator[bool]:
        """One spray at a time per external address of a peer, and few for peers; yields whether this one may go.

        Of two for one address the lower session goes on, so that two that wait for each other do not wait for ever.

        Args:
          for_peer: a peer has asked for it.  Peers that ask for all that there may be do not hold up what we ask for.
        """
        waits = any(at == ip and other < session for other, at, _ in self._held)
        full = for_peer and sum(theirs for _, _, theirs in self._held) >= MAX_SPRAYS
        if waits or full:
            yield False
            return
        self._held.append((session, ip, for_peer))
        try:
            yield True
        finally:
            self._held.remove((session, ip, for_peer))
