"""Whole worlds agree with independent oracles and metamorphic laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import event, example, given, settings

from tests.sim.oracles import birthday
from tests.sim.programs import (
    LATENCY,
    behind,
    bound,
    classify,
    one_attempt,
    overload,
    punch_tcp,
    punch_udp,
    receive,
    server_in,
)
from tests.sim.worlds import run
from warpgate_trio.sim import (
    Behavior,
    Filtering,
    Hash,
    Mapping,
    NatConfig,
    Network,
    Preserve,
    Refresh,
    Sequential,
    Uniform,
    Unsolicited,
    presets,
    simulate,
)
from warpgate_trio.testing.strategies import PeerPair, links, peer_pairs
from warpgate_trio.testing.strategies import nats as nats_that_exist
from warpgate_trio.testing.theory import can_punch, punch_possible, stacked

ONE_WAY = 2 * LATENCY
CASES = settings(max_examples=60)


def allocations(mapping: Mapping) -> st.SearchStrategy[Behavior]:
    """Behaviours in which symmetric NATs do not preserve ports, as the oracle presupposes."""
    ways = [Uniform(), Sequential(delta=3), Hash(remote=True)]
    if mapping is Mapping.EIM:
        ways.insert(0, Preserve())
    return st.builds(
        Behavior,
        mapping=st.just(mapping),
        filtering=st.sampled_from(Filtering),
        allocation=st.sampled_from(ways),
        refresh=st.sampled_from([Refresh.BOTH, Refresh.OUT, Refresh.IN]),
        unsolicited=st.sampled_from([Unsolicited.DROP, Unsolicited.ICMP]),
    )


behaviors = st.sampled_from(Mapping).flatmap(allocations)
layers = st.lists(behaviors, max_size=2)

# Without EIM, a SYN to the announced port of a NAT meets a connecting socket, whose answer leaves from another port:
# theory does not say which connection wins.  NATs of the classic kinds do not let such a SYN in.
classic = st.lists(
    behaviors.filter(lambda one: one.mapping is Mapping.EIM or one.filtering is Filtering.APDF), max_size=2
)


def nats(behaviors: list[Behavior]) -> list[NatConfig]:
    return [NatConfig(udp=one, tcp=one) for one in behaviors]


def try_udp(a: list[Behavior], b: list[Behavior], skew: float = 0.0, openers: int | None = None) -> bool:
    async def world(net: Network) -> bool:
        hosts = behind(net, "a", nats(a)), behind(net, "b", nats(b))
        return await punch_udp(server_in(net), *hosts, skew=skew, openers=openers)

    return run(world)


def try_tcp(a: list[Behavior], b: list[Behavior], skew: float = 0.0, *, listeners: bool = True) -> bool:
    async def world(net: Network) -> bool:
        hosts = behind(net, "a", nats(a)), behind(net, "b", nats(b))
        return await punch_tcp(server_in(net), *hosts, skew=skew, listeners=listeners)

    return run(world)


@pytest.mark.slow("sixty worlds")
@CASES
@given(layers, layers, st.sampled_from([0.0, 0.01, 0.5]))
@example([Behavior(filtering=Filtering.APDF)], [Behavior(mapping=Mapping.APDM, allocation=Uniform())], 0.0)
@example([Behavior(filtering=Filtering.ADF)], [Behavior(mapping=Mapping.ADM, allocation=Uniform())], 0.5)
def test_udp_is_punched_exactly_when_theory_says(a: list[Behavior], b: list[Behavior], skew: float) -> None:
    expected = punch_possible(a, b, a_leads=skew > ONE_WAY)
    event(f"possible: {expected}")
    assert try_udp(a, b, skew) == expected


@pytest.mark.slow("sixty worlds")
@CASES
@given(classic, classic, st.sampled_from([0.0, 0.01, 0.5]))
def test_tcp_is_punched_exactly_when_theory_says(a: list[Behavior], b: list[Behavior], skew: float) -> None:
    expected = punch_possible(a, b)
    event(f"possible: {expected}")
    assert try_tcp(a, b, skew) == expected


@pytest.mark.parametrize("transport", [try_udp, try_tcp], ids=["udp", "tcp"])
def test_the_classic_matrix(transport: Callable[[list[Behavior], list[Behavior]], bool]) -> None:
    """All pairs of classic NATs but symmetric with port-restricted or symmetric, as in docs/kernel_lab.md."""
    full, address, port = (Behavior(filtering=one) for one in Filtering)
    symmetric = Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Uniform())
    never = [(port, symmetric), (symmetric, port), (symmetric, symmetric)]
    for a in (full, address, port, symmetric):
        for b in (full, address, port, symmetric):
            assert transport([a], [b]) == ((a, b) not in never), (a, b)
            assert punch_possible([a], [b]) == ((a, b) not in never)


@given(layers, layers)
@settings(max_examples=50)
def test_the_oracle_is_symmetric_and_a_weaker_filter_never_hurts(a: list[Behavior], b: list[Behavior]) -> None:
    assert punch_possible(a, b) == punch_possible(b, a)
    weaker = [replace(one, filtering=Filtering.EIF) for one in a]
    assert punch_possible(weaker, b) >= punch_possible(a, b)


@pytest.mark.slow("a hundred worlds")
@given(classic, classic)
@settings(max_examples=50)
def test_an_endpoint_independent_mapping_never_hurts(a: list[Behavior], b: list[Behavior]) -> None:
    weaker = [replace(one, mapping=Mapping.EIM) for one in a]
    assert punch_possible(weaker, b) >= punch_possible(a, b)


# Pairs of peers anywhere


@pytest.mark.slow("160 worlds")
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_peers_anywhere_punch_exactly_when_theory_says(tcp: bool) -> None:
    """For every `PeerPair`: NATs in a row, one CGN for both, every policy, blocked ports."""
    met: Counter[bool | None] = Counter()

    # Without delay SYNs cannot cross: the first one always meets a NAT that is not open yet, and may refuse it.
    link = links(max_latency=0.05, noisy=False).map(lambda link: replace(link, latency=link.latency + 0.001))
    known = peer_pairs(link=link, nat=nats_that_exist(composed=False), max_nats=1)

    @settings(max_examples=160)
    @given(st.one_of(peer_pairs(link=link), known))
    @example(PeerPair.between(presets.LINUX, presets.LINUX))
    @example(PeerPair.between(presets.LINUX, presets.LINUX_SYMMETRIC))
    @example(PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC))
    def check(pair: PeerPair) -> None:
        expected = can_punch(pair, tcp=tcp)
        met[expected] += 1
        if expected is None:
            return

        async def world() -> bool:
            async with pair.build() as net:
                server, alice, bob = (net.hosts[name] for name in ("server", "alice", "bob"))
                with trio.move_on_after(30):  # the server itself may be out of reach
                    if tcp:
                        return await punch_tcp(server, alice, bob, patience=10.0)
                    depth = 1 + len(pair.shared) + max(len(pair.alice.nats), len(pair.bob.nats))
                    return await punch_udp(server, alice, bob, openers=depth)
                return False

        assert simulate(world, seed=pair.seed) == expected, str(pair)

    check()
    print(f"{met.total()} pairs: {dict(met)}")
    assert met[True], met
    assert met[False], met


# Routers whose own stack receives unsolicited packets (`Unsolicited.LOCAL`)

LOCAL = [presets.LINUX_LOCAL.udp]
DROP = [presets.LINUX.udp]


@pytest.mark.parametrize("skew", [0.0, ONE_WAY - 0.01])
def test_local_nats_let_punches_cross_that_set_out_in_time(skew: float) -> None:
    assert try_udp(LOCAL, LOCAL, skew)


@pytest.mark.parametrize("skew", [ONE_WAY + 0.01, 0.5, 1.0])
def test_local_nats_are_poisoned_by_what_comes_first(skew: float) -> None:
    assert not try_udp(LOCAL, LOCAL, skew)
    assert not try_udp(DROP, LOCAL, skew)  # A's first packet meets B's NAT too early
    assert try_udp(LOCAL, DROP, skew)
    assert try_udp(DROP, DROP, skew)


@pytest.mark.parametrize("skew", [0.0, ONE_WAY + 0.01, 1.0])
def test_low_ttl_openers_save_local_nats(skew: float) -> None:
    assert try_udp(LOCAL, LOCAL, skew, openers=3)


# TCP: SYNs that cross, and SYNs that are refused


def attempt(a: NatConfig, b: NatConfig, skew: float) -> tuple[str, float]:
    """Two hosts connect once each, B `skew` later; returns A's result and its seconds after the start."""

    async def world(net: Network) -> tuple[str, float]:
        hosts = behind(net, "a", [a]), behind(net, "b", [b])
        routers = [host.interfaces[0].segment.router for host in hosts]
        assert routers[0] is not None
        assert routers[1] is not None
        result = await one_attempt(hosts[0], routers[0].ip, hosts[1], routers[1].ip, skew=skew)
        await trio.sleep(70)
        return result

    return run(world)


@pytest.mark.parametrize("skew", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("name", ["linux", "linux-local", "openwrt", "icmp", "rfc"])
def test_syns_that_cross_connect_after_one_round_trip(name: str, skew: float) -> None:
    nat = presets.NATS[name]
    word, when = attempt(nat, nat, skew)
    assert word == "connected"
    assert when == pytest.approx(2 * ONE_WAY + (skew if skew else 0.0), abs=skew + 1e-9)


@pytest.mark.parametrize("skew", [0.06, 0.1, 0.5])
def test_a_late_peer_still_connects_where_early_syns_are_dropped(skew: float) -> None:
    """Measured: the earlier side connects at skew + 3 delays, with no retransmission."""
    word, when = attempt(presets.LINUX, presets.LINUX, skew)
    assert word == "connected"
    assert when == pytest.approx(skew + 3 * ONE_WAY)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("linux-local", "ECONNREFUSED"),
        ("openwrt", "ECONNREFUSED"),
        ("icmp", "EHOSTUNREACH"),
    ],
)
def test_an_early_syn_is_refused_after_one_round_trip(name: str, word: str) -> None:
    nat = presets.NATS[name]
    seen, when = attempt(nat, nat, 0.5)
    assert seen == word
    assert when == pytest.approx(2 * ONE_WAY)


def test_a_held_syn_is_refused_after_six_seconds() -> None:
    word, when = attempt(presets.RFC, presets.RFC, 9.0)
    assert word == "ECONNREFUSED"
    assert when == pytest.approx(6 + 2 * ONE_WAY)


def test_full_cone_against_symmetric_over_tcp_needs_a_listener() -> None:
    """Measured: without a listener, it was refused 61 times and never connected."""
    cone = [Behavior(filtering=Filtering.EIF)]
    symmetric = [Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Uniform())]
    assert try_tcp(cone, symmetric)
    assert not try_tcp(cone, symmetric, listeners=False)


# Classification by observation (RFC 5780), against the configuration


def seen_from_inside(config: NatConfig) -> tuple[Mapping, Filtering]:
    async def world(net: Network) -> tuple[Mapping, Filtering]:
        client = net.lan("home", nat=config).host("client")
        return await classify(client, net.host("one"), net.host("two"), 1000)

    return run(world)


@pytest.mark.slow("forty worlds")
@given(behaviors)
@settings(max_examples=40)
def test_what_is_observed_is_what_was_configured(behavior: Behavior) -> None:
    assert seen_from_inside(NatConfig(udp=behavior)) == (behavior.mapping, behavior.filtering)


@pytest.mark.parametrize("config", presets.NATS.values(), ids=lambda c: c.name)
def test_presets_are_what_they_say(config: NatConfig) -> None:
    if config.udp.ports is None:
        assert seen_from_inside(config) == (config.udp.mapping, config.udp.filtering)


def test_linux_overloads_ports() -> None:
    """Measured on Linux 6.18: the third and fourth flow lose the port."""

    async def world(net: Network) -> list[bool]:
        home = net.lan("home", nat=presets.LINUX)
        clients, servers = [home.host("a"), home.host("b")], [net.host("one"), net.host("two")]
        return await overload(clients, servers, 40000)

    assert run(world) == [True, True, False, False]


def test_stacked_layers() -> None:
    inner = Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF)
    assert stacked([Behavior(), inner]) == (Mapping.APDM, Filtering.APDF)
    assert stacked([]) == (Mapping.EIM, Filtering.EIF)


# How often a spray hits: the birthday problem


def test_birthday_figures() -> None:
    assert birthday(256, 256, 65536) == pytest.approx(0.6336, abs=1e-4)
    assert birthday(256, 1024, 64512) == pytest.approx(0.9835, abs=1e-4)
    assert birthday(10, 5, 100) == pytest.approx(birthday(5, 10, 100))
    assert birthday(60, 50, 100) == 1


@pytest.mark.slow("forty worlds with forty sockets each")
def test_spray_hits_as_often_as_chance_allows() -> None:
    sockets = probes = 40
    ports = (20000, 21999)
    hard = NatConfig(udp=Behavior(mapping=Mapping.APDM, filtering=Filtering.APDF, allocation=Uniform(ports=ports)))

    def spray(seed: int) -> bool:
        async def world(net: Network) -> bool:
            easy_host = behind(net, "easy", [presets.LINUX])
            hard_host = behind(net, "hard", [hard])
            routers = [h.interfaces[0].segment.router for h in (easy_host, hard_host)]
            assert routers[0] is not None
            assert routers[1] is not None
            easy = await bound(easy_host, 40000)
            for port in net.rng("probes").sample(range(ports[0], ports[1] + 1), probes):
                await easy.sendto(b"probe", (routers[1].ip, port))
            await trio.sleep(1)
            many = [await bound(hard_host) for _ in range(sockets)]
            for sock in many:
                await sock.sendto(b"probe", (routers[0].ip, 40000))
            hit = await receive(easy, 1) is not None
            for sock in (easy, *many):
                sock.close()
            return hit

        return run(world, seed=seed)

    runs = 40
    hits = sum(spray(seed) for seed in range(runs))
    expected = birthday(sockets, probes, ports[1] - ports[0] + 1)
    deviation = (expected * (1 - expected) / runs) ** 0.5
    assert abs(hits / runs - expected) < 5 * deviation
