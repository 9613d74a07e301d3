"""Whole nodes anywhere, with servers of every kind: pairs with a path connect in time, and relay only if necessary.

A sample runs here; ``python -m tests.sim.census any 5000`` runs thousands of worlds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import Phase, given, note, settings

from tests.sim.anywhere import PROXY_ONLY, Anywhere, Form, Side, anywhere, draw, meet_anywhere, with_machines
from tests.sim.oracles import complaints, direct_for_sure, networks, promised, relay_for_sure
from tests.sim.walks import Meeting, rows
from warpgate_trio.report import ComboReport, ConnectReport, Outcome, Verdict
from warpgate_trio.sim import NatConfig, presets
from warpgate_trio.testing.worlds import PeerPair

PHASES = [phase for phase in Phase if phase is not Phase.explain]  # this phase would run a failing world 300 times more
RTT = 0.05
CONE, HARD = presets.LINUX, presets.LINUX_SYMMETRIC
TURN: tuple[tuple[str, Form], ...] = (("turn", "udp"),)


@pytest.mark.slow("24 worlds of two nodes and servers of every kind")
def test_whoever_has_a_way_connects() -> None:
    tally: Counter[str] = Counter()

    @settings(max_examples=24, phases=PHASES)
    @given(anywhere())
    def check(world: Anywhere) -> None:
        note(str(world))
        result = meet_anywhere(world)
        note(rows(result))
        assert complaints(world, result) == []
        tally.update([str(result.plugin), *networks(world)])

    check()
    print(dict(tally))


@pytest.mark.slow("8 worlds with 5 % loss")
def test_whoever_has_a_relay_connects_over_a_bad_network_too() -> None:
    """At the second try at the latest: one call in hundreds loses a packet that it cannot do without."""

    @settings(max_examples=8, phases=PHASES)
    @given(anywhere(loss=0.05))
    def check(world: Anywhere) -> None:
        note(str(world))
        result = meet_anywhere(world)
        if complaints(world, result):
            note(rows(result))
            world = replace(world, pair=replace(world.pair, seed=world.pair.seed + 1))
            result = meet_anywhere(world)
        note(rows(result))
        assert complaints(world, result) == []

    check()


@pytest.mark.slow("a world of two nodes and servers of every kind")
@pytest.mark.parametrize("seed", [1412], ids=["a spray takes all ports of the subscriber, and then a relay is wanted"])
def test_what_the_census_found(seed: int) -> None:
    world = draw(Random(f"any {seed}"))
    result = meet_anywhere(world)
    assert promised(world)
    assert complaints(world, result) == [], rows(result)


NESTED = (presets.CGN, presets.LINUX_SYMMETRIC)


@pytest.mark.slow("whole nodes, in a world with servers of every kind")
@pytest.mark.parametrize("turn", ["alice", "bob"])
@pytest.mark.parametrize("nested", ["alice", "bob", "both"])
def test_who_shares_a_carriers_ports_twice_has_some_left_for_a_relay(nested: str, turn: str) -> None:
    """Both peers share one address of a second carrier's NAT, which has fewer ports than the first one shows."""
    pair = between(CONE, CONE, Side()).pair
    alice, bob = (
        replace(place, nats=NESTED if nested in (who, "both") else place.nats)
        for who, place in (("alice", pair.alice), ("bob", pair.bob))
    )
    pair = replace(pair, alice=alice, bob=bob, shared=(presets.CGN_SYMMETRIC,))
    one, other = Side(turn=TURN), Side()
    world = Anywhere(pair=pair, alice=one if turn == "alice" else other, bob=one if turn == "bob" else other)
    result = meet_anywhere(world)
    assert promised(world)
    assert complaints(world, result) == [], rows(result)


# -- what a network lets out -------------------------------------------------------------------------------------------


def between(alice: NatConfig | None, bob: NatConfig | None, side: Side, *, relays: str = "none") -> Anywhere:
    """A world in which both have the same configuration, with the proxy for a peer behind `PROXY_ONLY`."""
    pair = PeerPair.between(alice, bob, rtt=RTT)
    sides = [replace(side, proxy=nat is PROXY_ONLY) for nat in (alice, bob)]
    return Anywhere(pair=with_machines(pair), alice=sides[0], bob=sides[1], relays=relays)


@pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")
@pytest.mark.parametrize("by", ["a rendezvous server", "tcp443", "tls443"])
@pytest.mark.parametrize("other", [None, presets.LINUX_SYMMETRIC], ids=["both", "symmetric"])
@pytest.mark.parametrize("nat", [presets.UDP_BLOCKED, presets.WEB_ONLY, PROXY_ONLY], ids=lambda nat: nat.name)
def test_through_what_little_is_let_out(nat: NatConfig, other: NatConfig | None, by: Form) -> None:
    side = Side() if by not in ("tcp443", "tls443") else Side(turn=(("turn", by),))
    world = between(other or nat, nat, side, relays="none" if side.turn else "open")
    result = meet_anywhere(world)
    assert promised(world)
    assert complaints(world, result) == [], rows(result)


# -- the oracles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alice", "bob", "side", "relays", "direct", "relay"),
    [
        (CONE, CONE, Side(), "none", True, False),
        (CONE, CONE, Side(stun=1), "none", False, False),
        (CONE, None, Side(stun=0), "none", True, False),
        (CONE, CONE, Side(turn=TURN), "none", True, True),
        (HARD, HARD, Side(), "none", False, False),
        (HARD, HARD, Side(), "open", False, True),
        (HARD, HARD, Side(), "token", False, False),
        (HARD, HARD, Side(token=True), "token", False, True),
        (presets.UDP_BLOCKED, HARD, Side(turn=TURN), "none", False, False),
        (presets.UDP_BLOCKED, HARD, Side(turn=(("turn", "tcp"),)), "none", False, True),
        (presets.WEB_ONLY, HARD, Side(turn=(("turn", "tcp"),)), "none", False, False),
        (presets.WEB_ONLY, HARD, Side(turn=(("dead", "tcp443"),)), "none", False, False),
        (presets.WEB_ONLY, HARD, Side(turn=(("turn", "tcp443"),)), "none", False, True),
        (PROXY_ONLY, PROXY_ONLY, Side(turn=(("turn", "tls443"),)), "none", False, True),
    ],
)
def test_what_is_promised(
    alice: NatConfig | None, bob: NatConfig | None, side: Side, relays: str, direct: bool, relay: bool
) -> None:
    world = between(alice, bob, side, relays=relays)
    assert (direct_for_sure(world), relay_for_sure(world)) == (direct, relay)
    assert promised(world) is (direct or relay)
    both = replace(world, bob=replace(world.bob, rendezvous=("server2",), turn=()))
    if relays != "none":
        assert not relay_for_sure(both)  # no server in common


def test_one_sides_turn_server_is_enough_where_the_other_is_seen() -> None:
    world = between(HARD, HARD, Side(turn=TURN))
    assert relay_for_sure(replace(world, bob=Side()))
    assert relay_for_sure(replace(world, alice=Side()))
    assert not relay_for_sure(replace(world, bob=Side(stun=0)))
    assert not relay_for_sure(replace(between(HARD, presets.UDP_BLOCKED, Side(turn=TURN)), bob=Side()))


def outcome(phase: str | None, walk: float) -> Meeting:
    combos = [] if phase is None else [_won(phase)]
    verdict = Verdict.CONNECTED if combos else Verdict.RELAY_FAILED
    report = ConnectReport(
        peer="", session="", verdict=verdict, advice="", elapsed_ms=1000 * walk, combos=tuple(combos)
    )
    return Meeting(bool(combos), report, walk, None)


def _won(phase: str) -> ComboReport:
    return ComboReport(
        phase=phase, plugin="", af=4, route="", target="", likelihood="likely", outcome=Outcome.WON, started_ms=0.0
    )


def test_what_is_wrong_is_said() -> None:
    easy, hard = between(CONE, CONE, Side(), relays="open"), between(HARD, HARD, Side(), relays="open")
    assert complaints(easy, outcome("punch", 1.0)) == complaints(hard, outcome("relay", 1.0)) == []
    assert complaints(hard, outcome(None, 1.0)) == ["they did not connect"]
    assert complaints(easy, outcome("relay", 1.0)) == ["a relay was used where there is a direct path"]
    (late,) = complaints(hard, outcome("relay", 12.0))
    assert late.startswith("it took 12.000 s")
    nothing = replace(hard, relays="none")
    assert complaints(nothing, outcome(None, 12.0)) == ["the verdict is relay_failed"]
    dead = Side(turn=(("dead", "udp"),))
    assert complaints(replace(nothing, alice=dead), outcome(None, 12.0)) == []
