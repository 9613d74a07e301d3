"""`warpgate_trio.testing`: simulated hosts as `Host`s, worlds as data, the strategies, and the page about them."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import pretty

from warpgate_trio import Identity, anyone, open_node, sim
from warpgate_trio import host as machine
from warpgate_trio.host import Host, InterfaceAddress, RealHost
from warpgate_trio.sim import (
    Behavior,
    Fault,
    Kind,
    Link,
    Mapping,
    NatConfig,
    Network,
    Router,
    Uniform,
    presets,
    simulate,
)
from warpgate_trio.testing import WORLD_CONFIG, SimulatedHost, can_connect, simulated_hosts, strategies, world
from warpgate_trio.testing.strategies import (
    POPULATIONS,
    Lan,
    Machine,
    PeerPair,
    Place,
    Topology,
    fault_schedules,
    links,
    nats,
    peer_pairs,
    population,
    topologies,
)
from warpgate_trio.testing.theory import punch_possible

# -- hosts -------------------------------------------------------------------------------------------------------------


def test_code_is_on_the_host_that_it_was_started_on() -> None:
    async def main() -> None:
        async with Network(seed=7, ipv6=True) as net, simulated_hosts():
            home = net.lan("home", nat=presets.LINUX)
            alice, server = home.host("alice", clock_offset=5.0), net.host("server")
            with alice:
                here: Host = machine.current()
                assert here.wall_time() == pytest.approx(net.epoch + 5)
                loopback, eth0 = here.interfaces()
                assert (loopback.is_loopback, eth0.is_loopback) == (True, False)
                assert (eth0.name, eth0.index, eth0.is_virtual) == ("eth0", 2, False)
                assert eth0.addresses == (
                    InterfaceAddress(ip=ip_address(alice.ip), prefix=24),
                    InterfaceAddress(ip=ip_address(alice.ip6), prefix=64),
                )
                assert here.source_address(ip_address(server.ip)) == ip_address(alice.ip)
                assert here.source_address(ip_address("127.0.0.1")) == ip_address("127.0.0.1")
                assert here.source_address(ip_address("0.0.0.0")) is None
                fingerprint = here.machine_fingerprint()
                assert fingerprint == machine.current().machine_fingerprint()
                with server:
                    assert machine.current().wall_time() == pytest.approx(net.epoch)
                    assert len(machine.current().machine_fingerprint()) == 32
                    assert machine.current().machine_fingerprint() != fingerprint
                    # Hosts of a cloud are not in one network, whatever the cloud's prefix is.
                    assert {each.prefix for each in machine.current().interfaces()[1].addresses} == {32, 128}
                assert "alice" in repr(machine.current())

    simulate(main)


def test_a_host_without_ipv6_has_no_way_there() -> None:
    async def main() -> None:
        async with Network() as net, simulated_hosts():
            with net.host("alice"):
                assert machine.current().source_address(ip_address("2a0a::1")) is None

    simulate(main)


def test_entropy_and_randomness_are_the_seeds() -> None:
    def draw(seed: int, name: str) -> tuple[bytes, float]:
        here = SimulatedHost(Network(seed).host(name))
        return here.entropy(16), here.random.random()

    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw(2, "a"), draw(1, "b")}) == 3


def test_a_host_asked_for_outside_any_host() -> None:
    async def main() -> None:
        async with Network() as net, simulated_hosts():
            net.host("alice")
            with pytest.raises(RuntimeError, match="a Host was asked for outside any simulated host"):
                machine.current()

    simulate(main)


def test_the_real_machine_comes_back() -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with simulated_hosts():
                raise KeyError
        assert isinstance(machine.current(), RealHost)

    simulate(main)


# -- worlds as data ----------------------------------------------------------------------------------------------------


def router(net: Network, name: str) -> Router:
    found = net.hosts[name]
    assert isinstance(found, Router)
    return found


def test_a_topology_becomes_a_network() -> None:
    home = Lan(name="home", nat=presets.LINUX, machines=(Machine(name="alice"),), prefix4="192.168.1.0/24")
    street = Lan(name="street", nat=presets.CGN, lans=(home,), uplink=Link(latency=0.02))
    world = Topology(machines=(Machine(name="server", clock_offset=3.0),), lans=(street,), seed=5)
    assert (world.host_names(), world.router_names()) == (["server", "alice"], ["street", "home"])
    net = world.build()
    assert net.seed == 5
    assert net.hosts["server"].clock_offset == 3.0
    assert net.hosts["alice"].ip == "192.168.1.1"
    assert router(net, "street").outside.tx.link.latency == 0.02
    assert router(net, "home").ip in str(net.topology())
    assert router(net, "home").outside.segment is router(net, "street").inside.segment


def test_a_forwarded_port_is_reached_through_every_nat() -> None:
    pair = PeerPair(bob=Place(nats=(presets.CGN, presets.LINUX), forwarded=True))

    async def main() -> bytes:
        async with pair.build() as net:
            outside = pair.forward(net, "bob", 80)
            assert outside == router(net, "bob-nat0").ip
            with net.hosts["bob"]:
                (listener,) = await trio.open_tcp_listeners(80, host="0.0.0.0")
            async with listener:
                with net.hosts["alice"]:
                    async with await trio.open_tcp_stream(outside, 80) as stream, await listener.accept() as theirs:
                        await stream.send_all(b"x")
                        return bytes(await theirs.receive_some())

    assert simulate(main) == b"x"


def test_peers_with_only_shared_nats_are_on_one_lan() -> None:
    net = PeerPair(shared=(presets.CGN, presets.LINUX)).build()
    assert {net.hosts[name].interfaces[0].segment.name for name in ("alice", "bob")} == {"shared-nat1"}
    assert net.hosts["server"].interfaces[0].segment is net.internet


def test_a_pair_says_what_it_is() -> None:
    pair = PeerPair(alice=Place(nats=(presets.CGN, presets.LINUX), clock_offset=-2.0), shared=(presets.OPEN,), seed=3)
    assert str(pair) == "alice: cgn > linux, 0 ms, clock -2 s; bob: no NAT, 0 ms; both behind open; seed 3"


# -- strategies --------------------------------------------------------------------------------------------------------


@pytest.mark.slow("drawing a tree of LANs takes Hypothesis ten milliseconds")
@settings(max_examples=50)
@given(st.data())
def test_every_world_can_be_built_and_broken(data: st.DataObject) -> None:
    world = data.draw(topologies())
    schedule = data.draw(fault_schedules(world, horizon=10))
    assert all(fault.until <= 10 for fault in schedule)
    net = world.build()
    assert sorted([*world.host_names(), *world.router_names()]) == sorted(net.hosts)
    assert schedule == eval(repr(schedule), {"Fault": Fault, "Kind": Kind})

    async def main() -> None:
        async with net:
            net.schedule(schedule)
            await trio.sleep(11)

    simulate(main)


@pytest.mark.slow("drawing NATs axis by axis takes Hypothesis ten milliseconds")
@settings(max_examples=50)
@given(peer_pairs() | population() | population("cellular"))
def test_every_pair_can_be_built(pair: PeerPair) -> None:
    assert {"alice", "bob", "server"} <= set(pair.build().hosts)


@settings(max_examples=50)
@given(nats(composed=False), links(max_latency=0.05, noisy=False))
def test_what_options_leave_out(nat: NatConfig, link: Link) -> None:
    assert nat in presets.NATS.values()
    assert link == Link(latency=link.latency)
    assert link.latency <= 0.05


EXPRESSIONS = {**vars(strategies), **vars(sim)}


@settings(max_examples=50)
@given(peer_pairs() | population(), topologies())
@pytest.mark.slow("drawing NATs axis by axis takes Hypothesis ten milliseconds")
def test_worlds_print_as_what_is_unusual_about_them(pair: PeerPair, topology: Topology) -> None:
    assert eval(repr(pair), EXPRESSIONS) == pair
    assert eval(repr(topology), EXPRESSIONS) == topology
    assert pretty(pair) == repr(pair)


def test_what_is_as_usual_is_not_printed() -> None:
    pair = PeerPair(alice=Place(nats=(presets.CGN,)), server=Link(latency=0.1), seed=4)
    assert repr(pair) == "PeerPair(alice=Place(nats=(presets.CGN,)), server=Link(latency=0.1), seed=4)"
    own = NatConfig(name="own", udp=Behavior(mapping=Mapping.APDM, allocation=Uniform(parity=True)))
    assert repr(own) == ("NatConfig(name='own', udp=Behavior(mapping=Mapping.APDM, allocation=Uniform(parity=True)))")
    assert repr(Link()) == "Link()"


# -- a world for programs ----------------------------------------------------------------------------------------------


async def call(pair: PeerPair) -> str:
    """The plugin that connects two nodes, when the test itself runs on neither host."""
    async with world(pair) as (server, alice, bob):
        assert {server.name, "stun", "stun2", "ntp"} <= set(server.net.hosts)
        with bob:
            async with open_node(WORLD_CONFIG, identity=Identity.from_seed(b"b" * 32), authorize=anyone) as there:
                await there.wait_signals()
                with alice:
                    async with open_node(WORLD_CONFIG, identity=Identity.from_seed(b"a" * 32)) as here:
                        async with await here.auto_connect(there.address) as pipe:
                            assert pipe.path.plugin is not None
                            return pipe.path.plugin


@pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")
@pytest.mark.parametrize(
    ("alice", "bob", "plugin"),
    [
        (presets.LINUX, None, "direct_connect"),
        (None, presets.LINUX, "reverse_connect"),
        (presets.LINUX, presets.LINUX, "tcp_punch"),
        (presets.LINUX, presets.ONE_TO_ONE, "tcp_punch"),
    ],
)
def test_a_world_has_what_nodes_need(alice: NatConfig | None, bob: NatConfig | None, plugin: str) -> None:
    pair = PeerPair.between(alice, bob, seed=1)
    assert can_connect(pair)
    assert simulate(partial(call, pair), seed=1) == plugin


@pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")
def test_a_web_only_firewall_lets_signals_through() -> None:
    pair = PeerPair(alice=Place(nats=(presets.WEB_ONLY,)))

    async def main() -> None:
        async with world(pair) as (_, alice, _):
            with alice:
                async with open_node(WORLD_CONFIG, identity=Identity.from_seed(b"a" * 32)) as here:
                    with trio.fail_after(5):
                        await here.wait_signals()

    assert not can_connect(pair)
    simulate(main)


def test_a_world_notices_sockets_that_are_left() -> None:
    async def main() -> None:
        async with world(PeerPair()) as (server, _, _):
            with server:
                trio.socket.socket()

    with pytest.raises(AssertionError, match=r"left sockets open.*TcpSocket on server"):
        simulate(main)


def test_a_single_exception_of_a_world_comes_out_bare() -> None:
    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise KeyError("mine")

    async def main(times: int) -> None:
        async with world(PeerPair()), trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(partial(fail, task_status=trio.TASK_STATUS_IGNORED))

    with pytest.raises(KeyError, match="mine") as caught:
        simulate(partial(main, 1))
    assert "seed 0" in caught.value.__notes__[0]
    with pytest.raises(ExceptionGroup):
        simulate(partial(main, 2))


@pytest.mark.slow("dozens of worlds with whole nodes")
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
@given(peer_pairs(link=links(max_latency=0.1, noisy=False)))
def test_who_is_sure_to_connect_does(pair: PeerPair) -> None:
    assume(can_connect(pair))
    simulate(partial(call, pair), seed=pair.seed)


@pytest.mark.parametrize(
    "pair",
    [
        PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC),
        PeerPair.between(presets.LINUX, presets.LINUX_SYMMETRIC),  # a spray helps, mostly
        PeerPair.between(presets.LINUX, presets.LINUX, loss=0.01),
        PeerPair.between(presets.UDP_BLOCKED, presets.LINUX_SYMMETRIC),
        PeerPair.between(presets.LINUX_LOCAL, presets.LINUX_LOCAL, rtt=0.0),
    ],
    ids=str,
)
def test_what_is_not_sure_is_not_promised(pair: PeerPair) -> None:
    assert not can_connect(pair)


def works(alice: tuple[NatConfig, ...], bob: tuple[NatConfig, ...]) -> bool:
    """Whether UDP works without a relay: one of the peers is open, or a punch is possible."""

    def layers(nats: tuple[NatConfig, ...]) -> list[Behavior]:
        return [nat.udp for nat in nats]

    if presets.UDP_BLOCKED in (*alice, *bob):
        return False
    return not alice or not bob or punch_possible(layers(alice), layers(bob))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("home", 0.948),
        ("home-and-cgn", 0.924),
        ("consumer", 0.812),
        ("everybody", 0.729),
        ("cellular", 0.461),
        ("swarm-2011", 0.861),
    ],
)
def test_a_population_connects_as_often_as_was_reckoned(name: str, share: float) -> None:
    kinds = POPULATIONS[name].kinds
    assert sum(weight for weight, _ in kinds) == pytest.approx(1)
    found = sum(one * other for one, a in kinds for other, b in kinds if works(a, b))
    assert found == pytest.approx(share, abs=0.001)


def test_a_sample_has_its_shares() -> None:
    random = Random(1)
    drawn = Counter(POPULATIONS["cellular"].sample(random).nats for _ in range(5000))
    assert drawn[(presets.LINUX_SYMMETRIC,)] / 5000 == pytest.approx(0.98 * 0.4, abs=0.02)


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "testing.md"
PROGRAMS = re.findall(
    r"^```python\n# (\w+\.py).*?\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.slow("the page's property tests run a hundred worlds each")
@pytest.mark.parametrize(("name", "program"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_the_programs_of_the_page_run(name: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for each, text in PROGRAMS:
        (tmp_path / each).write_text(text)
    namespace: dict[str, object] = {}
    exec(compile(program, name, "exec"), namespace)
    tests = [each for key, each in namespace.items() if key.startswith("test_")]
    for test in tests:
        assert callable(test)
        test()
    assert tests or not name.startswith("test_")


# -- pairs at exact distances ------------------------------------------------------------------------------------------


async def there_and_back(net: Network, asker: str, name: str, *, which: int = 0) -> float:
    """Seconds of a round trip of a datagram to an address of a machine."""

    async def answer(sock: trio.socket.SocketType) -> None:
        await sock.sendto(*await sock.recvfrom(100))

    target = net.hosts[name]
    async with trio.open_nursery() as nursery:
        with target:
            sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        with sock, net.hosts[asker], trio.socket.socket(type=trio.socket.SOCK_DGRAM) as asking:
            await sock.bind((target.addresses[which], 9))
            nursery.start_soon(answer, sock)
            began = trio.current_time()
            await asking.sendto(b"ping", (target.addresses[which], 9))
            _, source = await asking.recvfrom(100)
            assert source == (target.addresses[which], 9)
            return trio.current_time() - began


def distances(pair: PeerPair, *ways: tuple[str, str]) -> list[float]:
    async def main() -> list[float]:
        async with pair.build() as net:
            return [await there_and_back(net, *way) for way in ways]

    return simulate(main, seed=pair.seed)


@pytest.mark.parametrize("nat", [None, presets.LINUX, (presets.CGN, presets.LINUX)])
def test_peers_and_servers_are_as_far_apart_as_was_asked(nat: NatConfig | tuple[NatConfig, ...] | None) -> None:
    pair = PeerPair.between(nat, rtt=0.1, server_rtt=(0.03, 0.08))
    ways = [
        ("alice", "bob"),
        *((peer, name) for peer in ("alice", "bob") for name in ("server", "stun", "stun2", "ntp")),
    ]
    assert distances(pair, *ways) == pytest.approx([0.1, *[0.03] * 4, *[0.08] * 4])
    pair = PeerPair.between(nat, rtt=0.1, server_rtt=0.05)
    assert distances(pair, ("alice", "bob"), ("alice", "server"), ("bob", "server")) == pytest.approx([0.1, 0.05, 0.05])
    pair = PeerPair.between(nat, shared=(presets.CGN,), rtt=0.1)
    assert distances(pair, ("alice", "bob"), ("alice", "server"), ("bob", "server")) == pytest.approx([0.1, 0.1, 0.1])


def test_no_three_points_are_like_that() -> None:
    with pytest.raises(ValueError, match="longer than the other two together"):
        PeerPair.between(rtt=0.1, server_rtt=0.04)


def test_a_stun_server_has_two_addresses() -> None:
    async def main() -> None:
        async with PeerPair.between(rtt=0.1).build() as net:
            first, second = net.hosts["stun"].addresses
            assert first != second
            assert await there_and_back(net, "alice", "stun", which=1) == pytest.approx(0.1)
            with net.hosts["alice"]:
                found = await trio.socket.getaddrinfo("stun", 3478, type=trio.socket.SOCK_DGRAM)
                assert [address[0] for *_, address in found] == [first]

    simulate(main)


def test_clocks_of_a_pair() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.LINUX, clock_offsets=(-3.0, 20.0), clock_drifts=(0.001, 0.0))
        async with pair.build() as net:
            await trio.sleep(1000)
            true = net.hosts["ntp"].wall_time()
            assert net.hosts["alice"].wall_time() - true == pytest.approx(-2.0)
            assert net.hosts["bob"].wall_time() - true == pytest.approx(20.0)

    simulate(main)


@pytest.mark.slow("thousands of packets")
def test_loss_is_of_a_whole_way() -> None:
    sent = 4000

    async def main() -> int:
        async with PeerPair.between(presets.LINUX, loss=0.2, rtt=0.1, jitter=0.02).build() as net:
            received = 0
            with net.hosts["bob"], trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.bind(("0.0.0.0", 9))
                with net.hosts["alice"], trio.socket.socket(type=trio.socket.SOCK_DGRAM) as asking:
                    for number in range(sent):
                        await asking.sendto(b"", (net.hosts["bob"].ip, 9))
                        if number % 100 == 99:  # a burst above a socket's buffer would lose datagrams, too
                            with trio.move_on_after(0.08):
                                while True:
                                    await sock.recvfrom(100)
                                    received += 1
            return received

    assert simulate(main) / sent == pytest.approx(0.8, abs=0.03)


def test_ipv6_firewalls_of_a_pair() -> None:
    place = Place(nats=(presets.LINUX,), firewall6=presets.FIREWALL6)
    pair = PeerPair(alice=place, bob=Place(), ipv6=True)

    async def main() -> None:
        async with pair.build() as net:
            router = net.hosts["alice-nat0"]
            assert isinstance(router, Router)
            assert router.firewall6 is not None
            assert router.firewall6.config == presets.FIREWALL6
            assert net.hosts["alice"].ip6
            assert net.hosts["bob"].ip6

    simulate(main)
