"""What a NAT decides about a packet, and the ports that it was told to forward."""

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
    """What a NAT decided, the packet that comes of it, and why."""

    action: Action
    packet: Packet
    note: str = ""
    held: bool = False  # whether `release` will have something to say about it


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A forwarded port: packets from anybody to `port` go to `inside`, until `expires`."""

    proto: int
    port: int
    inside: Endpoint
    expires: float = inf
