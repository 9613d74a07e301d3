"""The messages of sender and receiver: golden bytes, what neither may send, and how their claims are checked."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from warpgate_trio.errors import LocalProtocolError, RemoteProtocolError
from warpgate_trio.files import wire
from warpgate_trio.files.digests import BLOCK, FileDigest, block_count, block_digest, block_size
from warpgate_trio.files.protocol import Offered, Receiver, Refusal, Sender, State, completed, first_bytes
from warpgate_trio.files.wire import (
    Accept,
    Block,
    Done,
    Entries,
    Entry,
    EntryKind,
    FileEnd,
    FileReader,
    Finish,
    Held,
    Kind,
    Offer,
    Reason,
    Refuse,
    Stop,
    Withdraw,
    block_header,
    encode,
)

KEY, RUN, DIGEST = bytes(16), bytes(range(16)), b"d" * 16
FILE, FOLDER, EMPTY = Entry("a", EntryKind.FILE, 5, 7, b"v"), Entry("f", EntryKind.FOLDER), Entry("f/e", EntryKind.FILE)
LARGE = Entry("large", EntryKind.EXECUTABLE, 2 * BLOCK + 1)
ENTRIES = (FILE, FOLDER, EMPTY, LARGE)
SIZE = sum(each.size for each in ENTRIES)


def offer(**changes: Any) -> Offer:
    return structs.replace(Offer(1, KEY, RUN, len(ENTRIES), SIZE), **changes)


def offered(listed: Sequence[Entry] = ENTRIES, **changes: Any) -> tuple[Receiver, list[Any]]:
    receiver = Receiver()
    said = encode(offer(**changes)) + encode(Entries(tuple(listed)))
    return receiver, list(receiver.receive(said))


def accepted(complete: bytes = b"", held: Sequence[Held] = ()) -> Receiver:
    receiver, _ = offered()
    receiver.accept(complete, held)
    return receiver


def block(index: int, number: int, size: int) -> bytes:
    data = b"x" * size
    return block_header(index, number, block_digest([data]), size) + data


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (offer(), "010000002c9501c410" + "00" * 16 + "c410" + bytes(range(16)).hex() + "04ce00400006"),
        (Entries((FILE, FOLDER)), "0200000013919295a161000507c4017695a166020000c400"),
        (FileEnd(3, DIGEST), "0400000014" + "9203c410" + "64" * 16),
        (Finish(), "050000000190"),
        (Withdraw(10, "gone", 3), "0600000008930aa4676f6e6503"),
        (Accept(b"\x05", (Held(3, 1, DIGEST),)), "100000001a" + "92c40105" + "919303" + "01c410" + "64" * 16),
        (Refuse(5, "full"), "11000000079205a466756c6c"),
        (Stop(9), "12000000039209a0"),
        (Done(), "130000000190"),
    ],
)
def test_golden_bytes(message: Any, golden: str) -> None:
    assert encode(message).hex() == golden
    (again,) = FileReader(frozenset(Kind)).feed(bytes.fromhex(golden))
    assert again == message


def test_a_block_is_not_copied() -> None:
    data = block(3, 0, 100)
    assert data[:29].hex() == "030000007c" + "00000003" + "00000000" + block_digest([b"x" * 100]).hex()
    (message,) = FileReader(frozenset(Kind)).feed(data)
    assert isinstance(message, Block)
    assert [each.obj for each in message.pieces] == [data]
    assert (message.index, message.number, message.size, b"".join(message.pieces)) == (3, 0, 100, b"x" * 100)


@pytest.mark.slow("thirty examples")
@settings(max_examples=30)
@given(st.lists(st.integers(1, 200), max_size=30), st.integers())
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int], seed: int) -> None:
    messages: list[Any] = [offer(), Entries(ENTRIES), FileEnd(1, DIGEST), Finish()]
    said = b"".join(map(encode, messages[:2])) + block(0, 0, 300) + b"".join(map(encode, messages[2:]))
    reader = FileReader(frozenset(Kind))
    found: list[Any] = []
    for size in [*cuts, len(said)]:
        found += reader.feed(said[:size])
        said = said[size:]
    assert [each for each in found if not isinstance(each, Block)] == messages
    (one,) = [each for each in found if isinstance(each, Block)]
    assert b"".join(one.pieces) == b"x" * 300


@pytest.mark.slow("five thousand pieces")
def test_pieces_of_a_byte_are_joined() -> None:
    """A peer that sends single bytes does not make the reader keep an object for each."""
    reader = FileReader(frozenset(Kind))
    for byte in block(0, 0, 5000)[:-1]:
        assert not list(reader.feed(bytes([byte])))
    assert len(reader._pieces) <= wire.LOOSE_PIECES + 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00\x01\x90",
        b"\x07\x00\x00\x00\x01\x90",
        b"GET / HTTP/1.1\r\n",
        b"\x05\x00\x00\x00\x00",
        b"\x05\xff\xff\xff\xff",
        b"\x01" + (wire.MAX_MESSAGE + 1).to_bytes(4, "big"),
        b"\x03" + (24 + BLOCK + 1).to_bytes(4, "big"),
        b"\x03" + (24).to_bytes(4, "big"),
        b"\x05\x00\x00\x00\x01\xc1",
        b"\x05\x00\x00\x00\x02\x91\x00",
        encode(Done()),
        encode(Accept()),
    ],
)
def test_what_is_no_message_of_a_senders(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        list(Receiver().receive(data))


@pytest.mark.parametrize("size", [-1, 1 << 63, (1 << 64) - 1, wire.MAX_FILE + 1])
def test_sizes_that_cannot_be(size: int) -> None:
    entry = Entry("a", EntryKind.FILE, size)
    with pytest.raises(RemoteProtocolError):
        offered([entry], entries=1, size=size if 0 <= size < 1 << 62 else 0)


@pytest.mark.parametrize(
    "entries",
    [
        (*ENTRIES[:-1], Entry("large", EntryKind.FILE, 1)),
        (*ENTRIES, FILE),
        (FILE, Entry("f", EntryKind.FOLDER, 1), EMPTY, Entry("l", EntryKind.FILE, LARGE.size - 1)),
    ],
)
def test_lists_that_are_not_what_was_offered(entries: Sequence[Entry]) -> None:
    with pytest.raises(RemoteProtocolError):
        offered(entries)


def test_a_list_that_does_not_end() -> None:
    """Too many files are refused by their number, and a sender that lists more than it has offered is cut off."""
    receiver = Receiver(max_entries=10)
    (refusal,) = receiver.receive(encode(offer(entries=11)))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.TOO_MANY
    receiver, _ = offered([FILE] * 3)
    with pytest.raises(RemoteProtocolError):
        list(receiver.receive(encode(Entries((FILE, FILE)))))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, Reason.UNSUPPORTED),
        ({"entries": 1 << 40}, Reason.TOO_MANY),
        ({"size": wire.MAX_BYTES + 1}, Reason.TOO_LARGE),
    ],
)
def test_an_offer_that_is_refused_by_its_first_message(changes: Any, reason: Reason) -> None:
    receiver = Receiver()
    (refusal,) = receiver.receive(encode(offer(**changes)))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is reason
    receiver.refuse(refusal.reason, "x" * 1000)
    assert receiver.state is State.OVER


GOOD = (
    block(0, 0, 5),
    encode(FileEnd(0, DIGEST)),
    encode(FileEnd(2, DIGEST)),
    block(3, 0, BLOCK),
    block(3, 1, BLOCK),
    block(3, 2, 1),
    encode(FileEnd(3, DIGEST)),
    encode(Finish()),
)


def test_the_order_of_a_whole_transfer() -> None:
    receiver = accepted()
    for said in GOOD:
        (_,) = receiver.receive(said)
    receiver.done()
    assert receiver.state is State.OVER
    list(receiver.receive(b""))


@pytest.mark.parametrize("missing", range(len(GOOD)))
def test_nothing_may_be_left_out_or_said_twice(missing: int) -> None:
    for order in (GOOD[:missing] + GOOD[missing + 1 :], GOOD[: missing + 1] + GOOD[missing:]):
        receiver = accepted()
        # A repeated first block is allowed: it begins the file anew.
        if order.count(GOOD[missing]) == 2 and missing in (0, 3):
            continue
        with pytest.raises(RemoteProtocolError):
            for said in [*order, b""]:
                list(receiver.receive(said))


@pytest.mark.parametrize(
    "said",
    [
        block(0, 0, 4),
        block(0, 0, 6),
        block(0, 1, 5),
        block(1, 0, 1),
        block(2, 0, 1),
        block(3, 0, BLOCK),
        block(9, 0, 1),
        block(0xFFFFFFFF, 0xFFFFFFFF, 1),
        encode(FileEnd(0, DIGEST)),
        encode(Finish()),
        encode(Withdraw(10, "", 3)),
        encode(offer()),
        encode(Entries((FILE,))),
        b"",
    ],
)
def test_what_may_not_come_first(said: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        list(accepted().receive(said))


def test_blocks_before_an_answer_are_wrong() -> None:
    receiver, (found,) = offered()
    assert found == Offered(offer(), ENTRIES)
    with pytest.raises(RemoteProtocolError):
        list(receiver.receive(block(0, 0, 5)))


def test_what_is_held_is_gone_on_with_or_begun_anew() -> None:
    held = [Held(3, 2, DIGEST)]
    receiver = accepted(b"\x05", held)
    (_,) = receiver.receive(block(3, 2, 1))
    (_, _) = receiver.receive(encode(FileEnd(3, DIGEST)) + encode(Finish()))
    receiver = accepted(b"\x05", held)
    (_,) = receiver.receive(block(3, 0, BLOCK))
    with pytest.raises(RemoteProtocolError):
        list(receiver.receive(block(3, 2, 1)))
    assert first_bytes(ENTRIES, Accept(b"\x05", tuple(held))) == 5 + 2 * BLOCK
    assert first_bytes(ENTRIES, Accept(b"", (Held(3, 3, DIGEST),))) == LARGE.size


def sender() -> Sender:
    found = Sender(offer(), ENTRIES)
    b"".join(found.offer())
    return found


@pytest.mark.parametrize(
    "accept",
    [
        Accept(b"\x00\x00"),
        Accept(b"", (Held(1, 1, DIGEST),)),
        Accept(b"", (Held(4, 1, DIGEST),)),
        Accept(b"", (Held(3, 4, DIGEST),)),
        Accept(b"", (Held(2, 1, DIGEST),)),
        Accept(b"", (Held(3, 1, DIGEST), Held(3, 1, DIGEST))),
        Accept(b"\x08", (Held(3, 1, DIGEST),)),
    ],
)
def test_a_receiver_that_has_what_cannot_be(accept: Accept) -> None:
    with pytest.raises(RemoteProtocolError):
        list(sender().receive(encode(accept)))


@pytest.mark.parametrize("said", [Stop(1), Done()])
def test_a_receiver_that_says_it_too_soon(said: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        list(sender().receive(encode(said)))


def test_a_receiver_that_goes_away_without_a_word() -> None:
    with pytest.raises(RemoteProtocolError, match="ended"):
        list(sender().receive(b""))
    ours = sender()
    with pytest.raises(RemoteProtocolError, match="middle"):
        list(ours.receive(encode(Accept())[:3]))
        list(ours.receive(b""))


def test_our_own_mistakes_are_ours() -> None:
    ours = sender()
    with pytest.raises(LocalProtocolError):
        ours.finish()
    list(ours.receive(encode(Accept())))
    with pytest.raises(LocalProtocolError):
        ours.block(3, 0, DIGEST, 1)
    with pytest.raises(LocalProtocolError):
        ours.finish()
    receiver, _ = offered()
    with pytest.raises(LocalProtocolError):
        receiver.done()


@pytest.mark.slow("thirty examples")
@settings(max_examples=30)
@given(st.integers(0, 255), st.integers(0, 3), st.integers())
def test_sender_and_receiver_agree(bits: int, blocks: int, seed: int) -> None:
    """The receiver takes everything that the sender may send after an ACCEPT, and all missing bytes arrive."""
    bits &= 0b1101
    held = [Held(3, blocks, DIGEST)] if blocks and not bits & 8 else []
    ours, receiver = Sender(offer(), ENTRIES), Receiver()
    for piece in ours.offer():
        list(receiver.receive(piece))
    list(ours.receive(receiver.accept(bytes([bits]), held)))
    random, came = Random(seed), 0
    for index, entry in enumerate(ENTRIES):
        if entry.is_folder or completed(bytes([bits]), index):
            continue
        first = blocks if held and index == 3 and random.random() < 0.7 else 0
        for number in range(first, block_count(entry.size)):
            size = block_size(entry.size, number)
            (_,) = receiver.receive(ours.block(index, number, DIGEST, size) + b"x" * size)
            came += size
        (_,) = receiver.receive(ours.end_file(index, DIGEST))
    (_,) = receiver.receive(ours.finish())
    (_,) = ours.receive(receiver.done())
    assert ours.state is receiver.state is State.OVER
    assert came >= SIZE - first_bytes(ENTRIES, Accept(bytes([bits]), tuple(held)))


def test_an_offer_of_many_files_goes_in_several_messages() -> None:
    entries = [Entry(f"{number:0200}", EntryKind.FILE, 1) for number in range(5000)]
    ours = Sender(offer(entries=5000, size=5000), entries)
    receiver = Receiver()
    (found,) = [each for piece in ours.offer() for each in receiver.receive(piece)]
    assert isinstance(found, Offered)
    assert found.entries == tuple(entries)


def test_a_file_is_hashed_as_its_blocks() -> None:
    blocks = [block_digest([b"a" * 10, b"b"]), block_digest([b"c"])]
    assert blocks[0] == block_digest([b"a" * 10 + b"b"])
    digest = FileDigest()
    for each in blocks:
        digest.add(each)
    assert digest.digest() == FileDigest([b"".join(blocks)]).digest() != FileDigest(blocks[:1]).digest()
