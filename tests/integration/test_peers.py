"""`Node.peers`: what a node reports about the peers to which it has Links."""

from __future__ import annotations

import dataclasses

import pytest
import trio

from tests.identities import ALICE, BOB
from tests.links import link_of
from tests.nodes import pair, pipes
from tests.waiting import wait_until
from warpgate_trio import PathState
from warpgate_trio.link.life import Life

pytestmark = pytest.mark.usefixtures("jumping_clock")


async def test_both_sides_tell_of_their_link() -> None:
    async with pair() as both:
        assert both.alice.peers() == both.bob.peers() == ()
        before = trio.current_time()
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            theirs = await both.bob.listener.accept()
            (ours,), (at_bob,) = both.alice.peers(), both.bob.peers()
            assert (ours.peer_id, at_bob.peer_id) == (BOB.peer_id, ALICE.peer_id)
            assert (ours.called, at_bob.called) == (True, False)
            assert (ours.pipes, ours.sent, ours.received) == (1, 0, 0)
            assert ours.path.same_as(pipe.path)
            assert (ours.state, ours.relayed) == (PathState.LIVE, False)
            assert ours.rtt == ours.path.rtt
            assert before <= ours.since <= trio.current_time()
            assert ours.path_since == ours.since
            with pytest.raises(dataclasses.FrozenInstanceError):
                ours.pipes = 7  # type: ignore[misc]
            await theirs.aclose()
        await wait_until(lambda: not both.bob.peers())
        assert both.alice.peers() == ()
        assert ours.pipes == 1  # it was a snapshot


async def test_bytes_are_of_all_pipes_and_of_those_that_are_closed_too() -> None:
    async with pipes() as (ours, theirs, both):
        further = await ours.open_pipe()
        there = await both.bob.listener.accept()
        await ours.send_all(bytes(1000))
        await further.send_all(bytes(200))
        await there.send_all(bytes(30))
        for pipe, size in ((theirs, 1000), (there, 200), (further, 30)):
            while size:
                size -= len(await pipe.receive_some(size))
        (status,) = both.alice.peers()
        assert (status.pipes, status.sent, status.received) == (2, 1200, 30)
        await further.aclose()
        assert both.alice.peers()[0].pipes == 1
        await wait_until(lambda: both.bob.peers()[0].pipes == 2)  # Bob has not closed his end
        with pytest.raises(trio.BrokenResourceError):
            await there.send_all(b"x")
        assert both.bob.peers()[0].pipes == 2
        await there.aclose()
        (status,) = both.alice.peers()
        assert (status.pipes, status.sent, status.received) == (1, 1200, 30)
        (status,) = both.bob.peers()
        assert (status.pipes, status.sent, status.received) == (1, 30, 1200)


async def test_early_data_counts() -> None:
    async with pair() as both, await both.alice.auto_connect(both.bob.address, early_data=b"early") as pipe:
        theirs = await both.bob.listener.accept()
        assert await theirs.receive_some() == b"early"
        await pipe.ping()
        assert (both.alice.peers()[0].sent, both.bob.peers()[0].received) == (5, 5)


async def test_a_link_without_a_pipe_or_a_path_yet_is_none() -> None:
    async with pipes() as (ours, _theirs, both):
        (channel,), link = link_of(ours).protocol.channels.values(), link_of(ours)
        channel.accepted = False
        assert both.alice.peers() == ()
        channel.accepted = True
        assert len(both.alice.peers()) == 1
        link.path = None
        assert both.alice.peers() == ()


async def test_the_oldest_link_is_the_first() -> None:
    async with pipes() as (ours, _theirs, both):
        await trio.sleep(5)
        async with await both.alice.auto_connect(both.bob.address):
            first, second = both.alice.peers()
            assert second.since - first.since >= 5
            assert first.path.remote == ours.path.remote


async def test_a_path_that_is_suspected_or_gone() -> None:
    async with pipes() as (ours, _theirs, both):
        await trio.testing.wait_all_tasks_blocked()
        began = both.alice.peers()[0].since
        await trio.sleep(5)
        link = link_of(ours)
        link.protocol.life.life = Life.SUSPECT
        assert both.alice.peers()[0].state is PathState.SUSPECT
        link.hint()  # makes the Link take note of the new state
        (status,) = both.alice.peers()
        assert status.path_since >= began + 5
        assert status.since == began
        await ours.ping()
        assert both.alice.peers()[0].state is PathState.LIVE
        link.carrier.close_nowait()
        known = both.alice.peers()[0].path
        assert (await ours.wait_path_change(known)).state is PathState.SUSPENDED
        (status,) = both.alice.peers()
        assert status.state is PathState.SUSPENDED
        assert status.path.plugin == known.plugin  # the path that was used last
