"""The numbered stream of a Link: what is kept, forgotten and sent again, and that each unit is taken in once."""

from __future__ import annotations

import tracemalloc
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.link.frame_codec import encode
from warpgate_trio.link.frame_reader import FrameReader
from warpgate_trio.link.frames import (
    Accept,
    Ack,
    Commit,
    Credit,
    Data,
    Fin,
    GoAway,
    Item,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    Reset,
)
from warpgate_trio.link.replay import ReplayMemory
from warpgate_trio.link.stream import (
    ACK_DELAY,
    ACK_UNITS,
    BLOCK,
    ENTRY_COST,
    PINNED_MAX,
    REPLAY_MAX,
    SMALL,
    Incoming,
    Outgoing,
    units,
)

FRAME = encode(Credit(channel=1, limit=9))


def put(outgoing: Outgoing, data: bytes | bytearray, channel: int = 0) -> None:
    outgoing.put(channel, memoryview(data))


def items_of(outgoing: Outgoing, position: int, limit: int = 1 << 30) -> list[Item]:
    """The items that a carrier brings from a position on."""
    raw = b"".join(bytes(part) for chunk in outgoing.read(position, limit) for part in chunk.parts)
    return FrameReader().feed([raw]) if raw else []


# --- positions ---


@pytest.mark.parametrize(
    ("item", "moves"),
    [
        (Data(0, [b"12345"], 5), 5),
        (Open(channel=1, credit=1, label=""), 1),
        (Accept(channel=1, credit=1), 1),
        (Refuse(channel=1, reason=1), 1),
        (Credit(channel=0, limit=1), 1),
        (Fin(channel=0, final_offset=1), 1),
        (Reset(channel=0, code=1), 1),
        (GoAway(), 1),
        # These concern the carrier, or precede the stream:
        (Accept(channel=0, credit=1), 0),
        (Refuse(channel=0, reason=1), 0),
        (Ack(position=1), 0),
        (Ping(token=1), 0),
        (Pong(token=1), 0),
        (Commit(session_id=bytes(16), link_id=bytes(16), epoch=1, credit=1), 0),
        (Proof(client_key=bytes(32), session_id=bytes(16), attempt_id=bytes(16), signature=bytes(64)), 0),
    ],
)
def test_what_an_item_moves_its_stream_on_by(item: Item, moves: int) -> None:
    assert units(item) == moves


# --- what is kept ---


def test_all_is_kept_until_it_is_acknowledged() -> None:
    outgoing = Outgoing()
    put(outgoing, b"a" * 10_000)
    outgoing.put_frame(FRAME)
    put(outgoing, b"b" * 5_000)
    assert (outgoing.end, outgoing.frames) == (15_001, 1)
    assert outgoing.held == 10_000 + len(FRAME) + 5_000 + 3 * ENTRY_COST
    assert outgoing.acknowledge(10_000)
    assert (outgoing.held, outgoing.frames) == (len(FRAME) + 5_000 + 2 * ENTRY_COST, 1)
    assert outgoing.acknowledge(10_001)
    assert (outgoing.held, outgoing.frames) == (5_000 + ENTRY_COST, 0)
    assert outgoing.acknowledge(12_000)  # in the middle of a chunk, which is kept whole
    assert outgoing.held == 5_000 + ENTRY_COST
    assert outgoing.acknowledge(15_001)
    assert outgoing.held == 0
    assert outgoing.read(15_001, 100) == []


def test_an_old_acknowledgement_is_no_news_and_one_of_the_future_an_error() -> None:
    outgoing = Outgoing()
    put(outgoing, b"12345")
    assert outgoing.acknowledge(3)
    assert not outgoing.acknowledge(3)
    assert not outgoing.acknowledge(2)
    assert outgoing.acknowledged == 3
    with pytest.raises(RemoteProtocolError, match="acknowledges 6 units, but only 5 were sent"):
        outgoing.acknowledge(6)


def test_bytes_are_kept_by_reference_and_what_may_change_is_copied() -> None:
    outgoing = Outgoing()
    fixed, mutable = b"f" * 10_000, bytearray(b"m" * 10_000)
    put(outgoing, fixed)
    put(outgoing, mutable)
    mutable[:] = b"?" * 10_000
    first, second = outgoing.read(0, 1 << 20)
    assert isinstance(first.body, memoryview)
    assert first.body.obj is fixed
    assert bytes(second.body) == b"m" * 10_000


def test_a_part_of_a_very_large_object_is_copied() -> None:
    outgoing = Outgoing()
    large = bytes(PINNED_MAX + 1)
    outgoing.put(0, memoryview(large)[: 64 * 1024])
    (chunk,) = outgoing.read(0, 1 << 20)
    assert isinstance(chunk.body, memoryview)
    assert chunk.body.obj is not large


def test_small_writes_are_joined_by_channel_and_up_to_a_block() -> None:
    outgoing = Outgoing()
    for _ in range(BLOCK):
        put(outgoing, b"x")
    assert outgoing.held == BLOCK + ENTRY_COST
    put(outgoing, b"x")
    put(outgoing, b"y", channel=1)
    put(outgoing, b"x")
    assert outgoing.held == BLOCK + 3 + 4 * ENTRY_COST
    assert [(chunk.channel, len(chunk.body)) for chunk in outgoing.read(0, 1 << 20)] == [
        (0, BLOCK),
        (0, 1),
        (1, 1),
        (0, 1),
    ]


def test_a_block_that_was_read_takes_more() -> None:
    outgoing = Outgoing()
    put(outgoing, b"12")
    before = outgoing.read(0, 100)
    put(outgoing, b"34")
    assert [bytes(chunk.body) for chunk in before] == [b"12"]
    assert [bytes(chunk.body) for chunk in outgoing.read(1, 100)] == [b"234"]


def test_it_is_full_at_its_limit() -> None:
    outgoing = Outgoing()
    chunk = bytes(128 * 1024)
    count = 0
    while not outgoing.full:
        put(outgoing, chunk)
        count += 1
    assert count == REPLAY_MAX // (len(chunk) + ENTRY_COST) + 1
    outgoing.acknowledge(len(chunk))
    assert not outgoing.full


def test_many_tiny_frames_cost_what_python_needs_for_them() -> None:
    outgoing = Outgoing()
    for _ in range(1000):
        outgoing.put_frame(FRAME)
    assert outgoing.held == 1000 * (len(FRAME) + ENTRY_COST)


def test_what_is_said_again_begins_in_the_middle_of_a_piece_and_ends_at_the_limit() -> None:
    outgoing = Outgoing()
    data = bytes(range(250)) * 40
    put(outgoing, data, channel=3)
    outgoing.put_frame(FRAME)
    outgoing.put_frame(FRAME)
    (chunk,) = outgoing.read(100, 50)
    assert (chunk.position, chunk.channel, bytes(chunk.body)) == (100, 3, data[100:150])
    assert [c.position for c in outgoing.read(9_990, 11)] == [9_990, 10_000]
    assert [bytes(c.body) for c in outgoing.read(10_001, 1)] == [FRAME]


# --- what is taken ---


def test_what_was_taken_is_dropped_a_frame_in_part() -> None:
    incoming = Incoming()
    assert incoming.take(0, Data(0, [b"abc"], 3), 0.0) == Data(0, [b"abc"], 3)
    assert incoming.take(0, Data(0, [b"abc"], 3), 0.0) is None
    assert incoming.take(1, Data(0, [b"b", b"cd", b"ef"], 5), 0.0) == Data(0, [b"d", b"ef"], 3)
    assert incoming.received == 6
    assert incoming.take(5, Credit(channel=0, limit=1), 0.0) is None
    assert incoming.take(6, Credit(channel=0, limit=1), 0.0) == Credit(channel=0, limit=1)
    assert incoming.received == 7


def test_what_is_about_the_carrier_is_never_dropped() -> None:
    incoming = Incoming()
    incoming.take(0, Data(0, [b"abc"], 3), 0.0)
    assert incoming.take(0, Ping(token=7), 0.0) == Ping(token=7)
    assert incoming.received == 3


def test_an_acknowledgement_is_due_after_two_mebibytes_or_a_tenth_of_a_second() -> None:
    incoming = Incoming()
    assert incoming.deadline == inf
    incoming.take(0, Data(0, [b"abc"], 3), 10.0)
    incoming.take(3, Data(0, [b"abc"], 3), 10.05)
    assert incoming.deadline == 10.0 + ACK_DELAY
    assert not incoming.ack_due(10.05)
    assert incoming.ack_due(10.1)
    assert incoming.acknowledge() == 6
    assert not incoming.ack_due(20.0)
    assert incoming.deadline == inf
    incoming.take(6, Data(0, [bytes(ACK_UNITS - 1)], ACK_UNITS - 1), 20.0)
    assert not incoming.ack_due(20.0)
    incoming.take(6 + ACK_UNITS - 1, Credit(channel=0, limit=1), 20.0)
    assert incoming.ack_due(20.0)


def test_doubles_alone_are_not_acknowledged_again() -> None:
    incoming = Incoming()
    incoming.take(0, Data(0, [b"abc"], 3), 0.0)
    incoming.acknowledge()
    incoming.take(0, Data(0, [b"abc"], 3), 1.0)
    assert incoming.deadline == inf


WRITES = st.lists(
    st.one_of(
        st.none(),  # a frame
        st.tuples(st.integers(0, 2), st.integers(1, 3 * SMALL)),  # DATA of a channel
    ),
    max_size=20,
)


@settings(deadline=None)
@given(writes=WRITES, data=st.data())
def test_whatever_is_said_again_arrives_once_and_in_order(
    writes: list[tuple[int, int] | None], data: st.DataObject
) -> None:
    outgoing, incoming = Outgoing(), Incoming()
    said: list[tuple[int | None, int]] = []  # one entry per unit: its channel, and a byte
    got: list[tuple[int | None, int]] = []
    counter = 0
    for write in writes:
        if write is None:
            outgoing.put_frame(encode(Credit(channel=9, limit=counter)))
            said.append((None, counter))
            counter += 1
        else:
            channel, size = write
            payload = bytes((counter + index) % 251 for index in range(size))
            put(outgoing, payload if size % 2 else bytearray(payload), channel)
            said += [(channel, byte) for byte in payload]
            counter += 7
        # A carrier comes, starts between what was acknowledged and what was taken in, and brings a part.
        position = data.draw(st.integers(outgoing.acknowledged, incoming.received), label="begins at")
        items = items_of(outgoing, position, data.draw(st.integers(0, 5 * SMALL), label="brings"))
        for item in items:
            new = incoming.take(position, item, 0.0)
            position += units(item)
            if isinstance(new, Data):
                got += [(new.channel, byte) for piece in new.pieces for byte in bytes(piece)]
            elif isinstance(new, Credit):
                got.append((None, new.limit))
        assert got == said[: len(got)]
        assert len(got) == incoming.received <= outgoing.end
        if data.draw(st.booleans(), label="acknowledged"):
            outgoing.acknowledge(incoming.received)
            assert (outgoing.held == 0) == (incoming.received == outgoing.end)
    position = outgoing.acknowledged
    for item in items_of(outgoing, position):
        new = incoming.take(position, item, 0.0)
        position += units(item)
        if isinstance(new, Data):
            got += [(new.channel, byte) for piece in new.pieces for byte in bytes(piece)]
        elif isinstance(new, Credit):
            got.append((None, new.limit))
    assert got == said


# --- the memory that all Links of a node share ---


def test_what_a_part_keeps_alive_is_counted_with_it() -> None:
    memory = ReplayMemory(total=1000_000, floor=0)
    outgoing = Outgoing()
    put(outgoing, b"x" * 10)
    outgoing.share(memory)
    assert memory.held == outgoing.held == 10 + ENTRY_COST
    large = bytes(100_000)
    for part in (memoryview(large)[:10_000], memoryview(large)[10_000:20_000]):
        outgoing.put(1, part)
    assert memory.held == 10 + 3 * ENTRY_COST + len(large)
    assert outgoing.held == 10 + 3 * ENTRY_COST + 20_000
    outgoing.acknowledge(10_010)
    assert memory.held == ENTRY_COST + len(large)
    outgoing.acknowledge(20_010)
    assert memory.held == outgoing.held == 0


def test_what_would_keep_too_much_alive_is_copied() -> None:
    memory = ReplayMemory(total=50_000, floor=0)
    outgoing = Outgoing()
    outgoing.share(memory)
    outgoing.put(0, memoryview(bytes(100_000))[:10_000])
    assert memory.held == outgoing.held == 10_000 + ENTRY_COST
    (chunk,) = outgoing.read(0, 10_000)
    assert isinstance(chunk.body, memoryview)
    assert len(chunk.body.obj) == 10_000  # type: ignore[arg-type]


def test_who_keeps_much_leaves_room_for_who_comes_later() -> None:
    memory = ReplayMemory(total=1_000_000, floor=20_000)
    links = [Outgoing() for _ in range(10)]
    for outgoing in links:
        outgoing.share(memory)
        while not outgoing.full:
            put(outgoing, bytes(10_000))
    assert memory.held <= 1_000_000 + 10 * (20_000 + 10_000 + ENTRY_COST)
    assert links[0].held > links[-1].held >= 20_000
    for _ in range(20):  # all Links go on sending alike
        for outgoing in links:
            outgoing.acknowledge(min(outgoing.acknowledged + 100_000, outgoing.end))
            if not outgoing.full:
                put(outgoing, bytes(10_000))
    assert max(outgoing.held for outgoing in links) <= 1_000_000 / 11 + 2 * (10_000 + ENTRY_COST)


def test_a_link_that_is_over_keeps_nothing() -> None:
    memory = ReplayMemory()
    one, other = Outgoing(), Outgoing()
    for outgoing in (one, other):
        outgoing.share(memory)
        outgoing.put(0, memoryview(bytes(100_000))[:10_000])
        put(outgoing, b"small")
        outgoing.put_frame(FRAME)
    one.drop()
    one.drop()
    assert (one.held, one.frames, memory.held) == (0, 0, other.held + 90_000)
    other.drop()
    assert memory.held == 0


@pytest.mark.slow("traces every allocation")
@pytest.mark.parametrize("size", [1, 300, SMALL, SMALL + 1, 64 * 1024, 3_000_000])
def test_what_is_counted_is_what_it_takes(size: int) -> None:
    """Compared with Python's own sizes, for writes of every kind (referenced, partial, copied, joined) and frames."""
    total, count = 4 * 1024 * 1024, 16
    memory = ReplayMemory(total=total, floor=16 * 1024)
    part = memoryview(b"")
    links = [Outgoing() for _ in range(count)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for outgoing in links:
            outgoing.share(memory)
            whole, at = bytes(size), 0
            while not outgoing.full:
                part = memoryview(whole)[at : at + 128 * 1024]
                outgoing.put(0, part)
                if size == 1:
                    outgoing.put_frame(encode(Credit(channel=9, limit=outgoing.end)))
                at += len(part)
                if at >= size:
                    whole, at = bytes(size), 0
            del whole, part
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert total // 2 < memory.held <= total + count * (16 + 128 + 1) * 1024
    assert taken <= 1.1 * memory.held


class Links(RuleBasedStateMachine):
    """Whatever some Links keep and release, the count is the sum of what they hold."""

    @initialize()
    def begin(self) -> None:
        self.memory = ReplayMemory(total=200_000, floor=10_000)
        self.links = [Outgoing() for _ in range(3)]
        for outgoing in self.links:
            outgoing.share(self.memory)
        self.objects = [bytes(5_000), bytes(30_000), bytes(100_000)]

    @rule(pick=st.integers(0, 2), which=st.integers(0, 2), start=st.integers(0, 4_000), size=st.integers(1, 40_000))
    def put(self, pick: int, which: int, start: int, size: int) -> None:
        if not self.links[pick].full:
            self.links[pick].put(which, memoryview(self.objects[which])[start : start + size])

    @rule(pick=st.integers(0, 2))
    def put_frame(self, pick: int) -> None:
        self.links[pick].put_frame(FRAME)

    @rule(pick=st.integers(0, 2), share=st.floats(0, 1))
    def acknowledge(self, pick: int, share: float) -> None:
        outgoing = self.links[pick]
        outgoing.acknowledge(int(outgoing.acknowledged + share * (outgoing.end - outgoing.acknowledged)))

    @rule(pick=st.integers(0, 2))
    def drop(self, pick: int) -> None:
        self.links[pick].drop()
        self.links[pick] = Outgoing()
        self.links[pick].share(self.memory)

    @invariant()
    def the_count_is_the_sum(self) -> None:
        if not hasattr(self, "memory"):
            return
        total = 0
        for outgoing in self.links:
            bodies = outgoing._bodies
            whole = {id(b.obj): len(b.obj) for b in bodies if isinstance(b, memoryview)}  # type: ignore[arg-type]
            parts = sum(len(b) for b in bodies if not isinstance(b, memoryview))
            total += sum(whole.values()) + parts + ENTRY_COST * len(bodies)
        assert self.memory.held >= total
        if not any(outgoing.held for outgoing in self.links):
            assert self.memory.held == 0


TestLinks = pytest.mark.slow("Hypothesis: 100 schedules")(Links.TestCase)
