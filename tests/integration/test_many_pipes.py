"""Many Pipes over one Link: each is a stream of its own, none blocks another, and one walk serves all."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.nodes import echo, pair
from tests.waiting import wait_until
from warpgate_trio import Pipe

PIPES = 50


async def test_fifty_pipes_at_once() -> None:
    async with pair() as both, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [both.bob.listener])
        async with await both.alice.auto_connect(both.bob.address) as first:
            walks = dict(both.alice.stats().walks)

            async def one(number: int) -> None:
                data = random.Random(number).randbytes(65536)
                async with await first.open_pipe(f"number {number}") as pipe, trio.open_nursery() as both_ways:

                    async def send() -> None:
                        await pipe.send_all(data)
                        await pipe.send_eof()

                    both_ways.start_soon(send)
                    assert b"".join([piece async for piece in pipe]) == data

            async with trio.open_nursery() as ones:
                for number in range(PIPES):
                    ones.start_soon(one, number)
            assert both.alice.stats().walks == walks == {"connected": 1}
            assert both.alice.stats().links == both.bob.stats().links == 1
        nursery.cancel_scope.cancel()


async def test_a_stalled_pipe_stalls_no_other() -> None:
    """A Pipe whose reader sleeps takes up its window and no more; the others go on, in both directions."""
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as stalled:
        await both.bob.listener.accept()  # never read from
        async with trio.open_nursery() as nursery:

            async def clog() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await stalled.send_all(bytes(4 * 1024 * 1024))

            nursery.start_soon(clog)
            await trio.testing.wait_all_tasks_blocked(0.01)
            ours: list[Pipe] = [await stalled.open_pipe() for _ in range(3)]
            theirs: list[Pipe] = [await both.bob.listener.accept() for _ in range(3)]
            with trio.fail_after(HANG):
                for mine, other in zip(ours, theirs, strict=True):
                    await mine.send_all(bytes(1024 * 1024))  # one whole window
                    await other.send_all(b"and back")
                    received = 0
                    while received < 1024 * 1024:
                        received += len(await other.receive_some())
                    assert await mine.receive_some() == b"and back"
            for pipe in (*ours, *theirs):
                await pipe.aclose()
            await stalled.aclose()


async def test_pipes_of_one_link_end_one_by_one() -> None:
    async with pair() as both:
        first = await both.alice.auto_connect(both.bob.address)
        second = await first.open_pipe("second")
        theirs = [await both.bob.listener.accept(), await both.bob.listener.accept()]
        await first.aclose()
        assert await theirs[0].receive_some() == b""
        await second.send_all(b"still there")
        assert await theirs[1].receive_some() == b"still there"
        third = await second.open_pipe("third")
        await second.aclose()
        await third.aclose()  # the last one ends the Link
        await wait_until(lambda: not both.alice.stats().links and not both.bob.stats().links)
        for pipe in theirs:
            await pipe.aclose()
        await (await both.bob.listener.accept()).aclose()


async def test_ping_measures_and_proves_arrival() -> None:
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as ours:
        theirs = await both.bob.listener.accept()
        await ours.send_all(bytes(500_000))
        with trio.fail_after(HANG):
            assert await ours.ping() > 0
        assert theirs._channel.received == 500_000
        rtts: list[float] = []

        async def ping() -> None:
            rtts.append(await theirs.ping())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ping)
        assert len(rtts) == 5
        await theirs.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await theirs.ping()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(HANG):
            while True:
                await ours.ping()
