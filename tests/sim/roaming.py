"""Two nodes that talk while one of them moves to another network: their worlds, and the silence that follows.

A `Roaming` world has two peers, one round trip `rtt` apart from each other and from the servers.  Each is behind a home
router, or the listener has a public address.  Beside each home there is a café with its own router, to move to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal, final

import trio

from warpgate_trio import NodeConfig, PathState, Pipe
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.sim import Host, Link, NatConfig, Network, presets, simulate
from warpgate_trio.sim.addr import is_v6
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, NodePair, WorldServer, open_nodes

__all__ = [
    "RTT",
    "Family",
    "Roaming",
    "Silence",
    "Talk",
    "Way",
    "Who",
    "connected",
    "keep_family",
    "survive",
    "talking",
]

RTT: Final = 0.05
Family = Literal["v4", "v6", "dual"]
Way = Literal["direct", "punched"]
Who = Literal["alice", "bob"]
Silence = tuple[float, float]
"""Seconds without data: at the listener, and at the caller."""
PACE: Final = 0.02
WARM: Final = 1.0
"""Seconds of talk before something happens: the round-trip time is measured by then."""
SETTLED: Final = 1.0
"""Seconds of talk after the silence, at whose end data must still flow."""
_STUN: Final = [
    WorldServer(
        key="stun", url=f"stun:{name}:3478", machine=name, open=lambda _: open_stun_server(host=None, port=3478)
    )
    for name in ("stun", "stun2")
]
SERVERS: Final = (RENDEZVOUS, *_STUN, NTP)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Roaming:
    """A world.

    Attributes:
      alice, bob: the address families that each has.
      way: whether the listener, bob, has a public address, or both are behind routers and only a UDP punch connects
        them.
      rtt: seconds of a round trip between any two machines.
      strict: whether the routers drop packets of TCP connections whose start they did not see.
    """

    alice: Family = "v4"
    bob: Family = "v4"
    way: Way = "direct"
    rtt: float = RTT
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.alice} to {self.bob}, {self.way}, {1000 * self.rtt:.0f} ms"

    def build(self) -> Network:
        """Make the network."""
        net, link = Network(0, ipv6=True, time_limit=1e6), Link(latency=self.rtt / 4)
        for server in ("server", "stun", "stun2", "ntp"):
            net.host(server, link=link)
        for name, family, nat in (("alice", self.alice, presets.FULL_CONE), ("bob", self.bob, presets.LINUX)):
            nat, firewall = (_strict(box) if self.strict else box for box in (nat, presets.FIREWALL6))
            home, _ = (net.lan(f"{name}-{at}", nat=nat, firewall6=firewall, uplink=link) for at in ("home", "cafe"))
            at_home = self.way == "punched" or name == "alice"
            host = home.host(name) if at_home else net.host(name, link=link)
            keep_family(host, family)
        return net

    @property
    def plugins(self) -> list[str]:
        """The plugins that the caller may use."""
        meet = ["tcp_punch", "udp_punch"] if self.way == "direct" else ["udp_punch"]
        return ["direct_connect", "reverse_connect", *meet]


def _strict(box: NatConfig) -> NatConfig:
    return replace(box, tcp=replace(box.tcp, loose=False))


def keep_family(host: Host, family: Family) -> None:
    """Remove the host's addresses of the other family."""
    for address in list(host.addresses):
        if family == ("v4" if is_v6(address) else "v6"):
            host.interfaces[0].segment.take_away(address)


NUMBERS: Final = bytes(range(251))


def numbered(start: int, size: int) -> bytes:
    start %= 251
    return (NUMBERS * (2 + size // 251))[start : start + size]


@final
class Talk:
    """Sends numbered bytes one way, some every 20 ms, and records when they came."""

    def __init__(self, sender: Pipe, receiver: Pipe, *, size: int = 100) -> None:
        self.sender, self.receiver = sender, receiver
        self.size = size
        self.sent = self.got = 0
        self.arrivals: list[float] = []
        self._came = trio.lowlevel.ParkingLot()

    async def send(self) -> None:
        while True:
            await self.sender.send_all(numbered(self.sent, self.size))
            self.sent += self.size
            await trio.sleep(PACE)  # the pace of a talk

    async def receive(self) -> None:
        while True:
            data = await self.receiver.receive_some()
            assert data == numbered(self.got, len(data))
            self.got += len(data)
            self.arrivals.append(trio.current_time())
            self._came.unpark_all()

    async def wait_through(self) -> None:
        """Wait until something arrives that is sent from now on."""
        said = self.sent
        while self.got <= said:
            await self._came.park()

    def silence_after(self, time: float) -> float:
        """The longest pause between arrivals, from a second before `time` on."""
        times = [at for at in self.arrivals if at >= time - 1.0]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))


@asynccontextmanager
async def connected(
    world: Roaming, *, config: NodeConfig | None = None, dead_after: float | None = None
) -> AsyncGenerator[tuple[NodePair, Pipe, Pipe]]:
    """Two nodes with a Pipe between them: the caller's end, and the listener's."""
    async with (
        world.build() as net,
        simulated_hosts(),
        open_nodes(net, config=config, servers=SERVERS) as nodes,
    ):
        ours = await nodes.alice.auto_connect(nodes.bob.address, plugins=world.plugins, dead_after=dead_after)
        theirs = await nodes.bob.listener.accept()
        assert (ours.path.phase == "direct") is (world.way == "direct"), ours.path
        async with ours, theirs:
            yield nodes, ours, theirs


@asynccontextmanager
async def talking(world: Roaming) -> AsyncGenerator[tuple[NodePair, list[Talk]]]:
    """Two nodes that have talked both ways for `WARM` seconds."""
    async with connected(world) as (nodes, ours, theirs), trio.open_nursery() as nursery:
        talks = [Talk(ours, theirs), Talk(theirs, ours)]
        for talk in talks:
            nursery.start_soon(talk.send)
            nursery.start_soon(talk.receive)
        await trio.sleep(WARM)
        yield nodes, talks
        nursery.cancel_scope.cancel()


def survive(world: Roaming, happens: Callable[[Network, Pipe], object], *, lasts: float = 0.0) -> Silence:
    """The silence each way after something has happened to a Pipe that both ends use.

    Args:
      happens: makes it happen; it gets the network and the caller's end.
      lasts: seconds that it takes, which do not count as silence.
    """
    silences: list[float] = []

    async def main() -> None:
        async with talking(world) as (nodes, talks):
            began = trio.current_time()
            happens(nodes.net, talks[0].sender)
            await trio.sleep(lasts)
            again = trio.current_time()
            with trio.fail_after(60.0):
                for talk in talks:
                    await talk.wait_through()
            await trio.sleep(SETTLED)
            for talk in talks:
                assert talk.arrivals[-1] >= trio.current_time() - 0.5, "it flows"
                assert talk.sender.path.state is PathState.LIVE
                silences.append(max(0.0, talk.silence_after(began) - (again - began)))
            print(f"{world}: silent for {silences[0]:.2f} and {silences[1]:.2f} s, then {talks[0].sender.path.plugin}")

    simulate(main, seed=0)
    first, second = silences
    return first, second
