"""The Pipe laws hold for Trio's own streams, and each law catches a stream that was made to break it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trio.testing

from tests.certificates import Authority
from warpgate_trio.testing.pipe_laws import (
    check_cancelled_receive,
    check_cancelled_send,
    check_early_eof,
    check_max_bytes,
    check_pipe,
    check_send_copies,
)

LAWS = [check_cancelled_receive, check_cancelled_send, check_early_eof, check_max_bytes, check_send_copies]
CAPACITY = 4096


@asynccontextmanager
async def bounded(seconds: float = 5.0) -> AsyncGenerator[None]:
    """A deadline, since a broken stream may hang."""
    with trio.fail_after(seconds):
        yield


class Wire:
    """One direction: a bounded queue of bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = self.reader_gone = False
        self.changed = trio.lowlevel.ParkingLot()


class MemoryPipe(trio.abc.HalfCloseableStream):
    """A correct stream over two wires; most subclasses below break one law."""

    capacity: ClassVar[int] = CAPACITY

    def __init__(self, outgoing: Wire, incoming: Wire) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.closed = self.sent_eof = self.sending = self.receiving = False

    def check_send(self) -> None:
        if self.closed or self.sent_eof:
            raise trio.ClosedResourceError
        if self.outgoing.reader_gone:
            raise trio.BrokenResourceError

    def put(self, data: memoryview) -> int:
        size = max(0, min(self.capacity - len(self.outgoing.data), len(data)))
        self.outgoing.data += data[:size]
        self.outgoing.changed.unpark_all()
        return size

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.sending:
            raise trio.BusyResourceError
        self.sending = True
        try:
            self.check_send()
            await trio.lowlevel.checkpoint()
            view = memoryview(data)
            while view:
                self.check_send()
                if size := self.put(view):
                    view = view[size:]
                else:
                    await self.outgoing.changed.park()
            self.check_send()
        finally:
            self.sending = False

    async def wait_send_all_might_not_block(self) -> None:
        if self.sending:
            raise trio.BusyResourceError
        self.sending = True
        try:
            self.check_send()
            await trio.lowlevel.checkpoint()
            while len(self.outgoing.data) >= self.capacity:
                await self.outgoing.changed.park()
                self.check_send()
        finally:
            self.sending = False

    async def send_eof(self) -> None:
        if self.sending:
            raise trio.BusyResourceError
        if self.closed:
            raise trio.ClosedResourceError
        self.sent_eof = self.outgoing.ended = True
        self.outgoing.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def take(self, max_bytes: int | None) -> bytes:
        size = len(self.incoming.data) if max_bytes is None else max_bytes
        data = bytes(self.incoming.data[:size])
        del self.incoming.data[:size]
        self.incoming.changed.unpark_all()
        return data

    async def wait_data(self) -> bool:
        while not self.incoming.data:
            if self.closed:
                raise trio.ClosedResourceError
            if self.incoming.ended:
                return False
            await self.incoming.changed.park()
        return True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and not isinstance(max_bytes, int):
            raise TypeError
        if max_bytes is not None and max_bytes < 1:
            raise ValueError
        if self.receiving:
            raise trio.BusyResourceError
        self.receiving = True
        try:
            if self.closed:
                raise trio.ClosedResourceError
            await trio.lowlevel.checkpoint()
            return self.take(max_bytes) if await self.wait_data() else b""
        finally:
            self.receiving = False

    async def aclose(self) -> None:
        self.closed = self.outgoing.ended = self.incoming.reader_gone = True
        for wire in (self.outgoing, self.incoming):
            wire.changed.unpark_all()
        await trio.lowlevel.checkpoint()


class LosesWhatItTook(MemoryPipe):
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await super().receive_some(max_bytes)
        await trio.lowlevel.checkpoint()  # if it is cancelled here, the data is lost
        return data


class IgnoresMaxBytes(MemoryPipe):
    def take(self, max_bytes: int | None) -> bytes:
        return super().take(None)


class EndsWhenWoken(MemoryPipe):
    """Takes a wake-up without data for the end of the stream."""

    async def wait_data(self) -> bool:
        if not self.incoming.data and not self.incoming.ended:
            await self.incoming.changed.park()
        return bool(self.incoming.data)

    async def wait_send_all_might_not_block(self) -> None:
        await super().wait_send_all_might_not_block()
        self.outgoing.changed.unpark_all()


class EndsOnEmptySend(MemoryPipe):
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not data:
            self.outgoing.ended = True
            self.outgoing.changed.unpark_all()
        await super().send_all(data)


class GoesOnAfterTheEnd(MemoryPipe):
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await super().receive_some(max_bytes)
        if not data:
            self.incoming.data += b"surplus"
        return data


class StartsOverWhenCancelled(MemoryPipe):
    """Sends again what a cancelled call has sent already."""

    last = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        again, self.last = self.last, bytes(data)
        await super().send_all(again + self.last)
        self.last = b""


class DropsTheMiddle(MemoryPipe):
    """A cancelled call skips the part that did not fit into the wire, but still sends the last bytes."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await super().send_all(data)
        except trio.Cancelled:
            self.outgoing.data += bytes(data)[-3:]
            raise


class BreaksWhenCancelled(MemoryPipe):
    """Reports the break, as `trio.SSLStream` does, but is no Pipe."""

    torn = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.torn:
            raise trio.BrokenResourceError
        try:
            await super().send_all(data)
        except trio.Cancelled:
            self.torn = True
            raise


class ReceiverFindsItBroken(MemoryPipe):
    """Does not tell the sender that a cancelled call has broken the stream; only the receiver notices."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await super().send_all(data)
        except trio.Cancelled:
            self.outgoing.data += b"?"
            raise

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await super().receive_some(max_bytes)
        if b"?" in data:
            raise trio.BrokenResourceError
        return data


class BeginsWithJunk(MemoryPipe):
    def __init__(self, outgoing: Wire, incoming: Wire) -> None:
        super().__init__(outgoing, incoming)
        outgoing.data += b"junk"


class KeepsTheBuffer(MemoryPipe):
    kept: tuple[int, bytearray] | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.kept is not None:
            size, buffer = self.kept
            del self.outgoing.data[-size:]
            self.outgoing.data += buffer
        await super().send_all(data)
        self.kept = (len(data), data) if isinstance(data, bytearray) else None

    async def wait_data(self) -> bool:  # so the sender acts first
        while not self.incoming.ended:
            await self.incoming.changed.park()
        return bool(self.incoming.data)


MUTANTS: list[tuple[type[MemoryPipe], Callable[..., Awaitable[None]], str]] = [
    (LosesWhatItTook, check_cancelled_receive, "3000 bytes were sent and "),
    (IgnoresMaxBytes, check_max_bytes, r"receive_some\(1\) returned 200 bytes"),
    (EndsWhenWoken, check_early_eof, "with nothing sent and no end"),
    (EndsOnEmptySend, check_early_eof, r"after send_all\(b\"\"\)"),
    (GoesOnAfterTheEnd, check_early_eof, "behind the end of the stream"),
    (StartsOverWhenCancelled, check_cancelled_send, "garbled"),
    (DropsTheMiddle, check_cancelled_send, "garbled"),
    (ReceiverFindsItBroken, partial(check_cancelled_send, may_break=False), "a cancelled send_all broke the stream"),
    (BeginsWithJunk, check_cancelled_send, "garbled"),
    (KeepsTheBuffer, check_send_copies, "send_all kept a reference"),
]


def maker_of(kind: type[MemoryPipe], filled: int = 0) -> Callable[[], Awaitable[tuple[MemoryPipe, MemoryPipe]]]:
    async def make() -> tuple[MemoryPipe, MemoryPipe]:
        there, back = Wire(), Wire()
        there.data += bytes(filled)
        back.data += bytes(filled)
        return kind(there, back), kind(back, there)

    return make


async def socket_streams() -> tuple[trio.SocketStream, trio.SocketStream]:
    first, second = trio.socket.socketpair()
    return trio.SocketStream(first), trio.SocketStream(second)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", [0, 1])
async def test_laws_hold_on_socket_streams(law: Callable[..., Awaitable[None]], seed: int) -> None:
    async with bounded():
        if law in (check_cancelled_receive, check_cancelled_send):
            await law(socket_streams, seed=seed)
        else:
            await law(socket_streams)


@pytest.mark.parametrize("law", LAWS)
async def test_laws_hold_on_memory_streams(law: Callable[..., Awaitable[None]]) -> None:
    async def maker() -> tuple[trio.abc.SendStream, trio.abc.ReceiveStream]:
        return trio.testing.memory_stream_pair()

    async with bounded():
        await law(maker)


@pytest.mark.parametrize("law", [check_cancelled_receive, check_early_eof, check_max_bytes, check_send_copies])
async def test_laws_hold_on_one_way_streams(law: Callable[..., Awaitable[None]]) -> None:
    async def maker() -> tuple[trio.abc.SendStream, trio.abc.ReceiveStream]:
        return trio.testing.memory_stream_one_way_pair()

    async with bounded():
        await law(maker)


async def test_a_cancelled_send_may_break_trios_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def maker() -> tuple[trio.SSLStream[trio.SocketStream], trio.SSLStream[trio.SocketStream]]:
        first, second = await socket_streams()
        client = trio.SSLStream(first, authority.client(), server_hostname="localhost")
        server_context: ssl.SSLContext = authority.server("localhost")
        server = trio.SSLStream(second, server_context, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        return client, server

    async with bounded():
        await check_cancelled_send(maker)
        with pytest.raises(AssertionError, match="a cancelled send_all broke the stream"):
            await check_cancelled_send(maker, may_break=False)


async def test_check_pipe_passes_a_correct_stream() -> None:
    async with bounded():
        await check_pipe(maker_of(MemoryPipe), maker_of(MemoryPipe, CAPACITY))


async def test_check_pipe_runs_trios_checks() -> None:
    class Unscheduled(MemoryPipe):
        async def send_eof(self) -> None:
            self.sent_eof = self.outgoing.ended = True
            self.outgoing.changed.unpark_all()

    async with bounded():
        with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
            await check_pipe(maker_of(Unscheduled), None)


@pytest.mark.parametrize(("mutant", "law", "sentence"), MUTANTS)
async def test_each_law_catches_its_mutant(
    mutant: type[MemoryPipe], law: Callable[..., Awaitable[None]], sentence: str
) -> None:
    async with bounded():
        with pytest.raises(AssertionError, match=sentence):
            await law(maker_of(mutant))


@pytest.mark.parametrize("end", [0, 1])
async def test_check_pipe_looks_both_ways(end: int) -> None:
    async def maker() -> tuple[MemoryPipe, MemoryPipe]:
        there, back = Wire(), Wire()
        kinds = (IgnoresMaxBytes, MemoryPipe) if end == 0 else (MemoryPipe, IgnoresMaxBytes)
        return kinds[0](there, back), kinds[1](back, there)

    async with bounded():
        with pytest.raises(AssertionError, match=r"max_bytes|returned 200 bytes"):
            await check_pipe(maker, None)


async def test_a_stream_that_breaks_when_cancelled_is_honest_and_no_pipe() -> None:
    async with bounded():
        await check_cancelled_send(maker_of(BreaksWhenCancelled))
        with pytest.raises(AssertionError, match="broke the stream"):
            await check_cancelled_send(maker_of(BreaksWhenCancelled), may_break=False)


async def test_other_errors_come_out_bare() -> None:
    class Failing(MemoryPipe):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.lowlevel.checkpoint()
            raise OSError("out of order")

    for law in (check_cancelled_receive, check_max_bytes):
        async with bounded():
            with pytest.raises(OSError, match="out of order"):
                await law(maker_of(Failing))


async def test_several_errors_come_out_as_a_group() -> None:
    class Failing(MemoryPipe):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.lowlevel.checkpoint()
            raise ExceptionGroup("two", [OSError("out of order"), ValueError("out of range")])

    async with bounded():
        with pytest.RaisesGroup(OSError, ValueError, flatten_subgroups=True):
            await check_max_bytes(maker_of(Failing))
