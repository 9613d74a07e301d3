"""The planner's rules for dialling, one case each, and what holds for every plan whatever the records say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address, ip_interface

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.combos import (
    Aim,
    Combo,
    Likelihood,
    Pair,
    Route,
    RouteType,
    Technique,
    dialling,
    find_source,
    pathless_combo,
)
from warpgate_trio.combos.combo import SAME_HOST_DELAY
from warpgate_trio.combos.dialling import (
    ASK_DELAY,
    MAX_COMBOS,
    MAX_COMBOS_PER_TARGET,
    RULES,
    TWIN_DELAY,
    Facts,
    judge,
)

NIC, EXT, MAPPED = EndpointKind.NIC, EndpointKind.EXT, EndpointKind.MAPPED
NIC_BIND, EXT_BIND, LOOPBACK_BIND = RouteType.NIC_BIND, RouteType.EXT_BIND, RouteType.LOOPBACK_BIND
INVALID, HOPELESS, DOUBTFUL, LIKELY = (
    Likelihood.INVALID,
    Likelihood.HOPELESS,
    Likelihood.DOUBTFUL,
    Likelihood.LIKELY,
)

DIRECT = Technique(
    name="direct", phase="direct", transport=Transport.TCP, route_types=frozenset(RouteType), aim=Aim.PEER
)
REVERSE = dataclasses.replace(DIRECT, name="reverse", aim=Aim.OURS)


def endpoint(
    ip: str, kind: EndpointKind = NIC, *, port: int = 4433, prefix: int | None = None, udp: bool = False
) -> Endpoint:
    return Endpoint.make(transport=Transport.UDP if udp else Transport.TCP, kind=kind, ip=ip, port=port, prefix=prefix)


def route(*endpoints: Endpoint, reaches: frozenset[bytes] | None = None, own: Iterable[str] = ()) -> Route:
    addresses = frozenset(ip_address(each) for each in own)
    return Route(interfaces=(AddressInterface(1, endpoints),), reaches=reaches, own=addresses)


HOME = route(
    endpoint("192.168.1.7", prefix=24, port=5001),
    endpoint("2001:db8:1::7", prefix=64, port=5001),
    own=["192.168.1.7", "2001:db8:1::7", "203.0.113.200", "10.88.0.1"],
)
"""A host with more addresses of its own than it publishes."""


def facts(
    target: Endpoint,
    route_type: RouteType,
    *,
    technique: Technique = DIRECT,
    af: int | None = None,
    side: Route | None = None,
    dialler: Route = HOME,
    same_host: bool = False,
) -> Facts:
    return Facts(
        technique=technique,
        af=target.af if af is None else af,
        route_type=route_type,
        target=target,
        target_side=route(target) if side is None else side,
        dialler=dialler,
        same_host=same_host,
        source=find_source(target, dialler),
    )


FAR = endpoint("10.9.9.9", prefix=24)
PUBLIC = endpoint("203.0.113.9", EXT)
PUBLIC_NIC = endpoint("203.0.113.9", prefix=24)
MAPPED_PORT = endpoint("203.0.113.1", MAPPED)
NEIGHBOUR = endpoint("192.168.1.9", prefix=24)
OWN = endpoint("192.168.1.7", port=5001)
LOOPBACK = endpoint("127.0.0.1")
ONLY_V6 = route(endpoint("2001:db8:1::7", prefix=64))
KNOWS_NO_WAY = dataclasses.replace(HOME, reaches=frozenset())
KNOWS_THE_WAY = dataclasses.replace(HOME, reaches=frozenset({PUBLIC.address}))

CASES: list[tuple[str, Facts, Likelihood]] = [
    ("_wrong_family", facts(PUBLIC, EXT_BIND, af=6), INVALID),
    ("_wrong_transport", facts(endpoint("203.0.113.9", EXT, udp=True), EXT_BIND), INVALID),
    (
        "_unused_route",
        facts(PUBLIC, EXT_BIND, technique=dataclasses.replace(DIRECT, route_types=frozenset({NIC_BIND}))),
        INVALID,
    ),
    ("_wrong_kind", facts(PUBLIC, NIC_BIND), INVALID),
    ("_wrong_kind", facts(FAR, EXT_BIND), INVALID),
    ("_wrong_kind", facts(MAPPED_PORT, LOOPBACK_BIND), INVALID),
    ("_wrong_kind", facts(LOOPBACK, NIC_BIND, same_host=True), INVALID),
    ("_undialable", facts(endpoint("169.254.3.4"), NIC_BIND), INVALID),
    ("_undialable", facts(endpoint("fe80::1"), NIC_BIND), INVALID),
    ("_undialable", facts(endpoint("224.0.0.1", EXT), EXT_BIND, same_host=True), INVALID),
    ("_undialable", facts(endpoint("ff02::1", EXT), EXT_BIND), INVALID),
    ("_undialable", facts(endpoint("0.0.0.0"), NIC_BIND), INVALID),
    ("_undialable", facts(endpoint("::"), NIC_BIND), INVALID),
    ("_undialable", facts(endpoint("255.255.255.255", EXT), EXT_BIND), INVALID),
    ("_undialable", facts(endpoint("240.0.0.1", EXT), EXT_BIND), INVALID),
    ("_undialable", facts(endpoint("64:ff9b::7f00:1", EXT), EXT_BIND, same_host=True), INVALID),
    ("_undialable", facts(endpoint("64:ff9b::a9fe:a9fe", EXT), EXT_BIND), INVALID),
    ("_ourselves", facts(OWN, NIC_BIND), INVALID),
    ("_ourselves", facts(endpoint("127.0.0.1", port=5001), LOOPBACK_BIND, same_host=True), INVALID),
    ("_same_host", facts(LOOPBACK, LOOPBACK_BIND, same_host=True), LIKELY),
    ("_same_host", facts(endpoint("192.168.1.7"), NIC_BIND, same_host=True), LIKELY),
    ("_same_host", facts(endpoint("10.88.0.1"), NIC_BIND, same_host=True), LIKELY),
    ("_same_host", facts(LOOPBACK, LOOPBACK_BIND), INVALID),
    ("_same_host", facts(endpoint("127.3.2.1"), LOOPBACK_BIND), INVALID),
    ("_same_host", facts(endpoint("192.168.1.7"), NIC_BIND), INVALID),
    ("_same_host", facts(endpoint("10.88.0.1"), NIC_BIND), INVALID),
    ("_same_host", facts(endpoint("203.0.113.200", EXT), EXT_BIND), INVALID),
    ("_no_route", facts(PUBLIC, EXT_BIND, dialler=KNOWS_NO_WAY), HOPELESS),
    ("_no_route", facts(PUBLIC, EXT_BIND, dialler=ONLY_V6), HOPELESS),
    ("_same_network", facts(NEIGHBOUR, NIC_BIND), LIKELY),
    ("_public_nic", facts(PUBLIC_NIC, NIC_BIND, side=route(PUBLIC_NIC, PUBLIC)), INVALID),
    ("_private_elsewhere", facts(FAR, NIC_BIND), DOUBTFUL),
    ("_private_elsewhere", facts(FAR, NIC_BIND, same_host=True), DOUBTFUL),
    ("_mapped", facts(MAPPED_PORT, EXT_BIND), LIKELY),
    ("_mapped", facts(endpoint("100.64.0.2", MAPPED), EXT_BIND), DOUBTFUL),  # by a router in its provider's network
    ("_public", facts(PUBLIC, EXT_BIND, side=route(PUBLIC_NIC, PUBLIC)), LIKELY),
    ("_public", facts(PUBLIC, EXT_BIND, side=route(PUBLIC_NIC, PUBLIC), dialler=KNOWS_THE_WAY), LIKELY),
    ("unknown", facts(PUBLIC, EXT_BIND), DOUBTFUL),  # an address that a server saw: there may be a NAT in front of it
    ("unknown", facts(endpoint("10.9.9.9", EXT), EXT_BIND), DOUBTFUL),  # "external" behind a carrier-grade NAT
]


@pytest.mark.parametrize(
    ("rule", "case", "expected"), CASES, ids=[f"{c[0].lstrip('_')}-{n}" for n, c in enumerate(CASES)]
)
def test_each_rule(rule: str, case: Facts, expected: Likelihood) -> None:
    deciding = next(each for each in RULES if each(case) is not None)
    assert deciding.__name__ == rule
    likelihood, why = judge(case)
    assert likelihood is expected
    assert why


def test_the_table_has_a_case_for_every_rule() -> None:
    assert [rule.__name__ for rule in RULES] == list(dict.fromkeys(name for name, _, _ in CASES))


class TestEndpoints:
    def test_loopback_follows_from_the_ports(self) -> None:
        found = {(str(each.ip), each.port, each.transport) for each in HOME.endpoints() if each.ip.is_loopback}
        assert found == {("127.0.0.1", 5001, Transport.TCP), ("::1", 5001, Transport.TCP)}

    def test_an_external_port_says_nothing_about_loopback(self) -> None:
        assert [str(each.ip) for each in route(PUBLIC).endpoints()] == ["203.0.113.9"]

    def test_a_published_loopback_is_there_once(self) -> None:
        assert [str(each.ip) for each in route(LOOPBACK).endpoints()] == ["127.0.0.1"]


class TestFindSource:
    def test_the_address_in_the_targets_network(self) -> None:
        assert find_source(NEIGHBOUR, HOME) == ip_address("192.168.1.7")
        assert find_source(endpoint("2001:db8:1::99"), HOME) == ip_address("2001:db8:1::7")

    @pytest.mark.parametrize("target", [FAR, LOOPBACK, endpoint("2001:db8:2::1")])
    def test_none_elsewhere(self, target: Endpoint) -> None:
        assert find_source(target, HOME) is None

    def test_none_without_a_prefix(self) -> None:
        assert find_source(NEIGHBOUR, route(endpoint("192.168.1.7"))) is None


def plan(
    *techniques: Technique,
    ours: Route = HOME,
    peers: Route,
    same_host: bool = False,
    afs: list[int] | None = None,
    route_types: list[RouteType] | None = None,
) -> list[Combo]:
    pair = Pair(ours=ours, peers=peers, same_host=same_host)
    return dialling.plan(pair, techniques, afs=afs, route_types=route_types)


def aim(combo: Combo) -> Endpoint:
    """The combo's target; only combos of pathless plugins have none, and no rule plans those."""
    assert combo.target is not None
    return combo.target


class TestPlan:
    def test_two_machines_on_one_network(self) -> None:
        combos = plan(DIRECT, REVERSE, peers=route(NEIGHBOUR))
        assert [(c.plugin, str(aim(c).ip), str(c.source), c.delay) for c in combos if c.likelihood is LIKELY] == [
            ("direct", "192.168.1.9", "192.168.1.7", 0.0),
            ("reverse", "192.168.1.7", "192.168.1.9", ASK_DELAY),
        ]

    def test_asking_does_not_wait_where_dialling_is_doubtful(self) -> None:
        combos = plan(DIRECT, REVERSE, peers=route(FAR), afs=[4])
        assert {(c.plugin, c.likelihood, c.delay) for c in combos} == {
            ("direct", DOUBTFUL, 0.0),
            ("reverse", DOUBTFUL, 0.0),
        }

    def test_on_one_machine_loopback_goes_first_and_no_address_is_bound(self) -> None:
        combos = plan(DIRECT, peers=route(endpoint("192.168.1.7", prefix=24)), same_host=True, afs=[4])
        assert [(str(aim(c).ip), c.delay, c.source) for c in combos] == [
            ("127.0.0.1", 0.0, None),
            ("192.168.1.7", SAME_HOST_DELAY, None),
        ]

    def test_a_network_address_of_who_is_on_our_machine_is_as_anybodys(self) -> None:
        """`same_host` applies to this host's own addresses; another one that the peer claims may be foreign."""
        for same_host in (False, True):
            combos = plan(DIRECT, peers=route(NEIGHBOUR, FAR), same_host=same_host, route_types=[NIC_BIND])
            assert [(str(aim(c).ip), c.likelihood, str(c.source)) for c in combos] == [
                ("192.168.1.9", LIKELY, "192.168.1.7"),
                ("10.9.9.9", DOUBTFUL, "None"),
            ]

    def test_nothing_waits_for_a_loopback_that_the_options_exclude(self) -> None:
        peers = route(endpoint("192.168.1.7", prefix=24))
        combos = plan(DIRECT, peers=peers, same_host=True, route_types=[NIC_BIND])
        assert [(c.route_type, c.delay) for c in combos] == [(NIC_BIND, 0.0)]

    def test_only_the_chosen_families_and_routes(self) -> None:
        peers = route(NEIGHBOUR, endpoint("2001:db8:9::1", EXT), MAPPED_PORT)
        assert {c.af for c in plan(DIRECT, peers=peers, afs=[6])} == {6}
        assert {c.route_type for c in plan(DIRECT, peers=peers, route_types=[EXT_BIND])} == {EXT_BIND}
        assert plan(DIRECT, peers=peers, afs=[]) == []

    def test_two_ipv4_nodes_have_no_ipv6_combo(self) -> None:
        assert {c.af for c in plan(DIRECT, REVERSE, ours=route(FAR), peers=route(NEIGHBOUR))} == {4}

    def test_the_likely_ones_survive_the_cap(self) -> None:
        many = [endpoint(f"10.9.{n}.9", prefix=24) for n in range(60)]
        combos = plan(DIRECT, peers=route(*many, NEIGHBOUR), afs=[4])
        assert len(combos) == MAX_COMBOS
        assert combos[0].target == NEIGHBOUR

    def test_one_address_is_not_dialled_at_every_port_that_a_record_names(self) -> None:
        """An IPv6 /64 counts as one address; likely targets come first, and each address has its own limit."""
        v4 = [endpoint("203.0.113.9", EXT, port=1000 + n) for n in range(60)]
        v6 = [endpoint(f"2001:db8:7::{n:x}", EXT) for n in range(1, 61)]
        combos = plan(DIRECT, peers=route(*v4, *v6, MAPPED_PORT))
        assert Counter(aim(c).ip.packed[:8] for c in combos) == {
            v4[0].address: MAX_COMBOS_PER_TARGET,
            v6[0].address[:8]: MAX_COMBOS_PER_TARGET,
            MAPPED_PORT.address: 1,
        }
        assert combos[0].target == MAPPED_PORT

    def test_each_phase_has_its_own_cap(self) -> None:
        many = route(*[endpoint(f"10.9.{n}.9", prefix=24) for n in range(60)])
        punch = dataclasses.replace(DIRECT, name="punch", phase="punch")
        assert Counter(c.phase for c in plan(DIRECT, punch, peers=many)) == {
            "direct": MAX_COMBOS,
            "punch": MAX_COMBOS,
        }

    def test_a_public_machine_on_a_network_of_ours_has_a_twin_that_waits(self) -> None:
        ours = route(endpoint("203.0.113.7", prefix=24), endpoint("203.0.113.7", EXT))
        combos = plan(DIRECT, ours=ours, peers=route(PUBLIC_NIC, PUBLIC))
        assert [(c.route_type, str(aim(c).ip), c.delay) for c in combos] == [
            (NIC_BIND, "203.0.113.9", 0.0),
            (EXT_BIND, "203.0.113.9", TWIN_DELAY),
        ]

    def test_a_public_machine_that_is_ours_has_one_too(self) -> None:
        ours = route(endpoint("203.0.113.9", prefix=24, port=5001), own=["203.0.113.9"])
        combos = plan(DIRECT, ours=ours, peers=route(PUBLIC_NIC, PUBLIC), same_host=True)
        assert [(c.route_type, c.delay) for c in combos] == [
            (LOOPBACK_BIND, 0.0),
            (NIC_BIND, SAME_HOST_DELAY),
            (EXT_BIND, SAME_HOST_DELAY + TWIN_DELAY),
        ]


# -- what holds for every pair of records ------------------------------------------------------------------------------

ADDRESSES = st.sampled_from(
    [
        *("10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.1.7", "192.168.1.9", "203.0.113.9", "198.51.100.4", "8.8.8.8"),
        *("2001:db8:1::7", "2001:db8:1::9", "2001:db8:2::9", "fd00::1", "100.64.0.9"),
        *("127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", "255.255.255.255"),
        *("169.254.1.1", "fe80::1", "224.0.0.251", "ff02::1"),
    ]
)


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    ip = ip_address(draw(ADDRESSES))
    prefix = draw(st.none() | st.sampled_from([0, 8, 24, 32] if ip.version == 4 else [0, 64, 128]))
    return Endpoint.make(
        transport=draw(st.sampled_from(Transport)),
        kind=draw(st.sampled_from(EndpointKind)),
        ip=ip,
        port=draw(st.sampled_from([1000, 1001, 1002])),
        prefix=prefix,
    )


def routes(max_endpoints: int) -> st.SearchStrategy[Route]:
    own = st.lists(ADDRESSES, max_size=3)
    return st.builds(lambda found, own: route(*found, own=own), st.lists(endpoints(), max_size=max_endpoints), own)


# At most 4 published and 4 loopback endpoints, so that no plan of two plugins reaches MAX_COMBOS.
SMALL = routes(4)
quick = settings(max_examples=40)
DIALS = frozenset({DIRECT.name})


def facts_of(combo: Combo, ours: Route, peers: Route, same_host: bool) -> Facts:
    technique = DIRECT if combo.plugin == DIRECT.name else REVERSE
    side, dialler = (peers, ours) if technique.aim is Aim.PEER else (ours, peers)
    return Facts(
        technique=technique,
        af=combo.af,
        route_type=combo.route_type,
        target=aim(combo),
        target_side=side,
        dialler=dialler,
        same_host=same_host,
        source=find_source(aim(combo), dialler),
    )


@quick
@given(ours=SMALL, peers=SMALL, same_host=st.booleans())
def test_a_plan_holds_what_the_rules_allow_and_nothing_else(ours: Route, peers: Route, same_host: bool) -> None:
    combos = plan(DIRECT, REVERSE, ours=ours, peers=peers, same_host=same_host)
    for combo in combos:
        likelihood, why = judge(facts_of(combo, ours, peers, same_host))
        assert (combo.likelihood, combo.why) == (likelihood, why)
        assert likelihood is not INVALID
    planned = {(c.plugin, aim(c).address, aim(c).port) for c in combos}
    for technique, side, dialler in ((DIRECT, peers, ours), (REVERSE, ours, peers)):
        for target in side.endpoints():
            for route_type in RouteType:
                case = facts(target, route_type, technique=technique, side=side, dialler=dialler, same_host=same_host)
                if judge(case)[0] is not INVALID:
                    assert (technique.name, target.address, target.port) in planned


@quick
@given(ours=SMALL, peers=SMALL, same_host=st.booleans())
def test_what_is_never_dialled(ours: Route, peers: Route, same_host: bool) -> None:
    for combo in plan(DIRECT, REVERSE, ours=ours, peers=peers, same_host=same_host):
        ip = aim(combo).ip
        assert not any((ip.is_multicast, ip.is_link_local, ip.is_unspecified, ip == IPv4Address(2**32 - 1)))
        dialler = ours if combo.plugin in DIALS else peers
        assert same_host or not (ip.is_loopback or ip in dialler.own)
        assert aim(combo).transport is Transport.TCP
        assert combo.af == aim(combo).af


@quick
@given(ours=SMALL, peers=SMALL, same_host=st.booleans())
def test_every_source_is_the_diallers_own_in_the_targets_network(ours: Route, peers: Route, same_host: bool) -> None:
    for combo in plan(DIRECT, REVERSE, ours=ours, peers=peers, same_host=same_host):
        if combo.source is not None:
            dialler = ours if combo.plugin in DIALS else peers
            assert aim(combo).ip not in dialler.own
            assert any(
                each.ip == combo.source
                and each.prefix is not None
                and aim(combo).ip in ip_interface((each.ip, each.prefix)).network
                for each in dialler.endpoints()
            )


@quick
@given(ours=SMALL, peers=SMALL, same_host=st.booleans())
def test_asking_to_be_dialled_is_the_peers_dialling(ours: Route, peers: Route, same_host: bool) -> None:
    asked = plan(REVERSE, ours=ours, peers=peers, same_host=same_host)
    dialled = plan(DIRECT, ours=peers, peers=ours, same_host=same_host)
    assert all(combo.asks for combo in asked)
    assert [dataclasses.replace(combo, plugin=DIRECT.name, asks=False) for combo in asked] == dialled


@settings(max_examples=15)
@given(ours=routes(40), peers=routes(40), same_host=st.booleans())
def test_the_likely_ones_come_first_and_at_most_32_a_phase(ours: Route, peers: Route, same_host: bool) -> None:
    punch = dataclasses.replace(DIRECT, name="punch", phase="punch")
    combos = plan(DIRECT, REVERSE, punch, ours=ours, peers=peers, same_host=same_host)
    order = [LIKELY, DOUBTFUL, HOPELESS]
    for phase in ("direct", "punch"):
        mine = [combo for combo in combos if combo.phase == phase]
        assert len(mine) <= MAX_COMBOS == 32
        keys = [(order.index(combo.likelihood), combo.delay) for combo in mine]
        assert keys == sorted(keys)


@quick
@given(ours=SMALL, peers=SMALL, same_host=st.booleans())
def test_who_waits(ours: Route, peers: Route, same_host: bool) -> None:
    combos = plan(DIRECT, REVERSE, ours=ours, peers=peers, same_host=same_host)
    loopback = any(c.route_type is LOOPBACK_BIND for c in combos)
    dialling_is_likely = any(c.plugin in DIALS and c.likelihood is LIKELY for c in combos)
    twins: dict[tuple[str, bytes, int], list[float]] = {}
    for combo in combos:
        expected = SAME_HOST_DELAY if loopback and combo.route_type is not LOOPBACK_BIND else 0.0
        if combo.plugin not in DIALS and dialling_is_likely:
            expected += ASK_DELAY
        twins.setdefault((combo.plugin, aim(combo).address, aim(combo).port), []).append(combo.delay - expected)
    for extra in twins.values():  # twins of a target: one starts at once, the others wait
        assert sorted(extra) == pytest.approx([0.0] + [TWIN_DELAY] * (len(extra) - 1))


@quick
@given(ours=SMALL, peers=SMALL, same_host=st.booleans(), unknown=st.sampled_from(EndpointKind))
def test_knowing_less_forbids_nothing(ours: Route, peers: Route, same_host: bool, unknown: EndpointKind) -> None:
    """Without knowledge of the routes, a combo is hopeless only where this side lacks the address family."""
    assume(any(e.kind is unknown for e in peers.endpoints()))
    families = {each.af for each in ours.endpoints()}
    for combo in plan(DIRECT, ours=ours, peers=peers, same_host=same_host):
        assert combo.likelihood is not HOPELESS or combo.af not in families


def test_a_combo_says_what_it_belongs_to() -> None:
    (combo,) = plan(DIRECT, peers=route(MAPPED_PORT))
    assert (combo.phase, combo.plugin, combo.af, combo.route_type) == ("direct", "direct", 4, EXT_BIND)


def test_a_pathless_plugin_has_one_combo() -> None:
    combo = pathless_combo("fan_out", None)
    assert (combo.phase, combo.plugin, combo.target, combo.source) == (None, "fan_out", None, None)
    assert (combo.likelihood, combo.delay) == (DOUBTFUL, 0.0)
