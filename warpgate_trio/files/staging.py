"""The receiver's disk: where files grow until an offer is complete, and how they get their names.

    INTO/.warpgate-trio/KEY/      the room; KEY: a hash of the sender's id and the offer's key, so no peers share a room
                        offer     what was offered (`journal.Saved`)
                        journal   a record for each block
                        tree/     the files, under their names in the offer

Only this user has access to the area (mode 0700).  It is on the same disk as the destination.  Its contents are reached
from open folders, one name at a time, without following links.  When every file has the sender's checksum, each
top-level name of the tree is moved atomically to a free name in the destination.

All functions block; worker threads call them, one at a time for each `Staging` except for `Staging.sync`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, final

import msgspec

from ..errors import TransferFailed, TransferRefused
from .area import (
    clear_room,
    good_blocks,
    lock_room,
    open_area,
    prune,
    refusal,
    remove_abandoned,
    try_names,
    write_all,
    write_failure,
)
from .digests import block_count, block_digest, block_start
from .folder import Folder
from .journal import (
    MAX_SAVED,
    FileRecord,
    Saved,
    block_record,
    complete_record,
    read_journal,
    read_saved,
    write_journal,
)
from .naming import free_names, judge_names
from .protocol import Offered
from .tree import Tree
from .wire import MAX_HELD, Accept, Block, Entry, FileEnd, Held, Reason

__all__ = ["RESERVE", "Staging"]

RESERVE: Final = 64 * 1024 * 1024
"""Bytes of the disk that are left free: a completely full disk disturbs the rest of the system."""
STEP: Final = 16
"""Blocks that one call of a thread reads again: a tenth of a second.  The transfer can be cancelled between calls."""
MAX_ENTERED: Final = 10
"""Attempts to enter a room that finished transfers of other processes remove meanwhile, alone or with the area."""
ENTRY_COST: Final = 4096
"""Bytes that a file or folder takes on the disk besides its content: a block of most file systems."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn an OSError into a refusal of the offer."""
    try:
        yield
    except OSError as error:
        failure = write_failure(error)
        raise TransferRefused(failure.reason, str(failure), by_peer=False) from error


@contextmanager
def _failing() -> Iterator[None]:
    """Turn an OSError into the failure of the transfer."""
    try:
        yield
    except OSError as error:
        raise write_failure(error) from error


def _open_room(into: Folder, name: str, entries: Sequence[Entry], hidden: bool) -> tuple[Folder, int]:
    """Check the names of an offer, and open and lock its room.  Raises OSError, TransferRefused."""
    tries = 0
    while True:
        tries += 1
        try:
            return _enter_room(into, name, entries, hidden)
        except FileNotFoundError:  # another transfer has ended and removed what we had open
            if tries == MAX_ENTERED:
                raise


def _enter_room(into: Folder, name: str, entries: Sequence[Entry], hidden: bool) -> tuple[Folder, int]:
    with open_area(into) as area:
        problem = judge_names(((each.path, each.is_folder) for each in entries), try_names(area, hidden))
        if problem is not None:
            raise refusal(Reason.NAME, problem)
        remove_abandoned(area, name)
        room = area.subfolder(name, make=True, mode=0o700)
    try:
        return room, lock_room(room)
    except BaseException:
        room.close()
        raise


@final
class Staging:
    """One offer of one peer on the disk; made by `open`.  Close it after use.

    Attributes:
      entries: what is offered.
      records: what is there of each file, by the index of its entry.
      written: bytes of the journal.
    """

    def __init__(self, into: Folder, room: Folder, lock: int, sender: str, offered: Offered, saved: Saved) -> None:
        self._into = into
        self._room = room
        self._lock = lock
        self._tree = Tree(room.subfolder("tree", make=True))
        self._saved = saved
        self._journal = -1
        self._unchecked: Generator[None] | None = None
        self._size = offered.offer.size
        self.entries: Final = offered.entries
        self.records: dict[int, FileRecord] = {}
        self.written: int = 0

    # -- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, into: Path, sender: str, offered: Offered, *, hidden: bool, max_size: int | None, trusted: int = 0
    ) -> Staging:
        """Check an offer, and find what is there of it.  Call `check` next, until it is False, and then `begin`.

        Args:
          hidden: whether top-level names that begin with a dot are accepted.
          max_size: the most bytes that are accepted; None: any number.
          trusted: bytes of the journal that this process has written itself.  A journal of this length is not checked.

        Raises:
          TransferRefused: the offer is not acceptable, or the system does not let it be stored.
        """
        with _refusing():
            return cls._open(into, sender, offered, hidden, max_size, trusted)

    @classmethod
    def _open(
        cls, into: Path, sender: str, offered: Offered, hidden: bool, max_size: int | None, trusted: int
    ) -> Staging:
        offer, entries = offered.offer, offered.entries
        if max_size is not None and offer.size > max_size:
            raise refusal(Reason.TOO_LARGE, f"the offer has {offer.size:,} bytes; at most {max_size:,} are accepted")
        into.mkdir(parents=True, exist_ok=True)
        folder = Folder.open(into)
        room, lock = None, -1
        try:
            name = hashlib.blake2b(sender.encode() + offer.key, digest_size=16).hexdigest()
            room, lock = _open_room(folder, name, entries, hidden)
            staging = cls(folder, room, lock, sender, offered, Saved(sender, offer.run, entries))
            try:
                staging._find(trusted)
            except BaseException:
                staging._close_journal()
                staging._tree.close()
                raise
            return staging
        except BaseException:
            if lock >= 0:
                os.close(lock)
            if room is not None:
                room.close()
            folder.close()
            raise

    def _find(self, trusted: int) -> None:
        """Find what is there of exactly these files; remove everything else."""
        old = read_saved(self._room.read("offer", MAX_SAVED))
        journal = self._room.read("journal", MAX_SAVED)
        if old is None or (old.published and old.run != self._saved.run):
            self._tree.close()
            self._room.remove("tree")
            self._tree = Tree(self._room.subfolder("tree", make=True))
        else:
            records = read_journal(journal, old.entries)
            published = old.published if old.run == self._saved.run else {}
            if old.entries == self.entries:
                self.records = records
            else:
                self._adopt(old.entries, records)
            self._saved = msgspec.structs.replace(self._saved, published=published)
            if len(journal) != trusted or not trusted:
                self._unchecked = self._verify()

    def check(self) -> bool:
        """Read some of the data again for its checksum; False when all of it was read.

        Raises:
          TransferRefused: the system does not let it be read.
        """
        with _refusing():
            return self._unchecked is not None and len(list(islice(self._unchecked, STEP))) == STEP

    def begin(self) -> None:
        """Save what is there, and check that the disk has space for the rest.

        Raises:
          TransferRefused: there is too little space, or the system does not let it be written.
        """
        with _refusing():
            self._begin()

    def _begin(self) -> None:
        for index, entry in enumerate(self.entries):
            if self._published(entry) and not entry.is_folder:
                self.records[index] = FileRecord(complete=True)
        self._check_space()
        self._save()
        for entry in filter(lambda each: each.is_folder and not self._published(each), self.entries):
            self._tree.make_folder(entry.path)

    def _adopt(self, old: Sequence[Entry], records: dict[int, FileRecord]) -> None:
        """Keep the files of an earlier offer of the same paths that are unchanged in this one; remove the others."""
        now = {entry: index for index, entry in enumerate(self.entries)}
        for index, record in records.items():
            if (number := now.get(old[index])) is not None:
                self.records[number] = record
        kept = {self.entries[index].path for index in self.records}
        prune(self._tree.root, "", kept, {entry.path for entry in self.entries if entry.is_folder})

    def _verify(self) -> Generator[None]:
        """Compute the checksum of each block on the disk again, one block at each step, and correct the records."""
        for index, record in list(self.records.items()):
            good = 0
            try:
                parent, name = self._tree.place(self.entries[index].path)
                for _ in good_blocks(parent, name, self.entries[index].size, record):
                    good += 1
                    yield
            except OSError:
                record.complete = False
            record.cut(good)
            if not record.blocks and not record.complete:
                del self.records[index]

    def _published(self, entry: Entry) -> bool:
        return entry.path.partition("/")[0] in self._saved.published

    def _check_space(self) -> None:
        there = sum(
            self.entries[index].size if record.complete else block_start(record.blocks)
            for index, record in self.records.items()
        )
        needed = max(self._size - there, 0) + ENTRY_COST * (len(self.entries) - len(self.records))
        free = self._into.free_space() - RESERVE
        if needed > free:
            raise refusal(Reason.NO_SPACE, f"{needed:,} bytes are needed, and {max(free, 0):,} are free")

    # -- the answer to the sender ------------------------------------------------------------------------------------

    def accept(self) -> Accept:
        """The answer to the sender: the files and parts that are there."""
        bits = bytearray(-(-len(self.entries) // 8))
        held: list[Held] = []
        for index, record in sorted(self.records.items()):
            if record.complete:
                bits[index >> 3] |= 1 << (index & 7)
            elif len(held) < MAX_HELD:
                held.append(Held(index, record.blocks, record.digest))
        return Accept(bytes(bits), tuple(held))

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, batch: Iterable[Block | FileEnd]) -> None:
        """Check and write blocks and ends of files that the protocol has accepted.

        Raises:
          TransferFailed: the disk cannot be written, or a checksum does not match.
        """
        records = bytearray()
        with _failing():
            try:
                for each in batch:
                    records += self._write_block(each) if isinstance(each, Block) else self._end_file(each)
            finally:
                self._note(records)

    def _note(self, records: bytearray) -> None:
        if self._journal < 0:
            self._journal = self._room.open_file("journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        written = os.write(self._journal, records) if records else 0
        self.written += written
        if written < len(records):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_block(self, block: Block) -> bytes:
        if block_digest(block.pieces) != block.digest:
            raise TransferFailed(
                Reason.DAMAGED, f"block {block.number} of {self.entries[block.index].path!r} is damaged", by_peer=False
            )
        record = self.records.setdefault(block.index, FileRecord())
        if block.number == 0:
            record.cut(0)
        write_all(self._tree.grow(self.entries[block.index], block.number), block.pieces, block.size)
        record.digests += block.digest
        return block_record(block.index, block.number, block.digest)

    def _end_file(self, end: FileEnd) -> bytes:
        entry = self.entries[end.index]
        record = self.records.setdefault(end.index, FileRecord())
        if record.blocks != block_count(entry.size) or record.digest != end.digest:
            self.discard(end.index)
            raise TransferFailed(
                Reason.DAMAGED, f"the data of {entry.path!r} does not match its checksum", by_peer=False
            )
        self._tree.finish(entry, record.blocks)
        record.complete = True
        return complete_record(end.index, end.digest)

    def discard(self, index: int) -> None:
        """Remove what is there of a file."""
        self._tree.remove(self.entries[index].path)
        self.records.pop(index, None)
        self._save()

    # -- the end -----------------------------------------------------------------------------------------------------

    def sync(self, first: int, last: int) -> None:
        """Write the entries from `first` up to `last` to the disk (fsync), after all have been written to.

        Several threads may call it at a time.

        Raises:
          TransferFailed: as for `write`.
        """
        with _failing(), Tree(self._room.subfolder("tree")) as tree:
            for entry in self.entries[first:last]:
                if not self._published(entry):
                    tree.sync(entry)

    def publish(self) -> list[Path]:
        """Move each top-level file or folder to a free name in the destination; returns the new paths.

        Raises:
          TransferFailed: no name is free, or the system does not let it be moved.
        """
        self._tree.rest()
        with _failing():
            for entry in self.entries:
                if "/" not in entry.path and not self._published(entry):
                    self._saved.published[entry.path] = self._give_name(entry)
                    self._save_offer()
            self._into.sync()
        return [self._into.path / each for each in self._saved.published.values()]

    def _give_name(self, entry: Entry) -> str:
        for name in free_names(entry.path, entry.is_folder):
            with suppress(FileExistsError):
                self._tree.root.move_out(entry.path, self._into, name)
                return name
        raise TransferFailed(Reason.EXISTS, f"every name like {entry.path!r} is taken", by_peer=False)

    def forget(self) -> None:
        """Remove the room, and the area if it is empty then.  For a transfer whose sender has received DONE."""
        self._close_journal()
        self._tree.rest()
        lock, self._lock = self._lock, -1
        with suppress(OSError):  # another transfer uses it
            clear_room(self._room, lock)
            os.rmdir(self._room.path)
            os.rmdir(self._room.path.parent)

    def close(self) -> None:
        """Close all files and release the lock; the data on the disk stays."""
        if self._unchecked is not None:
            self._unchecked.close()
        self._close_journal()
        self._tree.close()
        self._room.close()
        self._into.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- what it is made of ------------------------------------------------------------------------------------------

    def _close_journal(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def _save(self) -> None:
        """Replace the saved offer and the journal by the current state."""
        self._save_offer()
        self._close_journal()
        journal = write_journal({i: r for i, r in self.records.items() if not self._published(self.entries[i])})
        self._room.write("journal", journal)
        self.written = len(journal)

    def _save_offer(self) -> None:
        self._room.write("offer", msgspec.msgpack.encode(self._saved))
