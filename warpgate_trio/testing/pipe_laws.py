"""Laws of byte streams that Trio's own checkers do not check, for tests of Pipes and of other streams.

A mutation study of 25 broken streams showed which faults `trio.testing.check_half_closeable_stream` does not detect:
bytes lost by a cancelled ``receive_some``, an ignored ``max_bytes``, a ``b""`` before the end, and a stream garbled by
a cancelled ``send_all``.  This module has a law for each, and `check_pipe` runs Trio's checks and then all laws.

Every law takes a *maker*, as Trio's checkers do: an async function that returns two connected streams, of which the
first sends to the second.  A law closes the streams.  If it is broken, it raises `AssertionError` with one sentence.
Random choices depend on `seed` alone and are the same on every run.

A broken stream may hang, so call a law with a timeout, and run the tasks that pump the stream in a nursery::

    async def test_my_stream() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await check_pipe(partial(make_pair, nursery), partial(make_clogged_pair, nursery))
                nursery.cancel_scope.cancel()
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, final

import trio
import trio.testing
from trio.abc import HalfCloseableStream, ReceiveStream, SendStream

__all__ = [
    "PipeMaker",
    "StreamMaker",
    "check_cancelled_receive",
    "check_cancelled_send",
    "check_early_eof",
    "check_max_bytes",
    "check_pipe",
    "check_send_copies",
]

StreamMaker = Callable[[], Awaitable[tuple[SendStream, ReceiveStream]]]
"""Makes a sending stream and the receiving stream to which it is connected."""
PipeMaker = Callable[[], Awaitable[tuple[HalfCloseableStream, HalfCloseableStream]]]
"""Makes the two ends of one Pipe."""


async def check_pipe(
    maker: PipeMaker, clogged_maker: PipeMaker | None, *, seed: int = 0, may_break: bool = False
) -> None:
    """Run `trio.testing.check_half_closeable_stream` and then every law of this module, in both directions.

    Args:
      maker: makes two connected ends.
      clogged_maker: the same, but ``send_all`` and ``wait_send_all_might_not_block`` block at both ends until the other
        end receives.  With None it is not checked that two simultaneous senders get an error, nor that waiting to send
        waits.
      seed: determines the random choices of the laws.
      may_break: as in `check_cancelled_send`.

    Raises:
      AssertionError: a law is broken.
    """
    await trio.testing.check_half_closeable_stream(maker, clogged_maker)

    async def turned() -> tuple[HalfCloseableStream, HalfCloseableStream]:
        first, second = await maker()
        return second, first

    for direction in (maker, turned):
        await check_max_bytes(direction)
        await check_early_eof(direction)
        await check_send_copies(direction)
        await check_cancelled_receive(direction, seed=seed)
        await check_cancelled_send(direction, seed=seed, may_break=may_break)


async def check_max_bytes(maker: StreamMaker) -> None:
    """``receive_some(n)`` returns at least one byte and at most `n`, and nothing is lost between two calls."""
    data = bytes(range(200))
    async with _made(maker) as (sender, receiver), _tasks() as nursery:
        nursery.start_soon(_send_and_end, sender, data)
        received = bytearray()
        for size in (1, 3, 2, 64, 1):
            piece = await receiver.receive_some(size)
            _law(1 <= len(piece) <= size, f"receive_some({size}) returned {len(piece)} bytes")
            received += piece
        received += await _receive_all(receiver)
        _law(received == data, "receive_some with max_bytes lost, repeated or reordered bytes")


async def check_early_eof(maker: StreamMaker) -> None:
    """``receive_some`` returns ``b""`` only at the end of the stream, and from then on every time.

    These must not end it: sending ``b""``, a cancelled wait to receive, ``wait_send_all_might_not_block``, and data in
    the other direction, if both ends can send.
    """
    async with _made(maker) as (sender, receiver):
        received: list[bytes] = []

        async def receive() -> None:
            received.append(bytes(await receiver.receive_some(10)))

        async def nothing_arrived(after: str) -> None:
            await trio.testing.wait_all_tasks_blocked(0.001)
            _law(not received, f"receive_some returned {received} after {after}, with nothing sent and no end")

        with trio.move_on_after(0):
            await receive()
        await nothing_arrived("a cancelled wait")
        async with _tasks() as nursery:
            nursery.start_soon(receive)
            await nothing_arrived("no event at all")
            await sender.send_all(b"")
            await nothing_arrived('send_all(b"")')
            await sender.wait_send_all_might_not_block()
            await nothing_arrived("wait_send_all_might_not_block")
            if isinstance(receiver, SendStream) and isinstance(sender, ReceiveStream):
                nursery.start_soon(receiver.send_all, b"other way")
                other = b""
                while len(other) < len(b"other way"):
                    other += await sender.receive_some()
                await nothing_arrived("data in the other direction")
            nursery.start_soon(_send_and_end, sender, b"z")
        _law(received == [b"z"], f"one byte was sent, and receive_some returned {received}")
        for _ in range(3):
            _law(await receiver.receive_some(10) == b"", "there was data behind the end of the stream")


async def check_send_copies(maker: StreamMaker) -> None:
    """The caller of ``send_all`` may change the buffer afterwards, and may pass any bytes-like object."""
    async with _made(maker) as (sender, receiver), _tasks() as nursery:

        async def send() -> None:
            buffer = bytearray(b"as it was")
            await sender.send_all(buffer)
            buffer[:] = b"scribbled"
            await sender.send_all(memoryview(b"__ and a view")[2:])
            await _end(sender)

        nursery.start_soon(send)
        received = await _receive_all(receiver)
        _law(received == b"as it was and a view", f"the stream carries {bytes(received)!r}: send_all kept a reference")


async def check_cancelled_receive(maker: StreamMaker, *, seed: int = 0, size: int = 3000) -> None:
    """``receive_some`` loses nothing when it is cancelled, at any moment.

    Args:
      seed: determines sizes and moments.
      size: bytes sent in total, in pieces of up to 40.
    """
    dice = _Dice(seed)
    sent = bytes(i % 251 for i in range(size))

    async def send(sender: SendStream) -> None:
        start = 0
        while start < size:
            piece = sent[start : start + dice.roll(1, 40)]
            await sender.send_all(piece)
            start += len(piece)
            await trio.lowlevel.checkpoint()
        await _end(sender)

    received = bytearray()
    async with _made(maker) as (sender, receiver), _tasks() as nursery:
        nursery.start_soon(send, sender)
        ended = False
        while not ended:
            with trio.CancelScope() as scope:
                if dice.roll(0, 1):
                    nursery.start_soon(_cancel_after, scope, dice.roll(0, 3))
                piece = await receiver.receive_some(dice.roll(1, 50))
                received += piece
                ended = not piece
    _law(received == sent, f"{size} bytes were sent and {len(received)} received: {_difference(sent, received)}")


async def check_cancelled_send(
    maker: StreamMaker, *, seed: int = 0, may_break: bool = True, size: int = 1 << 21
) -> None:
    """After a cancelled ``send_all`` the stream is intact, or broken, but never carries a garbled message.

    Intact means that the data of the calls arrives in order: all data of a call that returned, and the beginning of the
    data, or none, of a call that was cancelled.

    Args:
      seed: determines sizes and moments.
      may_break: whether calls after a cancelled one may raise `trio.BrokenResourceError`, as with `trio.SSLStream`.  A
        Pipe must not.
      size: bytes of the first message, which is cancelled when every task is blocked.  It should be more than the
        stream accepts while nothing is received.
    """
    dice = _Dice(seed)
    received = bytearray()
    calls: list[tuple[bytes, bool]] = []
    broken = False

    async def send(nursery: trio.Nursery, sender: SendStream) -> None:
        nonlocal broken
        try:
            for number in range(24):
                message = _message(number, size if number == 0 else dice.roll(1, 60_000))
                with trio.CancelScope() as scope:
                    if number == 0:
                        nursery.start_soon(_cancel_when_blocked, scope)
                    elif number % 2:
                        nursery.start_soon(_cancel_after, scope, dice.roll(0, 6))
                    try:
                        await sender.send_all(message)
                    except trio.BrokenResourceError:
                        broken = True
                        return
                    finally:
                        calls.append((message, scope.cancel_called))
                if not scope.cancelled_caught:
                    calls[-1] = (message, False)
                if number == 0:
                    nursery.start_soon(receive)
        finally:
            if broken:
                await trio.aclose_forcefully(sender)
            else:
                await _end(sender)

    async def receive() -> None:
        nonlocal broken
        try:
            while piece := await receiver.receive_some(dice.roll(1, 70_000)):
                received.extend(piece)
        except trio.BrokenResourceError:
            broken = True
            await trio.aclose_forcefully(receiver)  # otherwise the sender would wait for it

    async with _made(maker) as (sender, receiver), _tasks() as nursery:
        await send(nursery, sender)
    _law(may_break or not broken, "a cancelled send_all broke the stream")
    _law(_is_whole(calls, bytes(received), broken=broken), "a cancelled send_all garbled the stream")


# -- what the laws share -----------------------------------------------------------------------------------------------

_MARK: Final = 0xFF
"""The first byte of every message of `check_cancelled_send`; it does not occur elsewhere in a message."""


def _message(number: int, size: int) -> bytes:
    body = bytes((number + i) % 251 for i in range(251))
    return (bytes([_MARK, number]) + body * (size // 251 + 1))[:size]


def _is_whole(calls: list[tuple[bytes, bool]], received: bytes, *, broken: bool) -> bool:
    """Whether `received` is the calls' data in order, where only a call that was cancelled may be cut short."""
    parts = [bytes([_MARK]) + part for part in received.split(bytes([_MARK]))[1:]]
    if received and received[0] != _MARK:
        return False
    for message, cancelled in calls:
        if broken and not parts:
            return True  # a broken stream may lose the data in flight
        if parts and message.startswith(parts[0]) and (cancelled or broken or len(parts[0]) == len(message)):
            del parts[0]
        elif not cancelled:
            return False
    return not parts


@final
class _Dice:
    """Whole numbers from a seed, the same in every release of Python (Lehmer's generator)."""

    def __init__(self, seed: int) -> None:
        self._state = seed * 2654435761 % 2147483646 + 1

    def roll(self, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        self._state = self._state * 48271 % 2147483647
        return low + self._state % (high - low + 1)


def _law(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _difference(sent: bytes, received: bytes | bytearray) -> str:
    where = next((i for i, (a, b) in enumerate(zip(sent, received, strict=False)) if a != b), None)
    return f"they differ from byte {where} on" if where is not None else "some are missing at the end"


@asynccontextmanager
async def _tasks() -> AsyncGenerator[trio.Nursery]:
    """A nursery that raises a broken law, or any other exception that is alone, without an exception group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        found = [each for each in _leaves(group) if not isinstance(each, trio.Cancelled)]
        laws = [each for each in found if isinstance(each, AssertionError)]
        if laws or len(found) == 1:
            raise (laws or found)[0] from None
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


@asynccontextmanager
async def _made(maker: StreamMaker) -> AsyncGenerator[tuple[SendStream, ReceiveStream]]:
    sender, receiver = await maker()
    try:
        yield sender, receiver
    finally:
        await _close_both(sender, receiver)


async def _close_both(sender: SendStream, receiver: ReceiveStream) -> None:
    try:
        await trio.aclose_forcefully(sender)
    finally:
        await trio.aclose_forcefully(receiver)


async def _end(sender: SendStream) -> None:
    if isinstance(sender, HalfCloseableStream):
        await sender.send_eof()
    else:
        await sender.aclose()


async def _send_and_end(sender: SendStream, data: bytes) -> None:
    await sender.send_all(data)
    await _end(sender)


async def _receive_all(receiver: ReceiveStream) -> bytearray:
    received = bytearray()
    while piece := await receiver.receive_some():
        received += piece
    return received


async def _cancel_after(scope: trio.CancelScope, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await trio.lowlevel.cancel_shielded_checkpoint()
    scope.cancel()


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked(0.001)
    scope.cancel()
