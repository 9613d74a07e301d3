"""Two whole nodes in a simulated internet with every kind of server, behind NATs or not.

`meet` lets one connect to the other and returns whether, how and how fast; `in_world` runs a test's own function.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import trio

from tests.identities import ALICE, BOB
from tests.nodes import echo
from tests.sim.worlds import may_break
from warpgate_trio import ConnectError, Node, NodeConfig, PeerAddress, Pipe, Servers, anyone, open_node
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.config import Budgets, ListenConfig
from warpgate_trio.plugin import Plugin
from warpgate_trio.report import ConnectReport
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.sim import Fault, Host, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, PORT, RENDEZVOUS, SERVERS, STUN, STUN2, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair

RTT = 0.05
CONES = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
WARM = 60.0  # more than clocks differ: a node treats messages stamped before its start as replays
LINGER = 1000.0  # TIME-WAIT is a minute, and TCP gives up the last bytes of an orphaned socket within minutes
PAYLOAD = bytes(range(256)) * 64

Connect = Callable[[Node, PeerAddress], Awaitable[Pipe]]
OpenServers = Callable[[Network], AbstractAsyncContextManager[tuple[NodeConfig, NodeConfig]]]
"""Opens a world's servers; yields the configurations of the two nodes, alice's first."""


def open_stun(host: Host) -> AbstractAsyncContextManager[object]:
    """Run a STUN server on two IPv4 addresses, also in worlds with IPv6."""
    first, second = [address for address in host.addresses if ":" not in address][:2]
    return open_stun_server(host=first, second_host=second, port=3478)


def stun_url(host: Host) -> str:
    """A URL with the IPv4 address, because these servers lack IPv6, and a name would also resolve to IPv6 addresses."""
    return f"stun:{host.ip}:3478"


@dataclass(frozen=True)
class Meeting:
    """The result of one walk.

    Attributes:
      report: the `ConnectReport` of a success or a failure.
      walk: seconds from the call to the Pipe or the error.
      echoed: seconds from the call to the first echoed byte; None if none came.
      phase_to_echo: seconds from the start of the phase that won to the first echoed byte.
      digest: a digest of all packets.
    """

    connected: bool
    report: ConnectReport
    walk: float
    echoed: float | None
    digest: str = ""

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
    """The report in readable form, for a failing test."""
    lines = [
        f"{row.plugin} {row.route} {row.likelihood}: {row.outcome.value} {row.error or ''}"
        for row in meeting.report.combos
    ]
    return "\n".join([f"{meeting.report.verdict.value} after {meeting.walk:.3f} s", *lines])


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """The arguments of `meet`."""

    connect: Connect
    warm: float
    both_cold: bool
    lossy: bool
    breaks: bool
    faults: tuple[Fault, ...]
    early: bytes
    data: bytes


def meet(
    pair: PeerPair,
    connect: Connect = Node.auto_connect,
    *,
    ntp: bool = True,
    budgets: Budgets | None = None,
    warm: float = WARM,
    both_cold: bool = False,
    on_network: Callable[[Network], object] | None = None,
    lossy: bool = False,
    breaks: bool = False,
    faults: tuple[Fault, ...] = (),
    early: bytes = b"",
    data: bytes = PAYLOAD,
    servers: OpenServers | None = None,
) -> Meeting:
    """Open both nodes and all servers, let alice connect to bob, echo some data, close; nothing may be left.

    Both nodes have been open for `warm` seconds at the call.  With 0, only alice's is cold, or both with `both_cold`.
    The `faults` begin with the call.  `early` is the early data of `connect`.  `servers` replaces `SERVERS`.

    In a `lossy` world a Pipe may break at its end; with `breaks` or any faults, at any time.  In both cases bob may
    have accepted a Pipe that alice has given up.
    """
    wanted = _Walk(
        connect=connect,
        warm=warm,
        both_cold=both_cold,
        lossy=lossy,
        breaks=breaks or bool(faults),
        faults=faults,
        early=early,
        data=data,
    )

    async def main() -> Meeting:
        async with pair.build(time_limit=3600) as net, simulated_hosts(), AsyncExitStack() as stack:
            mapped = pair.forward(net, "bob", PORT) if pair.bob.forwarded else None
            opened = partial(_open_servers, ntp=ntp) if servers is None else servers
            configs = await stack.enter_async_context(opened(net))
            told = [
                msgspec.structs.replace(each, listen=ListenConfig(port=PORT), budgets=budgets or Budgets())
                for each in configs
            ]
            if on_network is not None:
                on_network(net)
            result = await _call(net, told[0], told[1], mapped, wanted)
            await stack.aclose()
            left = net.netstat()
            assert not left, str(left)
            await trio.sleep(LINGER)
            assert net.netstat().lingering == ()
            return result

    return simulate(main, seed=pair.seed)


@asynccontextmanager
async def _open_servers(net: Network, *, ntp: bool) -> AsyncGenerator[tuple[NodeConfig, NodeConfig]]:
    """Run every kind of server except relays."""
    async with AsyncExitStack() as stack:
        urls: dict[str, list[str]] = {}
        for server in (RENDEZVOUS, replace(STUN, open=open_stun), STUN2, *([NTP] if ntp else [])):
            if server.machine in net.hosts:
                machine = net.hosts[server.machine]
                with machine:
                    await stack.enter_async_context(server.open(machine))
                url = stun_url(machine) if server.key == "stun" else server.url
                urls.setdefault(server.key, []).append(url)
        config = NodeConfig(servers=Servers(**urls))  # type: ignore[arg-type]
        yield config, config


async def _call(net: Network, alices: NodeConfig, bobs: NodeConfig, mapped: str | None, wanted: _Walk) -> Meeting:
    accepted: list[Pipe] = []

    async def serve(bob: Node) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                accepted.append(await bob.listener.accept())
                nursery.start_soon(back, accepted[-1])

    async def back(pipe: Pipe) -> None:
        with may_break(wanted.lossy or wanted.breaks):
            await echo(pipe)

    async with trio.open_nursery() as nursery:
        with net.hosts["bob"]:
            async with open_node(bobs, identity=BOB, authorize=anyone, strict_plugins=True) as bob:
                await bob.wait_signals()
                await trio.sleep(0 if wanted.warm or wanted.both_cold else WARM)
                with net.hosts["alice"]:
                    async with open_node(alices, identity=ALICE, authorize=anyone, strict_plugins=True) as alice:
                        nursery.start_soon(serve, bob)
                        if wanted.warm:
                            await alice.wait_signals()
                            await trio.sleep(wanted.warm)
                        net.schedule(wanted.faults)
                        target = bob.address if mapped is None else with_mapped(bob.address, mapped)
                        result = await _walk(alice, target, accepted, wanted)
                nursery.cancel_scope.cancel()
    return replace(result, digest=net.digest())


async def _walk(alice: Node, target: PeerAddress, accepted: Sequence[Pipe], wanted: _Walk) -> Meeting:
    strict = not wanted.lossy and not wanted.breaks
    began = trio.current_time()
    try:
        pipe = await wanted.connect(alice, target)
    except ConnectError as error:
        assert accepted == [] or not strict
        return Meeting(False, error.report, trio.current_time() - began, None)
    walk = trio.current_time() - began
    assert pipe.peer_id == BOB.peer_id
    first = await _first_echo(pipe, wanted)
    assert {each.peer_id for each in accepted} <= {ALICE.peer_id}
    assert [path_of(each) for each in accepted] == [path_of(pipe)] or not strict
    assert pipe.report is not None
    return Meeting(True, pipe.report, walk, None if first is None else first - began)


async def _first_echo(pipe: Pipe, wanted: _Walk) -> float | None:
    """Send everything, check that it comes back, and close; returns when the first byte came back.

    If the Pipe breaks, the bytes that came must still be right.
    """
    expected = wanted.early + wanted.data
    received = bytearray()
    first: float | None = None

    async def send() -> None:
        await pipe.send_all(wanted.data)
        await pipe.send_eof()

    try:
        with may_break(wanted.breaks):
            async with pipe:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    while len(received) < len(expected):
                        received += await pipe.receive_some() or b"an end that is too early"
                        first = trio.current_time() if first is None else first
                with may_break(wanted.lossy):
                    assert await pipe.receive_some() == b""
                assert received == expected
    finally:
        assert expected.startswith(received)
    return first


def path_of(pipe: Pipe) -> tuple[str | None, str, int, str]:
    """What both ends must agree on; endpoints, and so the kind of route, differ between the two sides of a NAT."""
    path = pipe.path
    return path.phase, path.plugin, path.af, path.carrier


def with_mapped(address: PeerAddress, ip: str) -> PeerAddress:
    """Bob's address record with the port that his router forwards, as if the user had configured it."""
    (interface,) = address.interfaces
    mapped = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.MAPPED, ip=ip, port=PORT, base=0)
    return PeerAddress.issue(
        BOB,
        seq=address.seq,
        issued_at=address.issued_at,
        expires_at=address.expires_at,
        host_salt=address.host_salt,
        host_id=address.host_id,
        signals=address.signals,
        interfaces=[AddressInterface(interface.index, (*interface.endpoints, mapped))],
        capabilities=address.capabilities,
    )


def in_world(
    main: Callable[[NodePair], Awaitable[None]],
    pair: PeerPair = CONES,
    *,
    servers: Sequence[WorldServer] = SERVERS,
    prepare: Callable[[Network], object] = lambda _: None,
    accepting: bool = True,
    plugins: Sequence[str | type[Plugin]] | None = None,
) -> None:
    """Run `main` with two nodes; bob echoes, and nothing may be left afterwards."""

    async def run() -> None:
        async with pair.build(time_limit=36000) as net, simulated_hosts():
            prepare(net)
            opened = open_nodes(net, servers=servers, authorize_alice=anyone, plugins=plugins)
            async with opened as nodes, trio.open_nursery() as nursery:
                if accepting:
                    with net.hosts["bob"]:
                        nursery.start_soon(serve, nodes.bob)
                await main(nodes)
                nursery.cancel_scope.cancel()
            left = net.netstat()
            assert not left, str(left)

    simulate(run, seed=pair.seed)


async def serve(node: Node) -> None:
    async def one(pipe: Pipe) -> None:
        with suppress(trio.BrokenResourceError):
            await echo(pipe)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(one, await node.listener.accept())


@asynccontextmanager
async def echoing(nodes: NodePair) -> AsyncGenerator[None]:
    """Bob echoes for the time of the body."""

    async def serve() -> None:
        while True:
            async with await nodes.bob.listener.accept() as pipe:
                with suppress(trio.BrokenResourceError):  # a call that is cancelled in its last step
                    async for data in pipe:
                        await pipe.send_all(data)

    async with trio.open_nursery() as nursery:
        with nodes.net.hosts["bob"]:
            nursery.start_soon(serve)
        yield
        nursery.cancel_scope.cancel()
