"""`PipeByteStream` over a Pipe: anyio's contract for a byte stream, and anyio's own wrappers on top of it."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import pytest
import trio
import trio.testing
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.text import TextStream
from anyio.streams.tls import TLSAttribute, TLSStream

from tests.certificates import Authority
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.links import carrier_kind, linked
from warpgate_trio.anyio_stream import PipeAttribute, PipeByteStream
from warpgate_trio.errors import PeerAborted

__all__ = ["carrier_kind"]
pytestmark = pytest.mark.usefixtures("carrier_kind")


async def test_bytes_go_both_ways() -> None:
    async with linked() as (alice, bob):
        ours, theirs = PipeByteStream(alice.pipe), PipeByteStream(bob.pipe)
        await ours.send(b"hello")
        assert await theirs.receive() == b"hello"
        await theirs.send(b"back")
        assert await ours.receive(2) == b"ba"
        assert await ours.receive() == b"ck"


async def test_the_end_is_an_exception_and_ends_a_loop() -> None:
    async with linked() as (alice, bob):
        ours, theirs = PipeByteStream(alice.pipe), PipeByteStream(bob.pipe)
        await ours.send(b"all")
        for _ in range(2):
            await ours.send_eof()
        assert b"".join([chunk async for chunk in theirs]) == b"all"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await theirs.receive()
        await theirs.send(b"the other way is open")
        assert await ours.receive() == b"the other way is open"
        with pytest.raises(anyio.ClosedResourceError, match="send_eof was called"):
            await ours.send(b"x")


async def test_a_loop_gets_no_more_than_64_kib_at_once() -> None:
    async with linked() as (alice, bob):
        ours, theirs = PipeByteStream(alice.pipe), PipeByteStream(bob.pipe)
        await ours.send(bytes(200_000))
        await alice.pipe.ping()  # after this, all of it has arrived
        await ours.aclose()
        assert [len(chunk) async for chunk in theirs] == [65_536, 65_536, 65_536, 3_392]


@pytest.mark.parametrize("wrong", [0, -1])
async def test_max_bytes_is_positive(wrong: int) -> None:
    async with linked() as (alice, _):
        with pytest.raises(ValueError, match="max_bytes must be a positive integer"):
            await PipeByteStream(alice.pipe).receive(wrong)


async def test_after_a_close_here_every_call_says_so() -> None:
    async with linked() as (alice, _):
        stream = PipeByteStream(alice.pipe)
        await stream.aclose()
        for call in (stream.receive, partial(stream.send, b"x"), partial(stream.send, b""), stream.send_eof):
            with pytest.raises(anyio.ClosedResourceError, match="this pipe was closed"):
                await call()
        await stream.aclose()


async def test_a_close_wakes_who_waits() -> None:
    async with linked() as (alice, _), trio.open_nursery() as nursery:
        stream = PipeByteStream(alice.pipe)
        await alice.pipe.send_all(bytes(alice.pipe._channel.sendable))

        async def wait(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await call()

        nursery.start_soon(wait, stream.receive)
        nursery.start_soon(wait, partial(stream.send, b"x"))
        await trio.testing.wait_all_tasks_blocked(0.002)
        await stream.aclose()


async def test_a_peer_that_has_closed_breaks_sends() -> None:
    async with linked() as (alice, bob):
        await PipeByteStream(bob.pipe).aclose()
        ours = PipeByteStream(alice.pipe)
        with pytest.raises(anyio.EndOfStream):
            await ours.receive()
        with pytest.raises(anyio.BrokenResourceError, match="the peer closed its end"):
            await ours.send(b"x")


async def test_a_peer_that_aborts_is_no_end() -> None:
    async with linked() as (alice, bob):
        await anyio.aclose_forcefully(PipeByteStream(bob.pipe))
        ours = PipeByteStream(alice.pipe)
        with pytest.raises(anyio.BrokenResourceError, match="the peer aborted it") as caught:
            await ours.receive()
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
        assert isinstance(caught.value.__cause__.__cause__, PeerAborted)


async def test_a_block_that_an_exception_leaves_aborts() -> None:
    async with linked() as (alice, bob):
        with pytest.raises(KeyError):
            async with PipeByteStream(alice.pipe):
                raise KeyError
        with pytest.raises(anyio.BrokenResourceError, match="the peer aborted it"):
            await PipeByteStream(bob.pipe).receive()


async def test_a_block_that_ends_well_is_the_end() -> None:
    async with linked() as (alice, bob):
        async with PipeByteStream(alice.pipe) as ours:
            await ours.send(b"said")
        assert [chunk async for chunk in PipeByteStream(bob.pipe)] == [b"said"]


async def test_one_task_sends_and_one_receives() -> None:
    async with linked() as (alice, _), trio.open_nursery() as nursery:
        stream = PipeByteStream(alice.pipe)
        await alice.pipe.send_all(bytes(alice.pipe._channel.sendable))
        nursery.start_soon(stream.send, b"x")
        nursery.start_soon(stream.receive)
        await trio.testing.wait_all_tasks_blocked(0.002)
        with pytest.raises(anyio.BusyResourceError, match="already writing to"):
            await stream.send(b"y")
        with pytest.raises(anyio.BusyResourceError, match="already writing to"):
            await stream.send_eof()
        with pytest.raises(anyio.BusyResourceError, match="already reading from"):
            await stream.receive()
        nursery.cancel_scope.cancel()


async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async with linked() as (alice, bob):
        ours, theirs = PipeByteStream(alice.pipe), PipeByteStream(bob.pipe)
        with anyio.move_on_after(0.01):
            await theirs.receive()
        await ours.send(b"hello")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await theirs.receive()
        assert await theirs.receive() == b"hello"


async def test_what_it_knows(carrier_kind: str) -> None:
    async with linked() as (alice, bob):
        stream = PipeByteStream(alice.pipe)
        assert stream.extra(PipeAttribute.pipe) is alice.pipe
        assert stream.extra(PipeAttribute.peer_id) == BOB.peer_id
        assert PipeByteStream(bob.pipe).extra(PipeAttribute.peer_id) == ALICE.peer_id
        assert stream.extra(PipeAttribute.label) == ""
        assert stream.extra(PipeAttribute.path).carrier == carrier_kind
        assert stream.extra(SocketAttribute.family) == socket.AF_INET
        local, remote = alice.pipe.path.local, alice.pipe.path.remote
        assert (stream.extra(SocketAttribute.local_address), stream.extra(SocketAttribute.local_port)) == (
            local,
            local[1],
        )
        assert (stream.extra(SocketAttribute.remote_address), stream.extra(SocketAttribute.remote_port)) == (
            remote,
            remote[1],
        )
        with pytest.raises(anyio.TypedAttributeLookupError):
            stream.extra(SocketAttribute.raw_socket)
        assert repr(stream) == f"<PipeByteStream of {alice.pipe!r}>"


async def test_a_family_is_the_paths() -> None:
    async with linked() as (alice, _):
        path = alice.link.path
        assert path is not None
        alice.link.path = dataclasses.replace(path, af=6)
        assert PipeByteStream(alice.pipe).extra(SocketAttribute.family) == socket.AF_INET6


# -- anyio's own wrappers on top ---------------------------------------------------------------------------------------


async def test_buffered_and_text_streams() -> None:
    async with linked() as (alice, bob):
        ours = PipeByteStream(alice.pipe)
        buffered = BufferedByteReceiveStream(PipeByteStream(bob.pipe))
        await ours.send(b"one\r\ntwo\r\nthree")
        assert await buffered.receive_until(b"\r\n", 100) == b"one"
        assert await buffered.receive_exactly(5) == b"two\r\n"
        assert await buffered.receive() == b"three"
        assert buffered.extra(PipeAttribute.peer_id) == ALICE.peer_id
        await ours.send_eof()
        with pytest.raises(anyio.IncompleteRead):
            await buffered.receive_exactly(1)
        await TextStream(PipeByteStream(bob.pipe)).send("grüße")
        assert await TextStream(StapledByteStream(ours, ours)).receive() == "grüße"


@pytest.mark.slow("a certificate authority, and a handshake")
async def test_tls_inside_a_pipe(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async with linked() as (alice, bob):

        async def serve() -> None:
            tls = await TLSStream.wrap(
                PipeByteStream(bob.pipe), server_side=True, ssl_context=authority.server("a.example")
            )
            async with tls:
                await tls.send((await tls.receive()).upper())
                with pytest.raises(anyio.EndOfStream):
                    await tls.receive()

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                tls = await TLSStream.wrap(
                    PipeByteStream(alice.pipe), hostname="a.example", ssl_context=authority.client()
                )
                async with tls:
                    assert tls.extra(TLSAttribute.tls_version) == "TLSv1.3"
                    assert tls.extra(PipeAttribute.peer_id) == BOB.peer_id
                    await tls.send(b"secret")
                    assert await tls.receive() == b"SECRET"
