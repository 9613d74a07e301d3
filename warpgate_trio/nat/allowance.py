"""How many packets that nobody asked for one address gets of a node, whoever claims to be there (DESIGN §9.8).  Pure.

A peer says where it is, and may name somebody else.  Openers die on the way and probes are few, but a peer that comes
again and again, or many that name one address, must not add up: so what is sent unasked to one address is counted over
all attempts of the node, UDP and SYNs alike.  Whoever has answered a probe of ours is there, and is sent no more of
them.  An authentic packet alone proves nothing: a peer that knows the key can send it under anybody's address.

Under IPv6 a subscriber has a whole /64, and a liar 2**64 addresses to name there, so a /64 counts as one address.
"""

from __future__ import annotations

from typing import Final, final

from ..subscribers import subscriber

__all__ = ["BURST", "MAX_TARGETS", "REFILL", "Allowance"]

BURST: Final = 4096
"""Packets to one address at once: two sprays of 1,024 openers and as many probes, 230 kB in all."""
REFILL: Final = BURST / 120
"""Packets per second after that: a spray a minute, 2 kB/s."""
MAX_TARGETS: Final = 4096
"""Addresses that are counted at a time.  Those whose burst is whole again are forgotten for others; while there are
none such, a new address gets nothing, or a liar could have one forgotten by naming many."""


@final
class Allowance:
    """Counts packets per address."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, ip: str, now: float, packets: int = 1) -> bool:
        """Whether so many more packets may go to `ip`; then they count."""
        key = subscriber(ip)
        left, at = self._left.get(key, (float(BURST), now))
        left = _refilled(left, at, now)
        allowed = left >= packets
        if key not in self._left and not self._make_room(now):
            return False
        self._left[key] = (left - packets if allowed else left, now)
        return allowed

    def _make_room(self, now: float) -> bool:
        if len(self._left) >= MAX_TARGETS:
            self._left = {ip: (left, at) for ip, (left, at) in self._left.items() if _refilled(left, at, now) < BURST}
        return len(self._left) < MAX_TARGETS


def _refilled(left: float, at: float, now: float) -> float:
    return min(float(BURST), left + max(0.0, now - at) * REFILL)
