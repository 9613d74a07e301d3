"""The verdicts of a NAT about packets, and its forwarded ports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import final

from .addr import Endpoint
from .packet import Packet


class Action(Enum):
    """What to do with a packet."""

    FORWARD = "forward"  # send `packet` on, to the other side
    HAIRPIN = "hairpin"  # send `packet` back inside
    DROP = "drop"
    REPLY = "reply"  # send `packet` back to where the original came from
    LOCAL = "local"  # it is for the router itself


@final
@dataclass(frozen=True, slots=True)
class NatVerdict:
    """The decision of a NAT: the action, the packet to use for it, and the reason."""

    action: Action
    packet: Packet
    note: str = ""
    held: bool = False  # whether `Nat.release` may answer the packet later


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A forwarded port: packets from any remote to `port` go to `inside`, until the time `expires`."""

    proto: int
    port: int
    inside: Endpoint
    expires: float = inf
