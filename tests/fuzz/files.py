"""File transfers over a Pipe: messages to the sender and to the receiver, notes on the disk, and file names."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tests.fuzz.registry import pieces, target, text_of, texts
from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.files.digests import block_digest
from warpgate_trio.files.journal import Saved, block_record, read_journal, read_saved, write_journal
from warpgate_trio.files.naming import Destination, judge_names
from warpgate_trio.files.protocol import Offered, Receiver, Refusal, Sender, State
from warpgate_trio.files.wire import (
    Accept,
    Done,
    Entries,
    Entry,
    EntryKind,
    FileEnd,
    Finish,
    Held,
    Offer,
    Reason,
    Refuse,
    Stop,
    Withdraw,
    block_header,
    encode,
)

DATA = b"some bytes of a file"
DIGEST = block_digest([DATA])
ENTRIES = (
    Entry("folder", EntryKind.FOLDER),
    Entry("folder/file", EntryKind.FILE, len(DATA), 1, b"version"),
    Entry("run.sh", EntryKind.EXECUTABLE),
)
OFFER = Offer(1, bytes(16), bytes(16), len(ENTRIES), len(DATA))


def _senders() -> Sequence[bytes]:
    head = encode(OFFER) + encode(Entries(ENTRIES))
    whole = [block_header(1, 0, DIGEST, len(DATA)) + DATA, encode(FileEnd(1, DIGEST)), encode(FileEnd(2, bytes(16)))]
    return [head, head + b"".join(whole) + encode(Finish()), head + whole[0] + encode(Withdraw(Reason.CHANGED, "", 1))]


@target(_senders, RemoteProtocolError, inputs=1500)
def files_sender(data: bytes) -> None:
    receiver = Receiver(max_entries=1000)
    for piece in pieces(data):
        for message in receiver.receive(piece):
            if isinstance(message, Refusal):
                receiver.refuse(message.reason, message.text)
                return
            if isinstance(message, Offered):
                judge_names(((each.path, each.is_folder) for each in message.entries), Destination(windows=True))
                receiver.accept(b"", [])
    list(receiver.receive(b""))


@target(
    lambda: [
        encode(Accept()) + encode(Done()),
        encode(Accept(b"\x04", (Held(1, 1, DIGEST),))) + encode(Stop(Reason.NO_SPACE, "full")),
        encode(Refuse(Reason.NAME, "no")),
    ],
    RemoteProtocolError,
    inputs=3000,
)
def files_receiver(data: bytes) -> None:
    sender = Sender(OFFER, ENTRIES)
    b"".join(sender.offer())
    for piece in pieces(data):
        for message in sender.receive(piece):
            if isinstance(message, Accept) and not message.complete and not message.held:
                sender.block(1, 0, DIGEST, len(DATA))
                sender.end_file(1, DIGEST)
                sender.end_file(2, DIGEST)
                sender.finish()
    assert sender.state in State


@target(
    lambda: [block_record(1, 0, DIGEST) * 3, b"".join(block_record(1, number, DIGEST) for number in range(5))],
    inputs=3000,
)
def files_journal(data: bytes) -> None:
    records = read_journal(data, ENTRIES)
    assert all(not ENTRIES[index].is_folder for index in records)
    assert read_journal(write_journal(records), ENTRIES) == {i: r for i, r in records.items() if r.blocks or r.complete}


@target(lambda: [msgspec.msgpack.encode(Saved("peer", bytes(16), ENTRIES, {"a": "b"}))], inputs=3000)
def files_saved(data: bytes) -> None:
    read_saved(data)


_corpus, _change = texts("folder/file.txt", "../up", "C:\\x", "CON", "a\u202eb", "e\u0301", "a" * 255, "x/" * 64)


@target(_corpus, inputs=3000, by=_change)
def files_name(data: bytes) -> None:
    for destination in (Destination(), Destination(windows=True, folds_case=True, normalises=True)):
        problem = judge_names([(text_of(data), False)], destination)
        assert problem is None or problem.isprintable()
        if problem is None:
            parts = text_of(data).split("/")
            assert not {"", ".", ".."} & set(parts)
