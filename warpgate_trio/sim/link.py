"""Links: what happens to a packet between an interface and its segment.

A `Link` is the configuration; a `Direction` is one direction of a link, with its queue, its random draws and its
current faults.  Draws come from a stream named after the direction, and nothing is drawn for a property that is zero.
Removing one link from a world therefore does not change the draws of the others.

Jitter never reorders: a packet arrives after the previous one, as from a real queue.  Reordering is a separate
property, which holds back a share of the packets for a while.  Duplicates are drawn after loss.

Losses are independent, or come in bursts by Gilbert's model (Bell System Technical Journal, September 1960), as in
``tc netem loss gemodel`` of Linux: a direction is in a good or a bad state, and packets in the bad state are lost.
Bursts are counted in packets, so a burst does not end while nothing is sent: a sender that backs off meets the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Final, final

from .short_repr import ShortRepr

DEFAULT_MTU: Final = 1500
MINIMUM_MTU: Final = 68  # RFC 791


def check_burst(loss: float, burst: float) -> None:
    """Raise ValueError for bursts shorter than a packet, or too short for the share of losses.

    Between two bursts at least one packet passes, which limits the losses that bursts of a length can cause.
    """
    if not 1 <= burst < inf:
        raise ValueError(f"a burst is one packet or more, not {burst}")
    if burst > 1 and loss < 1 and loss * (burst + 1) > burst:
        raise ValueError(f"bursts of {burst} lose {burst / (burst + 1):.0%} at most, not {loss:.0%}")


@final
class Losses:
    """Decides which packets of a direction are lost: by Gilbert's model, or without bursts independently."""

    __slots__ = ("_bad", "_begin", "_burst", "_go_on", "_share")

    def __init__(self, share: float, burst: float) -> None:
        self._share = share
        self._burst = burst > 1 and share < 1
        self._bad: bool | None = None  # None before the first packet, for which the overall share decides
        self._go_on = 1 - 1 / burst  # the chance of a loss after a loss
        self._begin = share / (1 - share) / burst if share < 1 else 1.0  # and after a packet that passed

    def next(self, chance: Callable[[], float]) -> bool:
        """Whether the next packet is lost."""
        if not self._burst:
            return chance() < self._share
        bad = self._bad
        limit = self._share if bad is None else self._go_on if bad else self._begin
        self._bad = chance() < limit
        return self._bad


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Link(ShortRepr):
    """The properties of one direction of a link.

    Attributes:
      latency: seconds from one end to the other.
      jitter: seconds; each packet takes up to this much longer, uniformly drawn, in order.
      loss, duplicate, reorder: the share of packets, 0 to 1, that is lost, duplicated or reordered.
      burst: packets that are lost in a row, on average; 1 for independent losses.
      reorder_by: seconds by which a reordered packet is held back.
      bandwidth: bits per second.
      queue: bytes that may wait for transmission at a finite bandwidth; further packets are dropped.
      mtu: bytes of the largest packet, IP header included.

    Raises:
      ValueError: a value makes no sense.
    """

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    burst: float = 1.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_by: float = 0.01
    bandwidth: float = inf
    queue: int = 256 * 1024
    mtu: int = DEFAULT_MTU

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        check_burst(self.loss, self.burst)
        for name in ("latency", "jitter", "reorder_by"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} is a number of seconds, not {getattr(self, name)}")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth is a positive number of bits per second, not {self.bandwidth}")
        if self.mtu < MINIMUM_MTU:
            raise ValueError(f"an MTU is at least {MINIMUM_MTU} bytes, not {self.mtu}")


PERFECT: Final = Link()
"""No delay, no limits."""

Links = Link | tuple[Link, Link]
"""One `Link` for both directions, or a pair: (from the host, to the host)."""


@final
@dataclass(slots=True)
class Impairment:
    """What a fault adds to one direction while it lasts."""

    losses: Losses | None = None
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    blocked: bool = False
    mtu: float = inf  # larger packets are dropped, without an ICMP error
    passes: int = 0  # number of larger packets that still pass
    concerns: Callable[[str], bool] | None = None  # called with the address of the other end; None: all packets


@final
class Direction:
    """One direction of one link."""

    __slots__ = ("_busy_until", "_last", "_losses", "_random", "impairments", "link", "name", "plain")

    def __init__(self, name: str, link: Link, random: Random) -> None:
        self.name: str = name
        self._random = random
        self._busy_until = 0.0  # when the last queued byte is on its way
        self._last = 0.0  # the latest arrival so far
        self.impairments: list[Impairment] = []
        self.link: Link = link
        self.plain: bool = False
        self._losses = Losses(link.loss, link.burst)
        self.recheck()

    def configure(self, link: Link) -> None:
        """Change the properties; packets under way are not affected."""
        self.link = link
        self._losses = Losses(link.loss, link.burst)
        self.recheck()

    def recheck(self) -> None:
        """Update `plain`: whether this direction is a fixed delay only, which callers may add up themselves."""
        link = self.link
        noisy = link.jitter or link.loss or link.duplicate or link.reorder or link.bandwidth < inf
        self.plain = not noisy and not self.impairments

    def carry(self, size: int, now: float, other: str = "") -> tuple[float, ...] | str:
        """Send a packet of `size` bytes: returns its arrival time, two times if it is duplicated, or why it is dropped.

        Args:
          other: the address of the packet's other end.
        """
        link = self.link
        if self.plain:
            return (now + link.latency,)
        chance = self._random.random
        delay, duplicate, reorder = link.latency, link.duplicate, link.reorder
        for fault in self.impairments:
            if fault.concerns is not None and not fault.concerns(other):
                continue
            if fault.blocked:
                return "blackhole"
            if size > fault.mtu:
                if not fault.passes:
                    return "mtu blackhole"
                fault.passes -= 1
            if fault.losses is not None and fault.losses.next(chance):
                return "lost (fault)"
            delay += fault.delay
            duplicate = max(duplicate, fault.duplicate)
            reorder = max(reorder, fault.reorder)
        if link.loss and self._losses.next(chance):
            return "lost"
        start = now
        if link.bandwidth < inf:
            start = max(now, self._busy_until)
            if (start - now) * link.bandwidth / 8 + size > link.queue + 0.5:
                return "queue full"
            start += size * 8 / link.bandwidth
            self._busy_until = start
        arrival = start + delay
        if link.jitter:
            arrival += chance() * link.jitter
        if reorder and chance() < reorder:
            arrival += link.reorder_by  # `_last` is unchanged: later packets overtake this one
        else:
            arrival = self._last = max(arrival, self._last)
        return (arrival, arrival) if duplicate and chance() < duplicate else (arrival,)
