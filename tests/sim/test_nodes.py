"""Whole nodes, with TLS and signals, in simulated worlds: who connects, how fast, and what is left.

The nodes are those that users run; only `simulated_hosts` replaces the machine.  A sample of worlds runs here;
``python -m tests.sim.census`` runs thousands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import Phase, example, given, note, settings
from hypothesis import strategies as st

from tests.sim.oracles import Expected, expected
from tests.sim.walks import meet
from warpgate_trio import Node, PeerAddress, Pipe
from warpgate_trio.config import Budgets
from warpgate_trio.report import Verdict
from warpgate_trio.sim import Fault, Kind, Link, presets
from warpgate_trio.testing.strategies import PeerPair, Place, fault_schedules, links, nats, peer_pairs

BUDGETS = Budgets()


# -- who connects ------------------------------------------------------------------------------------------------------


async def dial(node: Node, address: PeerAddress) -> Pipe:
    """Connect in the direct phase, which the oracle is about; `tests.sim.test_punching` tests the later phases."""
    return await node.auto_connect(address, phases=["direct"])


PHASES = [phase for phase in Phase if phase is not Phase.explain]  # this phase would run a failing world 300 times more
QUIET = links(max_latency=0.1, noisy=False)
BEHIND = st.lists(nats(), min_size=1, max_size=2).map(tuple)
REVERSIBLE = st.builds(  # rare among all pairs
    PeerPair,
    alice=st.builds(Place, link=QUIET, clock_offset=st.sampled_from((0.0, 20.0, -20.0))),
    bob=st.builds(Place, nats=BEHIND, link=QUIET),
    server=QUIET,
    seed=st.integers(0, 1000),
)
EXAMPLES = 100
FAILED_WITHIN = BUDGETS.signal + BUDGETS.direct_max + 0.001  # the phase, which waits for an answer, and the last round
BROKEN_OFF_WITHIN = FAILED_WITHIN + BUDGETS.commit  # a commit in the last moment may still be accepted
NO_PATH = (
    Verdict.NO_RELAY_CONFIGURED,
    Verdict.NOTHING_TO_TRY,  # both have the same private address
    Verdict.UNREACHABLE,  # nothing to ask the peer for
    Verdict.PEER_SILENT,  # the peer was asked to dial, and still dials when the time is up
)


@pytest.mark.slow(f"{EXAMPLES} worlds")
def test_a_walk_connects_exactly_when_there_is_a_path() -> None:
    tally: Counter[Expected] = Counter()

    @settings(max_examples=EXAMPLES, phases=PHASES)
    @given(st.one_of(peer_pairs(link=QUIET), peer_pairs(link=QUIET), peer_pairs(link=QUIET), REVERSIBLE))
    @example(PeerPair(alice=OPEN, bob=OPEN))
    @example(PeerPair(alice=BEHIND_NAT, bob=OPEN))
    @example(PeerPair(alice=OPEN, bob=BEHIND_NAT))
    @example(PeerPair(alice=BEHIND_NAT, bob=BEHIND_NAT))
    def check(pair: PeerPair) -> None:
        note(str(pair))
        paths = expected(pair)
        tally[paths] += 1
        result = meet(pair, dial)
        assert result.connected == (paths.direct or paths.reverse), result.report
        if result.connected:
            assert result.report.winner is not None
            possible = [("direct_connect", paths.direct), ("reverse_connect", paths.reverse)]
            assert result.report.winner.plugin in [plugin for plugin, works in possible if works]
            assert result.walk <= BUDGETS.signal
        else:
            assert result.report.verdict in NO_PATH
            assert result.walk <= FAILED_WITHIN

    check()
    print(f"{tally.total()} worlds: {dict(tally)}")
    assert len(tally) == 4, f"some kind of pair was never tried: {tally}"


@pytest.mark.slow("24 worlds with loss, whose TCP waits and retransmits")
@settings(max_examples=24, phases=PHASES)
@given(peer_pairs(link=links(max_latency=0.05)))
def test_noise_makes_no_path_and_garbles_nothing(pair: PeerPair) -> None:
    note(str(pair))
    paths = expected(pair)
    result = meet(pair, dial, breaks=True)
    assert result.connected <= (paths.direct or paths.reverse)
    assert result.walk <= BROKEN_OFF_WITHIN


@pytest.mark.slow("24 worlds with faults, whose TCP waits and retransmits")
@settings(max_examples=24, phases=PHASES)
@given(st.data(), peer_pairs(link=QUIET))
def test_nothing_is_left_whatever_goes_wrong(data: st.DataObject, pair: PeerPair) -> None:
    faults = data.draw(fault_schedules(pair.topology(), horizon=20.0))
    note(str(pair))
    paths = expected(pair)
    whole = data.draw(st.booleans(), label="all phases")
    result = meet(pair, Node.auto_connect if whole else dial, faults=faults)
    if whole:
        assert result.walk <= BUDGETS.total + BUDGETS.commit
        return
    rerouted = any(fault.kind in (Kind.REBIND, Kind.REBOOT) for fault in faults)
    assert result.connected <= (paths.direct or paths.reverse) or rerouted
    assert result.walk <= BROKEN_OFF_WITHIN


def test_a_pipe_that_its_faults_break_is_no_fault_of_the_walk() -> None:
    """The walk wins between two restarts of the router; the second one resets the connection, as it should."""
    pair = PeerPair(
        alice=Place(),
        bob=Place(nats=(presets.CGN, presets.NATS["linux-local"]), forwarded=True),
        server=Link(),
        seed=533,
    )
    faults = (
        Fault(at=0.0, until=0.1, target="bob-nat0:up", kind=Kind.MTU_BLACKHOLE, value=1280.0),
        Fault(at=0.0, until=0.0, target="bob-nat1", kind=Kind.REBOOT),
        Fault(at=0.1, until=0.1, target="bob-nat0", kind=Kind.REBOOT),
    )
    for connect in (dial, Node.auto_connect):
        assert meet(pair, connect, faults=faults).connected


# -- how fast ----------------------------------------------------------------------------------------------------------

RTT = 0.1  # between any two of the three, as docs/architecture.md counts round trips
NEAR = Link(latency=RTT / 4)
OPEN = Place(link=NEAR)
BEHIND_NAT = Place(link=NEAR, nats=(presets.LINUX,))


@pytest.mark.parametrize(
    ("alice", "bob", "plugin", "early", "round_trips"),
    [
        (OPEN, OPEN, "direct_connect", b"", 4),
        (OPEN, OPEN, "direct_connect", b"hello", 3),
        (BEHIND_NAT, OPEN, "direct_connect", b"", 4),
        (BEHIND_NAT, replace(BEHIND_NAT, forwarded=True), "direct_connect", b"", 4),
        (OPEN, BEHIND_NAT, "reverse_connect", b"", 5.5),
    ],
)
@pytest.mark.parametrize("data", [b"ping", bytes(64 * 1024)], ids=["little", "much"])
def test_the_first_echoed_byte_is_there_in_time(
    alice: Place, bob: Place, plugin: str, early: bytes, round_trips: float, data: bytes
) -> None:
    """This holds even if more is written at first than TCP sends in its first round trip."""

    async def connect(node: Node, address: PeerAddress) -> Pipe:
        return await node.auto_connect(address, early_data=early)

    result = meet(PeerPair(alice=alice, bob=bob, server=NEAR), connect, early=early, data=data)
    assert result.report.winner is not None
    assert result.report.winner.plugin == plugin
    assert result.echoed == pytest.approx(round_trips * RTT, abs=0.001)


@pytest.mark.parametrize(
    ("alice", "bob", "plugin", "round_trips"),
    [(OPEN, OPEN, "direct_connect", 4), (OPEN, BEHIND_NAT, "reverse_connect", 7.5)],
)
def test_the_first_call_of_a_node_that_was_just_opened(
    alice: Place, bob: Place, plugin: str, round_trips: float
) -> None:
    """Connecting to the signal server takes two more round trips, TCP and the upgrade; registration takes none."""
    result = meet(PeerPair(alice=alice, bob=bob, server=NEAR), data=bytes(64 * 1024), warm=0, both_cold=True)
    assert result.report.winner is not None
    assert result.report.winner.plugin == plugin
    assert result.echoed == pytest.approx(round_trips * RTT, abs=0.001)


# -- the same again ----------------------------------------------------------------------------------------------------

PAIR = PeerPair(alice=replace(OPEN, clock_offset=12.0), bob=replace(BEHIND_NAT, nats=(presets.CGN, presets.LINUX)))


@pytest.mark.slow("three whole worlds")
def test_one_seed_gives_one_run_of_whole_nodes() -> None:
    digests = [meet(replace(PAIR, seed=seed)).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow("two more interpreters that import everything")
def test_another_process_with_another_hash_seed_sees_the_same() -> None:
    program = "from tests.sim.test_nodes import PAIR; from tests.sim.walks import meet; print(meet(PAIR).digest)"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {meet(PAIR).digest}
