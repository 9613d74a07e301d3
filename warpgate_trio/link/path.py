"""How a Link came about and travels, for those who hold its Pipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ..sockaddr import TransportAddress

__all__ = ["PathInfo", "PathState"]


class PathState(Enum):
    """Whether a path carries what is sent."""

    LIVE = "live"
    """As far as is known."""
    SUSPECT = "suspect"
    """For a while now the peer has acknowledged nothing of what it was sent; it may only be slow."""
    SUSPENDED = "suspended"
    """There is none; a Pipe waits for another one."""


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
