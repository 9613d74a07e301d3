"""`PeerStatus`: what `Node.peers` returns for each Link with a peer."""

from __future__ import annotations

from dataclasses import dataclass

from ..link import Link, PathInfo, PathState
from ..link.path import PathClass, path_class

__all__ = ["PeerStatus", "status_of_link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """A snapshot of one Link with a peer.

    Attributes:
      peer_id: the peer's proven id.
      called: True where this node called, False where the peer did.
      path: the Link's path, with its round-trip time; while the Link is suspended, its last path.
      since: when the Link began, on the clock of `trio.current_time`.
      path_since: when the path was last changed, or changed its state, on the same clock.
      pipes: the number of Pipes on the Link that were not closed here.
      sent, received: bytes of payload on all Pipes of the Link so far, closed ones included.
    """

    peer_id: str
    called: bool
    path: PathInfo
    since: float
    path_since: float
    pipes: int
    sent: int
    received: int

    @property
    def state(self) -> PathState:
        """The state of the path: live, suspect, or suspended where the Link has no path now."""
        return self.path.state

    @property
    def rtt(self) -> float | None:
        """The smoothed round-trip time in seconds; None before it was measured."""
        return self.path.rtt

    @property
    def relayed(self) -> bool:
        """Whether the path goes through a relay."""
        return path_class(self.path.phase, self.path.route_type) is PathClass.RELAYED


def status_of_link(link: Link, peer_id: str, since: float) -> PeerStatus | None:
    """The status of a Link; None where it has no Pipe."""
    channels, changes = link.protocol.channels, link.path_log.changes
    alive = list(channels.values())
    pipes = sum(each.accepted and not each.closed_here for each in alive) + len(channels.ended)
    if not pipes or link.path is None:
        return None
    return PeerStatus(
        peer_id=peer_id,
        called=link.protocol.initiator,
        path=link.live_path(),
        since=since,
        path_since=changes[-1].at if changes else since,
        pipes=pipes,
        sent=channels.sent_before + sum(each.sent for each in alive),
        received=channels.received_before + sum(each.received for each in alive),
    )
