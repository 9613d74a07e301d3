"""Relayed Pipes are on the best path after a minute of trouble, without flapping (laws 11 and 12 of live Links).

A sample runs here; ``python -m tests.sim.census live 5000`` runs thousands of worlds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import Phase, given, note, settings

from tests.sim.live_worlds import LiveWorld, best_class, draw, flaps, live, live_worlds
from warpgate_trio import PathCause, PathChange, PathInfo
from warpgate_trio.link.path import PathClass
from warpgate_trio.sim import Fault, Kind, NatConfig, presets
from warpgate_trio.testing.worlds import PeerPair

PHASES = [phase for phase in Phase if phase is not Phase.explain]  # this phase would run a failing world 300 times more
CONE, HARD = presets.LINUX, presets.LINUX_SYMMETRIC


@pytest.mark.slow("10 worlds of two nodes and servers of every kind, for minutes")
def test_a_pipe_is_on_the_best_path_once_all_has_been_well_for_a_while() -> None:
    tally: Counter[str] = Counter()

    @settings(max_examples=10, phases=PHASES)
    @given(live_worlds())
    def check(world: LiveWorld) -> None:
        note(str(world))
        lived = live(world)
        note(lived.log)
        assert lived.why == ()
        tally.update([f"{best_class(world).name}: {lived.path}"])

    check()
    print(dict(tally))


@pytest.mark.slow("a world of two nodes and servers of every kind, for minutes")
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(205, id="both change over at once, and one way of one path is a hole"),
        pytest.param(981, id="the listener has moved, and the caller goes by what it was told of the network before"),
        pytest.param(1372, id="sprays have used up a carrier's ports, and a router on the way has forgotten its flows"),
        pytest.param(2191, id="the listener has moved out of a network that lets no UDP through"),
    ],
)
def test_what_the_census_found(seed: int) -> None:
    lived = live(draw(Random(f"live {seed}")))
    assert lived.why == (), lived.log


# -- what is promised, and what is wrong -------------------------------------------------------------------------------


def move(who: str) -> Fault:
    return Fault(at=1.0, target=who, kind=Kind.MOVE, to=f"{who}-cafe")


@pytest.mark.parametrize(
    ("alice", "bob", "shared", "moves", "promised"),
    [
        (None, None, (), (), PathClass.PUBLIC),
        (CONE, None, (), (), PathClass.PUBLIC),
        (None, HARD, (), (), PathClass.PUBLIC),
        (presets.WEB_ONLY, None, (), (), PathClass.RELAYED),
        (CONE, CONE, (), (), PathClass.PUNCHED),
        (CONE, HARD, (), (), PathClass.RELAYED),
        (CONE, CONE, (presets.CGN,), (), PathClass.RELAYED),
        (None, None, (CONE,), (), PathClass.LAN),
        (None, None, (CONE,), ("bob",), PathClass.PUNCHED),
        (CONE, None, (), ("bob",), PathClass.PUNCHED),
        (HARD, HARD, (), ("alice",), PathClass.RELAYED),
        (HARD, HARD, (), ("alice", "bob"), PathClass.PUNCHED),
    ],
)
@pytest.mark.parametrize("calls", ["alice", "bob"])
def test_what_is_promised(
    alice: NatConfig | None,
    bob: NatConfig | None,
    shared: tuple[NatConfig, ...],
    moves: tuple[str, ...],
    promised: PathClass,
    calls: str,
) -> None:
    pair = PeerPair.between(alice, bob, shared=shared)
    world = LiveWorld(pair=pair, faults=tuple(map(move, moves)))
    assert best_class(replace(world, calls="alice" if calls == "alice" else "bob")) is promised


def test_when_all_is_well_again() -> None:
    world = LiveWorld(pair=PeerPair.between(CONE, CONE))
    assert world.over_at == 0.0
    hole = Fault(at=1.0, until=9.0, target="alice", kind=Kind.BLACKHOLE)
    assert replace(world, faults=(hole, move("bob"))).over_at == 9.0
    assert replace(world, faults=(move("bob"),)).over_at == 1.0
    assert replace(world, faults=(hole,), restarts=((7.0, "server", 3.0),)).over_at == 10.0


def change(at: float, cause: PathCause) -> PathChange:
    path = PathInfo(phase="relay", plugin="", af=4, route_type="EXT_BIND", carrier="tls", local=("", 0), remote=("", 0))
    return PathChange(at=at, old=path, new=path, cause=cause)


def test_an_upgrade_soon_after_another_is_a_flap_and_soon_after_a_flight_is_none() -> None:
    assert flaps([change(0.0, PathCause.BETTER), change(10.0, PathCause.BETTER)]) == []
    assert flaps([change(0.0, PathCause.BETTER), change(9.9, PathCause.BETTER)])
    assert flaps([change(0.0, PathCause.FOUND), change(0.1, PathCause.BETTER)]) == []
    assert flaps([change(0.0, PathCause.FORGIVEN), change(9.9, PathCause.BETTER)]) == []
    assert flaps([change(0.0, PathCause.BETTER), change(1.0, PathCause.FOUND)]) == []


def test_upgrades_are_ever_further_apart() -> None:
    first, second = change(0.0, PathCause.BETTER), change(10.0, PathCause.BETTER)
    assert flaps([first, second, change(30.0, PathCause.BETTER)]) == []
    assert flaps([first, second, change(29.9, PathCause.BETTER)])
    assert flaps([first, change(700.0, PathCause.BETTER), change(710.0, PathCause.BETTER)]) == []


def test_worlds_are_the_same_each_time() -> None:
    assert draw(Random("live 7")) == draw(Random("live 7")) != draw(Random("live 8"))
