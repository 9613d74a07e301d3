"""How a Link travels, and how that has changed, as the holders of its Pipes see it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from ..report import PathChangeReport, PathReport
from ..sockaddr import TransportAddress

__all__ = ["PathCause", "PathChange", "PathClass", "PathInfo", "PathState", "path_class"]


class PathState(Enum):
    """Whether a path carries what is sent."""

    LIVE = "live"
    """It does, as far as is known."""
    SUSPECT = "suspect"
    """The peer has acknowledged nothing of what it was sent for a while; it may only be slow."""
    SUSPENDED = "suspended"
    """There is no path; the Pipe waits for another one."""


class PathClass(IntEnum):
    """How good a path is, regardless of its round-trip time: a lower value is better."""

    LOOPBACK = 0
    LAN = 1
    PUBLIC = 2
    PUNCHED = 3
    RELAYED = 4


def path_class(phase: str | None, route_type: str) -> PathClass:
    """The class of a path that a phase has found on a route; both by name, as in `PathInfo`."""
    if phase == "relay":
        return PathClass.RELAYED
    if route_type == "LOOPBACK_BIND":
        return PathClass.LOOPBACK
    if route_type == "NIC_BIND":
        return PathClass.LAN
    return PathClass.PUNCHED if phase in ("punch", "spray") else PathClass.PUBLIC


class PathCause(Enum):
    """Why a Link's path changed."""

    SUSPECTED = "suspected"
    """The peer acknowledged nothing for too long, or did not answer.  The stream continues on another path if there is
    one."""
    FORGIVEN = "forgiven"
    """A suspected path carries again: it was a false alarm."""
    LOST = "lost"
    """The path is gone; `PathChange.detail` says how."""
    FOUND = "found"
    """A search of either side has found another path while this one was suspected or gone."""
    FOLLOWED = "followed"
    """The peer has changed over to another path, and this side follows."""
    BETTER = "better"
    """Nothing was wrong; another path is better."""


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
      rtt: smoothed round-trip time of the Link's own PINGs in seconds; None before the first answer.
      state: whether the path carries what is sent.
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
        """Whether nothing differs but the round-trip time."""
        return replace(self, rtt=None) == replace(other, rtt=None)

    def as_report(self) -> PathReport:
        """The same in plain words."""
        return PathReport(
            phase=self.phase, plugin=self.plugin, af=self.af, route=self.route_type, state=self.state.value
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChange:
    """One change of a Link's path, or of its state.

    Attributes:
      at: when, in seconds of `trio.current_time`.
      old, new: the path before and after the change; None where there was none (`PathState.SUSPENDED`).
      cause: why it changed.
      detail: more, for people to read: the error, where a path is lost.
      silence: seconds before the change for which data or a PING had been unanswered; 0 if nothing was.
      replayed: bytes of payload that are sent again on the new path, at most: those that the peer had not acknowledged.
    """

    at: float
    old: PathInfo | None
    new: PathInfo | None
    cause: PathCause
    detail: str = ""
    silence: float = 0.0
    replayed: int = 0

    @property
    def switched(self) -> bool:
        """Whether the stream goes by another path now; otherwise only the state has changed, or there is no path."""
        if self.new is None or self.cause is PathCause.FORGIVEN:
            return False
        return self.cause is not PathCause.SUSPECTED or self.new.state is PathState.LIVE

    def __str__(self) -> str:
        why = f"{self.cause.value}: {self.detail}" if self.detail else self.cause.value
        return f"{_shown(self.old)} → {_shown(self.new)} ({why}; {self.silence:.1f} s of silence)"

    def as_report(self) -> PathChangeReport:
        """The same in plain words."""
        return PathChangeReport(
            old=None if self.old is None else self.old.as_report(),
            new=None if self.new is None else self.new.as_report(),
            cause=self.cause.value,
            detail=self.detail,
            silence_ms=round(self.silence * 1000, 3),
            replayed=self.replayed,
        )


def _shown(path: PathInfo | None) -> str:
    return "no path" if path is None else f"{path.plugin} IPv{path.af} {path.state.value}"
