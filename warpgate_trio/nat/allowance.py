"""How many packets that nobody asked for one address gets of a node, whoever claims to be there (DESIGN §9.8).  Pure.

A peer says where it is, and may name somebody else.  Openers die on the way and probes are few, but a peer that comes
again and again, or many that name one address, must not add up: so what is sent unasked to one address is counted over
all attempts of the node, UDP and SYNs alike.  Whoever has answered with an authentic packet is there, and is not
counted any more.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, final

__all__ = ["BURST", "MAX_TARGETS", "REFILL", "Allowance"]

BURST: Final = 4096
"""Packets to one address at once: two sprays of 1,024 openers and as many probes, 230 kB in all."""
REFILL: Final = BURST / 120
"""Packets per second after that: a spray a minute, 2 kB/s."""
MAX_TARGETS: Final = 4096
"""Addresses that are counted at a time; of more, those that were not sent to for longest start anew."""


@final
class Allowance:
    """Counts packets per address."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, ip: str, now: float) -> bool:
        """Whether one more packet may go to `ip`; then it counts."""
        left, at = self._left.pop(ip, (float(BURST), now))
        left = min(BURST, left + max(0.0, now - at) * REFILL)
        allowed = left >= 1
        self._left[ip] = (left - 1 if allowed else left, now)
        if len(self._left) > MAX_TARGETS:
            self._left.popitem(last=False)
        return allowed
