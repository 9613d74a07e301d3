"""Laws of RFC 4787 over random traffic, checked by a model that knows only the history of packets.

The NAT keeps tables and timers; the model keeps a list of the packets that passed, and derives everything from it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import final

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from warpgate_trio.sim import (
    Behavior,
    Block,
    Conflict,
    Filtering,
    Hash,
    Icmp,
    Mapping,
    Nat,
    NatConfig,
    Pooling,
    Preserve,
    Refresh,
    Sequential,
    Timers,
    Uniform,
    presets,
)
from warpgate_trio.sim.nat_ports import Allocation
from warpgate_trio.sim.nat_verdicts import Action
from warpgate_trio.sim.packet import TCP, UDP, Packet, icmp_error

Endpoint = tuple[str, int]
LIFETIME = 30.0
POOL = ("11.0.0.1", "11.0.0.2")
RANGE = (2000, 2999)
HOSTS = [("10.0.0.1", 1000), ("10.0.0.1", 1001), ("10.0.0.2", 1000), ("10.0.0.3", 2500)]
REMOTES = [("11.1.0.1", 1), ("11.1.0.1", 2), ("11.1.0.2", 1), ("11.1.0.3", 9)]
ALLOCATIONS: list[Allocation] = [
    Preserve(otherwise=Uniform(ports=RANGE)),
    Uniform(ports=RANGE),
    Uniform(ports=RANGE, parity=True),
    Sequential(ports=RANGE, delta=7),
    Sequential(ports=RANGE, per_host=True),
    Block(size=100, ports=RANGE),
    Hash(ports=RANGE),
]


@final
@dataclass
class Seen:
    """One packet that passed."""

    time: float
    inside: Endpoint
    outside: Endpoint
    remote: Endpoint
    outbound: bool


@final
@dataclass
class History:
    """All packets that passed, and the state that follows from them."""

    refresh: Refresh
    seen: list[Seen] = field(default_factory=list)

    def alive(self, now: float) -> list[Seen]:
        """The first packet of each flow that has not timed out."""
        flows: dict[tuple[Endpoint, Endpoint, Endpoint], tuple[Seen, float]] = {}
        for one in self.seen:
            flow = (one.inside, one.outside, one.remote)
            first, end = flows.get(flow, (one, -1.0))
            if end <= one.time:
                flows[flow] = one, one.time + LIFETIME
            elif self.refresh is Refresh.BOTH or (self.refresh is Refresh.OUT) == one.outbound:
                flows[flow] = first, one.time + LIFETIME
        return [first for first, end in flows.values() if end > now]

    def admits(self, outside: Endpoint, remote: Endpoint, filtering: Filtering, now: float) -> bool:
        same = [one for one in self.alive(now) if one.outside == outside]
        if filtering is Filtering.EIF:
            return bool(same)
        if filtering is Filtering.ADF:
            return any(one.remote[0] == remote[0] for one in same)
        return any(one.remote == remote for one in same)


def traffic(seed: int) -> list[tuple[float, bool, Endpoint, Endpoint, int]]:
    """Sixty steps: (seconds to wait, whether from inside, host, remote, which known endpoint to try)."""
    random = Random(seed)
    return [
        (
            random.choice([0.0, 0.0, 0.0, 1.0, 1.0, 5.0, 14.0, 29.0, 31.0]),
            random.random() < 0.6,
            random.choice(HOSTS),
            random.choice(REMOTES),
            random.randrange(100),
        )
        for _ in range(60)
    ]


@pytest.mark.slow("three hundred histories")
@settings(max_examples=300)
@given(
    mapping=st.sampled_from(Mapping),
    filtering=st.sampled_from(Filtering),
    refresh=st.sampled_from(Refresh),
    allocation=st.sampled_from(ALLOCATIONS),
    conflict=st.sampled_from([Conflict.NEXT, Conflict.OVERLOAD]),
    pooling=st.sampled_from(Pooling),
    quota=st.sampled_from([None, 2]),
    seed=st.integers(0, 10_000),
)
def test_the_laws_hold_over_any_history(
    mapping: Mapping,
    filtering: Filtering,
    refresh: Refresh,
    allocation: Allocation,
    conflict: Conflict,
    pooling: Pooling,
    quota: int | None,
    seed: int,
) -> None:
    check_history(mapping, filtering, refresh, allocation, conflict, pooling, quota, seed)


def check_history(
    mapping: Mapping,
    filtering: Filtering,
    refresh: Refresh,
    allocation: Allocation,
    conflict: Conflict,
    pooling: Pooling,
    quota: int | None,
    seed: int,
) -> Counter[str]:
    """Check the laws at every step of one history; returns how often each law was checked."""
    tally: Counter[str] = Counter()
    behavior = Behavior(mapping=mapping, filtering=filtering, refresh=refresh, allocation=allocation, conflict=conflict)
    timers = Timers(udp=LIFETIME, udp_stream=LIFETIME)
    nat = Nat(NatConfig(udp=behavior, pooling=pooling, quota=quota, timers=timers), POOL, Random(seed))
    history = History(refresh)
    now = 0.0
    for wait, outbound, host, remote, pick in traffic(seed):
        now += wait
        alive = history.alive(now)
        if outbound:
            verdict = nat.outbound(Packet(UDP, host, remote, b"x"), now)
            if verdict.action is Action.REPLY:
                tally["quota"] += 1
                assert quota is not None
                used = {one.outside for one in alive if one.inside[0] == host[0]}
                assert len(used) >= quota or conflict is Conflict.OVERLOAD  # where mappings share outside endpoints
                continue
            assert verdict.action is Action.FORWARD, verdict
            source = verdict.packet.src
            tally[check_mapping(alive, host, source, remote, mapping, conflict)] += 1
            check_allocation(alive, host, source, allocation, pooling)
            if quota is not None:
                used = {one.outside for one in alive if one.inside[0] == host[0]} | {source}
                assert len(used) <= quota
            history.seen.append(Seen(now, host, source, remote, outbound=True))
        else:
            known = sorted({one.outside for one in history.seen})
            target = known[pick % len(known)] if known else (POOL[0], 5)
            verdict = nat.inbound(Packet(UDP, remote, target, b"x"), now)
            delivered = verdict.action is Action.FORWARD
            expected = history.admits(target, remote, filtering, now)
            if conflict is Conflict.OVERLOAD and expected and not delivered:
                # Both ends of a tracked flow are unique: another flow has this inside endpoint and this remote.
                assert any(one.remote == remote and one.outside != target for one in alive)
                tally["clash"] += 1
                continue
            assert delivered == expected
            tally["delivered" if delivered else "dropped"] += 1
            if delivered:
                inside = verdict.packet.dst
                owners = {one.inside for one in alive if one.outside == target}
                assert inside in owners
                history.seen.append(Seen(now, inside, target, remote, outbound=False))
    return tally


def check_mapping(
    alive: list[Seen], host: Endpoint, source: Endpoint, remote: Endpoint, mapping: Mapping, conflict: Conflict
) -> str:
    """REQ-1 and REQ-3: which flows share an outside endpoint; returns the law that was checked."""
    asked = "new"
    mine = [one for one in alive if one.inside == host]
    strict = conflict is Conflict.NEXT
    flow = {one.outside for one in mine if one.remote == remote}
    if flow:
        assert source in flow  # a flow never moves
        asked = "flow"
    elif mapping is Mapping.EIM and mine and strict:
        assert source in {one.outside for one in mine}
        asked = "eim"
    elif mapping is Mapping.ADM and strict:
        # A flow that was begun from outside belongs to the mapping that let it in, whatever its remote address.
        near = {one.outside for one in mine if one.remote[0] == remote[0] and one.outbound}
        if near:
            assert source in near
            asked = "adm"
    others = [one for one in alive if one.inside != host and one.outside == source]
    assert not others or not strict
    assert all(one.remote != remote for one in others)
    return asked


def check_allocation(alive: list[Seen], host: Endpoint, source: Endpoint, allocation: object, pooling: Pooling) -> None:
    """REQ-2, REQ-3a and REQ-4: which address and port are allocated."""
    assert source[0] in POOL
    assert RANGE[0] <= source[1] <= RANGE[1] or (isinstance(allocation, Preserve) and source[1] == host[1])
    if pooling is Pooling.PAIRED:
        assert all(one.outside[0] == source[0] for one in alive if one.inside[0] == host[0])
    if isinstance(allocation, Uniform) and allocation.parity:
        assert source[1] % 2 == host[1] % 2
    if isinstance(allocation, Block):
        blocks = {(one.outside[1] - RANGE[0]) // 100 for one in alive if one.inside[0] == host[0]}
        assert blocks <= {(source[1] - RANGE[0]) // 100}


def anything(random: Random, addresses: tuple[str, ...]) -> tuple[bool, Packet]:
    """A packet from inside or outside that no sane host would send."""
    inside, outside = random.choice(HOSTS), (random.choice(addresses), random.choice([1000, 1001, 2500, 40000]))
    remote = random.choice(REMOTES)
    outbound = random.random() < 0.5
    target = outside if random.random() < 0.2 else remote
    src, dst = (inside, target) if outbound else (remote, outside)
    packet = Packet(random.choice([UDP, TCP]), src, dst, b"x" * random.randrange(3), flags=random.randrange(32))
    if random.random() < 0.2:
        about = Packet(packet.proto, dst, src, flags=packet.flags)
        packet = icmp_error(src[0], random.choice(list(Icmp)), about, mtu=500)
        packet.dst = (dst[0], 0)
    return outbound, packet


@pytest.mark.parametrize("config", [*presets.NATS.values(), *presets.FIREWALLS6.values()], ids=lambda c: c.name)
def test_no_traffic_can_hurt_a_nat_and_silence_empties_it(config: NatConfig) -> None:
    for seed in range(5):
        random = Random(seed)
        nat = Nat(config, () if config.identity else POOL, random)
        if not config.identity:
            nat.add_forward(TCP, 2500, HOSTS[0])
        now = 0.0
        for _ in range(200):
            now += random.choice([0.0, 0.1, 10.0, 100.0])
            outbound, packet = anything(random, POOL)
            verdict = nat.outbound(packet, now) if outbound else nat.inbound(packet, now)
            if verdict.action is Action.FORWARD and packet.error is None and not config.identity:
                assert (verdict.packet.src[0] in POOL) is outbound
            table = nat.table
            assert set(table.outbound.values()) <= set(table.inbound.values())
            assert sum(table.used.values()) == len(nat.mappings(now))
            assert all(one.expires > now for one in table.inbound.values())
        now += 500_000  # longer than Linux keeps an open TCP connection
        nat.release(now)
        assert nat.mappings(now) == []
        table = nat.table
        assert [table.inbound, table.outbound, table.second, table.mappings, table.by_outside, table.used] == [{}] * 6


def test_the_laws_are_not_vacuous() -> None:
    tally: Counter[str] = Counter()
    for mapping, filtering, quota, seed in product(Mapping, Filtering, (None, 2), range(5)):
        tally += check_history(
            mapping, filtering, Refresh.BOTH, Uniform(ports=RANGE), Conflict.NEXT, Pooling.PAIRED, quota, seed
        )
    for name in ("flow", "eim", "adm", "quota", "delivered", "dropped"):
        assert tally[name] >= 20, (name, tally)
