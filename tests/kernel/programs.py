"""Bare hole punching between two homes: what theory promises, without a line of the package.

The punching itself is that of `tests.sim.programs`, which proves the simulator: both sides learn their outside endpoint
from a server, tell each other through a Python variable, send openers that die between the NATs (UDP) or retry within a
round trip (TCP, with a listener on the same port), and answer to wherever something came from.
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
"""The TTL of an opener: two routers, one of which may be a NAT of its own, and then into the middle."""
PORT: Final = 40_000


async def punches(
    wire: Wire, kind_a: str, kind_b: str, transport: Transport, *, skew: float = 0.0, openers: int | None = OPENERS
) -> bool:
    """Whether two peers with one port each come to talk; B begins `skew` seconds later."""
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    async with open_lab(wire, kind_a, kind_b) as lab:
        a, b = (home.host for home in lab.homes)
        # Where a server does not even answer, there is nothing to tell the peer.
        with trio.move_on_after(2 * PATIENCE + skew):
            if transport == "udp":
                return await punch_udp(lab.server, a, b, port=PORT, skew=skew, openers=openers, patience=PATIENCE)
            return await punch_tcp(lab.server, a, b, port=PORT, skew=skew, patience=PATIENCE)
    return False
