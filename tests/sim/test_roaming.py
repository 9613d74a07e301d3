"""Pipes that outlive their paths, between two whole nodes that talk: how soon bytes flow again after a move.

``pytest -s`` prints the silences at the listener and at the caller.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Literal

import pytest
import trio

from tests.sim.roaming import RTT, Family, Roaming, Talk, Way, Who, connected, keep_family, survive
from warpgate_trio import PathState, Pipe
from warpgate_trio.sim import Fault, Kind, Network, simulate
from warpgate_trio.sim.addr import is_v6
from warpgate_trio.sim.faults import apply_faults

Change = Literal["new address", "new NAT", "new family"]
BAR: Final = 3.0
"""The longest silence in seconds after the new link is up."""
FAMILIES: Final[tuple[Family, ...]] = ("v4", "v6", "dual")


def the_world(family: Family, who: Who, what: Change, way: Way, rtt: float = RTT) -> Roaming:
    """The world of a move; the peer of a side that gets another family has both, as there is no path otherwise."""
    alice = bob = family
    if what == "new family":
        alice, bob = (family, "dual") if who == "alice" else ("dual", family)
    return Roaming(alice=alice, bob=bob, way=way, rtt=rtt)


def move(who: Who, what: Change, family: Family, net: Network, pipe: Pipe) -> None:
    """Change a machine's network.

    It gets a new address of each of its families, or moves to the café, or loses the family of its path and gets the
    other one.
    """
    machine = net.hosts[who]
    if what == "new address":
        machine.change_address()
    elif what == "new NAT":
        apply_faults(net, [Fault(at=0.0, target=who, kind=Kind.MOVE, to=f"{who}-cafe")])
        net.wire.after(0, keep_family, machine, family)
    else:
        interface, other = machine.interfaces[0], pipe.path.af == 4
        if all(is_v6(address) is not other for address in machine.addresses):
            interface.segment.give(interface, interface.segment.free_address(v6=other))
        keep_family(machine, "v6" if other else "v4")


def move_after(seconds: float, who: Who, what: Change, family: Family, net: Network, pipe: Pipe) -> None:
    """Take a machine's link down, and `move` it after so many seconds."""
    interface = net.hosts[who].interfaces[0]
    interface.take_down()

    def arrive() -> None:
        interface.bring_up()
        move(who, what, family, net, pipe)

    net.wire.after(seconds, arrive)


@pytest.mark.slow("some seconds of talk, packet by packet")
@pytest.mark.parametrize("way", ["direct", "punched"])
@pytest.mark.parametrize("what", ["new address", "new NAT", "new family"])
@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_uplink_switch(family: Family, who: Who, what: Change, way: Way) -> None:
    assert max(survive(the_world(family, who, what, way), partial(move, who, what, family))) <= BAR


@pytest.mark.slow("some seconds of talk, packet by packet")
@pytest.mark.parametrize(
    ("family", "who", "what", "way"),
    [
        ("v4", "alice", "new NAT", "punched"),
        ("v6", "bob", "new address", "direct"),
        ("dual", "bob", "new NAT", "direct"),
        ("v4", "bob", "new family", "punched"),
    ],
)
def test_an_uplink_switch_two_hundred_milliseconds_away(family: Family, who: Who, what: Change, way: Way) -> None:
    assert max(survive(the_world(family, who, what, way, 0.2), partial(move, who, what, family))) <= BAR


@pytest.mark.slow("some seconds of talk, packet by packet")
@pytest.mark.parametrize("way", ["direct", "punched"])
@pytest.mark.parametrize("who", ["alice", "bob"])
def test_an_uplink_switch_with_some_seconds_in_between(who: Who, way: Way) -> None:
    """Silence counts from when the new link is up, although the search has begun, and backed off, before."""
    happens = partial(move_after, 5.3, who, "new NAT", "v4")
    assert max(survive(the_world("v4", who, "new NAT", way), happens, lasts=5.3)) <= BAR


@pytest.mark.slow("some seconds of talk, packet by packet")
def test_a_listener_that_has_moved_searches_at_once() -> None:
    """It usually waits a second for the caller's search, but not if the caller cannot have noticed the move yet."""
    happens = partial(move, "bob", "new address", "v4")
    assert max(survive(the_world("v4", "bob", "new address", "punched"), happens)) <= 0.6


@pytest.mark.slow("some seconds of idle nodes, packet by packet")
def test_of_two_searches_that_meet_one_path_at_least_is_left() -> None:
    """Each side finds a path, and cancels its own search when it takes the other's; an offered path stays valid."""

    async def main() -> None:
        async with connected(Roaming(way="punched")) as (nodes, ours, theirs):
            await trio.sleep(1.0)
            apply_faults(nodes.net, [Fault(at=0.0, target=f"{who}-home", kind=Kind.REBIND) for who in ("alice", "bob")])
            for node in (nodes.alice, nodes.bob):
                node.network_changed()
            await trio.sleep(5.0)
            for pipe in (ours, theirs):
                assert pipe.path.state is PathState.LIVE
                assert [change.cause.value for change in pipe.path_log].count("lost") <= 1, pipe.path_log

    simulate(main, seed=0)


@pytest.mark.slow("some megabytes, packet by packet")
@pytest.mark.parametrize("way", ["direct", "punched"])
def test_a_caller_whom_the_old_path_holds_up_goes_on_when_the_listener_has_found_another_one(way: Way) -> None:
    """The caller has not noticed anything yet, and is blocked in `send_all`."""

    async def main() -> None:
        async with connected(Roaming(way=way)) as (nodes, ours, theirs), trio.open_nursery() as nursery:
            talk = Talk(ours, theirs, size=64 * 1024)
            nursery.start_soon(talk.send)
            nursery.start_soon(talk.receive)
            await trio.sleep(1.0)
            moved_at = trio.current_time()
            nodes.net.hosts["bob"].change_address()
            await talk.wait_through()
            await trio.sleep(1.0)
            assert talk.silence_after(moved_at) <= BAR
            nursery.cancel_scope.cancel()

    simulate(main, seed=0)
