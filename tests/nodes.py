"""Nodes for tests: on loopback alone, with ephemeral keys, and with their own rendezvous server if wanted."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import final

import trio

from tests.identities import ALICE, BOB
from tests.ports import free_port
from warpgate_trio import Identity, Node, NodeConfig, PeerAddress, Pipe, Servers, anyone, open_node
from warpgate_trio import host as machine
from warpgate_trio.address import Endpoint
from warpgate_trio.config import Budgets, ListenConfig, PathsConfig
from warpgate_trio.host import Gateway, Host, Interface, InterfaceAddress
from warpgate_trio.plugin import Plugin
from warpgate_trio.servers.rendezvous import RendezvousServer, open_rendezvous

BRIEF = PathsConfig(resume_timeout=0)
"""Configures Links that end with their last path."""
QUICK = Budgets(
    direct_min=0.1,
    direct_max=0.15,
    punch=0.05,
    spray=0.05,
    signal=0.15,
    commit=0.15,
    authorize=0.1,
    handshake=0.5,
    goodbye=0.2,
)
"""Budgets of the phases and of a signal under which even a failing walk takes a fraction of a second."""


@final
class LoopbackHost:
    """A host with no interface but loopback, so that no test packet can leave it.

    `skew` is its wall clock's error in seconds, `fingerprint` identifies the host, `variables` are its environment.
    """

    def __init__(
        self,
        *,
        skew: float = 0.0,
        fingerprint: bytes = bytes(32),
        seed: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._variables = {} if variables is None else variables
        self._real = machine.RealHost()
        self.skew = skew
        self._fingerprint = fingerprint
        self.random = random.Random(seed)

    def interfaces(self) -> tuple[Interface, ...]:
        addresses = (
            InterfaceAddress(ip=ip_address("127.0.0.1"), prefix=8),
            InterfaceAddress(ip=ip_address("::1"), prefix=128),
        )
        return (Interface(name="lo", index=1, addresses=addresses, is_loopback=True, is_virtual=False),)

    async def wait_change(self) -> None:
        await trio.sleep_forever()

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        return dest if dest.is_loopback else None

    def gateways(self) -> tuple[Gateway, ...]:
        return ()

    def name(self) -> str:
        return ""

    def environment(self) -> Mapping[str, str]:
        return self._variables

    def wall_time(self) -> float:
        return self._real.wall_time() + self.skew

    def asleep(self) -> float:
        return self._real.asleep()

    def entropy(self, n: int) -> bytes:
        return self._real.entropy(n)

    def spare_descriptors(self) -> int:
        return self._real.spare_descriptors()

    def machine_fingerprint(self) -> bytes:
        return self._fingerprint


def config(
    *servers: RendezvousServer | str,
    budgets: Budgets | None = None,
    port: int = 0,
    turn: Sequence[str] = (),
    paths: PathsConfig | None = None,
) -> NodeConfig:
    urls = [server if isinstance(server, str) else f"ws://127.0.0.1:{server.port}" for server in servers]
    return NodeConfig(
        servers=Servers(websocket=urls, turn=turn),
        budgets=Budgets() if budgets is None else budgets,
        listen=ListenConfig(port=port),
        paths=PathsConfig() if paths is None else paths,
    )


@asynccontextmanager
async def on_host(host: Host) -> AsyncGenerator[None]:
    """Nodes that are opened inside run on `host`; the previous host is restored at the end."""
    old = machine.set_provider(lambda: host)
    try:
        yield
    finally:
        machine.set_provider(old)


@asynccontextmanager
async def loopback_node(
    identity: Identity,
    node_config: NodeConfig,
    *,
    authorize: Callable[[str], Awaitable[bool]] | None = None,
    host: Host | None = None,
    plugins: Iterable[str | type[Plugin]] | None = None,
    strict_plugins: bool = True,
) -> AsyncGenerator[Node]:
    async with (
        on_host(LoopbackHost() if host is None else host),
        open_node(
            node_config, identity=identity, authorize=authorize, plugins=plugins, strict_plugins=strict_plugins
        ) as node,
    ):
        yield node


@dataclass(frozen=True)
class Pair:
    alice: Node
    bob: Node
    server: RendezvousServer


@asynccontextmanager
async def pair(
    *,
    authorize: Callable[[str], Awaitable[bool]] | None = anyone,
    budgets: Budgets | None = None,
    plugins: Iterable[str | type[Plugin]] | None = None,
    turn: Sequence[str] = (),
    paths: PathsConfig | None = None,
) -> AsyncGenerator[Pair]:
    """Alice, the caller, and Bob, the listener, on one host, both connected to one rendezvous server.

    `turn` are Alice's TURN servers.
    """
    chosen = None if plugins is None else list(plugins)
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server, budgets=budgets, paths=paths), authorize=authorize, plugins=chosen) as bob,
        loopback_node(ALICE, config(server, budgets=budgets, turn=turn, paths=paths), plugins=chosen) as alice,
    ):
        await bob.wait_signals()
        await alice.wait_signals()
        yield Pair(alice, bob, server)


@asynccontextmanager
async def pipes(**options: object) -> AsyncGenerator[tuple[Pipe, Pipe, Pair]]:
    """Alice's end and Bob's end of one Pipe."""
    async with pair(**options) as both:  # type: ignore[arg-type]
        ours = await both.alice.auto_connect(both.bob.address)
        theirs = await both.bob.listener.accept()
        async with ours, theirs:
            yield ours, theirs, both


def address_of(
    identity: Identity, *, port: int, signals: Iterable[str] = (), host: Host | None = None, now: float | None = None
) -> PeerAddress:
    """A signed address of a peer that names whatever endpoints on loopback the test wants."""
    from warpgate_trio.address import AddressInterface, EndpointKind, Transport

    host = LoopbackHost() if host is None else host
    issued = int(host.wall_time() if now is None else now)
    endpoint = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip="127.0.0.1", port=port)
    return PeerAddress.issue(
        identity,
        seq=issued,
        issued_at=issued,
        expires_at=issued + 3600,
        host_salt=bytes(8),
        host_id=machine.host_id(host.machine_fingerprint(), bytes(8), identity.public_key),
        signals=tuple(signals),
        interfaces=(AddressInterface(1, (endpoint,)),),
    )


async def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    await trio.lowlevel.checkpoint()
    return free_port()


async def echo(pipe: Pipe) -> None:
    """Send everything back, until the peer's end."""
    async with pipe:
        async for data in pipe:
            await pipe.send_all(data)
        await pipe.send_eof()
