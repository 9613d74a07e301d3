"""Peers that misuse the frames by which a Link changes carriers, and peers that do not belong together.

All tests use real sockets on loopback.
"""

from __future__ import annotations

from math import inf
from typing import Final

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.integration.test_lanes import attach, cut, lasting, suspect
from tests.links import LASTING, End, RawPeer, a_path, is_closed, link_of, linked, proven_links, raw_end
from tests.nodes import config, loopback_node, pipes
from tests.waiting import wait_until
from warpgate_trio import Node, PathState, Pipe, anyone
from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.link import Link
from warpgate_trio.link.ahead import AHEAD_FRAMES
from warpgate_trio.link.frame_codec import data_header, encode
from warpgate_trio.link.frames import Ack, At, Attach, Credit, Ping
from warpgate_trio.link.life import DEATH, Life
from warpgate_trio.link.states import LinkState
from warpgate_trio.servers.rendezvous import open_rendezvous

pytestmark = pytest.mark.usefixtures("jumping_clock")


async def test_a_peer_that_keeps_a_dead_path_busy_is_waited_for_no_longer_than_one_that_is_gone(
    nursery: trio.Nursery,
) -> None:
    """The peer sends something now and then, but neither answers nor acknowledges: that is no progress."""

    async def mutter(peer: RawPeer) -> None:
        while True:
            await trio.sleep(5.0)  # the pace of a live peer
            await peer.say(Ping(token=1))

    async with (
        raw_end(nursery, terms=LASTING, ours=LASTING, limit=1000.0) as (end, peer),
        trio.open_nursery() as muttering,
    ):
        muttering.start_soon(mutter, peer)
        started = trio.current_time()
        await end.pipe.send_all(b"is anybody there?")
        with pytest.raises(
            trio.BrokenResourceError, match="no usable path for 120 s: the peer has acknowledged nothing"
        ):
            await end.pipe.receive_some()
        assert trio.current_time() - started == pytest.approx(120 + DEATH, abs=6.0)
        muttering.cancel_scope.cancel()


async def test_a_path_that_progresses_again_has_all_that_time_again() -> None:
    async with lasting(limit=1000) as (alice, bob):
        link, life = alice.link, alice.link._first.protocol.life
        for _ in range(2):
            life.life = Life.SUSPECT
            link._settle()
            assert link._patience.deadline == trio.current_time() + DEATH + 120
            await trio.sleep(10.0)
            link._settle()
            assert link._patience.deadline == trio.current_time() + DEATH + 110
            life.life = Life.WELL
            link._settle()
            assert link._patience.deadline == inf
        suspect(life)
        link._settle()
        await attach(alice, bob)
        assert link._patience.deadline == inf


# --- frames that contradict what has been sent ---


async def test_a_peer_that_goes_on_beyond_what_has_come(nursery: trio.Nursery) -> None:
    """The gap can never be filled, since no other carrier exists."""
    async with raw_end(nursery, terms=LASTING, ours=LASTING) as (end, peer):
        await peer.say(At(position=1, turn=1), data_header(0, 3), b"abc")
        await peer.say(At(position=0, turn=1), data_header(0, 3), b"def")
        assert await end.pipe.receive_some() == b"def"
        await peer.say(At(position=4, turn=1))
        for _ in range(AHEAD_FRAMES + 1):
            await peer.say(data_header(0, 1), b"x")
        with pytest.raises(trio.BrokenResourceError, match="the peer sends too much on a new path"):
            await end.pipe.receive_some()


async def test_a_peer_that_goes_back_and_says_it_all_again(nursery: trio.Nursery) -> None:
    """Repeated data, an old acknowledgement and an old turn are ignored."""
    async with raw_end(nursery, terms=LASTING, ours=LASTING) as (end, peer):
        await end.pipe.send_all(b"12345")
        await peer.say(At(position=0, turn=7), data_header(0, 3), b"abc", Ack(position=5))
        assert await end.pipe.receive_some() == b"abc"
        await peer.say(Ack(position=2), At(position=0, turn=3), data_header(0, 4), b"abcd")
        assert await end.pipe.receive_some() == b"d"
        outgoing = end.link.protocol.outgoing
        assert outgoing is not None
        assert outgoing.acknowledged >= 5
        assert end.link.protocol.lanes.turn == 7


NONSENSE: Final = Credit(channel=9999, limit=1)
"""Credit for a channel that never existed."""


async def further_carrier() -> tuple[Link, Link]:
    """Both proven ends of one more carrier from Alice to Bob, for an existing Link."""
    alice, bob = await proven_links()
    alice.path, bob.path = a_path(alice.carrier), a_path(bob.carrier)
    return alice, bob


def assert_broken(end: End) -> None:
    """Checks that the Link has ended.  Comes first in a test: a call on a carrier without a driver never returns."""
    assert end.link.protocol.state is LinkState.ENDED
    assert is_closed(end.link)


async def test_nonsense_behind_an_attach_ends_the_link_that_has_taken_it() -> None:
    async with lasting() as (alice, bob):
        ours, theirs = await further_carrier()
        lane = ours._first.protocol
        alice.link.protocol.attach(
            lane, session_id=ours.session_id, server_key=ours.carrier.server_key, now=trio.current_time()
        )
        lane.outbox += [encode(At(position=0, turn=alice.link.protocol.lanes.turn + 1)), encode(NONSENSE)]
        await ours._first.flush()
        await theirs.receive_choice()
        with pytest.raises(RemoteProtocolError, match="channel 9999"):
            theirs.accept_attach(bob.link)
        assert_broken(bob)
        with pytest.raises(trio.BrokenResourceError, match="channel 9999"):
            await bob.pipe.send_all(b"x")
        ours.close_nowait()
        theirs.close_nowait()


async def test_nonsense_behind_the_answer_to_an_attach_ends_the_link_too() -> None:
    async with lasting() as (alice, bob):
        ours, theirs = await further_carrier()

        async def answer() -> None:
            attach = await theirs.receive_choice()
            assert isinstance(attach, Attach)
            theirs.carrier.feed(
                encode(
                    bob.link.protocol._proof.attached(
                        lane=attach.lane,
                        received=0,
                        turn=0,
                        session_id=ours.session_id,
                        server_key=ours.carrier.server_key,
                    )
                ),
                encode(At(position=0, turn=alice.link.protocol.lanes.turn + 1)),
                encode(NONSENSE),
            )
            await theirs.carrier.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(RemoteProtocolError, match="channel 9999"):
                await ours.attach(alice.link, patience=HANG)
        assert_broken(alice)
        with pytest.raises(trio.BrokenResourceError, match="channel 9999"):
            await alice.pipe.send_all(b"x")
        theirs.close_nowait()


# --- a process that has the key, but did not make the Link ---


async def a_pipe(node: Node, bob: Node) -> tuple[Pipe, Pipe]:
    ours = await node.auto_connect(bob.address)
    theirs = await bob.listener.accept()
    await ours.ping()
    await theirs.ping()
    return ours, theirs


@pytest.mark.slow("three nodes")
async def test_two_processes_with_one_key_leave_each_others_links_alone() -> None:
    """A Link that has a path stays, even after a search that found the other process."""
    async with open_rendezvous() as server, loopback_node(BOB, config(server), authorize=anyone) as bob:
        async with loopback_node(ALICE, config(server)) as first, loopback_node(ALICE, config(server)) as second:
            pairs = [await a_pipe(node, bob) for node in (first, second, first)]
            for ours, theirs in pairs:
                await ours.send_all(b"still")
                assert await theirs.receive_some() == b"still"
            link_of(pairs[0][1]).forget_nowait()  # as such a search does
            await pairs[0][1].ping()


@pytest.mark.slow("three nodes")
async def test_a_link_that_waits_for_a_path_goes_where_its_peer_calls_from_another_process() -> None:
    """A process that does not know the Link refuses the attach and counts that; the waiting Link ends."""
    async with pipes() as (ours, theirs, both):
        await theirs.ping()
        link = link_of(theirs)
        link._fail(trio.BrokenResourceError("it was another process that had it"))
        with pytest.raises(trio.BrokenResourceError, match="no longer has this link"):
            with trio.fail_after(HANG):
                await ours.receive_some()
        assert both.bob.stats().refused["unknown_link"] >= 1


@pytest.mark.slow("two nodes and three Links")
async def test_nothing_of_a_link_that_the_peer_has_forgotten_reaches_the_next_one() -> None:
    """Law 16; the peer forgets the Link as in a restart."""
    async with pipes() as (ours, theirs, both):
        await theirs.ping()
        link_of(theirs)._fail(trio.BrokenResourceError("restarted"))
        with pytest.raises(trio.BrokenResourceError, match="no longer has this link"):
            with trio.fail_after(HANG):
                while True:
                    await ours.send_all(b"of the old one")
                    await trio.sleep(0.1)
        ours, theirs = await a_pipe(both.alice, both.bob)
        await ours.send_all(b"of the new one")
        assert await theirs.receive_some() == b"of the new one"


# --- how long a Link waits ---


@pytest.mark.parametrize(("ours", "theirs"), [(3600, 3600), (3600, 7), (7, 3600)])
async def test_each_side_keeps_a_link_for_the_lesser_of_what_both_offer(ours: int, theirs: int) -> None:
    async with linked(
        terms=replace(LASTING, resume_timeout=ours), others=replace(LASTING, resume_timeout=theirs), limit=5000
    ) as (alice, bob):
        await wait_until(lambda: bob.link.protocol.movable)
        cut(alice)
        started = trio.current_time()
        for end in (alice, bob):
            with pytest.raises(trio.BrokenResourceError, match=f"no usable path for {min(ours, theirs)} s"):
                await end.pipe.receive_some()
        assert trio.current_time() - started == pytest.approx(min(ours, theirs), abs=1)


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_each_side_ends_in_time_whenever_it_finds_out_that_there_is_no_path(who: str) -> None:
    """Law 14: one side still receives and learns of it, the other has to find out by itself."""
    async with lasting(limit=1000) as (alice, bob), trio.open_nursery() as nursery:
        hears, finds_out = (alice, bob) if who == "alice" else (bob, alice)
        finds_out.link.carrier.receive = trio.sleep_forever  # type: ignore[method-assign]
        await hears.pipe.send_all(b"the last thing that arrives")
        await finds_out.pipe.receive_some()

        async def end(end: End) -> None:
            path = await end.pipe.wait_path_change()
            assert path.state is not PathState.LIVE
            noticed = trio.current_time()
            with pytest.raises(trio.BrokenResourceError, match="no usable path for 120 s: "):
                await end.pipe.receive_some()
            assert trio.current_time() - noticed <= 120 + DEATH

        nursery.start_soon(end, hears)
        nursery.start_soon(end, finds_out)
        await trio.testing.wait_all_tasks_blocked()
        cut(hears)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 120), (120, 0)])
async def test_a_link_of_which_one_side_keeps_nothing_ends_with_its_path(ours: int, theirs: int) -> None:
    async with linked(terms=replace(LASTING, resume_timeout=ours), others=replace(LASTING, resume_timeout=theirs)) as (
        alice,
        bob,
    ):
        await alice.pipe.ping()
        await bob.pipe.ping()
        cut(alice)
        for end in (alice, bob):
            with pytest.raises(trio.BrokenResourceError):
                await end.pipe.receive_some()
            await end.ended.wait()
