"""Outlooks against theory: the matrix of pairs verified with kernels, the simulator's oracle, and unknown values."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio import sim
from warpgate_trio.address.nat_profile import Allocation, Filtering, Mapping, TransportProfile
from warpgate_trio.combos import Likelihood
from warpgate_trio.punch.outlook import punch_outlook, spray_outlook
from warpgate_trio.punch.spray import Role
from warpgate_trio.testing.theory import punch_possible

HOPELESS, DOUBTFUL, LIKELY = Likelihood.HOPELESS, Likelihood.DOUBTFUL, Likelihood.LIKELY
EIM, ADM, APDM = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
EIF, ADF, APDF = Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT

FC = TransportProfile(
    translated=True, blocked=False, mapping=EIM, filtering=EIF, allocation=Allocation.RANDOM, hairpin=False
)
AR, PR = replace(FC, filtering=ADF), replace(FC, filtering=APDF)
SYM = replace(PR, mapping=APDM)
OPEN = TransportProfile(translated=False, blocked=False, mapping=EIM, filtering=EIF)
FIREWALL6 = replace(OPEN, filtering=Filtering.UNKNOWN)
BLOCKED = TransportProfile(blocked=True)
UNKNOWN = TransportProfile()
KINDS = {"open": OPEN, "fc": FC, "ar": AR, "pr": PR, "sym": SYM}

transports = st.builds(
    TransportProfile,
    translated=st.sampled_from((None, False, True)),
    blocked=st.sampled_from((None, False, True)),
    mapping=st.sampled_from(Mapping),
    filtering=st.sampled_from(Filtering),
    allocation=st.sampled_from(Allocation),
    delta=st.just(1),
    hairpin=st.sampled_from((None, False, True)),
)
ORDER = [HOPELESS, DOUBTFUL, LIKELY]


class TestPunch:
    @pytest.mark.parametrize(("a", "b"), list(product(KINDS, KINDS)))
    def test_the_matrix(self, a: str, b: str) -> None:
        impossible = {a, b} in ({"pr", "sym"}, {"sym"})
        assert punch_outlook(KINDS[a], KINDS[b]).likelihood is (HOPELESS if impossible else LIKELY)

    @pytest.mark.parametrize("a", list(product(range(3), range(3))))
    @pytest.mark.parametrize("b", list(product(range(3), range(3))))
    def test_the_simulators_oracle_agrees(self, a: tuple[int, int], b: tuple[int, int]) -> None:
        """Except for endpoint-dependent mappings with lenient filters, which only the oracle considers."""
        mappings, filters = (EIM, ADM, APDM), (EIF, ADF, APDF)
        ours, peers = (replace(FC, mapping=mappings[m], filtering=filters[f]) for m, f in (a, b))
        boxes = [
            [sim.Behavior(mapping=list(sim.Mapping)[m], filtering=list(sim.Filtering)[f], allocation=sim.Uniform())]
            for m, f in (a, b)
        ]
        at_once = punch_outlook(ours, peers, at_once=True).likelihood is LIKELY
        possible = punch_possible(*boxes)
        assert possible or not at_once
        if all(m == 0 or f == 2 for m, f in (a, b)):
            assert at_once is possible
        in_turn = punch_outlook(ours, peers).likelihood is LIKELY
        assert in_turn is any(punch_possible(*pair, a_leads=True) for pair in (boxes, boxes[::-1]))

    @settings(max_examples=50)
    @given(transports, transports, st.booleans())
    def test_symmetric(self, a: TransportProfile, b: TransportProfile, shared: bool) -> None:
        one, other = (punch_outlook(*pair, shared_address=shared) for pair in ((a, b), (b, a)))
        assert one.likelihood is other.likelihood

    @settings(max_examples=50)
    @given(transports, transports, st.sampled_from(("mapping", "filtering", "allocation", "blocked", "hairpin")))
    def test_forgetting_something_never_makes_it_hopeless(
        self, a: TransportProfile, b: TransportProfile, what: str
    ) -> None:
        forgotten = {
            "mapping": {"mapping": Mapping.UNKNOWN, "translated": None},
            "filtering": {"filtering": Filtering.UNKNOWN},
            "allocation": {"allocation": Allocation.UNKNOWN},
            "blocked": {"blocked": None},
            "hairpin": {"hairpin": None},
        }[what]
        less = replace(a, **forgotten)  # type: ignore[arg-type]  # a table of fields
        if punch_outlook(a, b).likelihood is not HOPELESS:
            assert punch_outlook(less, b).likelihood is not HOPELESS

    @settings(max_examples=50)
    @given(transports)
    def test_an_unknown_is_never_hopeless(self, known: TransportProfile) -> None:
        for outlook in (punch_outlook(UNKNOWN, known), punch_outlook(known, UNKNOWN)):
            assert (outlook.likelihood is HOPELESS) is (known.blocked is True)

    @settings(max_examples=50)
    @given(transports, transports)
    def test_a_weaker_filter_never_loses(self, a: TransportProfile, b: TransportProfile) -> None:
        if a.filtering in (ADF, APDF):
            weaker = replace(a, filtering=Filtering(a.filtering - 1))
            assert ORDER.index(punch_outlook(weaker, b).likelihood) >= ORDER.index(punch_outlook(a, b).likelihood)

    @pytest.mark.parametrize(
        ("ours", "peers", "chance", "words"),
        [
            (PR, SYM, HOPELESS, "each NAT filters"),
            (PR, replace(SYM, allocation=Allocation.UNKNOWN), DOUBTFUL, "not enough is known"),
            (PR, replace(SYM, allocation=Allocation.PRESERVING), LIKELY, "one next port has to be predicted"),
            (PR, replace(SYM, allocation=Allocation.SEQUENTIAL, delta=1), LIKELY, "one next port"),
            (2 * (replace(SYM, allocation=Allocation.SEQUENTIAL, delta=1),), None, DOUBTFUL, "both sides' next ports"),
            (BLOCKED, FC, HOPELESS, "our network blocks"),
            (FC, BLOCKED, HOPELESS, "the peer's network blocks"),
            (FIREWALL6, FIREWALL6, LIKELY, "the NATs allow it: no NAT"),
            (PR, FC, LIKELY, "the NATs allow it"),
        ],
    )
    def test_why(self, ours: TransportProfile, peers: TransportProfile | None, chance: Likelihood, words: str) -> None:
        a, b = (ours, peers) if peers is not None else ours  # type: ignore[misc]  # a pair in the table
        outlook = punch_outlook(a, b)
        assert outlook.likelihood is chance
        assert outlook.why.startswith(words)

    def test_one_address_takes_hairpinning(self) -> None:
        yes = replace(FC, hairpin=True)
        found = [
            punch_outlook(a, b, shared_address=True).likelihood
            for a, b in ((FC, FC), (yes, yes), (yes, FC), (FC, replace(FC, hairpin=None)))
        ]
        assert found == [HOPELESS, LIKELY, DOUBTFUL, DOUBTFUL]


class TestSpray:
    def test_roles_numbers_and_a_sentence(self) -> None:
        ours, peers = spray_outlook(PR, SYM), spray_outlook(SYM, PR)
        assert (ours.role, peers.role) == (Role.EASY, Role.HARD)
        assert ours.plan == peers.plan is not None
        assert ours.likelihood is peers.likelihood is LIKELY
        assert ours.why == "98.3% with 256 sockets and 1024 openers"

    def test_nothing_to_spray_for(self) -> None:
        outlook = spray_outlook(PR, FC)
        assert (outlook.likelihood, outlook.role, outlook.plan) == (HOPELESS, None, None)

    def test_two_symmetric_ones(self) -> None:
        small = replace(SYM, low=2048, high=3071)
        assert spray_outlook(SYM, SYM).likelihood is HOPELESS
        assert spray_outlook(SYM, replace(SYM, allocation=Allocation.UNKNOWN)).likelihood is DOUBTFUL
        outlook = spray_outlook(small, small)
        assert (outlook.likelihood, outlook.role) == (DOUBTFUL, Role.BOTH)
        assert outlook.probability == pytest.approx(0.22, abs=0.01)

    def test_blocked_is_hopeless_and_unknown_doubtful(self) -> None:
        assert spray_outlook(PR, BLOCKED).likelihood is HOPELESS
        assert spray_outlook(UNKNOWN, SYM).likelihood is DOUBTFUL
        assert spray_outlook(UNKNOWN, UNKNOWN).likelihood is DOUBTFUL
        assert spray_outlook(replace(PR, hairpin=True), SYM, shared_address=True).likelihood is DOUBTFUL

    @settings(max_examples=50)
    @given(transports, transports, st.booleans())
    def test_both_sides_plan_the_same(self, a: TransportProfile, b: TransportProfile, lower: bool) -> None:
        ours, peers = spray_outlook(a, b, we_are_lower=lower), spray_outlook(b, a, we_are_lower=not lower)
        assert ours.likelihood is peers.likelihood
        assert {ours.role, peers.role} in ({None}, {Role.BOTH}, {Role.EASY, Role.HARD})
        if ours.role is not Role.BOTH:
            assert ours.plan == peers.plan
