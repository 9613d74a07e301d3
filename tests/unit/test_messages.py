"""Messages over byte streams: the format, the reader without I/O, and the channel over Trio's memory streams."""

from __future__ import annotations

import array
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.messages import DEFAULT_MAX_SIZE, MessageChannel, MessageReader, encode_header, framing

LARGEST = 2**32 - 1


def framed(*messages: bytes) -> bytes:
    return b"".join(encode_header(len(each)) + each for each in messages)


def cut(reader: MessageReader, *pieces: bytes) -> list[bytes]:
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (message := reader.next_message()) is not None:
            found.append(message)
    return found


# -- the format --------------------------------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    assert framed(b"hello", b"", bytes(300)) == b"\0\0\0\x05hello\0\0\0\0\0\0\x01\x2c" + bytes(300)
    assert encode_header(LARGEST) == b"\xff\xff\xff\xff"


@pytest.mark.slow("a hundred examples")
@given(st.lists(st.binary(max_size=40), max_size=12), st.data())
def test_however_a_stream_is_cut_the_messages_are_the_same(messages: list[bytes], data: st.DataObject) -> None:
    stream = framed(*messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    reader = MessageReader(40)
    assert cut(reader, *pieces) == messages
    reader.check_end()


@pytest.mark.slow("a hundred examples")
@given(st.lists(st.binary(max_size=10), min_size=1, max_size=4), st.data())
def test_a_stream_that_is_cut_off_ends_between_messages_or_not_at_all(
    messages: list[bytes], data: st.DataObject
) -> None:
    stream = framed(*messages)
    length = data.draw(st.integers(0, len(stream)))
    reader = MessageReader(10)
    whole = cut(reader, stream[:length])
    assert whole == messages[: len(whole)]
    if framed(*whole) == stream[:length]:
        reader.check_end()
    else:
        with pytest.raises(RemoteProtocolError, match="the stream ended within "):
            reader.check_end()


def test_what_was_missing_at_the_end_is_told() -> None:
    reader = MessageReader(10)
    assert cut(reader, framed(b"whole", b"part")[:-1]) == [b"whole"]
    with pytest.raises(RemoteProtocolError, match=r"ended within a message, of which 3 of 4 bytes came$"):
        reader.check_end()
    assert cut(reader, b"t") == [b"part"]
    reader.check_end()
    assert cut(reader, b"\0\0\0") == []
    with pytest.raises(RemoteProtocolError, match="ended within the length of a message"):
        reader.check_end()
    assert cut(reader, b"\0") == [b""]


def test_who_feeds_before_all_was_asked_for_loses_nothing() -> None:
    reader = MessageReader(10)
    reader.feed(framed(b"one", b"two"))
    assert reader.next_message() == b"one"
    reader.feed(framed(b"three"))
    assert [reader.next_message() for _ in range(3)] == [b"two", b"three", None]


def test_one_that_is_too_long_is_refused_by_its_length_alone() -> None:
    reader = MessageReader(5)
    assert cut(reader, framed(b"12345")) == [b"12345"]
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="announces a message of 6 bytes; max_size is 5"):
            cut(reader, encode_header(6))


def test_a_message_in_single_bytes_is_not_kept_as_such() -> None:
    size = 20_000
    reader = MessageReader(size)
    reader.feed(encode_header(size))
    assert reader.next_message() is None
    for _ in range(size - 1):
        reader.feed(b"x")
        assert reader.next_message() is None
        assert len(reader._pieces) <= framing.LOOSE_PIECES
    reader.feed(b"x")
    assert reader.next_message() == b"x" * size


def test_large_pieces_are_joined_once() -> None:
    piece = bytes(framing.PIECE_MEAN)
    count = 2 * framing.LOOSE_PIECES
    reader = MessageReader(count * len(piece))
    assert cut(reader, encode_header(count * len(piece)), *[piece] * (count - 1)) == []
    assert all(each is piece for each in reader._pieces[1:])
    assert cut(reader, piece) == [bytes(count * len(piece))]


@pytest.mark.parametrize("wrong", [0, -1, LARGEST + 1])
def test_a_bound_that_no_message_or_every_message_keeps(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"max_size is {wrong}; it can be from 1 to 4294967295"):
        MessageReader(wrong)
    MessageReader(1)
    MessageReader(LARGEST)


# -- the channel -------------------------------------------------------------------------------------------------------

Ends = tuple[MessageChannel, MessageChannel]


def ends(max_size: int = 100) -> Ends:
    """Two ends of a stream that buffers any amount."""
    one, other = trio.testing.memory_stream_pair()
    return MessageChannel(one, max_size=max_size), MessageChannel(other, max_size=max_size)


def lockstep(max_size: int = 200_000) -> Ends:
    """Two ends of a stream without a buffer: a send waits until the other end receives."""
    one, other = trio.testing.lockstep_stream_pair()
    return MessageChannel(one, max_size=max_size), MessageChannel(other, max_size=max_size)


async def test_messages_come_whole_and_in_order() -> None:
    async with trio.open_nursery() as nursery:
        alice, bob = lockstep()
        sent = [b"", b"hello", bytes(200_000), b"x" * 65_536, b"y" * 65_537, b""]

        async def send() -> None:
            for each in sent:
                await alice.send(each)
            await alice.aclose()

        nursery.start_soon(send)
        assert [message async for message in bob] == sent


async def test_both_ways_at_once() -> None:
    alice, bob = ends()
    for sender, receiver in ((alice, bob), (bob, alice)):
        await sender.send(b"one")
        await sender.send(b"two")
        assert [await receiver.receive(), await receiver.receive()] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("size", "calls"), [(0, [4]), (5, [9]), (65_536, [65_540]), (65_537, [65_540, 1]), (100_000, [65_540, 34_464])]
)
async def test_small_ones_are_one_call_of_the_stream_and_large_ones_two(size: int, calls: list[int]) -> None:
    stream = Counted(room=1_000_000)
    await MessageChannel(stream).send(bytes(size))
    assert stream.calls == calls


async def test_what_waits_to_be_cut_is_bounded() -> None:
    """However much the stream delivers, and however small its messages are."""
    alice, bob = ends()
    await alice.stream.send_all(framed(b"x") * 200_000)
    assert await bob.receive() == b"x"
    assert len(bob._reader._data) <= 256 * 1024


async def test_any_memory_is_taken_as_bytes() -> None:
    alice, bob = ends()
    await alice.send(bytearray(b"array"))
    await alice.send(memoryview(b"a view")[2:])
    await alice.send(array.array("H", [0x6161, 0x6262]))  # type: ignore[arg-type]
    await alice.send(array.array("H"))  # type: ignore[arg-type]
    assert [await bob.receive() for _ in range(4)] == [b"array", b"view", b"aabb", b""]
    with pytest.raises(TypeError, match="bytes-like"):
        await alice.send("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a message of 102 bytes; max_size is 100"):
        await alice.send(array.array("H", bytes(102)))  # type: ignore[arg-type]


async def test_every_call_is_a_checkpoint() -> None:
    alice, bob = ends()
    with trio.testing.assert_checkpoints():
        await alice.send(b"one")
    await alice.send(b"two")
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await bob.receive()
    with trio.testing.assert_checkpoints():
        await alice.aclose()
    with trio.testing.assert_checkpoints(), pytest.raises(trio.EndOfChannel):
        await bob.receive()


async def test_the_end_between_two_messages() -> None:
    alice, bob = ends()
    await alice.send(b"last")
    await alice.aclose()
    assert await bob.receive() == b"last"
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await bob.receive()


@pytest.mark.parametrize("length", [1, 3, 4, 8])
async def test_an_end_within_a_message_is_no_end(length: int) -> None:
    alice, bob = ends()
    await alice.send(b"whole")
    await alice.stream.send_all(framed(b"hello")[:length])
    await alice.stream.aclose()
    assert await bob.receive() == b"whole"
    for call in (bob.receive, partial(bob.send, b"x"), bob.receive):
        with pytest.raises(trio.BrokenResourceError, match="channel broken: the stream ended within ") as caught:
            await call()
        assert isinstance(caught.value.__cause__, RemoteProtocolError)


async def test_a_message_that_is_too_long_is_refused_before_it_is_sent() -> None:
    alice, bob = ends(max_size=5)
    with pytest.raises(ValueError, match="a message of 6 bytes; max_size is 5"):
        await alice.send(b"123456")
    await alice.send(b"12345")
    assert await bob.receive() == b"12345"


async def test_one_that_comes_all_the_same_ends_the_channel() -> None:
    alice, bob = ends(max_size=5)
    await alice.send(b"good")
    await alice.stream.send_all(encode_header(6))
    assert await bob.receive() == b"good"
    for call in (bob.receive, partial(bob.send, b"x"), bob.receive):
        with pytest.raises(trio.BrokenResourceError, match=r"announces a message of 6 bytes; max_size is 5$"):
            await call()


async def test_a_closed_channel_says_so() -> None:
    alice, bob = ends()
    await bob.send(b"unread")
    await bob.send(b"unread")
    await alice.receive()  # the other message is in the reader
    await alice.aclose()
    for call in (alice.receive, partial(alice.send, b"x"), partial(alice.send, b"")):
        with pytest.raises(trio.ClosedResourceError, match="this channel was closed"):
            await call()
    await alice.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await bob.send(b"x")


async def test_a_close_wakes_who_waits() -> None:
    alice, bob = lockstep()
    async with trio.open_nursery() as nursery:

        async def wait(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call()

        nursery.start_soon(wait, alice.receive)
        nursery.start_soon(wait, partial(alice.send, b"x"))
        await trio.testing.wait_all_tasks_blocked()
        await alice.aclose()
    await bob.aclose()


async def test_one_task_sends_and_one_receives() -> None:
    alice, _bob = lockstep()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.send, b"x")
        nursery.start_soon(alice.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task is sending a message"):
            await alice.send(b"y")
        with pytest.raises(trio.BusyResourceError, match="another task is receiving a message"):
            await alice.receive()
        nursery.cancel_scope.cancel()


async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    alice, bob = ends()
    stream = framed(b"hello", b"", b"world")
    got: list[bytes] = []
    for at in range(len(stream)):
        with trio.move_on_after(0):
            got.append(await bob.receive())
        await alice.stream.send_all(stream[at : at + 1])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    got.append(await bob.receive())

                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert got == [b"hello", b"", b"world"]


async def test_a_receive_that_is_cancelled_before_it_began_leaves_what_is_there() -> None:
    alice, bob = ends()
    await alice.send(b"one")
    await alice.send(b"two")
    assert await bob.receive() == b"one"
    with trio.CancelScope() as scope:
        scope.cancel()
        await bob.receive()
    assert await bob.receive() == b"two"


async def test_a_send_that_is_cancelled_before_it_began_breaks_nothing() -> None:
    alice, bob = ends()
    with trio.CancelScope() as scope:
        scope.cancel()
        await alice.send(b"never")
    await alice.send(b"then")
    assert await bob.receive() == b"then"


async def cut_off(alice: MessageChannel, bob: MessageChannel, *, after: int) -> None:
    """Alice's send is cancelled when `after` bytes of its message have been sent."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.send, b"hello")
        if after:
            await bob.stream.receive_some(after)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_send_that_is_cut_off_breaks_the_sending_half() -> None:
    alice, bob = lockstep()
    await cut_off(alice, bob, after=2)
    for message in (b"x", b""):
        with pytest.raises(
            trio.BrokenResourceError, match="channel broken: an earlier send was cancelled within a message"
        ):
            await alice.send(message)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.send, b"the other way is open")
        assert await alice.receive() == b"the other way is open"


class Counted(trio.abc.HalfCloseableStream):
    """A stream that counts the bytes that it takes, and blocks after `room` bytes."""

    def __init__(self, room: int) -> None:
        self.taken = 0
        self.calls: list[int] = []
        self.room = room
        self.ended = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(len(data))
        self.taken += min(len(data), self.room - self.taken)
        if self.taken == self.room:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.ended = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("room", "breaks"), [(0, False), (1, True), (8, True), (9, False)])
async def test_what_the_stream_has_taken_decides(room: int, breaks: bool) -> None:
    stream = Counted(room)
    channel = MessageChannel(stream, count_sent=lambda: stream.taken)
    with trio.move_on_after(0.001):
        await channel.send(b"hello")
    stream.room = 1000
    if breaks:
        for call in (partial(channel.send, b"x"), channel.send_eof):
            with pytest.raises(trio.BrokenResourceError, match="an earlier send was cancelled within a message"):
                await call()
        assert not stream.ended
    else:
        await channel.send(b"x")
        assert stream.taken == room + 5
        await channel.send_eof()
        assert stream.ended


async def test_half_close_where_the_stream_has_it() -> None:
    one, other = trio.testing.memory_stream_pair()
    alice, bob = MessageChannel(one), MessageChannel(other)
    await alice.send(b"all")
    await alice.send_eof()
    assert [message async for message in bob] == [b"all"]
    await bob.send(b"the other way is open")
    assert await alice.receive() == b"the other way is open"
    with pytest.raises(trio.ClosedResourceError):
        await alice.send(b"x")
    await alice.aclose()
    with pytest.raises(trio.ClosedResourceError, match="this channel was closed"):
        await alice.send_eof()


async def test_a_stream_without_half_close() -> None:
    one, _ = trio.testing.memory_stream_pair()
    channel = MessageChannel(trio.SSLStream(one, ssl.create_default_context(), server_hostname="a.example"))
    with pytest.raises(NotImplementedError, match="SSLStream has no send_eof"):
        await channel.send_eof()


async def test_a_cancelled_close_closes() -> None:
    alice, bob = ends()
    await trio.aclose_forcefully(alice)
    with pytest.raises(trio.ClosedResourceError):
        await alice.receive()
    with pytest.raises(trio.EndOfChannel):
        await bob.receive()


class Leaving(Counted):
    """Records the exception with which its block is left."""

    left_by: type[BaseException] | None = None
    left = False

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        await trio.lowlevel.checkpoint()
        self.left, self.left_by = True, exc_type


async def test_its_block_is_left_as_the_streams_own() -> None:
    for stream, error in ((Leaving(0), None), (Leaving(0), KeyError)):
        channel = MessageChannel(stream)
        try:
            async with channel:
                if error is not None:
                    raise error
        except KeyError:
            pass
        assert stream.left
        assert stream.left_by is error
        with pytest.raises(trio.ClosedResourceError):
            await channel.receive()


async def test_what_the_stream_raises_comes_out() -> None:
    alice, bob = ends()
    await bob.stream.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await alice.send(b"x")
    with pytest.raises(trio.BrokenResourceError) as caught:  # the stream's own error again
        await alice.send(b"x")
    assert "cut off" not in str(caught.value)


async def test_how_it_is_shown() -> None:
    stream = Counted(0)
    channel = MessageChannel(stream)
    assert repr(channel) == f"<MessageChannel over {stream!r}>"
    assert (channel.stream, channel.max_size) == (stream, DEFAULT_MAX_SIZE)


@pytest.mark.slow("cuts messages for a while")
def test_messages_in_one_chunk_cost_the_same_each() -> None:
    """The rest of a chunk is not moved for each message: the cost does not grow with the square of its size."""
    assert len(cut(MessageReader(1), framed(b"x") * 200_000)) == 200_000
