"""A Link whose last Pipe is closed lives until the peer has all data: on real sockets, with both kinds of carrier."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.integration.test_lanes import attach, cut, lasting, numbered, receive_numbered, suspect
from tests.links import End, carrier_kind, is_closed
from tests.waiting import wait_until
from warpgate_trio import PathState
from warpgate_trio.errors import PeerAborted
from warpgate_trio.link.pace import CHUNK_MAX
from warpgate_trio.link.states import LinkState

__all__ = ["carrier_kind"]

pytestmark = pytest.mark.usefixtures("carrier_kind")

SIZE = 5_000
"""Bytes that any carrier takes at once, even if the peer reads nothing."""


def deafen(end: End) -> None:
    """Makes an end receive nothing more from its carrier: a hole, which neither side notices at once."""
    first = end.link._first
    first.carrier.receive = trio.sleep_forever  # type: ignore[method-assign]

    async def deaf() -> None:
        await trio.sleep_forever()

    first.pump = deaf  # type: ignore[method-assign]


async def suspended(*ends: End) -> None:
    await wait_until(lambda: all(end.link.live_path().state is PathState.SUSPENDED for end in ends))


async def deaf(bob: End, alice: End) -> None:
    """Makes Bob deaf at once, even if a read is under way; Alice's carrier still takes what she sends."""
    alice.link._first.protocol.pace.size = CHUNK_MAX
    alice.link.carrier.limit_unsent(CHUNK_MAX)
    deafen(bob)
    await alice.pipe.send_all(b"!")  # completes the read that was under way
    assert await bob.pipe.receive_some() == b"!"


@pytest.mark.parametrize("by_bob", [False, True])
@pytest.mark.parametrize("found", ["in time", "late"])
async def test_a_pipe_that_is_closed_in_a_hole_still_delivers_over_the_next_path(by_bob: bool, found: str) -> None:
    async with lasting() as (alice, bob):
        await deaf(bob, alice)
        await alice.pipe.send_all(numbered(SIZE))
        await alice.pipe.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert alice.link.protocol.state is LinkState.CLOSING
        if found == "late":
            cut(alice)
            cut(bob)
            await suspended(alice, bob)
        else:
            suspect(alice.link._first.protocol.life)
        await attach(alice, bob, by_bob=by_bob)
        with trio.fail_after(HANG):
            await receive_numbered(bob, SIZE)
            await alice.ended.wait()
            await bob.ended.wait()


@pytest.mark.parametrize("how", ["aclose", "abort"])
async def test_a_pipe_that_is_closed_without_a_path_is_ended_at_the_peer_once_there_is_one(how: str) -> None:
    async with lasting() as (alice, bob):
        cut(alice)
        await suspended(alice, bob)
        if how == "aclose":
            await alice.pipe.aclose()
        else:
            alice.pipe.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert not alice.ended.is_set()
        await attach(alice, bob)
        with trio.fail_after(HANG):
            if how == "aclose":
                assert await bob.pipe.receive_some() == b""
            else:
                with pytest.raises(trio.BrokenResourceError) as broken:
                    await bob.pipe.receive_some()
                assert isinstance(broken.value.__cause__, PeerAborted)
            await alice.ended.wait()
            await bob.ended.wait()


async def test_a_close_over_a_path_that_is_well_ends_both_sides_at_once() -> None:
    """The goodbye is acknowledged, and neither side waits any longer."""
    async with lasting(goodbye=1000.0, limit=HANG) as (alice, bob):
        await alice.pipe.send_all(numbered(SIZE))
        await alice.pipe.aclose()
        await receive_numbered(bob, SIZE)
        await alice.ended.wait()
        await bob.ended.wait()
        assert is_closed(alice.link)
        assert is_closed(bob.link)


async def test_both_sides_close_at_once() -> None:
    async with lasting(goodbye=1000.0, limit=HANG) as (alice, bob):
        await alice.pipe.send_all(b"whom does it concern")
        alice.pipe.close_nowait()
        bob.pipe.close_nowait()
        await alice.ended.wait()
        await bob.ended.wait()


async def test_where_no_path_comes_the_goodbye_ends_with_the_time_for_one(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with lasting(limit=1000) as (alice, bob):
        await deaf(bob, alice)
        started = trio.current_time()
        await alice.pipe.send_all(numbered(SIZE))
        await alice.pipe.aclose()
        cut(alice)
        cut(bob)
        with pytest.raises(trio.BrokenResourceError, match="no usable path for 120 s"):
            await bob.pipe.receive_some()
        await alice.ended.wait()
        assert trio.current_time() - started == pytest.approx(120, abs=1)


async def test_a_peer_that_never_acknowledges_is_told_goodbye_for_no_longer_than_that(
    jumping_clock: trio.testing.MockClock,
) -> None:
    """The bound holds even if the path is well."""
    async with lasting(limit=1000) as (alice, bob):
        bob.link.protocol._take_items = lambda *_: None  # type: ignore[method-assign]
        started = trio.current_time()
        await alice.pipe.aclose()
        await alice.ended.wait()
        assert trio.current_time() - started == pytest.approx(120, abs=1)


async def test_once_its_node_is_left_a_link_says_goodbye_for_that_time_only(
    jumping_clock: trio.testing.MockClock,
) -> None:
    async with lasting(limit=1000, goodbye=2.0) as (alice, bob):
        cut(alice)
        await suspended(alice, bob)
        await alice.pipe.aclose()
        await trio.sleep(10)
        assert not alice.ended.is_set()
        left = trio.current_time()
        alice.link.end_nowait()
        await alice.ended.wait()
        assert trio.current_time() - left == pytest.approx(2.0, abs=0.1)


async def test_what_was_closed_opens_no_more(nursery: trio.Nursery) -> None:
    """A Pipe that the peer opens during the close breaks."""
    async with lasting() as (alice, bob):
        await deaf(bob, alice)
        await alice.pipe.aclose()
        broken: list[BaseException] = []

        async def open_one() -> None:
            try:
                await bob.pipe.open_pipe()
            except trio.BrokenResourceError as error:
                broken.append(error)

        nursery.start_soon(open_one)
        await trio.testing.wait_all_tasks_blocked()
        suspect(alice.link._first.protocol.life)
        await attach(alice, bob)
        with trio.fail_after(HANG):
            await alice.ended.wait()
            await bob.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert len(broken) == 1
        assert not alice.opened


async def test_a_goodbye_that_was_heard_and_not_acknowledged_ends_where_the_peer_knows_nothing_of_it() -> None:
    """The peer has ended the Link, and says so when this side searches for a path."""
    async with lasting() as (alice, bob):
        await deaf(bob, alice)
        await alice.pipe.aclose()
        bob.link._fail(trio.BrokenResourceError("it is over here"))
        cut(alice)
        await suspended(alice)
        alice.link.forget_nowait()
        with trio.fail_after(HANG):
            await alice.ended.wait()
