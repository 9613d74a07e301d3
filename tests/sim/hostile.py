"""Worlds with attackers: nodes whose plugins lie, and a wire that counts every packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

from warpgate_trio import ConnectError, Identity, Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.address.nat_profile import NatProfile, NatProfiles
from warpgate_trio.config import ListenConfig
from warpgate_trio.plugin import Message, Plugin
from warpgate_trio.sim import Network, simulate
from warpgate_trio.sim.packet import ACK, SYN, TCP, UDP, Packet
from warpgate_trio.sim.trace import Trace
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import RENDEZVOUS, SERVERS, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import Machine, PeerPair

BYSTANDER = "bystander"
Run = Callable[[Any, "Message | None"], Awaitable[Any]]


@dataclass
class Wire:
    """Counts of UDP datagrams and SYNs as seen at a host, by (host, event, the other address).

    Attributes:
      tap: called with each host's name and each packet that it sends.
    """

    packets: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    since: float = 0.0
    tap: Callable[[str, Packet], object] = lambda *_: None

    def sent(self, host: str, to: str) -> int:
        return self.packets[host, "send", to]

    def received(self, host: str, source: str | None = None) -> int:
        return sum(
            n
            for (at, event, other), n in self.packets.items()
            if (at, event) == (host, "receive") and source in (None, other)
        )


@contextmanager
def counted() -> Iterator[Wire]:
    """Counts what hosts send and receive within the block: UDP datagrams and SYNs, which punching sends unsolicited."""
    wire = Wire()
    add = Trace.add

    def counting(self: Trace, time: float, node: str, event: str, packet: Packet, *rest: Any) -> None:
        unasked = packet.proto == UDP or (packet.proto == TCP and packet.flags & (SYN | ACK) == SYN)
        if unasked and event in ("send", "receive") and time >= wire.since:
            wire.packets[node, event, (packet.dst if event == "send" else packet.src)[0]] += 1
        if event == "send":
            wire.tap(node, packet)
        add(self, time, node, event, packet, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trace, "add", counting)
        yield wire


def lying(base: type[Plugin], run: Run) -> type[Plugin]:
    """A plugin that claims to be `base`, but runs `run`."""

    async def other(self: Plugin, reply: Message | None = None) -> Any:
        return await run(self, reply)

    made: Any = type("Lying", (base,), {"run": other, "__module__": __name__, "__qualname__": "Lying"})
    made.phase = base.phase
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class World:
    """The honest nodes Alice and Bob, hostile peers, and an uninvolved bystander.

    Attributes:
      claimed: the bystander's address, which hostile peers claim as theirs.
    """

    net: Network
    nodes: NodePair
    hostile: Sequence[Node]
    wire: Wire
    claimed: str


def with_hostile(
    main: Callable[[World], Awaitable[None]],
    *kinds: type[Plugin],
    pair: PeerPair,
    count: int = 1,
    profile: NatProfile | None = None,
    servers: Sequence[WorldServer] = SERVERS,
) -> None:
    """Run `main` in a world of two honest nodes and `count` others, whose plugins are `kinds`.

    Args:
      profile: the NAT profile that the hostile nodes claim; they have public addresses.
    """

    async def run() -> None:
        names = [f"mallory{number}" for number in range(count)]
        public = (*pair.public, Machine(name=BYSTANDER), *(Machine(name=name) for name in names))
        with counted() as wire:
            async with replace(pair, public=public).build(time_limit=36000) as net, simulated_hosts():
                async with (
                    open_nodes(net, servers=servers) as nodes,
                    open_hostile(net, names, kinds, profile) as hostile,
                ):
                    wire.since = trio.current_time()
                    wire.packets.clear()
                    await main(World(net, nodes, hostile, wire, net.hosts[BYSTANDER].ip))
                left = net.netstat()
                assert not left, str(left)

    simulate(run, seed=pair.seed)


@asynccontextmanager
async def open_hostile(
    net: Network, names: Sequence[str], kinds: Sequence[type[Plugin]], profile: NatProfile | None
) -> AsyncGenerator[list[Node]]:
    config = NodeConfig(servers=Servers(websocket=[RENDEZVOUS.url]), listen=ListenConfig(port=7000))
    async with trio.open_nursery() as nursery:
        ready: list[trio.Event] = []
        nodes: list[Node] = []

        async def live(name: str, event: trio.Event) -> None:
            with net.hosts[name]:
                identity = Identity.from_seed(name.encode().ljust(32, b"\0"))
                async with open_node(config, identity=identity, authorize=anyone, plugins=kinds) as node:
                    await node.wait_signals()
                    if profile is not None:
                        node._runtime.nat.profiles = NatProfiles({(None, 4): profile})
                    nodes.append(node)
                    event.set()
                    await trio.sleep_forever()

        for name in names:
            ready.append(trio.Event())
            nursery.start_soon(live, name, ready[-1])
        for event in ready:
            await event.wait()
        yield nodes
        nursery.cancel_scope.cancel()


async def call(node: Node, victim: Node, plugin: str, timeout: float) -> None:
    """One attempt of a hostile peer, which may fail."""
    with suppress(ConnectError):
        pipe = await node.connect(victim.address, plugin=plugin, timeout=timeout)
        await pipe.aclose()
