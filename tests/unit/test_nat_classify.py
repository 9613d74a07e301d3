"""How observations are classified: each axis by hand, then every NAT of the simulator, asked with made-up packets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address.nat_profile import (
    ALL_PORTS,
    MAX_EXTERNAL,
    UNKNOWN,
    Allocation,
    Filtering,
    Mapping,
    TransportProfile,
)
from warpgate_trio.nat.classify import (
    MIN_RANDOM,
    Binding,
    Evidence,
    NatObservations,
    Sighting,
    classify,
    classify_allocation,
    classify_filtering,
    classify_mapping,
    contradicts,
    new_mappings,
    port_range,
)
from warpgate_trio.sim import Block, NatConfig, Preserve, Sequential, Uniform, presets
from warpgate_trio.sim import Mapping as Axis
from warpgate_trio.sim.nat import Nat
from warpgate_trio.sim.packet import UDP, Packet

EIM, ADM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
US, OUT = "192.168.1.2", "198.51.100.7"
SERVERS = [("203.0.113.1", 3478), ("203.0.113.1", 3479), ("203.0.113.2", 3478), ("203.0.113.3", 3478)]
AXES = {Axis.EIM: EIM, Axis.ADM: ADM, Axis.APDM: APDM}


def one_socket(
    mapped: Sequence[int | tuple[str, int]], *, servers: Sequence[tuple[str, int]] = SERVERS
) -> list[Binding]:
    """The bindings of one socket, as seen by one server after another."""
    ends = [(OUT, each) if isinstance(each, int) else each for each in mapped]
    return [
        Binding(local=(US, 40000), server=server, mapped=end, at=i)
        for i, (server, end) in enumerate(zip(servers, ends, strict=False))
    ]


def fresh_sockets(mapped: Sequence[int], local: Sequence[int] | None = None) -> list[Binding]:
    """The bindings of fresh sockets, as seen by one server."""
    ports = local or [1024 + 7919 * i % 60000 for i in range(len(mapped))]
    return [
        Binding(local=(US, port), server=SERVERS[0], mapped=(OUT, end), at=i)
        for i, (port, end) in enumerate(zip(ports, mapped, strict=True))
    ]


def ask(nat: Nat, random: Random, *, sockets: int = 16, foreign: float = 0.0) -> list[Binding]:
    """Measure a NAT packet by packet: one socket asks all servers, then each fresh socket asks the first server.

    `foreign`: the probability that another inside host opens a mapping before each packet.
    """
    bindings: list[Binding] = []
    ports = random.sample(range(20000, 60000), sockets)
    plan = [(ports[0], server) for server in SERVERS] + [(port, SERVERS[0]) for port in ports[1:]]
    for i, (port, server) in enumerate(plan):
        while random.random() < foreign:
            nat.outbound(Packet(UDP, ("192.168.1.9", random.randint(1024, 65535)), ("203.0.113.9", 53)), float(i))
        sent = nat.outbound(Packet(UDP, (US, port), server), float(i)).packet
        bindings.append(Binding(local=(US, port), server=server, mapped=sent.src, at=float(i)))
    return bindings


class TestMapping:
    @pytest.mark.parametrize(
        ("mapped", "mapping"),
        [
            ([500, 500, 500, 500], EIM),
            ([500, 500, 600, 700], ADM),
            ([500, 501, 600, 700], APDM),
            ([500, 500, 500, 666], EIM),  # one of three lies, or met a port conflict
            ([500, 500, 500, (OUT[:-1] + "9", 500)], EIM),
            ([500, 500], Mapping.UNKNOWN),  # two ports of one address only
            ([500, 600], APDM),
            ([500], Mapping.UNKNOWN),
            ([500, 600, 600, 700], EIM),  # two of three addresses agree on 600
        ],
    )
    def test_of_one_socket(self, mapped: list[int | tuple[str, int]], mapping: Mapping) -> None:
        assert classify_mapping(one_socket(mapped)) is mapping

    def test_two_plain_servers(self) -> None:
        servers = [SERVERS[0], SERVERS[2]]
        assert classify_mapping(one_socket([500, 500], servers=servers)) is EIM
        assert classify_mapping(one_socket([500, 600], servers=servers)) is APDM

    def test_servers_without_a_majority_are_unknown(self) -> None:
        servers = [(f"203.0.113.{i}", 3478) for i in range(4)]
        assert classify_mapping(one_socket([500, 500, 600, 600], servers=servers)) is Mapping.UNKNOWN
        ports = [("203.0.113.1", 1), ("203.0.113.1", 2), ("203.0.113.1", 3), ("203.0.113.2", 1)]
        assert classify_mapping(one_socket([500, 500, 600, 700], servers=ports)) is Mapping.UNKNOWN

    def test_sockets_that_disagree_are_unknown(self) -> None:
        other = [replace(each, local=(US, 40001)) for each in one_socket([500, 501, 502, 503])]
        assert classify_mapping([*one_socket([500, 500, 500, 500]), *other]) is Mapping.UNKNOWN


class TestFiltering:
    @pytest.mark.parametrize(
        ("address", "port", "filtering"),
        [
            (True, None, Filtering.ENDPOINT_INDEPENDENT),
            (True, True, Filtering.ENDPOINT_INDEPENDENT),
            (False, True, Filtering.ADDRESS_DEPENDENT),
            (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
            (False, None, Filtering.UNKNOWN),
            (None, False, Filtering.UNKNOWN),
            (None, None, Filtering.UNKNOWN),
        ],
    )
    def test_by_what_came_in(self, address: bool | None, port: bool | None, filtering: Filtering) -> None:
        assert classify_filtering(address, port) is filtering


class TestAllocation:
    @pytest.mark.parametrize(
        ("mapped", "local", "found"),
        [
            ([40000], [40000], (Allocation.PRESERVING, 0)),
            ([40000, 50000, 7], [40000, 50000, 60000], (Allocation.PRESERVING, 0)),  # one met a port conflict
            ([40100, 50100, 60100], [40000, 50000, 60000], (Allocation.PRESERVING, 100)),
            ([39900, 49900, 59900], [40000, 50000, 60000], (Allocation.PRESERVING, -100)),
            ([100, 101, 102, 103], [40000, 40001, 40002, 40003], (Allocation.SEQUENTIAL, 1)),  # no constant offset
            ([5000, 5002, 5004], None, (Allocation.SEQUENTIAL, 2)),
            ([5004, 5002, 5000], None, (Allocation.SEQUENTIAL, -2)),
            ([5000, 5002, 5008, 5010, 5012, 5018, 5020], None, (Allocation.SEQUENTIAL, 2)),  # foreign ones between
            ([65530, 65533, 1024, 1027, 1030, 1033], None, (Allocation.SEQUENTIAL, 3)),  # wraps around
            ([1030, 1027, 65533, 65530, 65527, 65524], None, (Allocation.SEQUENTIAL, -3)),
            ([5000, 5002, 5001, 5003], None, (Allocation.RANDOM, 0)),
            ([5000, 5000, 5000, 5000], None, (Allocation.RANDOM, 0)),
            ([5000, 40000, 5001, 40001, 5002, 40002, 5003], None, (Allocation.RANDOM, 0)),
            ([5000, 5001], None, (Allocation.UNKNOWN, 0)),
            ([5000, 9000, 7000], None, (Allocation.UNKNOWN, 0)),
        ],
    )
    def test_by_fresh_sockets(self, mapped: list[int], local: list[int] | None, found: tuple[Allocation, int]) -> None:
        assert classify_allocation(fresh_sockets(mapped, local), EIM) == found

    def test_the_order_is_that_of_asking(self) -> None:
        assert classify_allocation(fresh_sockets([5000, 5001, 5002, 5003])[::-1], EIM) == (Allocation.SEQUENTIAL, 1)

    def test_each_mapping_counts_once(self) -> None:
        bindings = one_socket([500, 500, 600, 700])
        assert [len(new_mappings(bindings, each)) for each in (EIM, ADM, APDM)] == [1, 3, 4]

    @settings(max_examples=40)
    @given(st.integers(0, 10**6), st.sampled_from((512, 1024, 64512)))
    def test_random_is_hardly_ever_taken_for_a_sequence(self, seed: int, size: int) -> None:
        """16 sockets: the chance is below 1e-9 for each of Hypothesis' forty examples."""
        random = Random(seed)
        ports = [random.randint(1024, 1023 + size) for _ in range(16)]
        assert classify_allocation(fresh_sockets(ports), EIM)[0] is Allocation.RANDOM


class TestRange:
    @pytest.mark.parametrize("samples", [6, 8, 16, 32])
    @pytest.mark.parametrize(
        ("low", "high"),
        [
            *((1024 + 512 * 9, 1023 + 512 * 10), (1024 * 8, 1024 * 9 - 1), (1024 + 2048 * 5, 1023 + 2048 * 6)),
            *((49152, 65535), (50001, 65535), (32768, 60999), (50000, 50999), ALL_PORTS),
        ],
    )
    def test_it_errs_wide(self, low: int, high: int, samples: int) -> None:
        """The estimate covers less than three quarters of the range no more often than the rule accepts."""
        random, runs = Random(low * samples), 300
        missed = 0
        for _ in range(runs):
            first, last = port_range(random.randint(low, high) for _ in range(samples))
            covered = (min(high, last) - max(low, first) + 1) / (high - low + 1)
            missed += covered < 0.75
        assert missed / runs < 0.04  # 1 %, plus four standard deviations

    @pytest.mark.parametrize(("size", "at_most"), [(512, 1.3), (1024, 1.3), (2048, 1.3)])
    def test_a_carriers_block_is_found(self, size: int, at_most: float) -> None:
        random, runs = Random(size), 200
        total = 0.0
        for _ in range(runs):
            low = 1024 + size * random.randrange(20)
            first, last = port_range(random.randint(low, low + size - 1) for _ in range(16))
            total += (last - first + 1) / size
        assert total / runs < at_most

    def test_too_few_say_nothing(self) -> None:
        assert port_range([5000, 5001, 5002]) == ALL_PORTS
        assert port_range(10 * [5000]) == ALL_PORTS
        assert MIN_RANDOM == 4

    @settings(max_examples=40)
    @given(st.lists(st.integers(1, 65535), max_size=40))
    def test_what_was_seen_is_in_it(self, ports: list[int]) -> None:
        low, high = port_range(ports)
        assert 0 < low <= high <= 65535
        if len(set(ports)) >= MIN_RANDOM:
            assert low <= min(ports)
            assert high >= max(ports)


class TestClassify:
    def test_nothing_known(self) -> None:
        assert classify(NatObservations()) == UNKNOWN

    def test_blocked_takes_two_silent_servers_or_one_that_is_alive_and_a_network_that_is_there(self) -> None:
        asked = frozenset(SERVERS[1:3])
        assert classify(NatObservations(asked=asked, online=True)).blocked is True
        assert classify(NatObservations(asked=asked)).blocked is None
        one = frozenset(SERVERS[:1])
        assert classify(NatObservations(asked=one, online=True)).blocked is None
        assert classify(NatObservations(asked=one, online=True, alive=frozenset(SERVERS[1:]))).blocked is None
        assert classify(NatObservations(asked=one, online=True, alive=one)).blocked is True, "it answered over TCP"

    def test_who_is_outvoted_is_believed_in_nothing(self) -> None:
        lies = [replace(each, server=SERVERS[3]) for each in fresh_sockets([9, 99, 999, 9999])]
        bindings = (*one_socket([40000, 40000, 40000, 666]), *(replace(each, at=9.0) for each in lies))
        profile = classify(NatObservations(bindings=bindings))
        assert (profile.allocation, profile.external) == (Allocation.PRESERVING, (ip_address(OUT),))

    def test_no_nat(self) -> None:
        ours = [replace(each, local=(OUT, 500)) for each in one_socket([500, 500, 500, 500])]
        profile = classify(NatObservations(bindings=tuple(ours), other_address=False, other_port=False))
        assert profile == TransportProfile(
            translated=False,
            blocked=False,
            mapping=EIM,
            filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
            external=(ip_address(OUT),),
        )

    def test_external_addresses_are_bounded_and_the_most_seen_first(self) -> None:
        servers = [(f"203.0.113.{i}", 1) for i in range(9)]
        mapped = [(f"198.51.100.{max(i, 3)}", 5) for i in range(9)]
        profile = classify(NatObservations(bindings=tuple(one_socket(mapped, servers=servers))))
        assert profile.external[0] == ip_address("198.51.100.3")
        assert len(profile.external) == MAX_EXTERNAL

    @settings(max_examples=40)
    @given(
        st.lists(
            st.builds(
                Binding,
                local=st.tuples(st.sampled_from((US, OUT, "::1", "fe80::1")), st.integers(1, 4)),
                server=st.sampled_from(SERVERS),
                mapped=st.tuples(
                    st.sampled_from((US, OUT, "", "x", "0.0.0.0", "224.0.0.1", "127.0.0.1", "::", "2001:db8::1")),
                    st.integers(-1, 70000),
                ),
                at=st.floats(0, 9),
            ),
            max_size=20,
        )
    )
    def test_lies_make_unknowns_and_no_exceptions(self, bindings: list[Binding]) -> None:
        profile = classify(NatObservations(bindings=tuple(bindings)))
        assert all(not each.is_multicast and not each.is_unspecified for each in profile.external)
        contradicts(profile, Evidence(bindings=tuple(bindings)))

    @pytest.mark.parametrize("config", [c for c in presets.NATS.values() if c.udp.ports is None], ids=lambda c: c.name)
    @pytest.mark.parametrize("seed", range(3))
    def test_the_simulators_nats(self, config: NatConfig, seed: int) -> None:
        random = Random(f"{config.name} {seed}")
        profile = classify(NatObservations(bindings=tuple(ask(Nat(config, [OUT], random), random))))
        assert profile.translated is True
        assert profile.mapping is AXES[config.udp.mapping]
        check_allocation(profile, config.udp.allocation)
        assert profile.external == (ip_address(OUT),)

    @pytest.mark.parametrize("axis", Axis)
    @pytest.mark.parametrize(
        "allocation",
        [
            *(Preserve(), Uniform(), Uniform(parity=True), Uniform(ports=(50001, 65535))),
            *(Sequential(), Sequential(delta=2), Sequential(delta=-1), Sequential(delta=7, per_host=True)),
            *(Block(size=512), Block(size=2048), Block(size=1024, sequential=True)),
        ],
        ids=repr,
    )
    def test_every_allocation_in_company(self, axis: Axis, allocation: object) -> None:
        config = replace(presets.OPEN, udp=replace(presets.OPEN.udp, mapping=axis, allocation=allocation))  # type: ignore[arg-type]  # of the table
        for seed in range(4):
            random = Random(f"{axis} {allocation} {seed}")
            profile = classify(NatObservations(bindings=tuple(ask(Nat(config, [OUT], random), random, foreign=0.3))))
            assert profile.mapping is AXES[axis]
            check_allocation(profile, allocation)


def check_allocation(profile: TransportProfile, allocation: object) -> None:
    match allocation:
        case Preserve():
            assert profile.allocation is Allocation.PRESERVING
        case Sequential(delta=delta):
            assert (profile.allocation, profile.delta) == (Allocation.SEQUENTIAL, delta)
        case Block(sequential=True):
            assert (profile.allocation, profile.delta) == (Allocation.SEQUENTIAL, 1)
        case Block(size=size):
            assert profile.allocation is Allocation.RANDOM
            assert profile.ports <= 4 * size
        case _:
            assert profile.allocation is Allocation.RANDOM


class TestContradicts:
    LINUX = TransportProfile(
        translated=True, blocked=False, mapping=EIM, allocation=Allocation.PRESERVING, external=(ip_address(OUT),)
    )
    HARD = replace(LINUX, mapping=APDM, allocation=Allocation.RANDOM, low=1024, high=2047)

    @pytest.mark.parametrize(
        ("profile", "evidence", "why"),
        [
            (TransportProfile(blocked=True), Evidence(received=True), "though everything seemed blocked"),
            (LINUX, Evidence(bindings=tuple(one_socket([("192.0.2.9", 5)]))), "the external address is 192.0.2.9 now"),
            (LINUX, Evidence(bindings=tuple(one_socket([500, 501, 600, 700]))), "turned out to be address-and-port"),
            (LINUX, Evidence(bindings=tuple(fresh_sockets([7, 8, 9]))), "ports are not preserved any more"),
            (LINUX, Evidence(bindings=tuple(fresh_sockets([7, 8]))), "ports are not preserved any more"),
            (LINUX, Evidence(sightings=(Sighting(announced=(OUT, 5), observed=(OUT, 6)),)), "a peer saw another"),
            (HARD, Evidence(bindings=tuple(one_socket([500, 500, 500, 500]))), "turned out to be endpoint-ind"),
            (HARD, Evidence(bindings=tuple(fresh_sockets([1500, 9000]))), "port 9000 lies outside of the range seen"),
            (
                replace(LINUX, translated=False),
                Evidence(bindings=tuple(fresh_sockets([7, 8]))),
                "there is a NAT now",
            ),
            (LINUX, Evidence(bindings=tuple(replace(e, local=(OUT, 500)) for e in one_socket([500]))), "no NAT any"),
        ],
    )  # fmt: skip
    def test_why(self, profile: TransportProfile, evidence: Evidence, why: str) -> None:
        found = contradicts(profile, evidence)
        assert found is not None
        assert why in found

    @pytest.mark.parametrize("profile", [LINUX, HARD, UNKNOWN])
    def test_silence_and_what_fits_prove_nothing(self, profile: TransportProfile) -> None:
        assert contradicts(profile, Evidence()) is None
        fits = one_socket([1500, 1501, 1502, 1503]) if profile is self.HARD else one_socket([40000, 40000, 40000])
        assert contradicts(profile, Evidence(bindings=tuple(fits), received=True)) is None

    @settings(max_examples=40)
    @given(st.integers(0, 10**6), st.sampled_from([c for c in presets.NATS.values() if c.udp.ports is None]))
    def test_a_nat_does_not_contradict_its_own_profile(self, seed: int, config: NatConfig) -> None:
        random = Random(seed)
        nat = Nat(config, [OUT], random)
        profile = classify(NatObservations(bindings=tuple(ask(nat, random))))
        if profile.allocation is Allocation.RANDOM:  # the range is an estimate, and leaves out one port in a hundred
            profile = replace(profile, low=1, high=65535)
        assert contradicts(profile, Evidence(bindings=tuple(ask(nat, random, sockets=3)))) is None
