"""Whole nodes through NATs: all pairs that can connect do, at the time that theory says, and within the budgets.

A sample runs here; ``python -m tests.sim.census`` runs thousands of worlds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import comb
from typing import Any, Literal

import pytest
import trio
from hypothesis import Phase, example, given, note, settings

from tests.sim.punching import punchable_worlds
from tests.sim.walks import WARM, Connect, Meeting, meet, rows
from warpgate_trio import Node, PeerAddress, Pipe
from warpgate_trio.address.nat_profile import NatProfile
from warpgate_trio.config import Budgets
from warpgate_trio.punch.allowance import BURST
from warpgate_trio.punch.checks import MAX_PACKETS
from warpgate_trio.punch.spray import MAX_OPENERS, MAX_SOCKETS
from warpgate_trio.sim import Fault, Kind, NatConfig, Network, presets
from warpgate_trio.sim.packet import Packet
from warpgate_trio.sim.trace import Trace
from warpgate_trio.testing.populations import POPULATIONS
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

RTT = 0.05
OVERHEAD = 0.03
PHASES = [phase for phase in Phase if phase is not Phase.explain]  # this phase would run a failing world 300 times more


ONLY_UDP = replace(presets.LINUX, name="only-udp", tcp=presets.LINUX_SYMMETRIC.tcp)
"""A pair of these can be punched over UDP, but not over TCP."""


def pinned(plugin: str, timeout: float = 6.0) -> Connect:
    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.connect(address, plugin=plugin, timeout=timeout)

    return connect


# -- who meets ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow("32 worlds of two nodes and four servers")
def test_whoever_can_punch_connects_without_a_relay() -> None:
    tally: Counter[str] = Counter()

    @settings(max_examples=32, phases=PHASES)
    @given(punchable_worlds())
    @example((PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT), True))
    @example((PeerPair.between(ONLY_UDP, ONLY_UDP, rtt=RTT), True))
    def check(world: tuple[PeerPair, bool]) -> None:
        pair, ntp = world
        note(f"{pair}, {'NTP' if ntp else 'no NTP'}")
        result = meet(pair, ntp=ntp)
        assert result.connected, rows(result)
        tally[result.plugin or ""] += 1

    check()
    print(f"{tally.total()} worlds: {dict(tally)}")
    assert {"tcp_punch", "udp_punch"} <= set(tally), f"some plugin never won: {tally}"


@pytest.mark.slow("12 worlds with 5 % loss")
def test_whoever_can_punch_connects_over_a_bad_network_too() -> None:
    """In 99.9 % of calls (``tests.sim.census lossy``); three failures in a row are no chance."""

    @settings(max_examples=12, phases=PHASES)
    @given(punchable_worlds(loss=0.05))
    def check(world: tuple[PeerPair, bool]) -> None:
        pair, ntp = world
        note(f"{pair}, {'NTP' if ntp else 'no NTP'}")
        results = (meet(replace(pair, seed=pair.seed + seed), ntp=ntp, lossy=True) for seed in range(3))
        failed: list[str] = []
        for result in results:
            if result.connected:
                return
            failed.append(rows(result))
        raise AssertionError("\n".join(failed))

    check()


KINDS = ["linux", "linux-local", "openwrt", "rst", "icmp", "restricted", "full-cone", "cgn", "rfc"]


@pytest.mark.parametrize("plugin", ["tcp_punch", "udp_punch"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_with_itself(kind: str, plugin: str) -> None:
    nat = presets.NATS[kind]
    assert meet(PeerPair.between(nat, nat, rtt=RTT), pinned(plugin)).plugin == plugin


HARD = presets.LINUX_SYMMETRIC


@pytest.mark.slow("4 sprays over all ports")
@pytest.mark.parametrize("alice_is_hard", [True, False])
def test_a_symmetric_nat_meets_a_port_restricted_one_by_spraying(alice_is_hard: bool) -> None:
    runs = 4
    hits = 0
    for seed in range(runs):
        nats = (HARD, presets.LINUX) if alice_is_hard else (presets.LINUX, HARD)
        result = meet(PeerPair.between(*nats, rtt=RTT, seed=seed), pinned("random_probe"))
        hits += result.connected
        if result.connected:
            assert result.walk <= 3.0
    # 98.35 % each (oracles.py): fewer than 2 hits of 4 occur twice in 100,000 runs.  `tests.sim.census` runs hundreds.
    assert sum(comb(runs, k) * 0.9835**k * 0.0165 ** (runs - k) for k in range(2)) < 2e-5
    assert hits >= 2


def test_two_symmetric_nats_with_small_ranges_may_meet_and_with_large_ones_send_nothing() -> None:
    result = meet(PeerPair.between(HARD, HARD, rtt=RTT))
    assert not result.connected
    rows = {row.plugin: row for row in result.report.combos}
    assert rows["random_probe"].likelihood == "hopeless"
    assert "symmetric" in (rows["random_probe"].error or "")


@pytest.mark.slow("16 pairs of peers as they are found in the wild")
def test_most_people_meet_without_a_relay() -> None:
    """88 % of pairs in a population with offices and clouds; `tests.sim.census` runs thousands."""
    from random import Random

    random = Random(1)
    people = POPULATIONS["everybody"]
    connected = 0
    for seed in range(16):
        a, b = (people.sample(random) for _ in range(2))
        connected += meet(PeerPair.between(a.nats, b.nats, rtt=RTT, seed=seed)).connected
    assert connected >= 10  # with 0.915 each: fewer occur twice in 10,000 runs


# -- how fast ----------------------------------------------------------------------------------------------------------


def phase_to_echo(result: Meeting) -> float:
    assert result.connected, rows(result)
    assert result.phase_to_echo is not None
    return result.phase_to_echo


@pytest.mark.parametrize("rtt", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    ("plugin", "alice", "bob", "round_trips"),
    [
        ("udp_punch", "linux", "linux", 6.5),
        ("udp_punch", "full-cone", "linux-symmetric", 6.5),
        ("udp_punch", "linux-symmetric", "full-cone", 6.5),
        ("udp_punch", "linux-local", "linux-local", 6.5),
        ("tcp_punch", "linux", "linux", 7),
        ("tcp_punch", "linux-local", "linux-local", 7),
        ("tcp_punch", "full-cone", "linux-symmetric", 7),
    ],
)
def test_the_first_echoed_byte_is_there_in_time(
    plugin: str, alice: str, bob: str, round_trips: float, rtt: float
) -> None:
    pair = PeerPair.between(presets.NATS[alice], presets.NATS[bob], rtt=rtt)
    assert phase_to_echo(meet(pair, pinned(plugin))) <= round_trips * rtt + OVERHEAD


@pytest.mark.parametrize("offsets", [(0.0, 0.0), (30.0, -30.0), (-7.5, 30.0)])
@pytest.mark.parametrize("ntp", [True, False])
def test_wrong_clocks_cost_no_time(offsets: tuple[float, float], ntp: bool) -> None:
    pair = PeerPair.between(presets.RST, presets.RST, rtt=RTT, clock_offsets=offsets)
    assert phase_to_echo(meet(pair, pinned("tcp_punch"), ntp=ntp)) <= 7 * RTT + OVERHEAD + RTT * (not ntp)


def test_a_caller_that_was_just_opened_is_hardly_slower() -> None:
    """It measures its signals' round trip during the phase and uses that, instead of the longest direct phase."""
    result = meet(PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT), warm=0)
    assert result.plugin == "tcp_punch", rows(result)
    # Two round trips to the signal server, the shortest direct phase, STUN over TCP, and the punch.
    assert result.walk <= 2 * RTT + Budgets().direct_min + 2 * RTT + 7 * RTT + OVERHEAD


@pytest.mark.slow("5 pairs of nodes")
@pytest.mark.parametrize("warmth", ["warm", "caller-cold", "cold"])
@pytest.mark.parametrize("phase", ["punch", "spray"])
def test_two_sequences_are_foretold(phase: Literal["punch", "spray"], warmth: str) -> None:
    """The n-th packet of each side must go to the port of the other's n-th one, with no other packet in between."""
    nat = presets.SYMMETRIC_SEQUENTIAL
    options: dict[str, Any] = {"warm": {}, "caller-cold": {"warm": 0}, "cold": {"warm": 0, "both_cold": True}}[warmth]

    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.auto_connect(address, phases=[phase])

    for seed in range(5):
        result = meet(PeerPair.between(nat, nat, rtt=RTT, seed=seed), connect, **options)
        assert result.connected, rows(result)


@pytest.mark.slow("6 pairs of nodes")
@pytest.mark.parametrize("warm", [0, WARM])
def test_two_sequences_are_foretold_without_udp(warm: float) -> None:
    """A question to a second server would use up another port, which the forecast does not count."""
    nat = replace(presets.UDP_BLOCKED, tcp=presets.SYMMETRIC_SEQUENTIAL.tcp)
    for seed in range(3):
        result = meet(PeerPair.between(nat, nat, rtt=RTT, seed=seed), pinned("tcp_punch"), warm=warm, both_cold=True)
        assert result.connected, rows(result)


@pytest.mark.slow("12 sprays over all ports")
@pytest.mark.parametrize("alice_is_hard", [True, False])
def test_the_roles_of_a_spray_are_known_to_nodes_that_were_just_opened(alice_is_hard: bool) -> None:
    runs = 6
    nats = (HARD, presets.LINUX) if alice_is_hard else (presets.LINUX, HARD)
    pairs = [PeerPair.between(*nats, rtt=RTT, seed=seed) for seed in range(runs)]
    hits = sum(meet(pair, pinned("random_probe"), warm=0, both_cold=True).connected for pair in pairs)
    assert hits >= runs - 2  # 98.35 % each: fewer occur once in 10,000 runs


def test_without_an_answer_two_peers_meet_at_a_boundary() -> None:
    """The server dies when it has forwarded the request, but not yet the answer."""

    async def connect(node: Node, address: PeerAddress) -> Pipe:
        current[0].schedule([Fault(at=1.25 * RTT, until=3.0, target="server", kind=Kind.BLACKHOLE)])
        return await node.connect(address, plugin="tcp_punch", timeout=3.0)

    current: list[Network] = []
    pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
    result = meet(pair, connect, on_network=current.append, lossy=True)
    assert result.plugin == "tcp_punch", result.report
    assert result.walk < 1.5


# -- at what cost ------------------------------------------------------------------------------------------------------


@contextmanager
def counted_packets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """(sending host, address) -> UDP packets, as they leave the host."""
    counts: Counter[tuple[str, str]] = Counter()
    add = Trace.add

    def counting(self: Trace, time: float, node: str, event: str, packet: Packet, *rest: object) -> None:
        if event == "send" and packet.proto == 17 and time > WARM:
            counts[node, packet.dst[0]] += 1
        add(self, time, node, event, packet, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trace, "add", counting)
        yield counts


@pytest.mark.parametrize(
    ("alice", "bob"), [("linux", "linux-symmetric"), ("linux-symmetric", "linux"), ("linux", "linux")]
)
def test_no_attempt_sends_more_than_its_budget(alice: str, bob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_packets(monkeypatch) as counts:
        meet(PeerPair.between(presets.NATS[alice], presets.NATS[bob], rtt=RTT), pinned("random_probe", timeout=8))
    for (node, _), packets in counts.items():
        if node in ("alice", "bob"):
            assert packets <= MAX_PACKETS + 1024  # plus QUIC's packets
    assert MAX_OPENERS <= MAX_PACKETS
    assert MAX_SOCKETS <= MAX_PACKETS
    assert MAX_PACKETS <= BURST


# -- what is known of the NATs, and for how long -----------------------------------------------------------------------


def test_a_nat_that_has_become_another_one_is_measured_anew() -> None:
    """The router restarts with another address, which the next STUN query for a warm port reveals."""
    seen: list[NatProfile] = []

    async def connect(node: Node, address: PeerAddress) -> Pipe:
        seen.append(node.address.nat_profiles.get(None, 4))
        current[0].schedule([Fault(at=1.0, target="alice-nat0", kind=Kind.REBIND)])
        await trio.sleep(60)
        seen.append(node.address.nat_profiles.get(None, 4))
        return await node.auto_connect(address)

    current: list[Network] = []
    result = meet(PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT), connect, on_network=current.append)
    assert result.connected, rows(result)
    before, after = (profile.udp.external for profile in seen)
    assert before != after


# -- IPv6 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["tcp_punch", "udp_punch"])
@pytest.mark.parametrize("firewall", presets.FIREWALLS6.values(), ids=lambda each: each.name)
def test_firewalls_of_ipv6_are_opened(plugin: str, firewall: NatConfig) -> None:
    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.connect(address, plugin=plugin, af=6, timeout=6.0)

    pair = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT)
    places = [replace(place, firewall6=firewall) for place in (pair.alice, pair.bob)]
    result = meet(replace(pair, ipv6=True, alice=places[0], bob=places[1]), connect)
    assert result.plugin == plugin, rows(result)
