"""What `Node.peers` tells of the peers that a node has Links with."""

from __future__ import annotations

from dataclasses import dataclass

from ..link import Link, PathInfo, PathState
from ..link.path import PathClass, path_class

__all__ = ["PeerStatus", "status_of_link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One Link with a peer, as it is at the moment of asking.

    Attributes:
      peer_id: who is at the other end, proven.
      called: this node has called; False: the peer has.
      path: how it travels, with the round trip; while it is suspended, how it has travelled last.
      since: when the Link began, as `trio.current_time` counts.
      path_since: since when the path is this one, in this state.
      pipes: Pipes on it that were not closed here.
      sent, received: bytes of payload on all of its Pipes so far, closed ones too.
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
        """Whether the path carries what is sent: live, suspect, or suspended where there is none now."""
        return self.path.state

    @property
    def rtt(self) -> float | None:
        """Smoothed round trip in seconds, None before it was measured."""
        return self.path.rtt

    @property
    def relayed(self) -> bool:
        """Whether a relay passes on what is sent."""
        return path_class(self.path.phase, self.path.route_type) is PathClass.RELAYED


def status_of_link(link: Link, peer_id: str, since: float) -> PeerStatus | None:
    """What there is to tell of a Link; None where it has no Pipe."""
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
