"""What a node counts: plain numbers, frozen at the moment of asking."""

from __future__ import annotations

import msgspec

__all__ = ["NodeStats"]


class NodeStats(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of one node since it was opened, and what it holds now.  Names and addresses of peers are not in it.

    Attributes:
      walks: calls of `auto_connect` and `connect` that ended, by verdict.
      pipes_made: Pipes that those calls returned.
      pipes_accepted: Pipes that peers made, by the listener's own count.
      refused: commits and requests that were refused, by reason.
      handshakes_failed: inbound connections that ended before a commit.
      links: Links that stand now.
      switches: times that a Link has gone on by another path.
      searches: searches for another path, by either side's reasons, that this node has begun.
      false_alarms: times that a path was suspected and carried again.
      attempts: plugins' runs under way now, on either side.
      handshakes: inbound connections before their commit now.
      waiting_pipes: Pipes that wait for ``listener.accept()`` now.
      signals: messages by outcome (``"sent"``, ``"Accepted"``, ``"Replayed"``, ``"SignalForged"`` …).
      signals_dropped: payloads that came faster than the node could look at them.
      gateways: routers that have answered to a protocol of port mapping.
      mapped_ports: ports that they have open for this node now.
    """

    walks: dict[str, int]
    pipes_made: int
    pipes_accepted: int
    refused: dict[str, int]
    handshakes_failed: int
    links: int
    switches: int
    searches: int
    false_alarms: int
    attempts: int
    handshakes: int
    waiting_pipes: int
    signals: dict[str, int]
    signals_dropped: int
    gateways: int
    mapped_ports: int
