"""The counters of a node."""

from __future__ import annotations

import msgspec

__all__ = ["NodeStats"]


class NodeStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one node since it was opened, and gauges of the present.  It has no names or addresses of peers.

    Attributes:
      walks: ended calls of `auto_connect` and `connect`, by verdict.
      pipes_made: Pipes that those calls returned.
      pipes_accepted: Pipes that peers opened and this node accepted into the listener's queue.
      refused: refused commits and requests, by reason.
      handshakes_failed: inbound connections whose handshake failed, or whose COMMIT or ATTACH was refused.
      links: present Links.
      switches: how often a Link changed to another path.
      searches: searches for another path that this node began, for whatever reason.
      false_alarms: how often a suspect path turned out to be live.
      attempts: present attempts, inbound and outbound.
      handshakes: present inbound connections before their commit.
      waiting_pipes: Pipes that now wait for ``listener.accept()``.
      signals: messages by outcome (``"sent"``, ``"Accepted"``, ``"Replayed"``, ``"SignalForged"`` …).
      signals_dropped: payloads dropped because they arrived faster than the node could process them.
      gateways: routers that answered a port-mapping protocol.
      mapped_ports: ports that routers have open for this node now.
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
