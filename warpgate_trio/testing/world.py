"""A world with running servers, for tests of programs that use this package.

In a test::

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
"""The configuration of nodes in a `world`: its signal server, its STUN servers and its NTP server."""


@final
class World(NamedTuple):
    """The hosts of a `world`; its network is ``server.net``."""

    server: Host
    alice: Host
    bob: Host


@asynccontextmanager
async def world(
    pair: PeerPair, *, time_limit: float = 86400.0, restarts: Restarts | None = None
) -> AsyncGenerator[World]:
    """Two peers and the servers that their nodes need: `open_node(WORLD_CONFIG, …)` on ``alice`` and on ``bob``.

    Signals go by WebSocket through ``server``, on port 443, which even strict firewalls let out; there is no MQTT.  The
    STUN servers and the NTP server run on machines of their own, as far away as the server.  If the pair has machines
    with these names, they are used instead.  Code in the body is on no host.

    Args:
      time_limit: virtual seconds after which the run is cancelled because it hangs.
      restarts: with it, the test can restart the servers of the machines ``server``, ``stun``, ``stun2`` and ``ntp``.

    An exception that is alone in an exception group of the body's nurseries is raised without the group.

    Raises:
      AssertionError: at the end: sockets were not closed.
      trio.TooSlowError: the time limit has passed.
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
