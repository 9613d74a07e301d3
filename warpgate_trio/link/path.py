"""How a Link came about and travels, for those who hold its Pipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from ..sockaddr import TransportAddress

__all__ = ["PathClass", "PathInfo", "PathState", "path_class"]


class PathState(Enum):
    """Whether a path carries what is sent."""

    LIVE = "live"
    """As far as is known."""
    SUSPECT = "suspect"
    """For a while now the peer has acknowledged nothing of what it was sent; it may only be slow."""
    SUSPENDED = "suspended"
    """There is none; a Pipe waits for another one."""


class PathClass(IntEnum):
    """How good a path is, whatever its round trip: a lower one is better."""

    LOOPBACK = 0
    LAN = 1
    PUBLIC = 2
    PUNCHED = 3
    RELAYED = 4


def path_class(phase: str | None, route_type: str) -> PathClass:
    """How good what a phase finds on a route is; both by name, as in `PathInfo`."""
    if phase == "relay":
        return PathClass.RELAYED
    if route_type == "LOOPBACK_BIND":
        return PathClass.LOOPBACK
    if route_type == "NIC_BIND":
        return PathClass.LAN
    return PathClass.PUNCHED if phase in ("punch", "spray") else PathClass.PUBLIC


@dataclass(frozen=True, slots=True, kw_only=True)
class PathInfo:
    """How a Pipe travels.

    Attributes:
      phase: the walk's phase that found the path, ``"direct"`` … ``"relay"``; None for a pinned auxiliary plugin.
      plugin: the plugin's name.
      af: 4 or 6.
      route_type: ``"NIC_BIND"``, ``"EXT_BIND"`` or ``"LOOPBACK_BIND"``.
      carrier: ``"tls"`` or ``"quic"``.
      local, remote: the path's two socket addresses as (IP, port).
      rtt: smoothed round trip of the Link's own PINGs in seconds, None before the first answer.
      state: whether it carries what is sent.
    """

    phase: str | None
    plugin: str
    af: int
    route_type: str
    carrier: str
    local: TransportAddress
    remote: TransportAddress
    rtt: float | None = None
    state: PathState = PathState.LIVE

    def same_as(self, other: PathInfo) -> bool:
        """Whether nothing has changed but the round trip."""
        return replace(self, rtt=None) == replace(other, rtt=None)
