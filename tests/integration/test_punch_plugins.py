"""udp_punch and tcp_punch on real sockets: the races alone, cut anywhere, and two nodes with whatever may go wrong."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.nodes import ALICE, BOB, LoopbackHost, Pair, config, loopback_node
from tests.nodes import pair as open_pair
from tests.sim.worlds import run
from warpgate_strategies import datagram_race, random_probe, stream_race
from warpgate_strategies.datagram_race import LINGER, MAX_DIALS, DatagramRace, open_datagram_race
from warpgate_strategies.random_probe import RandomProbe, SprayForMe
from warpgate_strategies.stream_race import open_stream_race
from warpgate_strategies.tcp_punch import MeetByTcp, MeetMeByTcp, TcpPunch
from warpgate_strategies.udp_punch import Go, MeetByUdp, MeetMeByUdp, UdpPunch
from warpgate_trio import ConnectError, Identity, Node, Pipe, anyone
from warpgate_trio import host as machine
from warpgate_trio.carrier import Carrier, TlsContexts
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.config import Budgets
from warpgate_trio.datagrams import Datagram
from warpgate_trio.errors import AttemptFailed, CarrierError
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.nat.allowance import Allowance
from warpgate_trio.nat.candidates import Candidate, to_candidates
from warpgate_trio.nat.probe import ProbeCodec
from warpgate_trio.nat.profile import TransportProfile
from warpgate_trio.nat.stun import TransportAddress
from warpgate_trio.nat.tcp_port import TcpPort
from warpgate_trio.nat.udp_port import UdpPort, UdpPorts
from warpgate_trio.plugin import Message, Plugin, RouteType
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.sim import Network

SECRET = bytes(16)
FAST = Budgets(goodbye=0.05)
FAMILIES = [4, pytest.param(6, marks=pytest.mark.needs("ipv6"))]
NAMES = ["udp_punch", "tcp_punch"]

pytestmark = pytest.mark.usefixtures("own_plugins")


# -- the races alone ---------------------------------------------------------------------------------------------------


class Half:
    """As much of a plugin as a race sees."""

    def __init__(self, *, inbound: bool, identity: Identity | None = None) -> None:
        own = identity or (BOB if inbound else ALICE)
        self.name = "half"
        self.inbound = inbound
        self.peer = SimpleNamespace(public_key=(ALICE if inbound else BOB).public_key)

        async def serve_quic(path: Any) -> Carrier:
            return await QuicCarrier.serve(path, own)

        self.node = SimpleNamespace(
            host=machine.current(),
            nat=SimpleNamespace(allowance=Allowance()),
            tls=TlsContexts(own),
            signal_rtt=None,
            serve_quic=serve_quic,
        )

    async def hear_proof(self, carrier: Carrier) -> Carrier:
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            carrier.close_nowait()
            raise
        return carrier


def half(**options: Any) -> Plugin:
    return cast("Plugin", Half(**options))


@asynccontextmanager
async def open_ports() -> AsyncGenerator[UdpPorts]:
    ports = UdpPorts()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            async with ports.running(nursery):
                yield ports
            nursery.cancel_scope.cancel()


async def meet_udp(
    plugin: Plugin, ports: UdpPorts, port: UdpPort, there: Sequence[TransportAddress], **options: Any
) -> Any:
    async with open_datagram_race(plugin, SECRET, **options) as race:
        number = race.use(port)
        race.checks.add([(number, each) for each in there], trio.current_time())
        race.checks.probe(trio.current_time())
        race.changed()
        return await race.first()


@pytest.mark.slow("a handshake for each checkpoint of a race")
@pytest.mark.parametrize("inbound", [False, True], ids=["initiator", "responder"])
async def test_a_udp_race_is_cancelled_anywhere_and_leaves_nothing(inbound: bool) -> None:
    async with open_ports() as ours, open_ports() as theirs:
        for cut in cuts():
            here, there = await ours.open("127.0.0.1"), await theirs.open("127.0.0.1")
            found: list[Any] = []

            async def other(there: UdpPort = there, here: UdpPort = here) -> None:
                winner = await meet_udp(half(inbound=not inbound), theirs, there, [here.local])
                try:
                    with suppress(trio.BrokenResourceError):
                        await winner.receive()
                finally:
                    winner.close_nowait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                with cut:
                    found.append(await meet_udp(half(inbound=inbound), ours, here, [there.local]))
                assert len(found) == (not cut.caught)
                assert here.closed is cut.caught
                for winner in found:
                    await winner.flush()
                    winner.close_nowait()
                assert len(ours) == 0
                nursery.cancel_scope.cancel()
            assert len(theirs) == 0


async def test_packets_that_come_while_a_race_ends_start_nothing() -> None:
    """Its tasks end one after the other, and its port's owner task goes on reading meanwhile."""
    async with open_ports() as ports:
        port = await ports.open("127.0.0.1")
        other = await ports.open("127.0.0.1")
        codec = ProbeCodec(SECRET, initiator=True)
        race: DatagramRace
        async with open_datagram_race(half(inbound=True), SECRET) as race:
            race.use(port)
            held = port.open_path(("127.0.0.1", 9))  # so that the port survives its race
        for number in range(3):
            await other.send([(codec.request(bytes(11) + bytes([number])), port.local)])
            await trio.testing.wait_all_tasks_blocked()
        assert not port.closed
        assert race._used == set()
        held.close_nowait()
        assert port.closed
        assert list(ports._ports) == [other]


def test_a_late_probe_is_answered_for_a_while() -> None:
    """DESIGN §9.5, and then no more: the port carries a Link for days."""

    async def ask() -> None:
        ports = UdpPorts()
        async with trio.open_nursery() as nursery, ports.running(nursery):
            port, other = await ports.open("127.0.0.1"), await ports.open("127.0.0.1")
            codec = ProbeCodec(SECRET, initiator=True)
            answers: list[bytes] = []

            def note(data: bytes, source: TransportAddress) -> list[Datagram]:
                answers.append(data)
                return []

            other.listen_for_probes(note)
            async with open_datagram_race(half(inbound=True), SECRET) as race:
                race.use(port)
                held = port.open_path(("127.0.0.1", 9))
            for number, wait in enumerate((0.0, LINGER - 0.1, 0.2)):
                await trio.sleep(wait)
                await other.send([(codec.request(bytes(11) + bytes([number])), port.local)])
                await trio.sleep(0.01)
            assert len(answers) == 2
            held.close_nowait()
            other.release()
            assert len(ports) == 0

    async def world(net: Network) -> None:
        await net.host("a").run(ask)

    run(world)


async def test_one_port_that_breaks_is_not_the_others() -> None:
    async with open_ports() as ours, open_ports() as theirs:
        broken, good = await ours.open("127.0.0.1"), await ours.open("127.0.0.1")
        there = await theirs.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_udp(half(inbound=True), theirs, there, [good.local])).close_nowait()

            nursery.start_soon(other)
            async with open_datagram_race(half(inbound=False), SECRET) as race:
                numbers = [race.use(port) for port in (broken, good)]
                broken.close_nowait()
                race.checks.add([(number, there.local) for number in numbers], trio.current_time())
                race.checks.probe(trio.current_time())
                race.changed()
                winner = await race.first()
            winner.close_nowait()
            nursery.cancel_scope.cancel()


async def test_a_peer_in_many_places_is_dialled_in_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the first of them says does not end the race."""
    monkeypatch.setattr(datagram_race, "STAGGER", 0.0)
    dialled: list[Any] = []

    async def dial(path: Any, **_: object) -> Carrier:
        dialled.append(path.remote)
        path.close_nowait()
        await trio.lowlevel.checkpoint()
        raise CarrierError("nobody there")

    monkeypatch.setattr(QuicCarrier, "dial", dial)
    async with open_ports() as ports:
        port = await ports.open("127.0.0.1")
        others = [await ports.open("127.0.0.1") for _ in range(MAX_DIALS + 3)]
        codec = ProbeCodec(SECRET, initiator=False)
        async with open_datagram_race(half(inbound=False), SECRET) as race:
            race.use(port)
            for number, each in enumerate(others):
                await each.send([(codec.request(bytes(11) + bytes([number])), port.local)])
            with trio.move_on_after(0.1):
                await race.first()
        assert len(dialled) == len(set(dialled)) == MAX_DIALS
        assert port.closed


async def test_who_answers_is_dialled_whoever_was_heard_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only sends, and never answers, may be sending what it saw of the peer's."""
    dialled: list[Any] = []

    async def dial(path: Any, **_: object) -> Carrier:
        dialled.append(path.remote)
        await trio.sleep_forever()

    monkeypatch.setattr(QuicCarrier, "dial", dial)
    async with open_ports() as ports:
        port = await ports.open("127.0.0.1")
        others = [await ports.open("127.0.0.1") for _ in range(MAX_DIALS)]
        theirs = await ports.open("127.0.0.1")
        codec = ProbeCodec(SECRET, initiator=False)

        def answer(data: bytes, source: TransportAddress) -> list[Datagram]:
            return [(codec.response(data[8:20], source), source)]

        theirs.listen_for_probes(answer)
        async with open_datagram_race(half(inbound=False), SECRET) as race:
            number = race.use(port)
            for index, each in enumerate(others):
                await each.send([(codec.request(bytes(11) + bytes([index])), port.local)])
            await trio.sleep(0.01)
            race.checks.add([(number, theirs.local)], trio.current_time())
            race.checks.probe(trio.current_time())
            race.changed()
            with trio.move_on_after(0.1):
                await race.first()
        assert theirs.local in dialled


async def meet_tcp(plugin: Plugin, port: TcpPort, there: Sequence[TransportAddress]) -> Any:
    try:
        async with open_stream_race(plugin) as race:
            race.accept_on(port)
            race.knock(port, there, trio.current_time())
            return await race.first()
    finally:
        port.close()


@pytest.mark.slow("a handshake for each checkpoint of a race")
@pytest.mark.parametrize("inbound", [False, True], ids=["initiator", "responder"])
async def test_a_tcp_race_is_cancelled_anywhere_and_leaves_nothing(inbound: bool) -> None:
    """That no socket is left is what the fixture of all tests looks at."""
    with trio.fail_after(10):
        for cut in cuts():
            here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
            found: list[Any] = []

            async def other(there: TcpPort = there, here: TcpPort = here) -> None:
                winner = await meet_tcp(half(inbound=not inbound), there, [here.local])
                try:
                    with suppress(trio.BrokenResourceError):
                        await winner.receive()
                finally:
                    winner.close_nowait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                with cut:
                    found.append(await meet_tcp(half(inbound=inbound), here, [there.local]))
                assert len(found) == (not cut.caught)
                for winner in found:
                    await winner.flush()
                    winner.close_nowait()
                nursery.cancel_scope.cancel()


async def test_who_accepts_and_stays_silent_holds_up_nobody() -> None:
    """A wrong host on a colliding private address, beside the right one."""
    with trio.fail_after(5):
        silent = await TcpPort.open("127.0.0.1")
        here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_tcp(half(inbound=True), there, [])).close_nowait()

            nursery.start_soon(other)
            winner = await meet_tcp(half(inbound=False), here, [silent.local, there.local])
            assert winner.remote == there.local
            winner.close_nowait()
            nursery.cancel_scope.cancel()
        silent.close()


async def test_somebody_else_at_a_candidate_is_tried_a_few_times() -> None:
    connections = 0
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(10)

        async def hang_up() -> None:
            nonlocal connections
            while True:
                sock, _ = await listener.accept()
                connections += 1
                sock.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            with trio.move_on_after(0.2):
                await meet_tcp(half(inbound=False), await TcpPort.open("127.0.0.1"), [listener.getsockname()])
            nursery.cancel_scope.cancel()
    assert 1 <= connections <= stream_race.MAX_OTHERS


async def test_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_race, "MAX_CONNECTS", 20)
    nobody = await TcpPort.open("127.0.0.1")
    nobody.close()
    tried = 0
    real = TcpPort.connect

    async def connect(self: TcpPort, remote: TransportAddress, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        return await real(self, remote, **options)

    monkeypatch.setattr(TcpPort, "connect", connect)
    with trio.move_on_after(0.2):
        await meet_tcp(half(inbound=False), await TcpPort.open("127.0.0.1"), [nobody.local])
    assert tried == 20


async def test_syns_are_counted_by_where_they_go_over_all_attempts() -> None:
    """A peer that names somebody else must not have him knocked at by one attempt after the other."""
    nobody = await TcpPort.open("127.0.0.1")
    nobody.close()
    plugin = half(inbound=True)
    taken: list[str] = []

    def take(ip: str, now: float, packets: int = 1) -> bool:
        assert packets == 1
        taken.append(ip)
        return len(taken) <= 5

    plugin.node.nat.allowance.take = take  # type: ignore[method-assign]
    tried = 0
    for _ in range(3):
        with trio.move_on_after(0.05):
            port = await TcpPort.open("127.0.0.1")
            real = port.connect

            async def connect(remote: TransportAddress, real: Any = real, **options: Any) -> Any:
                nonlocal tried
                tried += 1
                return await real(remote, **options)

            port.connect = connect  # type: ignore[method-assign]
            await meet_tcp(plugin, port, [nobody.local])
    assert tried == 5
    assert set(taken) == {"127.0.0.1"}


def test_a_connect_that_is_waited_for_long_counts_for_the_syns_that_the_system_sends() -> None:
    """RFC 6298: again after 1, 3, 7 seconds."""
    waits = (0.5, 0.99, 1.0, 2.9, 3.0, 6.9, 7.0)
    assert [stream_race.syns(patience) for patience in waits] == [1, 1, 2, 2, 3, 3, 4]


async def test_accepting_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_race, "ACCEPT_PAUSE", 0.01)
    errors = [OSError(errno.EMFILE, "too many open files"), OSError(errno.ECONNABORTED, "gone")]
    real = TcpPort.accept

    async def accept(self: TcpPort) -> Any:
        await trio.lowlevel.checkpoint()
        if errors and self is there:
            raise errors.pop()
        return await real(self)

    monkeypatch.setattr(TcpPort, "accept", accept)
    with trio.fail_after(5):
        here, there = await TcpPort.open("127.0.0.1"), await TcpPort.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_tcp(half(inbound=True), there, [])).close_nowait()

            nursery.start_soon(other)
            (await meet_tcp(half(inbound=False), here, [there.local])).close_nowait()
            nursery.cancel_scope.cancel()
    assert errors == []


async def test_a_port_that_is_closed_ends_only_its_own_knocking() -> None:
    """As the boundaries' ports are when the answer has come."""
    with trio.fail_after(5):
        here, there, closing = [await TcpPort.open("127.0.0.1") for _ in range(3)]
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_tcp(half(inbound=True), there, [])).close_nowait()

            nursery.start_soon(other)
            async with open_stream_race(half(inbound=False)) as race:
                race.accept_on(closing)
                race.knock(closing, [there.local], trio.current_time())
                await trio.lowlevel.checkpoint()
                closing.close()
                await trio.testing.wait_all_tasks_blocked()
                race.accept_on(here)
                race.knock(here, [there.local], trio.current_time())
                (await race.first()).close_nowait()
            here.close()
            nursery.cancel_scope.cancel()


# -- two nodes ---------------------------------------------------------------------------------------------------------


def ports_of(*nodes: Node) -> list[int]:
    return [len(node._runtime.udp_ports) for node in nodes]


async def no_ports(*nodes: Node) -> None:
    with trio.fail_after(2):
        while any(ports_of(*nodes)):  # noqa: ASYNC110  # the end of a goodbye is no event that a test could see
            await trio.sleep(0.005)


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
    """An address of this machine in some network: packets to it stay inside the machine."""
    for interface in machine.RealHost().interfaces():
        for each in interface.addresses:
            usable = not (each.ip.is_loopback or each.ip.is_link_local)
            if usable and not interface.is_virtual and each.ip.version == 4:
                return each
    return None


class LanHost:
    """Two of them on this machine are two machines in one network, and have nothing else."""

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
    """One of a plugin's messages with something plausible in it."""
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
    """Alice, who has the real plugin, and Bob, whose half of it does something else."""

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


async def fails(alice: Node, bob: Node, base: type[Plugin], timeout: float = 2.0) -> str:
    with pytest.raises(ConnectError) as caught:
        await alice.connect(bob.address, plugin=base.name, af=4, timeout=timeout)
    await no_ports(alice, bob)
    return " ".join(str(combo.error) for combo in caught.value.report.combos)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_gives_up_is_heard_of(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        raise OSError("no")

    async with with_peer(base, run) as (alice, bob):
        assert "did not work there" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_gives_up_later_too(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        await self.send_signal(a_message(answer, [("127.0.0.1", 9)]))
        await trio.sleep(0.02)
        raise OSError("no")

    async with with_peer(base, run) as (alice, bob):
        assert "did not work there" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_stays_silent_costs_the_timeout(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        await trio.sleep_forever()

    async with with_peer(base, run) as (alice, bob):
        await fails(alice, bob, base, timeout=0.1)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_a_peer_that_says_something_else(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        request: Any = reply
        await self.send_signal(request)  # what it was sent
        await trio.sleep_forever()

    async with with_peer(base, run) as (alice, bob):
        assert "answered with something else" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
@pytest.mark.parametrize("where", ["203.0.113.9", "192.168.1.1", "224.0.0.1", None])
async def test_a_peer_that_names_no_place_to_be_met_at(
    base: type[Plugin], answer: type[Message], where: str | None
) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        await self.send_signal(a_message(answer, [] if where is None else [(where, 9)]))
        await trio.sleep_forever()

    async with with_peer(base, run) as (alice, bob):
        assert "no place that may be sent to" in await fails(alice, bob, base)


@pytest.mark.parametrize(("base", "answer"), PLUGINS, ids=NAMES)
async def test_messages_that_are_too_many_are_dropped(base: type[Plugin], answer: type[Message]) -> None:
    async def run(self: Plugin, reply: Message) -> Any:
        for _ in range(20):
            await self.send_signal(a_message(answer, [("127.0.0.1", 9)]))
        await trio.sleep_forever()

    async with with_peer(base, run) as (alice, bob):
        await fails(alice, bob, base, timeout=0.15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [[], [Candidate(bytes([203, 0, 113, 9]), 9)]], ids=["nothing", "elsewhere"])
async def test_a_caller_that_names_no_place_to_be_met_at(name: str, where: list[Candidate]) -> None:
    """The responder's half fails, and says so without detail."""
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
        assert "did not work there" in await fails(alice, bob, base)


@pytest.mark.slow("a call for each tick of a walk")
@pytest.mark.parametrize("name", NAMES)
async def test_a_call_is_cancelled_at_any_moment(name: str) -> None:
    """At each of the first ticks of the scheduler, and at some later ones: nothing is left on either side."""
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
            with trio.fail_after(2):
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
        assert "did not work there" in await fails(alice, bob, base)


@pytest.mark.parametrize("name", NAMES)
async def test_two_machines_in_one_network(name: str) -> None:
    """Both on this machine's own address, under the fingerprints of two."""
    address = own_network()
    if address is None:
        pytest.skip("this machine has no IPv4 address but loopback")
    hosts: list[Any] = [LanHost(address, name) for name in (b"alice", b"bob")]
    async with open_rendezvous() as server:
        settings = config(server, budgets=FAST)
        async with (
            loopback_node(BOB, settings, authorize=anyone, host=hosts[1], plugins=[name]) as bob,
            loopback_node(ALICE, settings, host=hosts[0], plugins=[name]) as alice,
        ):
            await bob.wait_signals()
            await alice.wait_signals()
            pipe = await alice.connect(bob.address, plugin=name, af=4, route_type=RouteType.NIC_BIND)
            assert pipe.path.route_type == "NIC_BIND"
            assert pipe.path.local[0] == pipe.path.remote[0] == str(address.ip)
            await echo_once(pipe, Pair(alice, bob, server))
            await no_ports(alice, bob)


# -- random_probe ------------------------------------------------------------------------------------------------------


async def test_one_spray_at_a_time_is_counted_by_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by what the request names first: that may be a place that nobody sprays at."""

    class Stop(Exception):
        pass

    counted: list[str] = []

    def spraying(ip: str, session: bytes, *, for_peer: bool) -> Any:
        assert for_peer
        counted.append(ip)
        raise Stop

    half_: Any = SimpleNamespace(
        node=SimpleNamespace(peer_id="a", nat=SimpleNamespace(spraying=spraying), address=None),
        peer=SimpleNamespace(peer_id="b"),
        session_id=bytes(16),
        _ours=TransportProfile,
        _theirs=TransportProfile,
    )
    half_._admitted = partial(RandomProbe._admitted, half_)
    race: Any = SimpleNamespace(ports=[SimpleNamespace(mapped={})])
    monkeypatch.setattr(random_probe, "admitted", lambda *_: [("203.0.113.9", 5)])
    decoy = Candidate(ip_address("10.1.2.3").packed, 5)
    request = SprayForMe(af=4, route_type=RouteType.EXT_BIND, secret=SECRET, candidates=(decoy,))
    with pytest.raises(Stop):
        await RandomProbe._answer(half_, race, 0, request, ())
    assert counted == ["203.0.113.9"]
    monkeypatch.setattr(random_probe, "admitted", lambda *_: [])
    with pytest.raises(AttemptFailed, match="no place"):
        await RandomProbe._answer(half_, race, 0, request, ())
    assert len(counted) == 1
