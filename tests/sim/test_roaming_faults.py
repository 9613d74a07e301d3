"""Pipes that outlive their paths without a move: routers that forget, machines that sleep, a server that is gone."""

from __future__ import annotations

from typing import Final

import pytest
import trio

from tests.links import link_of
from tests.sim.roaming import RTT, Family, Roaming, Way, Who, connected, survive
from warpgate_trio import NodeConfig, PathsConfig, PathState
from warpgate_trio.sim import Fault, Kind, simulate

BAR: Final = 3.0
"""The longest time in seconds from a machine's wake-up to the first byte."""


@pytest.mark.slow("some seconds of talk, packet by packet")
@pytest.mark.parametrize("rtt", [0.05, 0.2])
@pytest.mark.parametrize(("way", "who"), [("direct", "alice"), ("punched", "alice"), ("punched", "bob")])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_router_that_reboots(family: Family, way: Way, who: Who, rtt: float) -> None:
    """It breaks all flows: those of the path, and the connection to the signal server."""
    world = Roaming(alice=family, bob=family, way=way, rtt=rtt, strict=True)
    reboot = Fault(at=0.0, until=0.1, target=f"{who}-home", kind=Kind.REBOOT)
    assert max(survive(world, lambda net, _: net.schedule([reboot]))) <= 3 * rtt + 4.0


@pytest.mark.slow("some seconds of talk, packet by packet")
@pytest.mark.parametrize("rtt", [0.05, 0.2])
@pytest.mark.parametrize(("way", "who"), [("direct", "alice"), ("punched", "alice"), ("punched", "bob")])
def test_a_router_that_gets_another_address(way: Way, who: Who, rtt: float) -> None:
    rebind = Fault(at=0.0, target=f"{who}-home", kind=Kind.REBIND)
    assert max(survive(Roaming(way=way, rtt=rtt), lambda net, _: net.schedule([rebind]))) <= 3 * rtt + 4.0


def asleep(who: Who, seconds: float) -> Fault:
    return Fault(at=0.0, until=seconds, target=who, kind=Kind.SLEEP)


@pytest.mark.slow("a minute of talk")
@pytest.mark.parametrize("way", ["direct", "punched"])
@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_machine_that_sleeps_for_a_minute(family: Family, who: Who, way: Way) -> None:
    """Both sides keep the Link for two minutes, so it goes on soon after the machine wakes up."""
    world = Roaming(alice=family, bob=family, way=way)
    assert max(survive(world, lambda net, _: net.schedule([asleep(who, 60.0)]), lasts=60.0)) <= BAR


@pytest.mark.slow("some minutes of two nodes, one of which looks for the other")
@pytest.mark.parametrize("way", ["direct", "punched"])
@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_machine_that_sleeps_for_longer_than_a_link_is_kept(who: Who, way: Way, kept: bool) -> None:
    """As over night: it learns at once that its peer has given the Link up, unless both keep it for longer.

    In the simulator the timers of a sleeping host go on.  So here the peer gives up sooner, or both ends would do so at
    once.
    """

    async def main() -> None:
        config = NodeConfig(paths=PathsConfig(resume_timeout=3600))
        async with connected(Roaming(way=way), config=config) as (nodes, *pipes):
            await trio.sleep(1.0)
            sleeper, awake = pipes if who == "alice" else reversed(pipes)
            nodes.net.schedule([asleep(who, 40.0)])
            wakes_up = trio.current_time() + 40.0
            await awake.send_all(b"good morning")
            while awake.path.state is not PathState.SUSPENDED:
                await awake.wait_path_change()
            if not kept:
                link_of(awake)._patience.deadline = trio.current_time()
            if kept:
                assert await sleeper.receive_some() == b"good morning"
            else:
                with pytest.raises(trio.BrokenResourceError, match="the peer no longer has this link"):
                    await sleeper.receive_some()
            waited = trio.current_time() - wakes_up
            print(f"{who}, {way}: {'goes on' if kept else 'breaks'} {waited:.2f} s after it has woken up")
            assert 0.0 <= waited <= BAR

    simulate(main, seed=0)


@pytest.mark.slow("ten minutes of two nodes without a server")
def test_a_direct_path_does_not_notice_that_the_server_is_gone() -> None:
    async def main() -> None:
        async with connected(Roaming()) as (nodes, ours, theirs):
            nodes.net.schedule([Fault(at=0.0, until=600.0, target="server", kind=Kind.BLACKHOLE)])
            known = ours.path
            for _ in range(20):
                await trio.sleep(30.0)
                for sender, receiver in ((ours, theirs), (theirs, ours)):
                    began = trio.current_time()
                    await sender.send_all(b"x")
                    assert await receiver.receive_some() == b"x"
                    assert trio.current_time() - began <= RTT
            assert ours.path.same_as(known)
            assert ours.path_log == theirs.path_log == ()

    simulate(main, seed=0)
