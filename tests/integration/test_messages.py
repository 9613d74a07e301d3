"""`Pipe.messages` on real sockets: the promises of a message channel over a Pipe."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.links import carrier_kind, linked
from warpgate_trio.errors import PeerAborted
from warpgate_trio.messages import DEFAULT_MAX_SIZE, MessageChannel

__all__ = ["carrier_kind"]
pytestmark = pytest.mark.usefixtures("carrier_kind")


@pytest.mark.slow("megabytes, over QUIC too")
async def test_messages_both_ways() -> None:
    sent = [b"", b"hello", bytes(100_000), b"x" * DEFAULT_MAX_SIZE, b""]
    with trio.fail_after(HANG):
        async with linked() as (alice, bob), trio.open_nursery() as nursery:
            ours, theirs = alice.pipe.messages(), bob.pipe.messages()

            async def send(channel: MessageChannel) -> None:
                for each in sent:
                    await channel.send(each)
                await channel.send_eof()

            nursery.start_soon(send, ours)
            nursery.start_soon(send, theirs)
            for channel in (ours, theirs):
                assert [message async for message in channel] == sent


async def clog(channel: MessageChannel, leave: int) -> None:
    """Uses up the Pipe's credit with a whole message, except for `leave` bytes."""
    credit = channel.stream._channel.sendable - leave  # type: ignore[attr-defined]
    await channel.send(bytes(credit - 4))


@pytest.mark.slow("a window that is used up, over QUIC too")
@pytest.mark.parametrize(("leave", "breaks"), [(0, False), (1, True), (5, True)])
async def test_a_send_that_is_cancelled_breaks_the_channel_only_in_the_middle(leave: int, breaks: bool) -> None:
    with trio.fail_after(HANG):
        async with linked() as (alice, bob):
            ours, theirs = alice.pipe.messages(max_size=1 << 22), bob.pipe.messages(max_size=1 << 22)
            await clog(ours, leave)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send, b"hello")
                await trio.testing.wait_all_tasks_blocked(0.005)
                nursery.cancel_scope.cancel()
            await theirs.receive()
            if breaks:
                with pytest.raises(trio.BrokenResourceError, match="an earlier send was cancelled within a message"):
                    await ours.send(b"x")
                await theirs.send(b"the other way is open")
                assert await ours.receive() == b"the other way is open"
                await ours.aclose()
                with pytest.raises(trio.BrokenResourceError, match="the stream ended within "):
                    await theirs.receive()
            else:
                await ours.send(b"then")
                assert await theirs.receive() == b"then"


async def test_an_exception_in_its_block_aborts_the_pipe() -> None:
    async with linked() as (alice, bob):
        with pytest.raises(KeyError):
            async with alice.pipe.messages() as ours:
                await ours.send(b"said")
                raise KeyError
        async with bob.pipe.messages() as theirs:
            assert await theirs.receive() == b"said"
            with pytest.raises(trio.BrokenResourceError, match="the peer aborted it") as caught:
                await theirs.receive()
            assert isinstance(caught.value.__cause__, PeerAborted)


async def test_a_block_that_ends_well_is_the_end() -> None:
    async with linked() as (alice, bob):
        async with alice.pipe.messages() as ours:
            await ours.send(b"said")
        theirs = bob.pipe.messages()
        assert [message async for message in theirs] == [b"said"]
        with pytest.raises(trio.BrokenResourceError, match="the peer closed its end"):
            await theirs.send(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await alice.pipe.send_all(b"x")


async def test_a_forceful_close_is_no_end() -> None:
    async with linked() as (alice, bob):
        await trio.aclose_forcefully(alice.pipe.messages())
        with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
            await bob.pipe.messages().receive()


async def test_a_peer_that_announces_too_much() -> None:
    async with linked() as (alice, bob):
        await alice.pipe.send_all(b"\xff\xff\xff\xff")
        theirs = bob.pipe.messages(max_size=1000)
        for call in (theirs.receive, partial(theirs.send, b"x")):
            with pytest.raises(trio.BrokenResourceError, match=r"a message of 4294967295 bytes; max_size is 1000"):
                await call()


async def test_a_bound_that_is_none() -> None:
    async with linked() as (alice, _bob):
        with pytest.raises(ValueError, match="max_size is 0"):
            alice.pipe.messages(max_size=0)
