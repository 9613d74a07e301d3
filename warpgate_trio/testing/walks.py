"""Whole walks in simulated worlds: two nodes, the servers that they use, and `auto_connect` from one to the other.

`open_nodes` opens the nodes in the world of a `PeerPair`.  `walk` also makes that world, lets alice connect to bob and
returns the result.  `simulate_walk` does the same for callers outside of Trio::

    pair = PeerPair.between(presets.LINUX, presets.RST, rtt=0.1, loss=0.01, seed=7)
    result = simulate_walk(pair)
    assert result.connected, result.explanation

The nodes are real: they have every installed plugin and every phase.  The servers of a world are a tuple of
`WorldServer`s, each with its key of ``[servers]`` and a function that opens it on a machine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import msgspec
import trio

from ..address import PeerAddress
from ..config import ListenConfig, NodeConfig, Servers
from ..errors import ConnectError
from ..identity import Identity
from ..link import Pipe
from ..node import Node, open_node
from ..node.admission import anyone
from ..nurseries import open_background_nursery
from ..plugin import Plugin
from ..report import ConnectReport
from ..servers.ntp import open_ntp
from ..servers.rendezvous import open_rendezvous
from ..servers.stun import open_stun_server
from ..sim import Host, Network, simulate
from .hosts import simulated_hosts
from .worlds import PeerPair

__all__ = [
    "ALICE",
    "BOB",
    "NTP",
    "PORT",
    "RENDEZVOUS",
    "SERVERS",
    "STUN",
    "STUN2",
    "NodePair",
    "Walk",
    "WorldServer",
    "open_nodes",
    "simulate_walk",
    "walk",
]

ALICE: Final = Identity.from_seed(b"alice" + bytes(27))
BOB: Final = Identity.from_seed(b"bob" + bytes(29))
"""Fixed identities, for reproducible worlds."""
PORT: Final = 7000
"""The port on which both nodes listen, known so that a test can forward it."""
SETTLE: Final = 5.0
"""Virtual seconds from opening the nodes to the call: signals are connected and servers have answered by then."""
SIGNALS_WITHIN: Final = 60.0
"""Virtual seconds to wait for signals.  On a link that loses everything none connect, and the walk reports that."""
PAYLOAD: Final = bytes(range(256)) * 40
_LADDER: Final = 2000
"""Lines; a trace keeps no more."""

Connect = Callable[[Node, PeerAddress], Awaitable[Pipe]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorldServer:
    """A server of a world.

    Attributes:
      key: its key of ``[servers]`` in the nodes' configuration.
      url: its URL in that configuration; the host name is that of the machine.
      machine: the name of the host on which it runs.
      open: opens the server, given that host; called on it.
    """

    key: str
    url: str
    machine: str
    open: Callable[[Host], AbstractAsyncContextManager[object]]


RENDEZVOUS: Final = WorldServer(
    key="websocket",
    url="ws://server:443",  # a port that even strict firewalls let out
    machine="server",
    open=lambda _host: open_rendezvous(host=None, port=443, public_urls=["ws://server:443"]),
)
STUN: Final = WorldServer(
    key="stun",
    url="stun:stun:3478",
    machine="stun",
    open=lambda host: open_stun_server(host=host.addresses[0], second_host=host.addresses[1], port=3478),
)
STUN2: Final = WorldServer(
    key="stun", url="stun:stun2:3478", machine="stun2", open=lambda host: open_stun_server(host=host.ip, port=3478)
)
NTP: Final = WorldServer(
    key="ntp", url="ntp://ntp:123", machine="ntp", open=lambda host: open_ntp(host=host.ip, port=123)
)
SERVERS: Final = (RENDEZVOUS, STUN, STUN2, NTP)
"""The default servers of a world, as far as it has their machines; a `PeerPair.between` has all of them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodePair:
    """Two nodes in a world."""

    net: Network
    alice: Node
    bob: Node


@asynccontextmanager
async def open_nodes(
    net: Network,
    *,
    config: NodeConfig | None = None,
    servers: Collection[WorldServer] = SERVERS,
    plugins: Iterable[str | type[Plugin]] | None = None,
    authorize: Callable[[str], Awaitable[bool]] = anyone,
    authorize_alice: Callable[[str], Awaitable[bool]] | None = None,
) -> AsyncGenerator[NodePair]:
    """Open servers and two nodes in a world that a `PeerPair` made, and wait for signals and for clocks to settle::

        async with pair.build() as net, simulated_hosts(), open_nodes(net) as nodes:
            async with await nodes.alice.auto_connect(nodes.bob.address) as pipe:
                ...

    The body runs on alice's host; code for bob belongs below ``with net.hosts["bob"]:``.

    Args:
      config: the configuration of both nodes; its servers are replaced by the world's, and its port by `PORT`.
      servers: the servers to run; a server whose machine is not in the world is left out.
      plugins: the plugins of both nodes; None for all that are installed.
      authorize: bob's rule for callers.
      authorize_alice: alice's rule for callers; None: nobody may call her.
    """
    chosen = None if plugins is None else list(plugins)
    there = [server for server in servers if server.machine in net.hosts]
    urls: dict[str, list[str]] = {}
    for server in there:
        urls.setdefault(server.key, []).append(server.url)
    made = msgspec.structs.replace(
        NodeConfig() if config is None else config,
        servers=Servers(**urls),  # type: ignore[arg-type]
        listen=ListenConfig(port=PORT),
    )
    async with AsyncExitStack() as stack:
        for server in there:
            machine = net.hosts[server.machine]
            stack.enter_context(machine)  # until the end: servers close on the machine on which they were opened
            await stack.enter_async_context(server.open(machine))
        stack.enter_context(net.hosts["bob"])
        bob = await stack.enter_async_context(open_node(made, identity=BOB, authorize=authorize, plugins=chosen))
        stack.enter_context(net.hosts["alice"])
        alice = await stack.enter_async_context(
            open_node(made, identity=ALICE, authorize=authorize_alice, plugins=chosen)
        )
        if made.servers.signal:
            with trio.move_on_after(SIGNALS_WITHIN):
                await bob.wait_signals()
                await alice.wait_signals()
        # A node rejects signals stamped before its start as replayed: wait until both clocks are beyond that time.
        await trio.sleep(SETTLE + abs(net.hosts["alice"].wall_time() - net.hosts["bob"].wall_time()))
        yield NodePair(net=net, alice=alice, bob=bob)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The result of a walk; times are in virtual seconds.

    Attributes:
      report: the report of the walk, connected or not.
      connect: from the call to the accepted Pipe; None without a Pipe.
      first_byte: from the call to the first echoed byte; None without one.
      intact: whether everything was echoed as it was sent.
      digest: the hash of the whole run (`Network.digest`).
      explanation: one screen about the world and its last packets, made at the end of the walk.
      ladder: the packets since the call, one line each.
      left: sockets and tasks that were left behind; unless it is empty, there is a bug.
    """

    report: ConnectReport
    connect: float | None = None
    first_byte: float | None = None
    intact: bool = False
    digest: str = ""
    explanation: str = ""
    ladder: str = ""
    left: str = ""

    @property
    def connected(self) -> bool:
        return self.connect is not None


async def walk(
    pair: PeerPair,
    connect: Connect = Node.auto_connect,
    *,
    config: NodeConfig | None = None,
    servers: Collection[WorldServer] = SERVERS,
    plugins: Iterable[str | type[Plugin]] | None = None,
    payload: bytes = PAYLOAD,
    capture: str | Path | None = None,
    time_limit: float = 3600.0,
) -> Walk:
    """Let alice connect to bob in a new world, send `payload` to an echo at bob, and close everything.

    Args:
      connect: `Node.auto_connect`, or a replacement for it.
      config, servers, plugins: as for `open_nodes`.
      payload: what is sent; at least one byte.
      capture: path of a pcapng file to write all packets to; None: no file.
      time_limit: virtual seconds for the whole run.

    Raises:
      trio.TooSlowError: the time limit has passed.
      Exception: any exception of a node or plugin except `ConnectError`, with the world's explanation as a note.
    """
    async with pair.build(time_limit=time_limit) as net, simulated_hosts():
        if capture is not None:
            net.capture(capture)
        async with (
            open_nodes(net, config=config, servers=servers, plugins=plugins) as nodes,
            open_background_nursery() as nursery,
        ):
            with net.hosts["bob"]:
                nursery.start_soon(_serve_echo, nodes.bob)
            began = trio.current_time()
            try:
                pipe = await connect(nodes.alice, nodes.bob.address)
            except ConnectError as error:
                result = Walk(report=error.report)
            else:
                assert pipe.report is not None
                connected = trio.current_time()
                first, intact = await _echo(pipe, payload)
                result = Walk(
                    report=pipe.report,
                    connect=connected - began,
                    first_byte=None if first is None else first - began,
                    intact=intact,
                )
            result = replace(result, explanation=net.explain(), ladder=net.ladder(_LADDER, since=began))
        left = net.netstat()
        return replace(result, digest=net.digest(), left=str(left) if left else "")


def simulate_walk(pair: PeerPair, connect: Connect = Node.auto_connect, **options: Any) -> Walk:
    """Run `walk`, with the same options, in a run of its own whose scheduling depends on the pair's seed alone."""
    return simulate(partial(walk, pair, connect, **options), seed=pair.seed)


async def _serve_echo(node: Node) -> None:
    """Accept every Pipe, and send everything back."""

    async def echo(pipe: Pipe) -> None:
        async with pipe:
            with suppress(trio.BrokenResourceError):
                async for data in pipe:
                    await pipe.send_all(data)
                await pipe.send_eof()

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(echo, await node.listener.accept())


async def _echo(pipe: Pipe, payload: bytes) -> tuple[float | None, bool]:
    """Send `payload` and close the Pipe; returns when the first byte came back, and whether all came back intact."""
    first: float | None = None
    received = bytearray()

    async def send() -> None:
        with suppress(trio.BrokenResourceError):
            await pipe.send_all(payload)
            await pipe.send_eof()

    async with pipe, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with suppress(trio.BrokenResourceError):
            async for data in pipe:
                first = trio.current_time() if first is None else first
                received += data
    return first, received == payload
