"""Bare hole punching between two homes: what theory promises, without any code of the package.

The punching itself is that of `tests.sim.programs`, which also proves the simulator. Both sides learn their outside
endpoints from a server and exchange them through a Python variable. Over UDP they send openers that die between the
NATs. Over TCP they retry within a round trip, with a listener on the same port. Each answers to the packet's source.
"""

from __future__ import annotations

from typing import Final

import trio

from tests.kernel.lab import open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.nats import Transport
from tests.kernel.wire import Wire
from tests.sim.programs import punch_tcp, punch_udp

PATIENCE: Final = 1.5
"""Seconds of trying: thirty round trips."""
OPENERS: Final = 3
"""The TTL of an opener: it passes two routers, for a home with two NATs, and dies in the middle."""
PORT: Final = 40_000


async def punches(
    wire: Wire, kind_a: str, kind_b: str, transport: Transport, *, skew: float = 0.0, openers: int | None = OPENERS
) -> bool:
    """Whether two peers with one port each connect; B begins `skew` seconds later."""
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    async with open_lab(wire, kind_a, kind_b) as lab:
        a, b = (home.host for home in lab.homes)
        # If the server does not even answer, there is no endpoint to tell the peer.
        with trio.move_on_after(2 * PATIENCE + skew):
            if transport == "udp":
                return await punch_udp(lab.server, a, b, port=PORT, skew=skew, openers=openers, patience=PATIENCE)
            return await punch_tcp(lab.server, a, b, port=PORT, skew=skew, patience=PATIENCE)
    return False
