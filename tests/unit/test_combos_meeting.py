"""The rules for techniques in which both sides send at the same time, one case each, and what holds for every plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from ipaddress import ip_interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.address.nat_profile import Filtering, Mapping, NatProfile, NatProfiles, TransportProfile
from warpgate_trio.combos import Aim, Combo, Likelihood, Pair, Route, RouteType, Technique, meeting
from warpgate_trio.combos.combo import SAME_HOST_DELAY, Opinion
from warpgate_trio.combos.meeting import MEETING_RULES, MeetingFacts, judge_meeting, meeting_source

NIC, EXT = EndpointKind.NIC, EndpointKind.EXT
NIC_BIND, EXT_BIND, LOOPBACK_BIND = RouteType.NIC_BIND, RouteType.EXT_BIND, RouteType.LOOPBACK_BIND
INVALID, HOPELESS, DOUBTFUL, LIKELY = (
    Likelihood.INVALID,
    Likelihood.HOPELESS,
    Likelihood.DOUBTFUL,
    Likelihood.LIKELY,
)

UNKNOWN_NAT = NatProfile()
SYMMETRIC = NatProfile(
    udp=TransportProfile(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT)
)


def outlook(ours: NatProfile, peers: NatProfile, af: int) -> Opinion:
    """The same from both sides; it has no opinion about IPv6."""
    if af == 6:
        return None
    hard = [ours, peers].count(SYMMETRIC)
    return (LIKELY, DOUBTFUL, HOPELESS)[hard], f"{hard} of the two are symmetric"


MEET = Technique(
    name="meet", phase="punch", transport=Transport.UDP, route_types=frozenset(RouteType), aim=Aim.MEET, outlook=outlook
)
NO_OPINION = dataclasses.replace(MEET, outlook=None)
DIAL = dataclasses.replace(MEET, name="dial", aim=Aim.PEER)


def endpoint(ip: str, kind: EndpointKind = NIC, *, prefix: int | None = None) -> Endpoint:
    return Endpoint.make(transport=Transport.TCP, kind=kind, ip=ip, port=7000, prefix=prefix)


def route(*endpoints: Endpoint) -> Route:
    return Route(interfaces=(AddressInterface(1, endpoints),))


HOME = route(endpoint("192.168.1.7", prefix=24), endpoint("2001:db8:1::7", prefix=64))
NEIGHBOUR = route(endpoint("192.168.1.9", prefix=24), endpoint("2001:db8:1::9", prefix=64))
FAR = route(endpoint("10.9.9.9", prefix=24), endpoint("2001:db8:9::9", prefix=64))
ONLY_V4 = route(endpoint("10.9.9.9", prefix=24))
PRIVATE_V6 = route(endpoint("10.9.9.9", prefix=24), endpoint("fd00:9::9", prefix=64))


def facts(
    route_type: RouteType,
    *,
    technique: Technique = MEET,
    af: int = 4,
    ours: Route = HOME,
    peers: Route = FAR,
    same_host: bool = False,
    our_nat: NatProfile = UNKNOWN_NAT,
    peer_nat: NatProfile = UNKNOWN_NAT,
) -> MeetingFacts:
    return MeetingFacts(
        technique=technique,
        af=af,
        route_type=route_type,
        ours=ours,
        peers=peers,
        same_host=same_host,
        our_nat=our_nat,
        peer_nat=peer_nat,
        source=meeting_source(route_type, af, ours, peers),
    )


ONLY_EXT = dataclasses.replace(MEET, route_types=frozenset({EXT_BIND}))

CASES: list[tuple[str, MeetingFacts, Likelihood]] = [
    ("_unused_route", facts(NIC_BIND, technique=ONLY_EXT, peers=NEIGHBOUR), INVALID),
    ("_unused_route", facts(LOOPBACK_BIND, technique=ONLY_EXT, same_host=True), INVALID),
    ("_no_common_family", facts(EXT_BIND, af=6, peers=ONLY_V4), INVALID),
    ("_no_common_family", facts(EXT_BIND, af=6, ours=ONLY_V4, peers=HOME), INVALID),
    ("_no_common_family", facts(LOOPBACK_BIND, af=6, ours=ONLY_V4, peers=ONLY_V4, same_host=True), INVALID),
    ("_other_machines_loopback", facts(LOOPBACK_BIND), INVALID),
    ("_other_machines_loopback", facts(LOOPBACK_BIND, af=6, peers=NEIGHBOUR), INVALID),
    ("_no_common_network", facts(NIC_BIND), INVALID),
    ("_no_common_network", facts(NIC_BIND, af=6), INVALID),
    ("_private_v6", facts(EXT_BIND, af=6, peers=PRIVATE_V6), INVALID),
    ("_private_v6", facts(EXT_BIND, af=6, ours=PRIVATE_V6, peers=HOME, same_host=True), INVALID),
    ("_same_host", facts(LOOPBACK_BIND, same_host=True), LIKELY),
    ("_same_host", facts(NIC_BIND, peers=HOME, same_host=True), LIKELY),
    ("_same_network", facts(NIC_BIND, peers=NEIGHBOUR, our_nat=SYMMETRIC, peer_nat=SYMMETRIC), LIKELY),
    ("_same_network", facts(NIC_BIND, af=6, peers=NEIGHBOUR), LIKELY),
    ("_outlook", facts(EXT_BIND), LIKELY),
    ("_outlook", facts(EXT_BIND, our_nat=SYMMETRIC), DOUBTFUL),
    ("_outlook", facts(EXT_BIND, our_nat=SYMMETRIC, peer_nat=SYMMETRIC), HOPELESS),
    ("_outlook", facts(EXT_BIND, peers=HOME, same_host=True), LIKELY),
    ("unknown", facts(EXT_BIND, technique=NO_OPINION), DOUBTFUL),
    ("unknown", facts(EXT_BIND, af=6), DOUBTFUL),
]


@pytest.mark.parametrize(
    ("rule", "case", "expected"), CASES, ids=[f"{c[0].lstrip('_')}-{n}" for n, c in enumerate(CASES)]
)
def test_each_rule(rule: str, case: MeetingFacts, expected: Likelihood) -> None:
    deciding = next(each for each in MEETING_RULES if each(case) is not None)
    assert deciding.__name__ == rule
    likelihood, why = judge_meeting(case)
    assert likelihood is expected
    assert why


def test_an_outlook_that_raises_is_no_opinion(caplog: pytest.LogCaptureFixture) -> None:
    def buggy(ours: NatProfile, peers: NatProfile, af: int) -> None:
        raise ZeroDivisionError

    case = dataclasses.replace(facts(EXT_BIND), technique=dataclasses.replace(MEET, outlook=buggy))
    assert judge_meeting(case)[0] is DOUBTFUL
    assert "outlook of plugin" in caplog.text


def test_the_table_has_a_case_for_every_rule() -> None:
    assert [rule.__name__ for rule in MEETING_RULES] == list(dict.fromkeys(name for name, _, _ in CASES))


class TestSource:
    def test_our_own_address_in_a_network_of_both(self) -> None:
        assert str(meeting_source(NIC_BIND, 4, HOME, NEIGHBOUR)) == "192.168.1.7"
        assert str(meeting_source(NIC_BIND, 6, HOME, NEIGHBOUR)) == "2001:db8:1::7"

    def test_the_first_that_fits(self) -> None:
        peers = route(endpoint("10.9.9.9", prefix=24), endpoint("192.168.1.9", prefix=24))
        assert str(meeting_source(NIC_BIND, 4, HOME, peers)) == "192.168.1.7"

    @pytest.mark.parametrize("route_type", [EXT_BIND, LOOPBACK_BIND])
    def test_none_by_another_route(self, route_type: RouteType) -> None:
        assert meeting_source(route_type, 4, HOME, NEIGHBOUR) is None

    def test_none_elsewhere(self) -> None:
        assert meeting_source(NIC_BIND, 4, HOME, FAR) is None
        external = route(endpoint("192.168.1.9", EXT))
        assert meeting_source(NIC_BIND, 4, HOME, external) is None


def plan(
    *techniques: Technique,
    ours: Route = HOME,
    peers: Route = FAR,
    same_host: bool = False,
    our_nat: NatProfiles | None = None,
    peer_nat: NatProfiles | None = None,
    afs: Collection[int] | None = None,
    route_types: Collection[RouteType] | None = None,
) -> list[Combo]:
    pair = Pair(
        ours=ours,
        peers=peers,
        same_host=same_host,
        our_nat=our_nat or NatProfiles(),
        peer_nat=peer_nat or NatProfiles(),
    )
    return meeting.plan(pair, techniques, afs=afs, route_types=route_types)


class TestPlan:
    def test_across_the_internet(self) -> None:
        assert [(c.af, c.route_type, c.likelihood, c.target, c.source, c.delay) for c in plan(MEET)] == [
            (4, EXT_BIND, LIKELY, None, None, 0.0),
            (6, EXT_BIND, DOUBTFUL, None, None, 0.0),
        ]

    def test_in_one_network(self) -> None:
        combos = plan(MEET, peers=NEIGHBOUR, afs=[4])
        assert [(c.route_type, str(c.source)) for c in combos] == [(NIC_BIND, "192.168.1.7"), (EXT_BIND, "None")]

    def test_on_one_machine_loopback_goes_first(self) -> None:
        combos = plan(MEET, peers=HOME, same_host=True, afs=[4])
        assert {c.route_type: c.delay for c in combos} == {
            NIC_BIND: SAME_HOST_DELAY,
            EXT_BIND: SAME_HOST_DELAY,
            LOOPBACK_BIND: 0.0,
        }

    def test_nothing_waits_for_a_loopback_that_there_is_not(self) -> None:
        combos = plan(MEET, peers=HOME, same_host=True, route_types=[NIC_BIND])
        assert {c.delay for c in combos} == {0.0}
        assert {c.delay for c in plan(ONLY_EXT, peers=HOME, same_host=True)} == {0.0}
        # A loopback combo of another phase is no reason to wait, either.
        other = dataclasses.replace(MEET, name="other", phase="spray")
        assert {c.delay for c in plan(ONLY_EXT, other, peers=HOME, same_host=True) if c.plugin == "meet"} == {0.0}

    def test_who_dials_is_planned_elsewhere(self) -> None:
        assert plan(DIAL) == []
        assert {c.plugin for c in plan(DIAL, MEET)} == {"meet"}

    def test_only_the_chosen_families_and_routes(self) -> None:
        assert {c.af for c in plan(MEET, peers=NEIGHBOUR, afs=[6])} == {6}
        assert {c.route_type for c in plan(MEET, peers=NEIGHBOUR, route_types=[NIC_BIND])} == {NIC_BIND}
        assert plan(MEET, afs=[]) == plan(MEET, route_types=[]) == []

    def test_the_profiles_of_the_family_count(self) -> None:
        symmetric = NatProfiles({(None, 4): SYMMETRIC})
        (combo,) = plan(MEET, our_nat=symmetric, peer_nat=symmetric, afs=[4])
        assert combo.likelihood is HOPELESS
        (combo,) = plan(MEET, our_nat=NatProfiles({(None, 6): SYMMETRIC}), peer_nat=symmetric, afs=[4])
        assert combo.likelihood is DOUBTFUL

    def test_what_a_plugin_calls_invalid_is_not_there(self) -> None:
        never = dataclasses.replace(MEET, outlook=lambda *_: (INVALID, "not for it"))
        assert plan(never) == []


# -- what holds for every pair of records ------------------------------------------------------------------------------

ADDRESSES = st.sampled_from(
    [
        *("10.0.0.1", "10.0.0.2", "192.168.1.7", "192.168.1.9", "203.0.113.9", "100.64.0.9"),
        *("2001:db8:1::7", "2001:db8:1::9", "fd00::1", "127.0.0.1", "::1"),
    ]
)


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    ip = draw(ADDRESSES)
    return endpoint(ip, draw(st.sampled_from(EndpointKind)), prefix=draw(st.sampled_from([None, 24])))


SMALL = st.lists(endpoints(), max_size=4).map(lambda found: route(*found))
NATS = st.sampled_from([UNKNOWN_NAT, SYMMETRIC])
ANOTHER = dataclasses.replace(ONLY_EXT, name="another", phase="spray")


@settings(max_examples=40)
@given(ours=SMALL, peers=SMALL, same_host=st.booleans(), our_nat=NATS, peer_nat=NATS)
def test_a_plan_holds_what_the_rules_allow_once_and_nothing_else(
    ours: Route, peers: Route, same_host: bool, our_nat: NatProfile, peer_nat: NatProfile
) -> None:
    profiles = [NatProfiles({(None, 4): each}) for each in (our_nat, peer_nat)]
    combos = plan(MEET, ANOTHER, ours=ours, peers=peers, same_host=same_host, our_nat=profiles[0], peer_nat=profiles[1])
    expected = {}
    for technique in (MEET, ANOTHER):
        for route_type in RouteType:
            for af in (4, 6):
                nats = {"our_nat": our_nat, "peer_nat": peer_nat} if af == 4 else {}
                case = facts(
                    route_type, technique=technique, af=af, ours=ours, peers=peers, same_host=same_host, **nats
                )
                opinion = judge_meeting(case)
                if opinion[0] is not INVALID:
                    expected[technique.name, route_type, af] = opinion
    assert {(c.plugin, c.route_type, c.af): (c.likelihood, c.why) for c in combos} == expected
    assert len(combos) == len(expected)
    for combo in combos:
        assert combo.target is None
        assert same_host or combo.route_type is not LOOPBACK_BIND
        assert (combo.source is not None) == (combo.route_type is NIC_BIND)
        if combo.source is not None:
            assert any(
                each.ip == combo.source
                and each.prefix is not None
                and any(other.ip in ip_interface((each.ip, each.prefix)).network for other in peers.endpoints())
                for each in ours.endpoints()
            )


@settings(max_examples=40)
@given(ours=SMALL, peers=SMALL, same_host=st.booleans(), our_nat=NATS, peer_nat=NATS)
def test_across_the_internet_both_sides_come_to_the_same(
    ours: Route, peers: Route, same_host: bool, our_nat: NatProfile, peer_nat: NatProfile
) -> None:
    """So the responder does not refuse a combo that the initiator had reason to request."""
    for route_type in (EXT_BIND, LOOPBACK_BIND):
        for af in (4, 6):
            both = (ours, our_nat), (peers, peer_nat)
            opinions = [
                judge_meeting(
                    facts(route_type, af=af, ours=a, peers=b, same_host=same_host, our_nat=nat_of_a, peer_nat=nat_of_b)
                )
                for (a, nat_of_a), (b, nat_of_b) in (both, both[::-1])
            ]
            assert opinions[0] == opinions[1]
