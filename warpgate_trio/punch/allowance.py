"""Limits what a node sends unsolicited to one address, whichever peers name it (docs/punching.md).  No I/O.

A peer tells its own addresses, and may name a third party's.  Openers expire on the way and probes are few.  But a peer
that repeats its requests, or many peers that name one address, must not add up.  Where every peer is admitted, new
peers cost nothing.  So the traffic to one address is counted over all peers and attempts of the node:

* *Packets* that are sent unsolicited, UDP and SYNs alike.  An address that has answered one of our probes belongs to
  the peer, and gets no further unsolicited packets.  An authentic packet alone proves nothing: a peer that knows the
  key can send it with a forged source address.
* *Connections* that are opened at a peer's request, to one address and in all.  Each costs the target a socket and a
  handshake.  A connection that leads to the peer is given back, since it reached no third party; so is one that was
  never made.
* *Sprays*, which take hundreds of sockets and ports: one at a time for an address, and few at peers' requests.  Our own
  NAT keeps the ports that they used for minutes, so these are counted over all sprays, too.

With IPv6 a subscriber has a whole /64, of which a liar can name 2**64 addresses, so a /64 counts as one address.
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
"""Packets per second to one address after that: a spray a minute, 2 kB/s."""
MAX_TARGETS: Final = 4096
"""Addresses that are counted at a time.  Those whose burst is complete again are forgotten to make room.  While there
are none such, nothing is sent to a new address; otherwise a liar could have one forgotten by naming many."""
TARGET_DIALS: Final = 40
"""Connections to one address at once: a `tcp_punch` has up to 38 under way, from two ports to predicted ones."""
TARGET_DIALS_REFILL: Final = 0.5
"""Connections to one address per second after that."""
DIALS: Final = 256
"""Connections to all addresses at once, on behalf of peers: four for each concurrent attempt."""
DIALS_REFILL: Final = 16.0
"""Connections to all addresses per second after that: too slow to scan a network."""

MAX_SPRAYS: Final = 2
"""Concurrent sprays for peers: each may take 256 sockets, and peers that name many addresses could take all of them."""
PORTS_KEPT: Final = 300.0
"""Seconds for which a NAT is assumed to keep the mapping of a port that a spray has used: RFC 4787 REQ-5 recommends
five minutes or more; the median of carriers is 65 s (Richter et al. 2016)."""


@final
class Allowance:
    """A token bucket for each address: `burst` at once, `refill` per second after that.

    Args:
      key: maps an IP address to what counts as one address.
    """

    def __init__(self, *, burst: float = BURST, refill: float = REFILL, key: Callable[[str], str] = subscriber) -> None:
        self._burst = burst
        self._refill = refill
        self._key = key
        self._left: dict[str, TokenBucket] = {}

    def take(self, ip: str, now: float, packets: int = 1) -> bool:
        """Take `packets` for `ip` if that many may be sent there; False where they may not."""
        key = self._key(ip)
        bucket = self._left.get(key)
        if bucket is None:
            if not self._make_room(now):
                return False
            bucket = self._left[key] = TokenBucket(self._refill, self._burst)
        return bucket.take(now, packets)

    def give_back(self, ip: str) -> None:
        """Return one that was taken for `ip` but did not count after all."""
        bucket = self._left.get(self._key(ip))
        if bucket is not None:
            bucket.give_back()

    def _make_room(self, now: float) -> bool:
        if len(self._left) >= MAX_TARGETS:
            self._left = {key: bucket for key, bucket in self._left.items() if not bucket.is_full(now)}
        return len(self._left) < MAX_TARGETS


@final
class DialBudget:
    """Counts the connections that a node opens at the request of peers, over all peers."""

    def __init__(self) -> None:
        self._targets = Allowance(burst=TARGET_DIALS, refill=TARGET_DIALS_REFILL)
        self._all = Allowance(burst=DIALS, refill=DIALS_REFILL, key=lambda _: "all")

    def take(self, ip: str, now: float) -> bool:
        """Take one connection to `ip` if it may be opened; False where it may not."""
        if not self._targets.take(ip, now):
            return False
        if not self._all.take(ip, now):
            self._targets.give_back(ip)
            return False
        return True

    def give_back(self, ip: str) -> None:
        """Return a connection that was not made, or that led to the peer which requested it."""
        self._targets.give_back(ip)
        self._all.give_back(ip)


@final
class Sprays:
    """The sprays that a node has under way, and the ports of its own NAT that sprays have taken."""

    def __init__(self) -> None:
        self._held: list[tuple[bytes, str, bool]] = []
        self._ports: deque[tuple[float, int, Collection[object]]] = deque()  # (until when, number, external addresses)

    def has_ports(self, count: int, ours: TransportProfile, now: float) -> bool:
        """Whether `count` more ports of our own NAT leave the subscriber enough of them (`MAX_SHARE`).

        A carrier may give a subscriber a block of some thousand ports, which all of the subscriber's other traffic
        shares, a relay's included.  Ports taken of a NAT with other external addresses do not count.
        """
        while self._ports and self._ports[0][0] <= now:
            self._ports.popleft()
        here = set(ours.external)
        taken = sum(each for _, each, there in self._ports if not (here and there) or not here.isdisjoint(there))
        return taken + count <= max(int(ours.ports * MAX_SHARE), 1)

    def take_ports(self, count: int, ours: TransportProfile, now: float) -> bool:
        """Take `count` ports for `PORTS_KEPT` seconds, if `has_ports`; else False."""
        if not self.has_ports(count, ours, now):
            return False
        self._ports.append((now + PORTS_KEPT, count, ours.external))
        return True

    @contextmanager
    def hold(self, ip: str, session: bytes, *, for_peer: bool) -> Iterator[bool]:
        """Scope of a spray; yields whether it may begin: one at a time for an address, and few for peers.

        A spray waits only for one of a lower session, so that two sides do not wait for each other for ever.

        Args:
          for_peer: whether a peer requested it.  Only those are limited to `MAX_SPRAYS`.
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
