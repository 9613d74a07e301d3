"""Punching with accidental trouble: networks that change, full tables, wrong clocks.

These are the rows of docs/punching.md that need a whole world; attackers are in test_punching_hostile.py.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import pytest
import trio

from tests.sim.walks import CONES, RTT, in_world, meet, rows, serve
from warpgate_trio import ConnectError, Node, PeerAddress, Pipe, anyone
from warpgate_trio.config import Budgets
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.plugin import Message, Plugin, register
from warpgate_trio.ports.tcp import TcpPort
from warpgate_trio.ports.udp import UdpPort, UdpPorts
from warpgate_trio.punch.allowance import PORTS_KEPT
from warpgate_trio.punch.probe import ProbeCodec
from warpgate_trio.report import Outcome, WalkEvent
from warpgate_trio.sim import (
    Behavior,
    Conflict,
    Fault,
    Filtering,
    Host,
    Kind,
    Mapping,
    NatConfig,
    Network,
    Uniform,
    presets,
    simulate,
)
from warpgate_trio.sim.packet import UDP, Packet
from warpgate_trio.stun.codec import BINDING, XOR_MAPPED_ADDRESS, MessageClass, decode, encode
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair
from warpgate_trio.walk.phase_clock import HOLD

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

BUDGETS = Budgets()
PUNCHES = ["udp_punch", "tcp_punch"]


async def try_to_connect(nodes: NodePair, plugin: str | None = None, timeout: float = 6.0) -> str:
    """Connect and exchange data; returns the winning plugin, or the verdict of the report."""
    node, peer = nodes.alice, nodes.bob.address
    try:
        pipe = await (node.auto_connect(peer) if plugin is None else node.connect(peer, plugin=plugin, timeout=timeout))
    except ConnectError as error:
        return error.report.verdict.value
    async with pipe:
        with suppress(trio.BrokenResourceError):
            await pipe.send_all(b"hello")
            assert await pipe.receive_some() == b"hello"
        return pipe.path.plugin


def nothing_runs(nodes: NodePair) -> None:
    for node in (nodes.alice, nodes.bob):
        stats = node.stats()
        assert (stats.links, stats.attempts, stats.handshakes) == (0, 0, 0)
        assert len(node._runtime.udp_ports) <= 1, "the warm one, and no more"


# -- both call at once -------------------------------------------------------------------------------------------------


async def call_each_other(nodes: NodePair, plugin: str | None) -> list[str]:
    """Both call at once: each call gets its own Pipe with its own bytes, and there is no third one."""
    won: list[str] = []

    async def one(node: Node, other: Node, host: Host, word: bytes) -> None:
        with host:
            try:
                pipe = await (
                    node.auto_connect(other.address)
                    if plugin is None
                    else node.connect(other.address, plugin=plugin, timeout=12)
                )
            except ConnectError:
                won.append("missed")
                return
            theirs = await other.listener.accept()
            async with pipe, theirs:
                await pipe.send_all(word)
                assert await theirs.receive_some() == word
                won.append(pipe.path.plugin)

    hosts = nodes.net.hosts
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, nodes.alice, nodes.bob, hosts["alice"], b"from alice")
        nursery.start_soon(one, nodes.bob, nodes.alice, hosts["bob"], b"from bob")
    assert (nodes.alice.listener.waiting, nodes.bob.listener.waiting) == (0, 0)
    return won


BOTH_HARD = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
HARD_AND_EASY = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX, rtt=RTT)


@pytest.mark.slow("20 times two walks, or 4 times two sprays")
@pytest.mark.parametrize(
    ("plugin", "pair", "times", "pause"),
    [
        ("udp_punch", CONES, 20, 3.0),
        ("tcp_punch", CONES, 20, 3.0),
        (None, CONES, 20, 3.0),
        ("random_probe", HARD_AND_EASY, 4, 130.0),  # seconds in which the allowance of an address is refilled
    ],
)
def test_two_that_call_each_other_at_once_have_a_pipe_each(
    plugin: str | None, pair: PeerPair, times: int, pause: float
) -> None:
    async def main(nodes: NodePair) -> None:
        won: Counter[str] = Counter()
        for _ in range(times):
            with trio.fail_after(20):
                won.update(await call_each_other(nodes, plugin))
            await trio.sleep(pause)
            nothing_runs(nodes)
        assert won.total() == 2 * times
        assert won["missed"] <= (3 if plugin == "random_probe" else 0)  # of 8 sprays at 98 % each

    in_world(main, pair, accepting=False)


# -- cancelled in the middle -------------------------------------------------------------------------------------------


def still_there(net: Network) -> Counter[str]:
    """Sockets and tasks, without port numbers, because a node replaces warm ports that were used."""
    found = net.netstat()
    return Counter(re.sub(r"\d+", "", line) for line in (*found.sockets, *found.tasks))


@pytest.mark.slow("five calls of two nodes")
@pytest.mark.parametrize("plugin", [*PUNCHES, "random_probe"])
def test_a_call_that_is_cancelled_ends_at_the_peer_within_a_second(plugin: str) -> None:
    """The handshake budget would be ten seconds; no path exists, so both sides are busy at the cancellation."""

    async def main(nodes: NodePair) -> None:
        before = still_there(nodes.net)
        busy = 0
        for cut in (RTT * 0.6, RTT * 1.1, RTT * 1.6, RTT * 2.5, 0.3):
            with trio.move_on_after(cut) as scope:
                with suppress(ConnectError):
                    await nodes.alice.connect(nodes.bob.address, plugin=plugin, timeout=10)
            assert scope.cancelled_caught
            busy += nodes.bob.stats().attempts
            await trio.sleep(1.0)
            nothing_runs(nodes)
            await trio.sleep(3)
            assert still_there(nodes.net) == before
        assert busy >= 3

    in_world(main, HARD_AND_EASY if plugin == "random_probe" else BOTH_HARD)


def test_what_a_phase_leaves_behind_ends_at_the_peer() -> None:
    """Otherwise the peer would go on punching for ten seconds, while the walk is in another phase."""

    async def main(nodes: NodePair) -> None:
        sprays = trio.Event()
        attempts: list[int] = []

        def on_event(event: WalkEvent) -> None:
            if event.kind == "phase" and event.phase == "spray":
                attempts.append(nodes.bob.stats().attempts)
                sprays.set()

        async def look_later() -> None:
            await sprays.wait()
            await trio.sleep(2 * RTT)
            attempts.append(nodes.bob.stats().attempts)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_later)
            pipe = await nodes.alice.auto_connect(nodes.bob.address, on_event=on_event)
        assert pipe.path.plugin == "random_probe"
        await pipe.aclose()
        assert attempts == [1, 1], "of each phase its own"

    in_world(main, HARD_AND_EASY)


# -- signals that are late ---------------------------------------------------------------------------------------------

ONLY_TCP = replace(presets.LINUX_SYMMETRIC, name="only-tcp", tcp=presets.LINUX.tcp)


def test_a_punch_that_was_out_of_time_is_tried_again_beside_the_sprays() -> None:
    """The line is dead while TCP punches; over UDP there is no path, and no worthwhile spray."""

    async def main(nodes: NodePair) -> None:
        def on_event(event: WalkEvent) -> None:
            if event.kind == "phase" and event.phase == "punch":
                nodes.net.schedule([Fault(at=0, until=1.6, target="bob", kind=Kind.BLACKHOLE)])

        pipe = await nodes.alice.auto_connect(nodes.bob.address, on_event=on_event)
        async with pipe:
            assert (pipe.path.plugin, pipe.path.phase) == ("tcp_punch", "spray")
        assert pipe.report is not None
        tries = [row for row in pipe.report.combos if row.plugin == "tcp_punch" and row.route == "EXT_BIND"]
        assert [(row.phase, row.outcome) for row in tries] == [("punch", Outcome.TIMED_OUT), ("spray", Outcome.WON)]

    in_world(main, PeerPair.between(ONLY_TCP, ONLY_TCP, rtt=RTT))


@pytest.mark.usefixtures("own_plugins")
def test_a_second_try_takes_no_longer_than_the_first_where_a_relay_waits() -> None:
    """Such NATs drop silently what they do not let in, and a phase of sprays would take five seconds."""
    stubborn = replace(ONLY_TCP, name="stubborn", tcp=replace(ONLY_TCP.tcp, simultaneous_open=False))

    @register(phase="relay")
    class Relay(Plugin):
        name = "relay"
        aim = Plugin.aim.MEET

        async def run(self, reply: Message | None = None) -> NoReturn:
            raise AttemptFailed("no relay, only somebody who waits for one")

    async def main(nodes: NodePair) -> None:
        began: dict[str | None, float] = {}

        def on_event(event: WalkEvent) -> None:
            if event.kind == "phase":
                began[event.phase] = event.at_ms / 1000

        with pytest.raises(ConnectError):
            await nodes.alice.auto_connect(nodes.bob.address, on_event=on_event)
        first, second = began["spray"] - began["punch"], began["relay"] - began["spray"]
        assert first == pytest.approx(BUDGETS.punch, abs=HOLD)
        assert second == pytest.approx(BUDGETS.punch, abs=HOLD)

    in_world(main, PeerPair.between(stubborn, stubborn, rtt=RTT), plugins=["tcp_punch", Relay])


def test_a_second_try_waits_until_the_first_packets_over_udp_have_come_or_not() -> None:
    """If a NAT numbers the ports of both transports in one sequence, two punches would spoil each other's forecast."""

    async def main(nodes: NodePair) -> None:
        began: dict[str | None, float] = {}

        def on_event(event: WalkEvent) -> None:
            if event.kind == "phase":
                began[event.phase] = event.at_ms / 1000
                if event.phase == "punch":
                    nodes.net.schedule([Fault(at=0, target="bob", kind=Kind.BLACKHOLE)])

        with pytest.raises(ConnectError) as caught:
            await nodes.alice.auto_connect(nodes.bob.address, on_event=on_event)
        rows = {(row.plugin, row.phase): row for row in caught.value.report.combos if row.route == "EXT_BIND"}
        spray, second = rows["random_probe", "spray"], rows["tcp_punch", "spray"]
        assert (spray.outcome, second.outcome) == (Outcome.TIMED_OUT, Outcome.TIMED_OUT)
        assert spray.started_ms == pytest.approx(began["spray"] * 1000)
        assert second.started_ms == pytest.approx((began["spray"] + BUDGETS.punch) * 1000)

    in_world(main, HARD_AND_EASY)


@pytest.mark.parametrize("swapped", [False, True])
def test_over_tcp_a_nat_that_moves_ports_and_lets_in_makes_no_two_connections_of_one(swapped: bool) -> None:
    """Both NATs let the other side in, so simultaneous connects could make two connections between the same ports."""
    stays, moves = (
        replace(
            ONLY_TCP, name=mapping.name, tcp=Behavior(mapping=mapping, filtering=Filtering.EIF, allocation=Uniform())
        )
        for mapping in (Mapping.EIM, Mapping.ADM)
    )

    async def main(nodes: NodePair) -> None:
        assert await try_to_connect(nodes, "tcp_punch", timeout=1.2) == "tcp_punch"

    in_world(main, PeerPair.between(*((moves, stays) if swapped else (stays, moves)), rtt=0.15))


# -- servers that lie, disagree or die ---------------------------------------------------------------------------------


def liar(where: tuple[str, int], machine: str = "stun2") -> WorldServer:
    """A STUN server that reports the same mapped address to everybody."""

    @asynccontextmanager
    async def opened(host: Host) -> Any:
        async def answer() -> None:
            while True:
                data, source = await sock.recvfrom(2048)
                with suppress(OSError, ValueError):
                    told = [XOR_MAPPED_ADDRESS(where)]
                    said = encode(BINDING, MessageClass.SUCCESS, decode(data).transaction_id, told)
                    await sock.sendto(said, source)

        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind((host.ip, 3478))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                yield
                nursery.cancel_scope.cancel()

    return WorldServer(key="stun", url=f"stun:{machine}:3478", machine=machine, open=opened)


LIES = [("11.200.1.1", 4242), ("192.168.7.7", 9), ("127.0.0.1", 22)]


@pytest.mark.slow("whole walks, some of which fail")
@pytest.mark.parametrize("where", LIES, ids=["somebody", "private", "loopback"])
@pytest.mark.parametrize("plugin", [*PUNCHES, None])
@pytest.mark.parametrize("honest", [True, False])
def test_stun_servers_that_lie(where: tuple[str, int], plugin: str | None, honest: bool) -> None:
    """One liar of two servers does no harm; without any honest server the walk may fail, but ends in time."""
    found: list[str] = []

    async def main(nodes: NodePair) -> None:
        began = trio.current_time()
        found.append(await try_to_connect(nodes, plugin))
        assert trio.current_time() - began < 20
        await trio.sleep(12)
        nothing_runs(nodes)

    servers = (RENDEZVOUS, STUN, liar(where), NTP) if honest else (RENDEZVOUS, liar(where), NTP)
    in_world(main, servers=servers)
    print(found)
    if honest:
        assert found[0] in PUNCHES


def test_stun_servers_that_die_in_the_middle() -> None:
    """The ports are already mapped by then; the next call fares as without any STUN server."""

    async def main(nodes: NodePair) -> None:
        nodes.net.schedule([Fault(at=0.0, target=name, kind=Kind.BLACKHOLE) for name in ("stun", "stun2")])
        assert await try_to_connect(nodes) in PUNCHES
        await trio.sleep(60)
        assert await try_to_connect(nodes) not in PUNCHES
        await trio.sleep(12)
        nothing_runs(nodes)

    in_world(main)


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [(3600.0, 0.0), (86400.0, -86400.0)])
@pytest.mark.parametrize("plugin", PUNCHES)
def test_clocks_that_are_hours_off_without_a_time_server(offsets: tuple[float, float], plugin: str) -> None:
    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.connect(address, plugin=plugin, timeout=6.0)

    result = meet(replace_clocks(offsets), connect, ntp=False)
    assert result.plugin == plugin, rows(result)


def replace_clocks(offsets: tuple[float, float], drift: float = 0.0) -> PeerPair:
    return PeerPair.between(presets.RST, presets.RST, rtt=RTT, clock_offsets=offsets, clock_drifts=(drift, -drift))


@pytest.mark.parametrize("ntp", [True, False])
def test_clocks_that_run_apart(ntp: bool) -> None:
    """Each drifts by a thousandth, so that their offset is almost unknown a minute later."""
    result = meet(replace_clocks((0.0, 0.0), drift=1e-3), ntp=ntp)
    assert result.plugin in PUNCHES, rows(result)


@pytest.mark.slow("the slow way of a walk whose signals are out of time")
@pytest.mark.parametrize("jump", [-40.0, -0.3, 0.3, 40.0, 1e6])
def test_a_clock_that_jumps_in_the_middle(jump: float) -> None:
    """The jump is between request and answer: the agreed instant fits neither clock, but the wait for it is bounded."""

    async def main(nodes: NodePair) -> None:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def set_clock() -> None:
                await trio.sleep(RTT * 0.8)
                nodes.net.hosts["alice"].clock_offset += jump

            began = trio.current_time()
            won = await try_to_connect(nodes)
            assert won in PUNCHES or (abs(jump) > 300 and won == "peer_silent")  # the signal then seems too old
            assert trio.current_time() - began < 20
        await trio.sleep(12)
        nothing_runs(nodes)

    in_world(main)


# -- NATs at their limits ----------------------------------------------------------------------------------------------


@pytest.mark.slow("sprays that a NAT does not let out")
@pytest.mark.parametrize("quota", [4, 12, 60])
@pytest.mark.parametrize("nat", [presets.LINUX, presets.LINUX_SYMMETRIC], ids=["cone", "symmetric"])
def test_a_nat_that_runs_out_of_mappings(nat: NatConfig, quota: int) -> None:
    """Each call works or reports why not, and leaves nothing; with enough mappings, a later call works too."""
    found: list[str] = []

    async def main(nodes: NodePair) -> None:
        found.append(await try_to_connect(nodes))
        await trio.sleep(15)
        nothing_runs(nodes)
        await trio.sleep(300)  # until the mappings have expired
        found.append(await try_to_connect(nodes))
        await trio.sleep(15)
        nothing_runs(nodes)

    in_world(main, PeerPair.between(replace(nat, quota=quota), presets.LINUX, rtt=RTT))
    print(nat.name, quota, found)
    if nat is presets.LINUX and quota >= 12:
        assert found == ["tcp_punch"] * 2


@pytest.mark.slow("sprays between two carriers")
def test_sprays_leave_ports_to_everything_else() -> None:
    """A carrier gives each subscriber a block of ports; two sprays would use it up, and no relay could be reached."""
    found: list[str] = []

    async def main(nodes: NodePair) -> None:
        for _ in range(4):
            found.append(await try_to_connect(nodes, "random_probe"))
        for name in ("alice", "bob"):
            with nodes.net.hosts[name]:
                for _ in range(100):
                    await (await trio.open_tcp_stream("server", 443)).aclose()
        await trio.sleep(PORTS_KEPT)
        found.append(await try_to_connect(nodes, "random_probe"))
        await trio.sleep(15)

    in_world(main, PeerPair.between(presets.CGN_SYMMETRIC, presets.CGN_SYMMETRIC, rtt=RTT, seed=1))
    assert found == ["timed_out", "unreachable", "unreachable", "unreachable", "timed_out"], (
        "the second ones did not spray"
    )


@pytest.mark.slow("three calls of two nodes")
@pytest.mark.parametrize("conflict", Conflict)
def test_two_inside_hosts_on_one_source_port(conflict: Conflict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host behind alice's NAT has used her source port for longer, and talks to the same endpoints."""
    port, hers = 40000, ""
    taken = {UdpPorts: False, TcpPort: False}
    open_udp, open_tcp = UdpPorts.open, TcpPort.open.__func__  # type: ignore[attr-defined]

    async def udp(self: UdpPorts, ip: str, wanted: int = 0) -> UdpPort:
        if ip == hers and not taken[UdpPorts]:
            wanted, taken[UdpPorts] = port, True
        return await open_udp(self, ip, wanted)

    async def tcp(kind: type[TcpPort], ip: str, wanted: int = 0) -> TcpPort:
        if ip == hers and not taken[TcpPort]:
            wanted, taken[TcpPort] = port, True
        return await open_tcp(kind, ip, wanted)  # type: ignore[no-any-return]

    monkeypatch.setattr(UdpPorts, "open", udp)
    monkeypatch.setattr(TcpPort, "open", classmethod(tcp))
    found: list[str] = []

    async def neighbour(net: Network, *, task_status: trio.TaskStatus[None]) -> None:
        carol = net.hosts["carol"]
        with carol, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock, trio.socket.socket() as stream:
            await sock.bind((carol.ip, port))
            await stream.bind((carol.ip, port))
            await stream.connect((net.hosts["stun"].ip, 3478))
            while True:
                for name in ("stun", "stun2", "bob-nat0"):
                    await sock.sendto(b"hello", (net.hosts[name].ip, 3478))
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(5)

    async def run() -> None:
        nonlocal hers
        behaviour = replace(presets.LINUX.udp, conflict=conflict)
        nat = replace(presets.LINUX, udp=behaviour, tcp=replace(presets.LINUX.tcp, conflict=conflict))
        async with PeerPair.between(nat, presets.LINUX, rtt=RTT).build(time_limit=3600) as net, simulated_hosts():
            hers = net.hosts["alice"].ip
            net.hosts["alice"].interfaces[0].segment.host("carol")
            async with trio.open_nursery() as nursery:
                with net.hosts["stun"], trio.socket.socket() as listener:
                    await listener.bind((net.hosts["stun"].ip, 3478))
                    listener.listen()
                    await nursery.start(partial(neighbour, net))
                async with open_nodes(net, authorize_alice=anyone) as nodes, trio.open_nursery() as serving:
                    with net.hosts["bob"]:
                        serving.start_soon(serve, nodes.bob)
                    for plugin in [*PUNCHES, None]:
                        found.append(await try_to_connect(nodes, plugin))
                        await trio.sleep(20)
                    serving.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
            assert not net.netstat(), str(net.netstat())

    simulate(run)
    print(conflict, found)
    assert taken == {UdpPorts: True, TcpPort: True}
    if conflict is not Conflict.DEGRADE:  # that makes the NAT symmetric for this port; the next port is not affected
        assert found[:2] == PUNCHES
    assert found[2] == "tcp_punch"


@pytest.mark.slow("a spray")
@pytest.mark.parametrize("sockets", [0, 1, 40])
def test_a_spray_with_few_sockets_to_be_had(sockets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE in the middle: fewer sockets lower the chance, none is an error, and the port is given back."""
    real = UdpPorts.open
    left = 1000

    async def scarce(self: UdpPorts, ip: str, port: int = 0) -> UdpPort:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return await real(self, ip, port)

    monkeypatch.setattr(UdpPorts, "open", scarce)
    found: list[str] = []

    async def main(nodes: NodePair) -> None:
        nonlocal left
        left = sockets + 1  # a new warm port is opened, too
        found.append(await try_to_connect(nodes, "random_probe"))
        left = 1000
        await trio.sleep(15)
        nothing_runs(nodes)
        found.append(await try_to_connect(nodes, "random_probe"))
        await trio.sleep(15)
        nothing_runs(nodes)

    in_world(main, HARD_AND_EASY)
    print(sockets, found)
    assert found[1] == "random_probe"


# -- a network that changes in the middle ------------------------------------------------------------------------------


def move(net: Network) -> None:
    """Alice's machine loses its address and gets another one, as when roaming."""
    (interface,) = net.hosts["alice"].interfaces
    fresh = interface.segment.free_address()
    interface.segment.take_away(net.hosts["alice"].ip)
    interface.segment.give(interface, fresh)


CHANGES: dict[str, Callable[[Network], object]] = {
    "rebind": lambda net: net.schedule([Fault(at=0.0, target="alice-nat0", kind=Kind.REBIND)]),
    "reboot": lambda net: net.schedule([Fault(at=0.0, until=0.2, target="bob-nat0", kind=Kind.REBOOT)]),
    "another-address": move,
    "no-address": lambda net: net.hosts["alice"].interfaces[0].segment.take_away(net.hosts["alice"].ip),
}


@pytest.mark.slow("a walk that fails, minutes of recovery, and a second walk; each several times")
@pytest.mark.parametrize(
    ("what", "plugin"), [*[(what, None) for what in CHANGES], ("another-address", "udp_punch"), ("rebind", "tcp_punch")]
)
def test_a_network_that_changes_in_the_middle(what: str, plugin: str | None) -> None:
    """At each stage of an attempt, the call works or reports why not, nothing is left, and the next call works."""

    def world(when: float) -> tuple[str, str]:
        found: list[str] = []

        async def main(nodes: NodePair) -> None:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def change() -> None:
                    await trio.sleep(when)
                    CHANGES[what](nodes.net)

                with trio.fail_after(40):
                    found.append(await try_to_connect(nodes, plugin))
            await trio.sleep(30)
            nothing_runs(nodes)
            if what == "no-address":
                return
            await trio.sleep(100)
            found.append(await try_to_connect(nodes, plugin))
            await trio.sleep(30)
            nothing_runs(nodes)

        in_world(main)
        return found[0], found[-1]

    for stage in (0.04, 0.1):  # the request is on its way; both sides are at it
        first, second = world(stage)
        assert first in (*PUNCHES, "no_signal", "peer_silent", "no_relay_configured", "timed_out")
        if what != "no-address":
            assert second in PUNCHES


# -- on an established path --------------------------------------------------------------------------------------------


@pytest.mark.slow("a transfer of 300 kB with a thousand stray packets")
def test_stray_stun_and_probes_in_mid_transfer() -> None:
    """Late answers, keep-alives, probes under other keys and noise do not disturb the transfer, whoever sends them."""

    async def disturb(nodes: NodePair, ours: Pipe) -> None:
        net = nodes.net
        stranger, server = net.hosts["ntp"], net.hosts["stun"]
        to_bob, to_alice = ours.path.remote, (net.hosts["alice-nat0"].ip, ours.path.local[1])
        codec = ProbeCodec(bytes(16), initiator=True)
        while True:
            token = stranger.entropy(12)
            for target, peer in ((to_bob, to_alice), (to_alice, to_bob)):
                for source in ((stranger.ip, 4000), (server.ip, 3478), peer):
                    for data in (
                        codec.request(token),
                        codec.response(token, target),
                        encode(BINDING, MessageClass.SUCCESS, token, [XOR_MAPPED_ADDRESS(source)]),
                        encode(BINDING, MessageClass.REQUEST, token),
                        stranger.entropy(40),
                    ):
                        stranger.output(Packet(UDP, source, target, data))
            await trio.sleep(0.01)

    async def keep_alive(nodes: NodePair) -> None:
        """Send the keep-alives of a warm port on the port that carries the transfer."""
        asked = 0
        for port in list(nodes.alice._runtime.udp_ports._ports):
            if port._paths:
                for _ in range(10):
                    await port.query((nodes.net.hosts["stun"].ip, 3478), rto=0.2, tries=3)
                    asked += 1
        assert asked == 10

    async def main(nodes: NodePair) -> None:
        payload = bytes(range(256)) * 1200
        pipe = await nodes.alice.connect(nodes.bob.address, plugin="udp_punch", timeout=6)
        received = bytearray()
        async with pipe, trio.open_nursery() as nursery:
            nursery.start_soon(disturb, nodes, pipe)
            nursery.start_soon(keep_alive, nodes)
            nursery.start_soon(pipe.send_all, payload)
            while len(received) < len(payload):
                received += await pipe.receive_some()
            assert received == payload
            nursery.cancel_scope.cancel()
        for node in (nodes.alice, nodes.bob):
            assert node.stats().attempts == 0
        await trio.sleep(10)
        nothing_runs(nodes)

    in_world(main, PeerPair.between(presets.FULL_CONE, presets.FULL_CONE, rtt=RTT))


def test_somebody_else_at_the_peers_private_address_accepts_and_stays_silent() -> None:
    """Half of all homes use the same private network: the host at the peer's address in this one is not the peer."""
    home = "192.168.1.0/24"
    pair = replace(CONES, alice=replace(CONES.alice, prefix4=home), bob=replace(CONES.bob, prefix4=home))
    accepted: list[trio.SocketStream] = []

    def prepare(net: Network) -> None:
        (interface,) = net.hosts["alice"].interfaces
        theirs = net.hosts["bob"].ip
        if net.hosts["alice"].ip == theirs:
            interface.segment.take_away(theirs)
            interface.segment.give(interface, interface.segment.free_address())
            if net.hosts["alice"].ip == theirs:
                interface.segment.take_away(theirs)
                interface.segment.give(interface, "192.168.1.77")
        interface.segment.host("impostor", address=theirs)

    async def main(nodes: NodePair) -> None:
        impostor = nodes.net.hosts["impostor"]
        assert impostor.ip == nodes.net.hosts["bob"].ip
        with impostor:
            listeners = await trio.open_tcp_listeners(7000, host=impostor.ip)
        async with trio.open_nursery() as nursery:

            async def silent(stream: trio.SocketStream) -> None:
                accepted.append(stream)
                await trio.sleep_forever()

            nursery.start_soon(partial(trio.serve_listeners, silent, listeners))
            began = trio.current_time()
            assert await try_to_connect(nodes) in PUNCHES
            assert trio.current_time() - began < 3
            await trio.sleep(12)
            nothing_runs(nodes)
            nursery.cancel_scope.cancel()
        assert accepted

    in_world(main, pair, prepare=prepare)
