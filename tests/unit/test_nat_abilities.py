"""The sentences about a network, against the outlooks that they come from; tests/sim has the simulator's NATs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_punch_outlook import BLOCKED, FC, FIREWALL6, OPEN, PR, SYM, transports
from warpgate_trio.address.nat_profile import UNKNOWN, Allocation, Filtering, Mapping, NatProfile, TransportProfile
from warpgate_trio.combos import Likelihood
from warpgate_trio.nat.abilities import CONE, LENIENT, RULES, STEPPING, SYMMETRIC, WITHIN, abilities
from warpgate_trio.punch.outlook import punch_outlook, spray_outlook

ANY = "connects over UDP to peers behind any NAT"
ANY_BUT = f"{ANY} but symmetric ones with random ports"
PUBLIC, OTHER, PRIVATE = ip_address("203.0.113.9"), ip_address("203.0.113.10"), ip_address("192.168.1.9")
SEQ = replace(SYM, allocation=Allocation.SEQUENTIAL, delta=1)

profiles = st.builds(NatProfile, udp=transports, tcp=transports)
known = st.builds(
    TransportProfile,
    translated=st.just(True),
    blocked=st.just(False),
    mapping=st.sampled_from(list(Mapping)[1:]),
    filtering=st.sampled_from(list(Filtering)[1:]),
    allocation=st.sampled_from(list(Allocation)[1:]),
    delta=st.just(1),
)


def of(udp: TransportProfile, tcp: TransportProfile | None = None) -> tuple[tuple[str, ...], ...]:
    said = abilities(NatProfile(udp=udp, tcp=replace(udp, filtering=Filtering.UNKNOWN) if tcp is None else tcp))
    return said.can, said.cannot, said.unknown


@settings(max_examples=50)
@given(profiles)
def test_something_is_said_of_everything_and_nothing_twice(profile: NatProfile) -> None:
    said = abilities(profile)
    sentences = [*said.can, *said.cannot, *said.unknown]
    assert sentences
    assert len(set(sentences)) == len(sentences)
    for each in sentences:
        assert each
        assert not each.endswith(".")  # they are fragments of lines


@settings(max_examples=50)
@given(profiles)
def test_what_is_promised_over_udp_is_what_the_walk_expects(profile: NatProfile) -> None:
    can = abilities(profile).can
    chance = {each: punch_outlook(profile.udp, each).likelihood for each in (LENIENT, CONE, STEPPING, SYMMETRIC)}
    every = all(each is Likelihood.LIKELY for each in chance.values())
    silent = profile.udp.translated is None
    assert (ANY in can) is (every and not silent)
    if ANY_BUT in can:
        assert chance[CONE] is chance[STEPPING] is Likelihood.LIKELY is not chance[SYMMETRIC]
    if any(each.startswith("connects over UDP") for each in can):
        assert chance[LENIENT] is Likelihood.LIKELY
        assert sum(each.startswith("connects over UDP") for each in can) == 1
    for each in can:
        if each.startswith("reaches peers behind"):
            peer = CONE if "cone" in each else SYMMETRIC
            assert chance[peer] is Likelihood.HOPELESS
            outlook = spray_outlook(profile.udp, peer)
            assert f"in {outlook.probability:.0%}".removesuffix("%") in each
            assert outlook.likelihood is Likelihood.LIKELY


@settings(max_examples=50)
@given(profiles)
def test_a_relay_is_asked_for_only_where_nothing_else_gets_there(profile: NatProfile) -> None:
    for each in abilities(profile).cannot:
        if each.startswith("needs a relay with peers behind symmetric NATs"):
            tcp = replace(profile.tcp, filtering=profile.tcp.filtering or profile.udp.filtering)
            assert punch_outlook(profile.udp, SYMMETRIC).likelihood is Likelihood.HOPELESS
            assert punch_outlook(tcp, SYMMETRIC, at_once=True).likelihood is Likelihood.HOPELESS
            assert spray_outlook(profile.udp, SYMMETRIC).likelihood is not Likelihood.LIKELY
            if "random" not in each:
                assert punch_outlook(profile.udp, STEPPING).likelihood is Likelihood.HOPELESS


@settings(max_examples=50)
@given(known, known, st.integers(0, 2))
def test_who_knows_less_is_denied_nothing_more(udp: TransportProfile, tcp: TransportProfile, axis: int) -> None:
    less = (
        replace(udp, mapping=Mapping.UNKNOWN),
        replace(udp, filtering=Filtering.UNKNOWN),
        replace(udp, allocation=Allocation.UNKNOWN),
    )[axis]
    denied = abilities(NatProfile(udp=udp, tcp=tcp)).cannot
    assert len(abilities(NatProfile(udp=less, tcp=tcp)).cannot) <= len(denied)


@settings(max_examples=50)
@given(profiles)
def test_what_answers_from_within_says_nothing_of_the_internet(profile: NatProfile) -> None:
    local = NatProfile(
        udp=replace(profile.udp, external=(PRIVATE,)), tcp=replace(profile.tcp, external=(ip_address("127.0.0.1"),))
    )
    said = abilities(local)
    assert (said.can, said.cannot, said.unknown) == ((), (), (WITHIN,))


@pytest.mark.parametrize(
    ("udp", "can"),
    [
        (OPEN, ANY),
        (FC, ANY),
        (PR, ANY_BUT),
        (SEQ, "connects over UDP to peers behind cone NATs, as most homes have them"),
        (SYM, "connects over UDP to peers in the open and behind NATs that do not filter by port"),
        (FIREWALL6, ANY_BUT),
        (
            replace(SYM, mapping=Mapping.UNKNOWN),
            "connects over UDP to peers in the open and behind NATs that do not filter by port",
        ),
        (BLOCKED, None),
        (UNKNOWN, None),
    ],
)
def test_udp(udp: TransportProfile, can: str | None) -> None:
    said = [each for each in of(udp)[0] if each.startswith("connects over UDP")]
    assert said == ([] if can is None else [can])


def test_examples() -> None:
    assert of(UNKNOWN) == ((), (), ("no STUN server answers: nothing is known",))
    assert of(UNKNOWN, PR)[2][0] == "no STUN server answers over UDP: nothing is known of UDP"
    assert of(PR, UNKNOWN)[2] == ("no STUN server answers over TCP: nothing is known of TCP",)
    assert of(BLOCKED, PR)[1][0].startswith("UDP is blocked: ")
    assert of(BLOCKED)[1][-1] == "needs a relay with every peer outside"
    assert "needs a relay with peers behind symmetric NATs" in of(SYM)[1]
    assert "needs a relay with peers behind symmetric NATs with random ports" in of(SEQ, SEQ)[1]
    assert "needs a relay with peers behind symmetric NATs with random ports" in of(SEQ)[1]
    unfiltered = replace(SYM, filtering=Filtering.UNKNOWN)
    assert any(each.startswith("may need a relay") for each in of(unfiltered)[2])
    assert not any("relay" in each for each in of(unfiltered)[1])
    lets_all_in = replace(SYM, filtering=Filtering.ENDPOINT_INDEPENDENT)
    assert not any("relay" in each for each in of(lets_all_in, SYM)[2])
    assert any(each.startswith("may meet peers") for each in of(SEQ)[2])
    assert any(each.startswith("does not hairpin") for each in of(PR)[1])
    assert any(each.startswith("does not punch TCP") for each in of(SYM)[1])
    assert any("(RFC 5780)" in each for each in of(FIREWALL6)[2])
    assert any(each.startswith("the one STUN server") for each in of(replace(PR, mapping=Mapping.UNKNOWN))[2])
    assert any("203.0.113.9, 203.0.113.10" in each for each in of(replace(PR, external=(PUBLIC, OTHER)))[2])
    assert any("98 %" in each for each in of(PR)[0])
    assert any("100 %" in each for each in of(replace(SYM, low=1024, high=3071))[0])


def test_the_table_says_each_thing_once() -> None:
    fixed = [rule.sentence for rule in RULES if isinstance(rule.sentence, str)]
    assert len(set(fixed)) == len(fixed)
