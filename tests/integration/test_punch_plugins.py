"""udp_punch and tcp_punch between two nodes, and what may go wrong: real sockets, or simulated ones if time matters."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import LoopbackHost, Pair, config, loopback_node
from tests.nodes import pair as open_pair
from tests.races import SECRET, LoneAttempt
from tests.sim.walks import RTT, in_world
from tests.waiting import wait_until
from warpgate_strategies import random_probe
from warpgate_strategies.datagram_race import open_datagram_race
from warpgate_strategies.random_probe import RandomProbe, SprayForMe
from warpgate_strategies.tcp_punch import MeetByTcp, MeetMeByTcp, TcpPunch
from warpgate_strategies.udp_punch import Go, MeetByUdp, MeetMeByUdp, UdpPunch
from warpgate_trio import ConnectError, Node, Pipe, Verdict, anyone
from warpgate_trio import host as machine
from warpgate_trio.config import Budgets
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.plugin import Message, Plugin, RouteType
from warpgate_trio.ports.tcp import TcpPort
from warpgate_trio.ports.udp import UdpPorts
from warpgate_trio.punch.candidates import Candidate, to_candidates
from warpgate_trio.report import Outcome
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.testing.walks import RENDEZVOUS, NodePair
from warpgate_trio.testing.worlds import PeerPair

FAST = Budgets(goodbye=0.05)
FAMILIES = [4, pytest.param(6, marks=pytest.mark.needs("ipv6"))]
NAMES = ["udp_punch", "tcp_punch"]

pytestmark = pytest.mark.usefixtures("own_plugins")


def ports_of(*nodes: Node) -> list[int]:
    return [len(node._runtime.udp_ports) for node in nodes]


async def no_ports(*nodes: Node) -> None:
    await wait_until(lambda: not any(ports_of(*nodes)))


async def echo_once(pipe: Pipe, both: Pair) -> None:
    theirs = await both.bob.listener.accept()
    async with pipe, theirs:
        await pipe.send_all(b"hello")
        assert await theirs.receive_some() == b"hello"
        await theirs.send_all(b"back")
        assert await pipe.receive_some() == b"back"
        assert theirs.path.plugin == pipe.path.plugin


@pytest.mark.parametrize("af", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
async def test_two_nodes_on_one_machine(name: str, af: int) -> None:
    async with open_pair(plugins=[name], budgets=FAST) as both:
        pipe = await both.alice.connect(both.bob.address, plugin=name, af=af)
        assert pipe.path.plugin == name
        assert pipe.path.af == af
        assert pipe.path.route_type == "LOOPBACK_BIND"
        assert pipe.path.carrier == ("quic" if name == "udp_punch" else "tls")
        assert ports_of(both.alice, both.bob) == ([1, 1] if name == "udp_punch" else [0, 0])
        await echo_once(pipe, both)
        await no_ports(both.alice, both.bob)


def own_network() -> InterfaceAddress | None:
    """An IPv4 address of this machine in a real network, if any; packets to it do not leave the machine."""
    for interface in machine.RealHost().interfaces():
        for each in interface.addresses:
            usable = not (each.ip.is_loopback or each.ip.is_link_local)
            if usable and not interface.is_virtual and each.ip.version == 4:
                return each
    return None


class LanHost:
    """A machine whose only address is `address`."""

    def __init__(self, address: InterfaceAddress, name: bytes) -> None:
        self._base = LoopbackHost(fingerprint=name.ljust(32, b"\0"))
        self._address = address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def interfaces(self) -> tuple[Interface, ...]:
        return (Interface(name="lan0", index=2, addresses=(self._address,), is_loopback=False, is_virtual=False),)

    def source_address(self, dest: Any) -> Any:
        return self._address.ip if dest == self._address.ip else self._base.source_address(dest)


def a_message(kind: type[Message], candidates: Sequence[TransportAddress] = ()) -> Message:
    """A message of that kind with plausible content."""
    told = to_candidates(candidates)
    if kind is MeetMeByUdp:
        return MeetMeByUdp(candidates=told)
    if kind is MeetMeByTcp:
        return MeetMeByTcp(candidates=told, received_at=1.0, sent_at=1.0, uncertainty=None, punch_at=1.0)
    assert kind is Go
    return Go()


@asynccontextmanager
async def with_peer(
    base: type[Plugin], run: Callable[[Plugin, Message], Awaitable[Any]]
) -> AsyncGenerator[tuple[Node, Node]]:
    """Alice, who has the real plugin, and Bob, whose half of it runs `run`."""

    async def other(self: Plugin, reply: Message | None = None) -> Any:
        assert reply is not None
        return await run(self, reply)

    namespace = {"run": other, "__module__": __name__, "__qualname__": "Other"}
    kind: Any = type("Other", (base,), namespace)
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server, budgets=FAST), authorize=anyone, plugins=[kind], strict_plugins=False) as bob,
        loopback_node(ALICE, config(server, budgets=FAST), plugins=[base.name]) as alice,
    ):
        await bob.wait_signals()
        await alice.wait_signals()
        yield alice, bob


PLUGINS: list[tuple[type[Plugin], type[Message]]] = [(UdpPunch, MeetMeByUdp), (TcpPunch, MeetMeByTcp)]


async def fails(alice: Node, bob: Node, base: type[Plugin]) -> str:
    with pytest.raises(ConnectError) as caught:
        await alice.connect(bob.address, plugin=base.name, af=4, timeout=2.0)
    await no_ports(alice, bob)
    return " ".join(str(combo.error) for combo in caught.value.report.combos)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_gives_up_is_heard_of(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        raise OSError("no")

    async with with_peer(base, run) as (alice, bob):
        assert "the peer's side of the attempt failed" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_gives_up_later_too(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        await self.send_signal(a_message(answer, [("127.0.0.1", 9)]))
        await trio.sleep(0.02)
        raise OSError("no")

    async with with_peer(base, run) as (alice, bob):
        assert "the peer's side of the attempt failed" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_says_something_else(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        request: Any = reply
        await self.send_signal(request)  # sends back what it received
        await trio.sleep_forever()

    async with with_peer(base, run) as (alice, bob):
        assert "answered with an unexpected message" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
@pytest.mark.parametrize("where", ["203.0.113.9", "192.168.1.1", "224.0.0.1", None])
async def test_a_peer_that_names_no_place_to_be_met_at(
    base: type[Plugin], answer: type[Message], where: str | None
) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        await self.send_signal(a_message(answer, [] if where is None else [(where, 9)]))
        await trio.sleep_forever()

    async with with_peer(base, run) as (alice, bob):
        assert "candidates is allowed" in await fails(alice, bob, base)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [[], [Candidate(bytes([203, 0, 113, 9]), 9)]], ids=["nothing", "elsewhere"])
async def test_a_caller_that_names_no_place_to_be_met_at(name: str, where: list[Candidate]) -> None:
    """The responder's half fails, and reports that without detail."""
    base: Any = UdpPunch if name == "udp_punch" else TcpPunch

    async def run(self: Plugin, reply: Message | None = None) -> Any:
        request: Message
        if name == "udp_punch":
            request = MeetByUdp(af=4, route_type=self.route_type, secret=SECRET, candidates=tuple(where))
        else:
            request = MeetByTcp(
                af=4,
                route_type=self.route_type,
                candidates=tuple(where),
                sent_at=self.clock.now(),
                uncertainty=None,
                bucket=1,
                secret=SECRET,
            )
        await self.send_signal(request)
        while True:
            await self.receive_signal()

    kind: Any = type("Other", (base,), {"run": run, "__module__": __name__, "__qualname__": "Other"})
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server, budgets=FAST), authorize=anyone, plugins=[name]) as bob,
        loopback_node(ALICE, config(server, budgets=FAST), plugins=[kind]) as alice,
    ):
        await bob.wait_signals()
        await alice.wait_signals()
        assert "the peer's side of the attempt failed" in await fails(alice, bob, base)


@pytest.mark.slow("a call for each tick of a walk")
@pytest.mark.parametrize("name", NAMES)
async def test_a_call_is_cancelled_at_any_moment(name: str) -> None:
    """Cancelled at each of the first scheduler ticks, and at some later ones, it leaves nothing on either side."""
    async with open_pair(plugins=[name], budgets=FAST) as both:
        pipes: list[Pipe] = []
        for ticks in (*range(0, 60, 3), 80, 120, 200):
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    with suppress(ConnectError):
                        pipes.append(await both.alice.connect(both.bob.address, plugin=name, af=4))

                nursery.start_soon(call)
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            while pipes:
                await pipes.pop().aclose()
            while both.bob.listener.waiting:
                await (await both.bob.listener.accept()).aclose()
            await no_ports(both.alice)
            with trio.fail_after(HANG):
                while both.bob.stats().attempts or both.bob.stats().links:
                    while both.bob.listener.waiting:
                        await (await both.bob.listener.accept()).aclose()
                    await trio.sleep(0.005)
            await no_ports(both.bob)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRINUSE])
async def test_no_socket_to_be_had(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> Any:
        await trio.lowlevel.checkpoint()
        raise OSError(number, "no socket")

    async with open_pair(plugins=[name], budgets=FAST) as both:
        with monkeypatch.context() as patch:
            patch.setattr(UdpPorts, "open", fail)
            patch.setattr(TcpPort, "open", fail)
            base = UdpPunch if name == "udp_punch" else TcpPunch
            assert "no socket" in await fails(both.alice, both.bob, base)
        async with await both.alice.connect(both.bob.address, plugin=name, af=4):
            pass


@pytest.mark.parametrize("name", NAMES)
async def test_a_peer_without_a_socket(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base: Any = UdpPunch if name == "udp_punch" else TcpPunch

    class Poor(base):  # type: ignore[misc]
        async def run(self, reply: Message | None = None) -> Any:
            raise OSError(errno.EMFILE, "no socket")

    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server, budgets=FAST), authorize=anyone, plugins=[Poor]) as bob,
        loopback_node(ALICE, config(server, budgets=FAST), plugins=[name]) as alice,
    ):
        await bob.wait_signals()
        await alice.wait_signals()
        assert "the peer's side of the attempt failed" in await fails(alice, bob, base)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("machines", [1, 2])
async def test_two_nodes_at_one_address_in_a_network(name: str, machines: int) -> None:
    """On one machine they meet at that address.

    With the fingerprints of two machines, the address that each is given is its own, so they send nothing and fail.
    """
    address = own_network()
    if address is None:
        pytest.skip("this machine has no IPv4 address but loopback")
    names = [b"alice", b"bob"] if machines == 2 else [b"both"] * 2
    hosts: list[Any] = [LanHost(address, name) for name in names]
    async with open_rendezvous() as server:
        settings = config(server, budgets=FAST)
        async with (
            loopback_node(BOB, settings, authorize=anyone, host=hosts[1], plugins=[name]) as bob,
            loopback_node(ALICE, settings, host=hosts[0], plugins=[name]) as alice,
        ):
            await bob.wait_signals()
            await alice.wait_signals()
            if machines == 2:
                with pytest.raises(ConnectError):
                    await alice.connect(bob.address, plugin=name, af=4, route_type=RouteType.NIC_BIND)
                assert alice._runtime.nat.allowance._left == bob._runtime.nat.allowance._left == {}
                return
            pipe = await alice.connect(bob.address, plugin=name, af=4, route_type=RouteType.NIC_BIND)
            assert pipe.path.route_type == "NIC_BIND"
            assert pipe.path.local[0] == pipe.path.remote[0] == str(address.ip)
            await echo_once(pipe, Pair(alice, bob, server))
            await no_ports(alice, bob)


# -- if time matters, with a clock that jumps --------------------------------------------------------------------------

TIMEOUT = 3.0
BOTH_OPEN = PeerPair.between(None, rtt=RTT)
"""Two machines without NATs, which anybody can reach."""


def runs_out_of_time(kind: type[Plugin]) -> None:
    """Checks that a call by this plugin takes exactly its timeout, to the millisecond, and ends without an error."""

    async def main(nodes: NodePair) -> None:
        with pytest.raises(ConnectError) as caught:
            await nodes.alice.connect(nodes.bob.address, plugin=kind.name, af=4, timeout=TIMEOUT)
        report = caught.value.report
        (combo,) = report.combos
        assert (combo.outcome, combo.error) == (Outcome.TIMED_OUT, None)
        assert (combo.started_ms, combo.ended_ms) == (0, 1000 * TIMEOUT)
        assert report.elapsed_ms == 1000 * TIMEOUT
        assert report.verdict is Verdict.TIMED_OUT
        assert "unhandled" not in nodes.alice.stats().signals
        await no_ports(nodes.alice, nodes.bob)

    in_world(main, BOTH_OPEN, servers=[RENDEZVOUS], plugins=[kind])


@pytest.mark.slow("two nodes with TLS, in a world with a server")
@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
def test_a_peer_that_stays_silent_costs_the_timeout(base: Any, answer: type[Message]) -> None:
    asked: list[Message | None] = []

    class Silent(base):  # type: ignore[misc]
        async def run(self, reply: Message | None = None) -> Any:
            if not self.inbound:
                return await super().run(reply)
            asked.append(reply)
            return await trio.sleep_forever()

    runs_out_of_time(Silent)
    assert [type(each) for each in asked] == [base.proto_messages[0]]


@pytest.mark.slow("two nodes with TLS, in a world with a server")
@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
def test_messages_that_are_too_many_are_dropped(base: Any, answer: type[Message]) -> None:
    """The node drops messages that do not fit the plugin's queue; of those that fit, the plugin uses only one."""
    heard: list[Message] = []

    class Talking(base):  # type: ignore[misc]
        async def run(self, reply: Message | None = None) -> Any:
            if not self.inbound:
                return await super().run(reply)
            ip = next(str(endpoint.ip) for _, endpoint in self.node.address.endpoints())
            for _ in range(20):
                await self.send_signal(a_message(answer, [(ip, 9)]))
            return await trio.sleep_forever()

        async def receive_signal(self) -> Message:
            if not heard:
                await trio.sleep(TIMEOUT / 2)  # virtual time: all have arrived by then
            heard.append(await super().receive_signal())
            return heard[-1]

    runs_out_of_time(Talking)
    assert len(heard) == 16


# -- random_probe ------------------------------------------------------------------------------------------------------


async def test_one_spray_at_a_time_is_counted_by_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first candidate of the request does not count, since it may be one that nobody sprays."""

    class Stop(Exception):
        pass

    counted: list[str] = []

    def spraying(ip: str, session: bytes, *, for_peer: bool) -> Any:
        assert for_peer
        counted.append(ip)
        raise Stop

    plugin = RandomProbe(LoneAttempt(inbound=True))
    monkeypatch.setattr(plugin.node.nat.sprays, "hold", spraying)
    monkeypatch.setattr(random_probe, "admitted", lambda *_: [("203.0.113.9", 5)])
    decoy = Candidate(ip_address("10.1.2.3").packed, 5)
    request = SprayForMe(af=4, route_type=RouteType.EXT_BIND, secret=SECRET, candidates=(decoy,))
    async with (
        trio.open_nursery() as nursery,
        plugin.node.udp_ports.running(nursery),
        open_datagram_race(plugin, SECRET) as race,
    ):
        number = race.use(await plugin.node.udp_ports.open("127.0.0.1"))
        with pytest.raises(Stop):
            await plugin._answer(race, number, request, ())
        assert counted == ["203.0.113.9"]
        monkeypatch.setattr(random_probe, "admitted", lambda *_: [])
        with pytest.raises(AttemptFailed, match="candidates is allowed"):
            await plugin._answer(race, number, request, ())
    assert len(counted) == 1
