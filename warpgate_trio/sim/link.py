"""Links: what happens to a packet between an interface and its segment.

A `Link` says what is configured, a `Direction` is one way of it with its queue, its random draws and the faults that
are in force.  Draws come from a stream named after the direction, and nothing is drawn for a property that is zero,
so that taking one link out of a world leaves the draws of all others as they were.

Jitter never reorders: a packet arrives after the one before it, as on a real queue.  Reordering is a property of its
own (a share of the packets is held back for a while).  Duplicates are drawn after loss.

Losses are independent, or come in bursts by the model of Gilbert (Bell System Technical Journal, September 1960), as
Linux has it in ``tc netem loss gemodel``: a direction is good or bad, and what it carries while it is bad is lost.
Bursts are counted in packets, so one does not end while nobody sends: a sender that backs off meets the rest of it.
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
    """ValueError for bursts shorter than a packet, or too short for a loss: between two of them a packet passes."""
    if not 1 <= burst < inf:
        raise ValueError(f"a burst is one packet or more, not {burst}")
    if burst > 1 and loss < 1 and loss * (burst + 1) > burst:
        raise ValueError(f"bursts of {burst} lose {burst / (burst + 1):.0%} at most, not {loss:.0%}")


@final
class Losses:
    """Which packets of one direction are lost: the model of Gilbert, and without bursts a draw for each packet."""

    __slots__ = ("_bad", "_begin", "_burst", "_go_on", "_share")

    def __init__(self, share: float, burst: float) -> None:
        self._share = share
        self._burst = burst > 1 and share < 1
        self._bad: bool | None = None  # None before the first packet, for which the long run speaks
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
    """The properties of one way of a link.

    Attributes:
      latency: seconds from one end to the other.
      jitter: seconds; each packet takes up to this much longer, uniformly drawn, in order.
      loss, duplicate, reorder: the share of packets, 0 to 1, to which that happens.
      burst: packets that are lost in a row, on average; 1 for losses that know nothing of each other.
      reorder_by: seconds that a reordered packet is held back.
      bandwidth: bits per second.
      queue: bytes that may wait for a bandwidth to be free; more are dropped.
      mtu: bytes of the largest packet, IP header included.

    ValueError for values that make no sense.
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
"""One `Link` for both ways, or (from the host, to the host)."""


@final
@dataclass(slots=True)
class Impairment:
    """What a fault adds to one direction while it lasts."""

    losses: Losses | None = None
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    blocked: bool = False
    mtu: float = inf  # larger packets vanish, and no ICMP error is sent
    passes: int = 0  # so many larger packets pass before that
    concerns: Callable[[str], bool] | None = None  # asked with the address of the other end; None: it is any packet's


@final
class Direction:
    """One way of one link."""

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
        """Take other properties from now on; packets under way are not affected."""
        self.link = link
        self._losses = Losses(link.loss, link.burst)
        self.recheck()

    def recheck(self) -> None:
        """Note whether all that happens here is a fixed delay, which callers may then add up by themselves."""
        link = self.link
        noisy = link.jitter or link.loss or link.duplicate or link.reorder or link.bandwidth < inf
        self.plain = not noisy and not self.impairments

    def carry(self, size: int, now: float, other: str = "") -> tuple[float, ...] | str:
        """When a packet of `size` bytes that sets out now arrives, two times for a duplicate; or why it does not.

        `other` is the address of its other end.
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
            arrival += link.reorder_by  # and those behind it do not wait for it
        else:
            arrival = self._last = max(arrival, self._last)
        return (arrival, arrival) if duplicate and chance() < duplicate else (arrival,)
