"""Port prediction: by hand for each kind of NAT, against the simulator's allocators, and bounded for any claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address.nat_profile import Allocation, Mapping, TransportProfile
from warpgate_trio.nat.classify import Binding, NatObservations, classify
from warpgate_trio.nat.prediction import MAX_PREDICTED, MAX_RATE, foreign_rate, predict_ports
from warpgate_trio.sim import Behavior, Block, NatConfig, Preserve, Sequential, Uniform
from warpgate_trio.sim import Mapping as Axis
from warpgate_trio.sim.nat import Nat
from warpgate_trio.sim.nat_ports import Allocation as SimAllocation
from warpgate_trio.sim.packet import UDP, Packet

US, OTHER, OUT = "192.168.1.2", "192.168.1.9", "198.51.100.7"
SERVER, PEER = ("203.0.113.1", 3478), ("198.51.100.99", 4000)
EIM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
CONE = TransportProfile(translated=True, mapping=EIM, allocation=Allocation.RANDOM)
SYM = replace(CONE, mapping=APDM)
SEQUENTIAL = replace(SYM, allocation=Allocation.SEQUENTIAL, delta=2)


def seen(*ports: int, at: float = 0.0, gap: float = 0.1, local: int = 40000) -> list[Binding]:
    return [
        Binding(local=(US, local + i), server=SERVER, mapped=(OUT, port), at=at + i * gap)
        for i, port in enumerate(ports)
    ]


def ports(profile: TransportProfile, samples: Sequence[Binding] = (), *, count: int = 4, **how: float) -> list[int]:
    return [each.port for each in predict_ports(profile, samples, count=count, **how)]  # type: ignore[arg-type]  # a table


class TestByHand:
    def test_a_cone_keeps_what_a_server_saw(self) -> None:
        (only,) = predict_ports(CONE, seen(5555), count=8, local_port=40000)
        assert (only.port, only.probability > 0.9) == (5555, True)
        assert ports(CONE, [*seen(5555), *seen(5556, at=1.0)], local_port=40000) == [5556]  # the newest one counts

    def test_a_cone_that_nobody_saw(self) -> None:
        assert ports(CONE, seen(5555), local_port=40001) == []
        assert ports(replace(CONE, allocation=Allocation.PRESERVING), local_port=40001) == [40001]

    def test_without_a_nat(self) -> None:
        assert ports(TransportProfile(translated=False), local_port=40001) == [40001]

    def test_preserving(self) -> None:
        keeps = replace(SYM, allocation=Allocation.PRESERVING)
        fresh, used = (predict_ports(keeps, count=1, local_port=40000, fresh=each)[0] for each in (True, False))
        assert fresh.port == used.port == 40000
        assert fresh.probability > 0.9 > 0.1 > used.probability
        assert ports(replace(keeps, delta=-50), local_port=40000) == [39950]
        assert ports(replace(keeps, delta=100), local_port=65500) == [64]
        assert ports(replace(keeps, delta=36), local_port=65500) == []  # that would be port 0

    def test_sequential(self) -> None:
        assert ports(SEQUENTIAL, seen(5000, 5002)) == [5004, 5006, 5008, 5010]
        assert ports(SEQUENTIAL, seen(5000, 5002), ours=3, count=1) == [5010]
        assert ports(replace(SEQUENTIAL, delta=-2), seen(5000), count=2) == [4998, 4996]
        assert ports(SEQUENTIAL, seen(65534), count=2) == [1024, 1026]
        assert ports(replace(SEQUENTIAL, delta=-1), seen(1024), count=2) == [65535, 65534]
        assert ports(SEQUENTIAL) == []

    def test_sequential_in_company(self) -> None:
        """At four foreign allocations a second, 3 or 4 in the first second are the likeliest."""
        predicted = predict_ports(SEQUENTIAL, seen(5000), count=9, elapsed=1.0, rate=4.0)
        assert {each.port for each in predicted[:2]} == {5008, 5010}
        assert predicted[0].probability == pytest.approx(0.195, abs=0.001)
        assert sum(each.probability for each in predicted) > 0.95

    def test_the_rate_is_estimated_from_the_samples(self) -> None:
        quiet, busy = seen(5000, 5002, 5004), seen(5000, 5022, 5044)
        assert foreign_rate(SEQUENTIAL, quiet) == pytest.approx(0.1 / 0.3)
        assert foreign_rate(SEQUENTIAL, busy) == pytest.approx(20.1 / 0.3)
        assert foreign_rate(SEQUENTIAL, []) == foreign_rate(CONE, busy) == 1.0
        assert foreign_rate(SEQUENTIAL, seen(1024, 65534, gap=0.0)) <= MAX_RATE
        assert foreign_rate(SEQUENTIAL, seen(65534, 1024, 1026)) == pytest.approx(0.1 / 0.2)  # a wrap reveals nothing

    def test_random_and_unknown(self) -> None:
        assert ports(SYM, seen(5000, 6000), local_port=40000) == []
        (only,) = predict_ports(TransportProfile(), seen(5000), count=3, local_port=40000)
        assert (only.port, only.probability) == (5000, 0.5)
        assert ports(TransportProfile(), seen(5000), local_port=7) == []

    def test_what_keeps_ports_and_may_keep_mappings(self) -> None:
        """Either the old mapping or the local port: nothing tells which, unless there is no old mapping."""
        keeps = replace(TransportProfile(), allocation=Allocation.PRESERVING)
        both = predict_ports(keeps, seen(5000), count=2, local_port=40000)
        assert {(each.port, each.probability) for each in both} == {(5000, 0.5), (40000, 0.5)}
        (only,) = predict_ports(keeps, count=2, local_port=40000)
        assert only.port == 40000
        assert only.probability > 0.9


class TestAgainstAllocators:
    """A simulated NAT is sampled and classified; its next mapping is compared with the predicted ports."""

    RUNS = 60

    def hits(self, allocation: SimAllocation, axis: Axis, *, count: int, rate: float) -> tuple[int, float]:
        """How many runs hit one of `count` predicted ports, and how many hits the probabilities promised."""
        config = NatConfig(udp=Behavior(mapping=axis, allocation=allocation))
        met, promised = 0, 0.0
        for seed in range(self.RUNS):
            random = Random(f"{allocation} {axis} {seed}")
            nat = Nat(config, [OUT], random)
            now = 0.0

            def wait(seconds: float, random: Random = random, nat: Nat = nat) -> None:
                nonlocal now
                ends = now + seconds
                while rate and (now := now + random.expovariate(rate)) < ends:
                    nat.outbound(Packet(UDP, (OTHER, random.randint(1024, 65535)), ("203.0.113.9", 53)), now)
                now = ends

            samples = []
            locals_ = random.sample(range(20000, 60000), 9)
            for port in locals_[:8]:
                wait(0.1)
                mapped = nat.outbound(Packet(UDP, (US, port), SERVER), now).packet.src
                samples.append(Binding(local=(US, port), server=SERVER, mapped=mapped, at=now))
            # The classifier is not under test; it cannot see the mapping behaviour with a single server.
            profile = replace(
                classify(NatObservations(bindings=tuple(samples))), mapping=Mapping(list(Axis).index(axis) + 1)
            )
            predicted = predict_ports(profile, samples, count=count, local_port=locals_[8], elapsed=0.2)
            wait(0.2)
            actual = nat.outbound(Packet(UDP, (US, locals_[8]), PEER), now).packet.src[1]
            met += actual in {each.port for each in predicted}
            promised += sum(each.probability for each in predicted)
        return met, promised

    @pytest.mark.parametrize("axis", Axis)
    @pytest.mark.parametrize(
        "allocation", [Preserve(), Sequential(), Sequential(delta=-3), Sequential(delta=2, per_host=True)], ids=repr
    )
    def test_predictable_ones_are_met(self, allocation: SimAllocation, axis: Axis) -> None:
        met, promised = self.hits(allocation, axis, count=8, rate=2.0)
        assert met >= 0.9 * self.RUNS
        assert promised <= self.RUNS + 1e-6

    def test_a_busy_one_keeps_its_promise(self) -> None:
        """20 foreign allocations a second spread the ports, and the probabilities, over some ten values."""
        met, promised = self.hits(Sequential(), Axis.APDM, count=4, rate=20.0)
        deviation = (promised * (1 - promised / self.RUNS)) ** 0.5
        assert 0.3 * self.RUNS < promised < 0.8 * self.RUNS
        assert abs(met - promised) < 4 * deviation + 0.1 * self.RUNS  # the rate itself is estimated, from 0.8 s

    @pytest.mark.parametrize("allocation", [Uniform(), Block(size=512)], ids=repr)
    def test_random_ones_promise_nothing(self, allocation: SimAllocation) -> None:
        assert self.hits(allocation, Axis.APDM, count=8, rate=2.0) == (0, 0)


@settings(max_examples=50)
@given(
    st.builds(
        TransportProfile,
        translated=st.sampled_from((None, False, True)),
        mapping=st.sampled_from(Mapping),
        allocation=st.sampled_from(Allocation),
        delta=st.integers(1, 64) | st.integers(-64, -1),
        low=st.integers(1, 30000),
        high=st.integers(30000, 65535),
    ),
    st.lists(st.integers(1, 65535), max_size=20),
    st.integers(-5, 10**6),
    st.floats(-1e9, 1e9, allow_nan=False),
    st.integers(-9, 10**9),
    st.none() | st.floats(0, 1e12),
    st.sampled_from((0, 40000, 40001, 65535)),
)
def test_bounded_whatever_is_claimed(
    profile: TransportProfile,
    mapped: list[int],
    count: int,
    elapsed: float,
    ours: int,
    rate: float | None,
    local: int,
) -> None:
    predicted = predict_ports(
        profile, seen(*mapped), count=count, local_port=local, elapsed=elapsed, ours=ours, rate=rate
    )
    assert len(predicted) <= max(0, min(count, MAX_PREDICTED))
    assert len({each.port for each in predicted}) == len(predicted)
    assert all(0 < each.port <= 65535 and 0 <= each.probability <= 1 for each in predicted)
    assert [each.probability for each in predicted] == sorted((e.probability for e in predicted), reverse=True)
    assert sum(each.probability for each in predicted) <= 1 + 1e-6
