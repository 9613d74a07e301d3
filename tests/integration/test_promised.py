"""A commit that the peer has promised to accept: the Pipe is there at once, and does all that any Pipe does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.links import LASTING, LINK_ID, End, a_path, proven_links
from tests.links import carrier_kind as carrier_kind
from warpgate_trio.errors import PeerRefused
from warpgate_trio.link import EARLY_DATA_LIMIT, Link, RefuseReason
from warpgate_trio.link.states import LinkState

GOODBYE: Final = 0.05
"""Seconds for a goodbye: in some tests one end stays open."""
pytestmark = pytest.mark.usefixtures("carrier_kind")


@asynccontextmanager
async def promised(
    early_data: bytes = b"", *, patience: float = HANG
) -> AsyncGenerator[tuple[End, Link, trio.Nursery]]:
    """Alice's end, driven but not accepted yet, Bob's proven Link, and a nursery that lives until both have ended."""
    with trio.fail_after(HANG):
        alice, bob = await proven_links()
        pipe = await alice.commit(
            epoch=1, link_id=LINK_ID, early_data=early_data, patience=patience, terms=LASTING, promised=True
        )
        alice.path = a_path(alice.carrier)
        end = End(alice, pipe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.drive, GOODBYE)
            try:
                yield end, bob, nursery
            finally:
                alice.end_nowait()
                bob.end_nowait()
                if bob.protocol.state is not LinkState.OPEN:  # nobody drives it
                    bob.close_nowait()


async def accept(bob: Link, nursery: trio.Nursery) -> End:
    await bob.receive_commit()
    pipe = bob.accept(LASTING)
    bob.path = a_path(bob.carrier)
    end = End(bob, pipe)
    nursery.start_soon(end.drive, GOODBYE)
    return end


async def test_what_is_said_before_the_accept_comes_with_the_pipe() -> None:
    async with promised(b"early ") as (alice, bob, nursery):
        await alice.pipe.send_all(b"and more")
        theirs = await accept(bob, nursery)
        got = b""
        while len(got) < len(b"early and more"):
            got += await theirs.pipe.receive_some()
        assert got == b"early and more"
        await theirs.pipe.send_all(b"answer")
        assert await alice.pipe.receive_some() == b"answer"
        assert alice.link.movable


async def test_before_the_accept_there_is_credit_for_early_data_alone() -> None:
    async with promised() as (alice, bob, nursery):
        size = 3 * EARLY_DATA_LIMIT
        nursery.start_soon(alice.pipe.send_all, bytes(size))
        await bob.receive_commit()
        await trio.testing.wait_all_tasks_blocked(0.002)
        assert 0 < alice.pipe._channel.sent <= EARLY_DATA_LIMIT  # less if a busy sender's chunks are small
        theirs = await accept(bob, nursery)
        got = 0
        while got < size:
            got += len(await theirs.pipe.receive_some())
        assert got == size


@pytest.mark.parametrize("how", ["aclose", "send_eof"])
async def test_a_pipe_that_ends_before_the_accept_ends_whole(how: str) -> None:
    async with promised(b"all of it") as (alice, bob, nursery):
        await getattr(alice.pipe, how)()
        await trio.testing.wait_all_tasks_blocked(0.002)
        theirs = await accept(bob, nursery)
        assert await theirs.pipe.receive_some() == b"all of it"
        assert await theirs.pipe.receive_some() == b""
        await theirs.pipe.aclose()
        if how == "aclose":
            await theirs.ended.wait()


async def test_an_abort_before_the_accept_is_one() -> None:
    async with promised(b"half of it") as (alice, bob, nursery):
        alice.pipe.abort()
        theirs = await accept(bob, nursery)
        with pytest.raises(trio.BrokenResourceError):
            while await theirs.pipe.receive_some():
                pass


@pytest.mark.parametrize("what", ["ping", "open_pipe", "send_all"])
async def test_a_call_waits_for_the_accept(what: str) -> None:
    async with promised() as (alice, bob, nursery):
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "ping": alice.pipe.ping,
            "open_pipe": alice.pipe.open_pipe,
            "send_all": partial(alice.pipe.send_all, bytes(EARLY_DATA_LIMIT + 1)),
        }
        done = trio.Event()

        async def call() -> None:
            await calls[what]()
            done.set()

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked(0.002)
        assert not done.is_set()
        await accept(bob, nursery)
        await done.wait()


async def test_a_broken_promise_breaks_the_pipe_with_its_reason() -> None:
    async with promised() as (alice, bob, nursery):
        await bob.receive_commit()
        nursery.start_soon(bob.refuse, RefuseReason.BUSY)
        with pytest.raises(trio.BrokenResourceError, match="busy") as broken:
            await alice.pipe.receive_some()
        assert isinstance(broken.value.__cause__, PeerRefused)
        await alice.ended.wait()


async def test_a_promise_that_is_forgotten_breaks_the_pipe() -> None:
    async with promised(patience=0.05) as (alice, _bob, _nursery):
        with pytest.raises(trio.BrokenResourceError, match="did not accept within"):
            await alice.pipe.receive_some()
        await alice.ended.wait()


async def test_a_peer_that_goes_away_before_it_accepts_breaks_the_pipe() -> None:
    async with promised() as (alice, bob, _nursery):
        bob.close_nowait()
        with pytest.raises(trio.BrokenResourceError):
            await alice.pipe.receive_some()
        await alice.ended.wait()
