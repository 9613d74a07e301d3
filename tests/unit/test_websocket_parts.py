"""The parts in which a WebSocket message arrives: small ones are joined, too many are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import Opcode

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.websocket.stream import MAX_FRAMES, SMALL_PART, Parts


def frame(payload: bytes, opcode: Opcode = Opcode.CONTINUATION, *, last: bool = False) -> bytes:
    """A short frame, masked as clients do."""
    return bytes([opcode | 0x80 * last, 0x80 | len(payload)]) + bytes(4) + payload


class Peer:
    """A client whose bytes arrive at a server's connection; `read` returns the resulting events."""

    def __init__(self) -> None:
        self._protocol = Connection(ConnectionType.SERVER)
        self._parts = Parts(self._protocol.events)

    def read(self, data: bytes) -> list[Event]:
        self._protocol.receive_data(data)
        return list(self._parts.events())


def messages(told: list[Event]) -> Iterator[bytes]:
    whole = b""
    for event in told:
        assert isinstance(event, BytesMessage)
        whole += event.data
        if event.message_finished:
            yield whole
            whole = b""


@pytest.mark.parametrize("payload", [b"", b"x", b"xy"])
def test_many_frames_of_one_message_are_refused_in_one_read_and_over_many(payload: bytes) -> None:
    at_once, slowly = Peer(), Peer()
    for peer in (at_once, slowly):
        assert peer.read(frame(payload, Opcode.BINARY)) == []
    assert at_once.read(frame(payload) * (MAX_FRAMES - 1)) == []
    with pytest.raises(RemoteProtocolError, match="too many frames from the peer for one message"):
        at_once.read(frame(payload) * 10_000)
    with pytest.raises(RemoteProtocolError, match="too many frames from the peer for one message"):
        for _ in range(MAX_FRAMES):
            assert slowly.read(frame(payload)) == []


def test_refused_is_the_first_frame_too_many_and_no_further_one_is_parsed() -> None:
    parsed = 0

    def frames() -> Iterator[Event]:
        nonlocal parsed
        while True:
            parsed += 1
            yield BytesMessage(data=b"", message_finished=False)

    with pytest.raises(RemoteProtocolError):
        list(Parts(frames).events())
    assert parsed == MAX_FRAMES + 1


def test_a_long_frame_that_drips_is_handed_on_in_few_pieces() -> None:
    """A frame that takes many reads may come over a bad network: it is not refused, whatever its length."""
    length = 3 * SMALL_PART
    drips = [BytesMessage(data=b"ab", frame_finished=False, message_finished=False)] * (length // 2)
    now: list[Event] = []
    parts = Parts(lambda: now)
    told: list[Event] = []
    for drip in [*drips, BytesMessage(data=b"c")]:
        now[:] = [drip]
        told += parts.events()
    assert len(told) == length // SMALL_PART + 1
    assert list(messages(told)) == [b"ab" * (length // 2) + b"c"]


def test_frames_between_messages_are_counted_in_one_read_alone() -> None:
    peer = Peer()
    for opcode, kind in ((Opcode.PING, Ping), (Opcode.PONG, Pong)):
        for _ in range(3):
            told = peer.read(frame(b"", opcode, last=True) * MAX_FRAMES)
            assert [type(event) for event in told] == [kind] * MAX_FRAMES
        with pytest.raises(RemoteProtocolError):
            peer.read(frame(b"", opcode, last=True) * (MAX_FRAMES + 1))


def test_a_message_that_is_finished_begins_the_count_anew() -> None:
    peer = Peer()
    whole = frame(b"x", Opcode.BINARY) + frame(b"y") * (MAX_FRAMES - 1) + frame(b"z", last=True)
    for _ in range(2):
        assert list(messages(peer.read(whole))) == [b"x" + b"y" * (MAX_FRAMES - 1) + b"z"]
    assert (
        list(messages(peer.read(frame(b"m", Opcode.BINARY, last=True) * (2 * MAX_FRAMES)))) == [b"m"] * 2 * MAX_FRAMES
    )


def test_text_is_handed_on_by_its_first_piece() -> None:
    peer = Peer()
    assert peer.read(frame(b"a", Opcode.TEXT)) == [TextMessage(data="a", message_finished=True)]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.binary(max_size=125), min_size=1, max_size=5), max_size=5),
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
)
def test_however_a_message_is_split_it_is_the_same(split: list[list[bytes]], reads: list[int]) -> None:
    data = b"".join(
        frame(piece, Opcode.CONTINUATION if at else Opcode.BINARY, last=at == len(pieces) - 1)
        for pieces in split
        for at, piece in enumerate(pieces)
    )
    peer, told, number = Peer(), list[Event](), 0
    while data:
        size = reads[number % len(reads)]
        told += peer.read(data[:size])
        data, number = data[size:], number + 1
    assert list(messages(told)) == [b"".join(pieces) for pieces in split]
