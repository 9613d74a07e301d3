"""NAT profiles: their record form (golden, round trip, bounds, hostile bytes) and the names derived from them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, PeerAddress, Transport
from warpgate_trio.address.nat_profile import (
    ALL_PORTS,
    MAX_DELTA,
    PROFILE_LIFETIME,
    UNKNOWN,
    Allocation,
    DeltaType,
    Filtering,
    Key,
    Mapping,
    NatProfile,
    NatProfiles,
    NatType,
    TransportProfile,
    delta_type,
    describe,
    nat_type,
)
from warpgate_trio.errors import AddressMalformed, AddressUnsupported
from warpgate_trio.identity import Identity
from warpgate_trio.sockaddr import Family

NOW = 1_900_000_000
T, D = NatType, DeltaType
F0 = Filtering.UNKNOWN
EIM, ADM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
EIF, ADF, APDF = Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT

LINUX = TransportProfile(
    translated=True,
    blocked=False,
    mapping=EIM,
    filtering=APDF,
    allocation=Allocation.PRESERVING,
    hairpin=False,
)
CGN = replace(LINUX, mapping=APDM, allocation=Allocation.RANDOM, low=3072, high=5119)
SEQUENTIAL = replace(CGN, allocation=Allocation.SEQUENTIAL, delta=-2)
FIREWALL6 = TransportProfile(translated=False, blocked=False, mapping=EIM)

GOLDEN: list[tuple[str, dict[Key, NatProfile], int, str]] = [
    ("a home router", {(0, 4): NatProfile(udp=LINUX, tcp=LINUX)}, 1, "01e00756"),
    (
        "with IPv6, TCP otherwise",
        {(None, 4): NatProfile(udp=LINUX, tcp=replace(LINUX, filtering=EIF)), (None, 6): NatProfile(udp=FIREWALL6)},
        1,
        "01e207560556f200450000",
    ),
    ("a range", {(0, 4): NatProfile(udp=CGN, tcp=CGN)}, 1, "01e41fd60c0013ff"),
    ("a step", {(0, 4): NatProfile(udp=SEQUENTIAL, tcp=SEQUENTIAL)}, 1, "01e63bd60c0013fffffe"),
    (
        "two interfaces",
        {(0, 4): NatProfile(udp=LINUX, tcp=LINUX), (1, 4): NatProfile(udp=CGN, tcp=CGN)},
        2,
        "01e00756241fd60c0013ff",
    ),
]

tristates = st.sampled_from((None, False, True))


@st.composite
def transports(draw: st.DrawFn) -> TransportProfile:
    allocation = draw(st.sampled_from(Allocation))
    low, high = sorted((draw(st.integers(1, 65535)), draw(st.integers(1, 65535))))
    if draw(st.booleans()):
        low, high = ALL_PORTS
    steps = st.integers(-MAX_DELTA, MAX_DELTA).filter(bool)
    return TransportProfile(
        translated=draw(tristates),
        blocked=draw(tristates),
        mapping=draw(st.sampled_from(Mapping)),
        filtering=draw(st.sampled_from(Filtering)),
        allocation=allocation,
        delta=draw(steps) if allocation is Allocation.SEQUENTIAL else draw(st.integers(-32768, 32767)),
        low=low,
        high=high,
        hairpin=draw(tristates),
        external=draw(st.sampled_from(((), (ip_address("192.0.2.1"),)))),
    )


families: st.SearchStrategy[Family] = st.sampled_from((4, 6))
keys = st.tuples(st.none() | st.integers(0, 15), families)
profiles = st.builds(NatProfile, udp=transports(), tcp=transports(), measured_at=st.just(float(NOW)))


def bare(profile: NatProfile) -> NatProfile:
    return replace(profile, udp=replace(profile.udp, external=()), tcp=replace(profile.tcp, external=()))


class TestRecordForm:
    @pytest.mark.parametrize(("name", "by_key", "interfaces", "golden"), GOLDEN, ids=[each[0] for each in GOLDEN])
    def test_golden(self, name: str, by_key: dict[Key, NatProfile], interfaces: int, golden: str) -> None:
        data = NatProfiles(by_key).to_bytes(interfaces=interfaces)
        assert data is not None
        assert data.hex() == golden
        read = NatProfiles.from_bytes(data, measured_at=NOW)
        for (interface, family), profile in by_key.items():
            assert read.get(interface, family) == replace(profile, measured_at=NOW)

    @settings(max_examples=25)
    @given(st.dictionaries(keys, profiles, max_size=4), st.integers(0, 16))
    def test_round_trip(self, by_key: dict[Key, NatProfile], interfaces: int) -> None:
        known = NatProfiles(by_key)
        data = known.to_bytes(interfaces=interfaces)
        read = NatProfiles.of(data, measured_at=NOW)
        assert data is None or len(data) <= 1 + 2 * 8 * 17
        for family in (4, 6):
            for interface in range(min(interfaces, 7)):
                found, meant = read.get(interface, family), bare(known.get(interface, family))
                assert (found.udp, found.tcp) == (meant.udp, meant.tcp)

    def test_an_interface_that_cannot_be_named_is_not_lied_about(self) -> None:
        data = NatProfiles({(i, 4): NatProfile(udp=LINUX if i < 7 else CGN) for i in range(8)}).to_bytes(interfaces=8)
        read = NatProfiles.of(data, measured_at=NOW)
        assert [read.get(i, 4).udp for i in (0, 6, 7)] == [LINUX, LINUX, UNKNOWN]

    def test_nothing_known_is_nothing_written(self) -> None:
        assert NatProfiles().to_bytes(interfaces=3) is None
        assert NatProfiles({(0, 4): NatProfile()}).to_bytes(interfaces=1) is None
        assert not NatProfiles.of(None, measured_at=NOW)

    def test_an_interface_that_was_not_measured_stays_unknown(self) -> None:
        data = NatProfiles({(1, 4): NatProfile(udp=LINUX, tcp=LINUX)}).to_bytes(interfaces=3)
        read = NatProfiles.of(data, measured_at=NOW)
        assert [read.get(i, 4).udp.mapping for i in range(3)] == [Mapping.UNKNOWN, EIM, Mapping.UNKNOWN]

    @pytest.mark.parametrize("tcp4", [LINUX, replace(LINUX, hairpin=None)])
    def test_a_usual_address_stays_short_enough_to_paste(self, tcp4: TransportProfile) -> None:
        """With NAT profiles, and what `test_address` has: 2 dual-stack interfaces, 8 full endpoints, 2 URLs."""
        v4, v6 = NatProfile(udp=LINUX, tcp=tcp4), NatProfile(udp=FIREWALL6, tcp=FIREWALL6)
        data = NatProfiles({(0, 4): v4, (1, 4): v4, (0, 6): v6, (1, 6): v6}).to_bytes(interfaces=2)
        assert data is not None
        assert len(data) <= 10
        tcp, kinds = Transport.TCP, EndpointKind
        interfaces = [
            AddressInterface(
                i,
                tuple(
                    endpoint
                    for base, (ip, prefix, ext) in enumerate(
                        [
                            (f"192.168.{i}.55", 24, f"198.51.100.{i}"),
                            (f"2001:db8:1:2:a:b:c:{i}", 64, f"2001:db8:1:2:a:b:c:{i}"),
                        ]
                    )
                    for endpoint in (
                        Endpoint.make(transport=tcp, kind=kinds.NIC, ip=ip, port=40123, prefix=prefix),
                        Endpoint.make(
                            transport=tcp, kind=kinds.EXT, ip=ext, port=40123, base=2 * base, observed_at=NOW
                        ),
                    )
                ),
            )
            for i in (2, 3)
        ]
        address = PeerAddress.issue(
            Identity.from_seed(b"a" * 32),
            seq=NOW,
            issued_at=NOW,
            expires_at=NOW + 604800,
            host_salt=bytes(8),
            host_id=bytes(16),
            signals=["wss://signal.example.org/abcde", "wss://signal.example.net/abcde"],
            interfaces=interfaces,
            nat=data,
        )
        assert 585 < len(address.text) <= 600

    @given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda rest: b"\x01" + rest))
    def test_hostile_bytes_are_refused_or_bounded(self, data: bytes) -> None:
        try:
            read = NatProfiles.from_bytes(data, measured_at=NOW)
        except (AddressMalformed, AddressUnsupported):
            assert not NatProfiles.of(data, measured_at=NOW)
            return
        for _, profile in read:
            for each in (profile.udp, profile.tcp):
                assert 0 < each.low <= each.high <= 65535
                assert describe(each)
                assert nat_type(each) in NatType
                assert delta_type(each) in DeltaType

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            ("", "1 to 512 bytes"),
            ("01" + 512 * "00", "1 to 512 bytes"),
            ("01e00756e00756", "twice"),
            ("01e207", "ends within"),
            ("01e01756", "does not follow"),  # a range is announced, and is missing
            ("01e41fd613ff0c00", "does not follow"),  # its first port is above its last one
            ("01e41fd600000c00", "does not follow"),  # port 0
            ("01e22bd60000", "does not follow"),  # a sequence with a step of 0
            ("01e22bd60041", "does not follow"),  # a sequence with a step of 65
        ],
    )
    def test_malformed(self, data: str, why: str) -> None:
        with pytest.raises(AddressMalformed, match=why):
            NatProfiles.from_bytes(bytes.fromhex(data), measured_at=NOW)

    def test_a_version_of_the_future_is_told_apart_and_reads_as_nothing(self) -> None:
        with pytest.raises(AddressUnsupported, match="version 2"):
            NatProfiles.from_bytes(b"\x02anything", measured_at=NOW)
        assert not NatProfiles.of(b"\x02anything", measured_at=NOW)

    def test_what_a_later_release_adds_is_skipped(self) -> None:
        longer = bytes.fromhex("01e507560556aabbcc")
        assert NatProfiles.from_bytes(longer, measured_at=NOW).get(0, 4).tcp.filtering is EIF
        word = bytes.fromhex("01e0c756")  # sets the two bits that are 0 today
        assert NatProfiles.from_bytes(word, measured_at=NOW).get(0, 4).udp == LINUX
        third = bytes.fromhex("01e00757")  # a third value for "translated"
        assert NatProfiles.from_bytes(third, measured_at=NOW).get(0, 4).udp.translated is None


class TestProfile:
    @pytest.mark.parametrize(
        "values",
        [
            {"low": 0},
            {"low": 5, "high": 4},
            {"high": 65536},
            {"allocation": Allocation.SEQUENTIAL},
            {"allocation": Allocation.SEQUENTIAL, "delta": MAX_DELTA + 1},
            {"delta": 65536},
        ],
    )
    def test_no_port_can_have_it(self, values: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="port"):
            TransportProfile(**values)  # type: ignore[arg-type]  # drawn from a table

    def test_fresh_for_its_lifetime(self) -> None:
        profile = NatProfile(measured_at=NOW)
        assert profile.is_fresh(NOW + PROFILE_LIFETIME - 1)
        assert not profile.is_fresh(NOW + PROFILE_LIFETIME)
        assert not profile.is_fresh(NOW - PROFILE_LIFETIME)

    def test_what_is_not_translated_is_independent(self) -> None:
        assert TransportProfile(translated=False).endpoint_independent is True
        assert UNKNOWN.endpoint_independent is None
        assert CGN.endpoint_independent is False
        assert replace(LINUX, mapping=ADM).endpoint_independent is False


class TestNames:
    @pytest.mark.parametrize(
        ("profile", "type_", "delta", "words"),
        [
            (LINUX, T.RESTRICT_PORT_NAT, D.EQUAL, "port-restricted cone, keeps ports"),
            (replace(LINUX, filtering=ADF), T.RESTRICT_NAT, D.EQUAL, "address-restricted cone, keeps ports"),
            (replace(LINUX, filtering=EIF), T.FULL_CONE, D.EQUAL, "full cone, keeps ports"),
            (replace(LINUX, delta=7), T.RESTRICT_PORT_NAT, D.PRESERV, "port-restricted cone, keeps ports, offset +7"),
            (CGN, T.SYMMETRIC_NAT, D.RANDOM, "symmetric, random ports of 3072 to 5119"),
            (replace(CGN, mapping=ADM), T.SYMMETRIC_NAT, D.RANDOM, "symmetric, random ports of 3072 to 5119"),
            (SEQUENTIAL, T.SYMMETRIC_NAT, D.INDEPENDENT, "symmetric, sequential ports, step -2"),
            (replace(FIREWALL6, filtering=EIF), T.OPEN_INTERNET, D.NA, "open internet"),
            (replace(FIREWALL6, filtering=ADF), T.SYMMETRIC_UDP_FIREWALL, D.NA, "no NAT, a firewall"),
            (FIREWALL6, T.UNKNOWN, D.NA, "no NAT, filtering unknown"),
            (TransportProfile(blocked=True), T.BLOCKED_NAT, D.UNKNOWN, "blocked"),
            (replace(LINUX, filtering=F0), T.UNKNOWN, D.EQUAL, "cone, filtering unknown, keeps ports"),
            (TransportProfile(translated=True), T.UNKNOWN, D.UNKNOWN, "a NAT of unknown kind"),
            (UNKNOWN, T.UNKNOWN, D.UNKNOWN, "unknown"),
        ],
    )  # fmt: skip
    def test_derived(self, profile: TransportProfile, type_: NatType, delta: DeltaType, words: str) -> None:
        assert (nat_type(profile), delta_type(profile), describe(profile)) == (type_, delta, words)
