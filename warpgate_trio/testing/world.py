"""A world for programs that are built on this package: servers run in it, and only the program is missing.

In a test that is::

    async def main(pair: PeerPair) -> None:
        async with world(pair) as (server, alice, bob):
            await alice.run(my_program, ...)

    @given(peer_pairs())
    def test_my_program(pair: PeerPair) -> None:
        assume(can_connect(pair))
        simulate(partial(main, pair), seed=pair.seed)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final, NamedTuple, final

from ..config import NodeConfig, Servers
from ..nurseries import leaves
from ..sim import Host
from .hosts import simulated_hosts
from .restarts import Restarts
from .walks import NTP, RENDEZVOUS, STUN, STUN2
from .worlds import Machine, PeerPair

__all__ = ["WORLD_CONFIG", "World", "world"]

_SERVERS: Final = (RENDEZVOUS, STUN, STUN2, NTP)
WORLD_CONFIG: Final = NodeConfig(servers=Servers(websocket=[RENDEZVOUS.url], stun=[STUN.url, STUN2.url], ntp=[NTP.url]))
"""For nodes in a `world`: its signal server, its STUN servers and its time server."""


@final
class World(NamedTuple):
    """The hosts of a `world`; all of its network is ``server.net``."""

    server: Host
    alice: Host
    bob: Host


@asynccontextmanager
async def world(
    pair: PeerPair, *, time_limit: float = 86400.0, restarts: Restarts | None = None
) -> AsyncGenerator[World]:
    """Two peers and the servers that their nodes need: `open_node(WORLD_CONFIG, …)` on ``alice`` and on ``bob``.

    Signals go by WebSocket through ``server``, on port 443, which the strictest of firewalls lets out; there is no
    MQTT.  STUN, which tells nodes what their NATs do, has machines of its own, as far away as the server, and so has
    the time; a pair that has them keeps its own.  Code in the body is on no host.

    Args:
      time_limit: virtual seconds after which a program has hung; then trio.TooSlowError.
      restarts: by which the program's test may restart the servers of the machines ``server``, ``stun``, ``stun2`` and
        ``ntp``.

    An exception that a nursery of the body has put into a group, alone, comes out bare.

    Raises:
      AssertionError: at the end, for sockets that were not closed.
    """
    __tracebackhide__ = True  # of pytest: what failed is in the body
    there = {machine.name for machine in pair.public}
    missing = [
        Machine(name=name, link=pair.server, addresses=2 if name == STUN.machine else 1)
        for name in (STUN.machine, STUN2.machine, NTP.machine)
        if name not in there
    ]
    made = replace(pair, public=(*pair.public, *missing))
    async with made.build(time_limit=time_limit) as net, simulated_hosts():
        async with AsyncExitStack() as stack:
            for server in _SERVERS if restarts is None else restarts.of(*_SERVERS):
                machine = net.hosts[server.machine]
                with machine:
                    await stack.enter_async_context(server.open(machine))
            try:
                yield World(*(net.hosts[name] for name in World._fields))
            except BaseExceptionGroup as group:
                (only, *more) = leaves(group)
                if more:
                    raise
                raise only from None
        left = net.netstat().sockets
        assert not left, f"the program left sockets open: {left}"
