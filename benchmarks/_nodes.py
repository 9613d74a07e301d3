"""Two nodes with a rendezvous server, and the formatting of figures."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from warpgate_trio import Identity, Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.servers.rendezvous import open_rendezvous

__all__ = ["open_pair", "spread"]


@asynccontextmanager
async def open_pair() -> AsyncGenerator[tuple[Node, Node]]:
    """A caller and a listener on this machine, both connected to a rendezvous server."""
    async with open_rendezvous() as server:
        config = NodeConfig(servers=Servers(websocket=[f"ws://127.0.0.1:{server.port}"]))
        async with (
            open_node(config, identity=Identity.generate(), authorize=anyone) as listener,
            open_node(config, identity=Identity.generate()) as caller,
        ):
            await listener.wait_signals()
            await caller.wait_signals()
            yield caller, listener


def spread(values: Sequence[float], unit: str) -> str:
    """Minimum, median and maximum."""
    return f"{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f} {unit} (min / median / max)"
