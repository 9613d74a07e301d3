"""Two whole nodes behind NATs in a simulated internet with every server: who meets, how, how fast, at what cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import trio
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from tests.sim.worlds import may_break
from warpgate_trio import ConnectError, Node, NodeConfig, PeerAddress, Pipe, Servers, anyone, open_node
from warpgate_trio.config import Budgets, ListenConfig
from warpgate_trio.report import ConnectReport
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.sim import (
    Behavior,
    Block,
    Filtering,
    Hash,
    Mapping,
    NatConfig,
    Network,
    Preserve,
    Sequential,
    Uniform,
    Unsolicited,
    simulate,
)
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.theory import promised, punch_possible
from warpgate_trio.testing.worlds import PeerPair

_T = TypeVar("_T")

SIGNALS = 443
WARM = 60.0
Connect = Callable[[Node, PeerAddress], Awaitable[Pipe]]


@dataclass(frozen=True)
class Meeting:
    """What came of one walk.

    Attributes:
      report: `ConnectReport`, of a success or a failure.
      walk: seconds from the call to the Pipe or the error.
      echoed: seconds from the call to the first echoed byte; None without a Pipe.
      phase_to_echo: the same from the start of the phase that won.
    """

    connected: bool
    report: ConnectReport
    walk: float
    echoed: float | None

    @property
    def plugin(self) -> str | None:
        return None if self.report.winner is None else self.report.winner.plugin

    @property
    def phase_to_echo(self) -> float | None:
        winner = self.report.winner
        if self.echoed is None or winner is None or winner.started_ms is None:
            return None
        return self.echoed - winner.started_ms / 1000


def rows(meeting: Meeting) -> str:
    """The report for people, of a test that fails."""
    lines = [
        f"{row.plugin} {row.route} {row.likelihood}: {row.outcome.value} {row.error or ''}"
        for row in meeting.report.combos
    ]
    return "\n".join([f"{meeting.report.verdict.value} after {meeting.walk:.3f} s", *lines])


async def _auto(node: Node, address: PeerAddress) -> Pipe:
    return await node.auto_connect(address)


def meet(
    pair: PeerPair,
    connect: Connect = _auto,
    *,
    stun: bool = True,
    ntp: bool = True,
    budgets: Budgets | None = None,
    warm: float = WARM,
    both_cold: bool = False,
    on_network: Callable[[Network], object] | None = None,
    lossy: bool = False,
) -> Meeting:
    """Open both nodes and all servers, let alice connect to bob, echo some data, close; nothing may be left.

    Both have been open for `warm` seconds by then; where that is 0, alice alone is cold, or `both_cold`.
    """

    async def main() -> Meeting:
        async with pair.build(time_limit=3600) as net, simulated_hosts(), AsyncExitStack() as stack:
            with net.hosts["server"]:
                await stack.enter_async_context(
                    open_rendezvous(host=None, port=SIGNALS, public_urls=[f"ws://server:{SIGNALS}"])
                )
            names = [host.ip for host in (net.hosts["stun"], net.hosts["stun2"])]
            if stun:
                with net.hosts["stun"]:
                    first, second = _addresses(net, "stun")
                    await stack.enter_async_context(open_stun_server(host=first, port=3478, second_host=second))
                with net.hosts["stun2"]:
                    await stack.enter_async_context(open_stun_server(host=names[1], port=3478))
            if ntp:
                with net.hosts["ntp"]:
                    await stack.enter_async_context(open_ntp(host=None, port=123))
            config = NodeConfig(
                servers=Servers(
                    websocket=[f"ws://server:{SIGNALS}"],
                    stun=[f"stun:{name}:3478" for name in names] if stun else [],
                    ntp=["ntp://ntp:123"] if ntp else [],
                ),
                listen=ListenConfig(port=7000),
                budgets=budgets or Budgets(),
            )
            if on_network is not None:
                on_network(net)
            result = await _call(net, config, connect, warm, 0 if warm or both_cold else WARM, lossy)
            await stack.aclose()
            left = net.netstat()
            assert not left, str(left)
            return result

    return simulate(main, seed=pair.seed)


def _addresses(net: Network, name: str) -> tuple[str, str]:
    host = net.hosts[name]
    found = [address for each in host.interfaces for address, _ in each.addresses if ":" not in address]
    return found[0], found[1]


async def _call(
    net: Network, config: NodeConfig, connect: Connect, warm: float, head_start: float, lossy: bool
) -> Meeting:
    async def serve(bob: Node) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(echo, await bob.listener.accept())

    async def echo(pipe: Pipe) -> None:
        async with pipe:
            with suppress(trio.BrokenResourceError):
                async for chunk in pipe:
                    await pipe.send_all(chunk)
                await pipe.send_eof()

    async with trio.open_nursery() as nursery:
        with net.hosts["bob"]:
            async with open_node(config, identity=BOB, authorize=anyone, strict_plugins=True) as bob:
                await bob.wait_signals()
                await trio.sleep(head_start)
                with net.hosts["alice"]:
                    async with open_node(config, identity=ALICE, authorize=anyone, strict_plugins=True) as alice:
                        nursery.start_soon(serve, bob)
                        if warm:
                            await alice.wait_signals()
                            await trio.sleep(warm)
                        result = await _walk(alice, bob, connect, lossy)
                nursery.cancel_scope.cancel()
    return result


async def _walk(alice: Node, bob: Node, connect: Connect, lossy: bool) -> Meeting:
    began = trio.current_time()
    try:
        pipe = await connect(alice, bob.address)
    except ConnectError as error:
        return Meeting(False, error.report, trio.current_time() - began, None)
    walk = trio.current_time() - began
    assert pipe.report is not None
    async with pipe:
        await pipe.send_all(b"x")
        assert await pipe.receive_some(1) == b"x"
        echoed = trio.current_time() - began
        payload = bytes(range(256)) * 64
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.send_all, payload)
            received = b""
            while len(received) < len(payload):
                received += await pipe.receive_some()
        assert received == payload
        await pipe.send_eof()
        with may_break(lossy):
            assert await pipe.receive_some() == b""
    return Meeting(True, pipe.report, walk, echoed)


# -- worlds in which theory promises something -------------------------------------------------------------------------


def punchable(alice: Sequence[NatConfig], bob: Sequence[NatConfig]) -> bool:
    """Whether theory says that the two can punch, over UDP or over TCP; the preconditions are `draw_punchable`'s.

    Besides what `promised` says, it counts NATs that move ports and let everybody in, for whom there is a way if
    whoever is behind them is not the first to send.  For UDP and one such NAT we know when that is so; of a stack of
    them only the strictest filter is seen, and over TCP nobody can measure filtering, as no server calls back.
    """
    udp, tcp = ([[getattr(nat, each) for nat in nats] for nats in (alice, bob)] for each in ("udp", "tcp"))
    seen = not any(len(nats) > 1 and _moves_and_lets_in(nats) for nats in udp)
    over_udp = promised(*udp) or (seen and punch_possible(*udp))
    over_udp = over_udp and all(nat.ports is None for nats in udp for nat in nats)
    over_tcp = promised(*tcp) or (not any(_moves_and_lets_in(nats) for nats in tcp) and punch_possible(*tcp))
    over_tcp = over_tcp and all(nat.ports is None and nat.simultaneous_open for nats in tcp for nat in nats)
    return over_udp or over_tcp


def _moves_and_lets_in(layers: Sequence[Behavior]) -> bool:
    return any(each.mapping is not Mapping.EIM and each.filtering is Filtering.EIF for each in layers)


# Plain functions of a source of choices, which is Hypothesis' in a property and a seed's in `tests.sim.census`.


class Chooser(Protocol):
    """What the worlds are drawn by."""

    def choice(self, seq: Sequence[_T], /) -> _T: ...
    def randint(self, a: int, b: int, /) -> int: ...


def _behavior(random: Chooser, *, tcp: bool) -> Behavior:
    """One transport of a NAT that fulfils E.1's preconditions: symmetric NATs preserve nothing, ports are plenty."""
    mapping = random.choice(list(Mapping))
    ways: list[Uniform | Block | Hash | Sequential | Preserve] = [
        Uniform(),
        Uniform(ports=(32768, 65535)),
        Block(size=1024),
        Hash(remote=True),
        Sequential(delta=1),
    ]
    if mapping is Mapping.EIM:
        ways.insert(0, Preserve())
    policies = [each for each in Unsolicited if tcp or each not in (Unsolicited.RST, Unsolicited.HOLD)]
    return Behavior(
        mapping=mapping,
        filtering=random.choice(list(Filtering)),
        allocation=random.choice(ways),
        unsolicited=random.choice(policies),
    )


def _nats(random: Chooser) -> tuple[NatConfig, ...]:
    made = []
    for _ in range(random.randint(1, 2)):
        udp, tcp = _behavior(random, tcp=False), _behavior(random, tcp=True)
        words = [f"{each.mapping.name}/{each.filtering.name}/{each.unsolicited.name}" for each in (udp, tcp)]
        made.append(NatConfig(name="+".join(words).lower(), source="composed", udp=udp, tcp=tcp))
    return tuple(made)


def draw_punchable(random: Chooser, *, loss: float = 0.0) -> tuple[PeerPair, bool]:
    """A pair for which theory promises a path, behind one or two NATs each, and whether there is a time server."""
    while True:
        alice, bob = _nats(random), _nats(random)
        if punchable(alice, bob):
            break
    rtt = random.choice((0.05, 0.02, 0.15))
    offsets = (0.0, 30.0, -30.0, 1.5)
    pair = PeerPair.between(
        alice,
        bob,
        rtt=rtt,
        server_rtt=random.choice((None, rtt / 2, 2 * rtt)),
        loss=loss,
        clock_offsets=(random.choice(offsets), random.choice(offsets)),
        seed=random.randint(0, 10_000),
    )
    return pair, random.choice((True, False))


def punchable_worlds(*, loss: float = 0.0) -> st.SearchStrategy[tuple[PeerPair, bool]]:
    """`draw_punchable` for properties."""
    return st.randoms(use_true_random=False).map(partial(draw_punchable, loss=loss))
