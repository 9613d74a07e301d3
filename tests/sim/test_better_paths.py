"""Pipes between two whole nodes that change over to a better path while bytes flow."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, final

import pytest
import trio

from tests.cancel_sweep import AnyCut, cuts, step_cuts
from tests.sim.roaming import RTT, Talk, numbered
from warpgate_trio import Node, PathCause, PathState, Pipe
from warpgate_trio.errors import AttemptFailed, ConnectError
from warpgate_trio.link.lanes import MAX_LANES
from warpgate_trio.node.upgrade_schedule import JITTER, PAUSES, POSTPONED
from warpgate_trio.plugin import AttemptContext, Plugin
from warpgate_trio.sim import Fault, Kind, Link, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NodePair, open_nodes
from warpgate_trio.testing.worlds import PeerPair

CONE_TO_PUBLIC: Final = PeerPair.between(presets.LINUX, None, rtt=RTT)
REVERSED: Final = PeerPair.between(None, presets.LINUX, rtt=RTT)
FIRST_SEARCH: Final = PAUSES[0] * (1 + JITTER)


@final
class Closed:
    """Plugins of a node that find no path until they are opened."""

    def __init__(self, node: Node, *names: str) -> None:
        self._node = node
        self._factories = {name: node._runtime.factories[name] for name in names}
        self.tries = 0
        for name, (kind, _) in self._factories.items():
            node._runtime.factories[name] = (kind, self._fail)

    def _fail(self, _context: AttemptContext) -> Plugin:
        self.tries += 1
        raise AttemptFailed("there is no way yet")

    def open(self) -> None:
        self._node._runtime.factories.update(self._factories)


@final
class Talking:
    """A punched Pipe with numbered bytes both ways."""

    def __init__(self, net: Network, nodes: NodePair, closed: Closed, ours: Pipe, theirs: Pipe) -> None:
        self.net, self.nodes, self.closed = net, nodes, closed
        self.ours, self.theirs = ours, theirs
        self.talks = [Talk(ours, theirs), Talk(theirs, ours)]

    def check(self, since: float, *, silence: float) -> None:
        """Check that data flows, and never paused for longer than `silence` seconds."""
        for talk in self.talks:
            assert talk.arrivals[-1] >= trio.current_time() - 1.0
            assert talk.silence_after(since) <= silence


@asynccontextmanager
async def talking(
    pair: PeerPair = CONE_TO_PUBLIC,
    *closed: str,
    phases: tuple[str, ...] = ("direct", "punch"),
    quiet: bool = False,
) -> AsyncGenerator[Talking]:
    """Two nodes with a punched Pipe; the caller's plugins `closed` (the direct ones if none are named) find nothing."""
    async with pair.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
        await trio.sleep(5.0)
        plugins = Closed(nodes.alice, *(closed or ("direct_connect", "reverse_connect")))
        ours = await nodes.alice.auto_connect(nodes.bob.address, phases=phases)  # type: ignore[arg-type]
        theirs = await nodes.bob.listener.accept()
        assert ours.path.phase == theirs.path.phase == "punch"
        async with ours, theirs, trio.open_nursery() as nursery:
            talking = Talking(net, nodes, plugins, ours, theirs)
            for talk in talking.talks:
                nursery.start_soon(talk.receive)
                if not quiet:
                    nursery.start_soon(talk.send)
            yield talking
            nursery.cancel_scope.cancel()


async def changes_within(pipe: Pipe, seconds: float) -> str | None:
    """The phase of the path to which a Pipe changes within some seconds; None if it does not."""
    before = pipe.path
    with trio.move_on_after(seconds):
        while pipe.path.phase == before.phase:
            await pipe.wait_path_change()
        return pipe.path.phase
    return None


@pytest.mark.slow("half a minute of talk")
def test_a_punched_pipe_becomes_public_without_a_pause() -> None:
    """Law 11: if a path of a better class is possible and carries data, the Pipe is on it after the next search."""

    async def main() -> None:
        async with talking() as both:
            await trio.sleep(1.0)
            both.closed.open()
            began = trio.current_time()
            assert await changes_within(both.ours, FIRST_SEARCH + 5.0) == "direct"
            print(f"changed over {trio.current_time() - began:.2f} s after it could")
            await trio.sleep(2.0)
            assert both.theirs.path.phase == "direct"
            assert both.ours.path.state is both.theirs.path.state is PathState.LIVE
            both.check(began, silence=0.02 + 2 * RTT)  # the delays of the two paths may differ by RTT
            assert [each.cause for each in both.ours.path_log] == [PathCause.BETTER]
            assert [each.cause for each in both.theirs.path_log] == [PathCause.FOLLOWED]

    simulate(main, seed=0)


@pytest.mark.slow("a few seconds of bulk both ways")
@pytest.mark.parametrize(("rtt", "queue"), [(0.05, 1), (0.05, 8), (0.2, 2)])
def test_bulk_both_ways_changes_over_without_a_silence(rtt: float, queue: int) -> None:
    """Law 7, with both paths over one full line: the silence is at most a round trip of the new path under load.

    The line's queue holds `queue` times the data in flight.  With 1, TCP loses packets, as it does before the change,
    and takes another round trip to retransmit them.
    """

    async def bulk(sender: Pipe) -> None:
        sent = 0
        while True:
            await sender.send_all(numbered(sent, 64 * 1024))
            sent += 64 * 1024

    async def main() -> None:
        line = Link(latency=rtt / 2, bandwidth=20e6, queue=round(queue * 20e6 * rtt / 8))
        pair = PeerPair.between(presets.LINUX, None, rtt=0.001)
        pair = replace(pair, alice=replace(pair.alice, link=line))
        async with talking(pair, quiet=True) as both, trio.open_nursery() as nursery:
            for pipe in (both.ours, both.theirs):
                nursery.start_soon(bulk, pipe)
            await trio.sleep(5.0)
            both.closed.open()
            began = trio.current_time()
            path = await both.ours.migrate()
            assert path.phase == "direct"
            while both.theirs.path.phase != "direct":
                await both.theirs.wait_path_change()
            await trio.sleep(3 * rtt)  # until the data in flight on the old path has arrived
            loaded = max(pipe.path.rtt or 0.0 for pipe in (both.ours, both.theirs))
            for talk in both.talks:
                silence = talk.silence_after(began)
                print(f"silent for {silence:.3f} s, a round trip takes {loaded:.3f} s")
                assert silence <= loaded + (rtt if queue == 1 else 0.0)
            nursery.cancel_scope.cancel()

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of talk")
def test_a_change_of_the_network_has_a_better_path_looked_for_at_once() -> None:
    async def main() -> None:
        async with talking() as both:
            await trio.sleep(1.0)
            both.closed.open()
            both.nodes.alice.network_changed()
            assert await changes_within(both.ours, 3.0) == "direct"

    simulate(main, seed=0)


@pytest.mark.slow("two minutes of nothing")
def test_nothing_better_is_looked_for_while_nothing_is_said() -> None:
    async def main() -> None:
        async with talking(quiet=True) as both:
            before = both.closed.tries
            await trio.sleep(120.0)
            assert both.closed.tries == before
            await both.ours.send_all(b"\0")
            await trio.sleep(POSTPONED * (1 + JITTER) + 1.0)
            assert both.closed.tries > before

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of talk")
def test_a_better_path_that_carries_no_bulk_is_not_changed_over_to(caplog: pytest.LogCaptureFixture) -> None:
    """Law 8: a black hole that lets the handshake pass costs nothing up to the trial."""

    async def main() -> None:
        async with talking() as both:
            await trio.sleep(1.0)
            both.closed.open()
            # The talk has small packets only.  On a new path the handshake's large packets pass; later ones vanish.
            began = trio.current_time()
            hole = Fault(at=0.0, until=200.0, target="bob", kind=Kind.PAYLOAD_HOLE, value=1000, after=5)
            both.net.schedule([hole])
            with caplog.at_level(logging.DEBUG, logger="warpgate_trio"):
                assert await changes_within(both.ours, 40.0) is None
            assert "the new path failed its trial under load" in caplog.text
            assert both.ours.path.phase == both.theirs.path.phase == "punch"
            both.check(began, silence=0.02 + 2 * RTT)

    simulate(main, seed=0)


@pytest.mark.slow("some seconds of talk")
@pytest.mark.parametrize("phases", [None, ("direct",)])
def test_migrate_looks_for_a_better_path_now(phases: tuple[str, ...] | None) -> None:
    async def main() -> None:
        async with talking() as both:
            with pytest.raises(ConnectError) as raised:
                await both.ours.migrate(phases, timeout=5.0)
            assert {each.plugin for each in raised.value.report.combos} == {"direct_connect", "reverse_connect"}
            both.closed.open()
            path = await both.ours.migrate(phases)
            assert path.phase == "direct"
            assert both.ours.path.same_as(path)
            with pytest.raises(ConnectError):
                await both.ours.migrate()

    simulate(main, seed=0)


@pytest.mark.slow("some seconds of talk")
def test_a_link_needs_no_server_to_find_a_better_path() -> None:
    """Its signals travel on the Link, such as the request for a reverse connection."""

    async def main() -> None:
        async with talking(REVERSED, "reverse_connect") as both:
            both.net.schedule([Fault(at=0.0, until=1e5, target="server", kind=Kind.BLACKHOLE)])
            await trio.sleep(1.0)
            both.closed.open()
            path = await both.ours.migrate()
            assert path.plugin == "reverse_connect"

    simulate(main, seed=0)


@pytest.mark.slow("some seconds of talk")
def test_who_was_dialled_at_once_learns_where_the_caller_is() -> None:
    """The callee can search for paths to the caller, which sends its address on the Link, and no signal."""

    async def main() -> None:
        async with CONE_TO_PUBLIC.build(time_limit=1e6) as net, simulated_hosts(), open_nodes(net) as nodes:
            await trio.sleep(5.0)
            ours = await nodes.alice.connect(nodes.bob.address, plugin="direct_connect")
            theirs = await nodes.bob.listener.accept()
            async with ours, theirs:
                await trio.sleep(1.0)
                known = nodes.bob._runtime.book.heard(nodes.alice.address.public_key)
                assert known == nodes.alice.address
                path = await theirs.migrate(("punch",))
                assert path.phase == "punch"
                await ours.send_all(b"hello")
                assert await theirs.receive_some() == b"hello"
                await trio.sleep(1.0)
                assert ours.path.phase == "punch"

    simulate(main, seed=0)


@pytest.mark.slow("a few seconds of talk for each checkpoint, and for one of 149 steps of any task")
@pytest.mark.parametrize("steps", [cuts(), step_cuts(stride=149)], ids=["own", "any"])
def test_migrate_can_be_cancelled_at_any_moment(steps: Iterator[AnyCut]) -> None:
    """Law 17: the Pipe goes on as if `migrate` had not been called, and another search finds the better path."""
    cancelled = 0

    async def main(each: AnyCut) -> None:
        nonlocal cancelled
        async with talking() as both:
            both.closed.open()
            with each:
                await both.ours.migrate()
            cancelled += each.caught
            await trio.sleep(1.0)
            both.check(trio.current_time() - 1.0, silence=0.02 + 2 * RTT)
            if both.ours.path.phase == "punch":
                assert (await both.ours.migrate()).phase == "direct"
            assert len(both.ours._link.protocol.lanes) <= MAX_LANES  # type: ignore[attr-defined]

    for each in steps:
        simulate(partial(main, each), seed=0)
    assert cancelled > 2


@pytest.mark.slow("some seconds of talk")
def test_migrate_takes_what_the_named_phases_find_though_it_is_no_better() -> None:
    async def main() -> None:
        async with talking() as both:
            both.closed.open()
            assert (await both.ours.migrate()).phase == "direct"
            assert (await both.ours.migrate(("punch",))).phase == "punch"
            await trio.sleep(1.0)
            assert both.theirs.path.phase == "punch"

    simulate(main, seed=0)


@pytest.mark.slow("half a minute of talk")
def test_what_the_call_did_not_allow_is_never_searched() -> None:
    async def main() -> None:
        async with talking(phases=("punch",)) as both:
            both.closed.open()
            for phases in (None, ("direct",)):
                with pytest.raises(ConnectError):
                    await both.ours.migrate(phases)
            with pytest.raises(ValueError, match="no phase 'carrier pigeon'"):
                await both.ours.migrate(("carrier pigeon",))
            assert await changes_within(both.ours, 30.0) is None

    simulate(main, seed=0)
