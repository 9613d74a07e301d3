"""Two relays of which the first is dead in some way: only the first call waits for it, and briefly."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Final

import pytest
import trio

from tests.sim.roaming import Talk
from tests.sim.test_relays_fail import CREDENTIALS, SECOND, TURNS, where
from tests.sim.test_ws_relay import OPEN, URL, server
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.relay_frames import Answer, EndReason
from warpgate_trio.servers.rendezvous import RelayLimits, RelayRules, open_rendezvous
from warpgate_trio.servers.server_connection import ServerConnection
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.servers.turn_limits import DEFAULT_LIMITS, TurnLimits
from warpgate_trio.sim import Fault, Host, Kind, Network, presets, simulate
from warpgate_trio.standing import PASSED_OVER_MAX
from warpgate_trio.testing import Restarts, simulated_hosts
from warpgate_trio.testing.walks import NTP, RENDEZVOUS, STUN, NodePair, WorldServer, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

RTT: Final = 0.05
PAIR: Final = PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC, rtt=RTT, server_rtt=RTT)
CALLS: Final = 4
JITTER: Final = 0.1
"""Seconds by which reconnecting to a server may vary (`signal.keeper.BACKOFF_FIRST`)."""


def turn(machine: str, credentials: TurnCredentials = CREDENTIALS, limits: TurnLimits = DEFAULT_LIMITS) -> WorldServer:
    (found,) = [each for each in TURNS if each.machine == machine]
    return replace(found, open=lambda host: open_turn_server(credentials, host=host.ip, port=3490, limits=limits))


@asynccontextmanager
async def draining(host: Host) -> AsyncGenerator[None]:
    """A TURN server that refuses new allocations, because it drains."""
    async with open_turn_server(CREDENTIALS, host=host.ip, port=3490) as server, open_background_nursery() as nursery:
        nursery.start_soon(server.drain)
        await trio.lowlevel.checkpoint()
        yield


@asynccontextmanager
async def closing(_host: Host) -> AsyncGenerator[None]:
    """A rendezvous server that ends each circuit once it is answered."""
    async with open_rendezvous(host=None, port=443, public_urls=[URL], relay=OPEN) as server:
        circuits = server._rendezvous._core.circuits
        answer = circuits.answer

        def answer_and_end(
            connection: ServerConnection, frame: Answer, now: float
        ) -> tuple[ServerConnection, bytes] | None:
            found = answer(connection, frame, now)
            circuits._end_both(connection.legs[frame.circuit], EndReason.GONE, now)
            return found

        circuits.answer = answer_and_end  # type: ignore[method-assign]
        yield


@asynccontextmanager
async def nobody(_: Host) -> AsyncGenerator[None]:
    """No server at all."""
    yield


def silent(net: Network, machine: str) -> None:
    net.schedule([Fault(at=0.0, until=1e6, target=machine, kind=Kind.BLACKHOLE)])


async def time_calls(nodes: NodePair, plugin: str) -> list[float]:
    times: list[float] = []
    for _ in range(CALLS):
        began = trio.current_time()
        async with await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"]) as pipe:
            times.append(trio.current_time() - began)
            assert pipe.path.plugin == plugin
            async with await nodes.bob.listener.accept():
                pass
        await trio.sleep(3.0)
    return times


def measure(plugin: str, servers: Sequence[WorldServer], dead: str | None = None) -> list[float]:
    """Seconds from each call to its Pipe; the machine `dead` falls silent shortly before the first call."""

    async def main() -> list[float]:
        async with PAIR.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            if dead is not None:
                silent(net, dead)
            return await time_calls(nodes, plugin)
        raise AssertionError("unreachable")

    return simulate(main, seed=0)


OTHERS: Final = (STUN, NTP)
FULL: Final = RelayRules(open_to_all=True, limits=RelayLimits(circuits=0))
DEAD: Final[dict[tuple[str, str], tuple[WorldServer, str | None]]] = {
    ("ws_relay", "killed"): (replace(server(OPEN), open=nobody), None),
    ("ws_relay", "silent"): (server(OPEN), "server"),
    ("ws_relay", "takes no circuits"): (server(FULL), None),
    ("ws_relay", "closes circuits at once"): (replace(server(OPEN), open=closing), None),
    ("turn", "killed"): (replace(turn("ntp"), open=nobody), None),
    ("turn", "silent"): (turn("ntp"), "ntp"),
    ("turn", "401"): (turn("ntp", TurnCredentials("example.org", {"alice": "another"})), None),
    ("turn", "486"): (turn("ntp", limits=TurnLimits(allocations_per_user=0)), None),
    ("turn", "508"): (replace(turn("ntp"), open=draining), None),
}
"""The first of two relays, and which machine falls silent before the first call."""
WELL: Final = {"ws_relay": (SECOND,), "turn": (turn("stun2"), RENDEZVOUS)}


@cache
def undisturbed(plugin: str) -> float:
    """The longest time of a call without the dead relay."""
    return max(measure(plugin, [*WELL[plugin], *OTHERS]))


@pytest.mark.parametrize(("plugin", "how"), DEAD)
def test_no_call_waits_for_a_relay_that_is_dead(plugin: str, how: str) -> None:
    """Only the first call does, for a second at most."""
    first, dead = DEAD[plugin, how]
    well, times = undisturbed(plugin), measure(plugin, [first, *WELL[plugin], *OTHERS], dead)
    print(f"{plugin}, {how}: {', '.join(f'{each:.2f}' for each in times)} s; without it {well:.2f}")
    assert times[0] <= well + 1.0
    assert max(times[1:]) <= well + RTT


def recover(plugin: str, servers: Sequence[WorldServer], dead: str | None = None) -> float:
    """Seconds of silence on a Link by the second relay, when that relay restarts."""

    async def main() -> float:
        restarts = Restarts()
        restartable = [restarts.of(each)[0] if each.machine == "stun2" else each for each in servers]
        async with PAIR.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=restartable) as nodes:
            if dead is not None:
                silent(net, dead)
            await time_calls(nodes, plugin)
            ours = await nodes.alice.auto_connect(nodes.bob.address, phases=["relay"])
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs, open_background_nursery() as nursery:
                assert where(net, ours) == "stun2"
                talks = [Talk(ours, theirs), Talk(theirs, ours)]
                for talk in talks:
                    nursery.start_soon(talk.receive)
                    nursery.start_soon(talk.send)
                await trio.sleep(2.0)
                began = trio.current_time()
                await restarts.restart("stun2")
                await trio.sleep(10.0)
                return max(talk.silence_after(began) for talk in talks)
        raise AssertionError("unreachable")

    return simulate(main, seed=0)


@cache
def undisturbed_recovery(plugin: str) -> float:
    return recover(plugin, [*WELL[plugin], *OTHERS])


@pytest.mark.parametrize(("plugin", "how"), DEAD)
def test_no_recovery_waits_for_a_relay_that_is_dead(plugin: str, how: str) -> None:
    first, dead = DEAD[plugin, how]
    well, silence = undisturbed_recovery(plugin), recover(plugin, [first, *WELL[plugin], *OTHERS], dead)
    print(f"{plugin}, {how}: silent for {silence:.2f} s; without it {well:.2f}")
    assert silence <= well + RTT + JITTER


@pytest.mark.parametrize("plugin", WELL)
def test_a_relay_that_has_come_back_is_used_again(plugin: str) -> None:
    """It is the only one left, and has been back for as long as a dead relay is passed over."""
    well = undisturbed(plugin)

    async def main() -> None:
        first, dead = DEAD[plugin, "silent"]
        restarts = Restarts()
        servers = [
            restarts.of(each)[0] if each.machine == "stun2" else each for each in (first, *WELL[plugin], *OTHERS)
        ]
        async with PAIR.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net, servers=servers) as nodes:
            assert dead is not None
            net.schedule([Fault(at=0.0, until=30.0, target=dead, kind=Kind.BLACKHOLE)])
            await time_calls(nodes, plugin)
            await trio.sleep(30.0 + PASSED_OVER_MAX)
            async with open_background_nursery() as nursery:
                nursery.start_soon(lambda: restarts.restart("stun2", pause=1000.0))
                times = await time_calls(nodes, plugin)
                print(f"{plugin}: {', '.join(f'{each:.2f}' for each in times)} s")
                assert times[0] <= well + 1.0
                assert max(times[1:]) <= well + RTT
                nursery.cancel_scope.cancel()

    simulate(main, seed=0)
