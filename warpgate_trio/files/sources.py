"""The sender's files: what is offered, and reading it.

A file counts as unchanged if it has the same device, inode, size and modification time as when it was offered.  This is
checked before its first byte is read and after its last.  Links inside of the named folders are not followed: they, and
everything that is neither a file nor a folder, are left out and listed in `Outgoing.skipped`.

All functions block; worker threads call them, one at a time.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from .. import host
from ..errors import TransferFailed, printable
from ..nurseries import reason_of
from .digests import BLOCK, DIGEST_LENGTH, BlockDigest, FileDigest, block_count, block_size, block_start
from .naming import Destination, judge_names
from .protocol import completed
from .wire import FURTHEST_TIME, MAX_ENTRIES, MAX_FILE, VERSION, Accept, Entry, EntryKind, Offer, Reason

__all__ = ["Ended", "Outgoing", "ReadBlock", "Reading", "Skipped", "look_at"]

BATCH: Final = 4 * 1024 * 1024
"""Bytes that one call of a thread reads at least, if there are as many: a call costs 100 µs."""
FIRST: Final = 16 * 1024
"""Bytes of a block's first piece, which is copied behind the block's header: as many as a TLS record holds."""
PIECE: Final = 512 * 1024
"""Bytes that are read at once, and hashed while they are in the processor's cache."""
MAX_BATCH: Final = 64
"""The most files that one call of a thread reads."""
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


@final
@dataclass(frozen=True, slots=True)
class Skipped:
    """A path that is not offered, and the reason."""

    path: Path
    why: str


@final
@dataclass(frozen=True, slots=True)
class _Source:
    """A file, and its identity when it was looked at."""

    path: str
    identity: tuple[int, int, int, int]


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@final
@dataclass(frozen=True, slots=True)
class Outgoing:
    """An offer of files of this machine; made by `look_at`.

    Attributes:
      offer: the first message to the receiver.
      entries: what is offered, each folder before its contents.
      skipped: what was left out.
    """

    offer: Offer
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    sources: tuple[_Source | None, ...]
    digests: dict[int, bytearray] = field(default_factory=dict)
    """Checksums of the blocks that were read, concatenated, by the index of the entry."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.offer.size

    @property
    def files(self) -> int:
        """The number of files, without folders."""
        return sum(not entry.is_folder for entry in self.entries)


def look_at(paths: Iterable[str | Path], *, run: bytes | None = None) -> Outgoing:
    """Look at files and folders with their contents, and make an offer of them.  Blocks.

    A path that is itself a link stands for its target.

    Args:
      run: the `run` of the offer; None: a new one.

    Raises:
      OSError: one of the paths is missing or cannot be read.
      ValueError: the paths cannot be offered: two have the same name, a name is not valid at a receiver, there are too
        many files, or a path is neither a file nor a folder.
    """
    named = [os.path.abspath(path) for path in paths]
    if not named:
        raise ValueError("nothing to send")
    scan = _Scan()
    for path in named:
        name = os.path.basename(path)
        if not name:
            raise ValueError(f"{path} has no file name")
        if name in scan.tops:
            raise ValueError(f"two of the paths have the name {name}")
        scan.tops.add(name)
        scan.add(os.path.realpath(path), name, os.stat(path), named=True)
    if not scan.entries:
        raise ValueError("nothing to send: " + "; ".join(f"{each.path} {each.why}" for each in scan.skipped[:4]))
    problem = judge_names(((each.path, each.is_folder) for each in scan.entries), Destination(hidden=True))
    if problem is not None:
        raise ValueError(f"{problem}; no receiver accepts such a name")
    key = hashlib.blake2b("\0".join(named).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    offer = Offer(
        VERSION,
        key,
        host.current().entropy(16) if run is None else run,
        len(scan.entries),
        sum(each.size for each in scan.entries),
    )
    return Outgoing(offer, tuple(scan.entries), tuple(scan.skipped), tuple(scan.sources))


@final
class _Scan:
    def __init__(self) -> None:
        self.tops: set[str] = set()
        self.entries: list[Entry] = []
        self.sources: list[_Source | None] = []
        self.skipped: list[Skipped] = []

    def add(self, path: str, name: str, status: os.stat_result, *, named: bool = False) -> None:
        """Add a file, or a folder with its contents, that is called `name` in the offer."""
        why = _unfit(name, status)
        if why is not None:
            if named:
                raise ValueError(f"{printable(path)} {why}")
            self.skipped.append(Skipped(Path(path), why))
            return
        if len(self.entries) == MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES:,} files and folders: pack them into an archive, and send that")
        if stat.S_ISDIR(status.st_mode):
            self.entries.append(Entry(name, EntryKind.FOLDER))
            self.sources.append(None)
            self._add_all(path, name)
            return
        kind = EntryKind.EXECUTABLE if status.st_mode & 0o100 and os.name == "posix" else EntryKind.FILE
        modified = min(max(status.st_mtime_ns, -FURTHEST_TIME), FURTHEST_TIME)
        beyond = status.st_mtime_ns - modified  # distinguishes versions whose `modified` is the same bound
        version = ((status.st_ino ^ beyond) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big")
        self.entries.append(Entry(name, kind, status.st_size, modified, version))
        self.sources.append(_Source(path, _identity(status)))

    def _add_all(self, path: str, name: str) -> None:
        try:
            with os.scandir(path) as found:
                inner = sorted(found, key=lambda each: each.name)
        except OSError as error:
            self.skipped.append(Skipped(Path(path), f"cannot be read: {reason_of(error)}"))
            return
        for each in inner:
            try:
                status = os.stat(each.path, follow_symlinks=False)  # on Windows, each.stat() is incomplete
            except OSError as error:
                self.skipped.append(Skipped(Path(each.path), f"cannot be read: {reason_of(error)}"))
            else:
                self.add(each.path, f"{name}/{each.name}", status)


def _unfit(name: str, status: os.stat_result) -> str | None:
    """Why something cannot be offered."""
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return "is a link"
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return "is neither a file nor a folder"
    if not stat.S_ISDIR(mode) and status.st_size > MAX_FILE:
        return f"is larger than {MAX_FILE:,} bytes"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is no UTF-8"
    return None


@final
@dataclass(frozen=True, slots=True)
class ReadBlock:
    """A block that was read, in pieces."""

    index: int
    number: int
    digest: bytes
    pieces: tuple[bytes, ...]
    size: int


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a file that was read, with the file's checksum."""

    index: int
    digest: bytes


@final
class Reading:
    """Reads what the receiver lacks, in the order of the protocol; close it after use.

    Attributes:
      index: the index of the entry that is being read.
    """

    def __init__(self, outgoing: Outgoing, accept: Accept) -> None:
        self._outgoing = outgoing
        self._held = {each.index: each for each in accept.held}
        self._left = iter(
            index
            for index, entry in enumerate(outgoing.entries)
            if not entry.is_folder and not completed(accept.complete, index)
        )
        self._descriptor = -1
        self._steps: Iterator[ReadBlock | Ended | None] = iter(())
        self._failure: TransferFailed | None = None
        self.index: int = 0

    def close(self) -> None:
        """Close the open file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self) -> Sequence[ReadBlock | Ended | None] | None:
        """The next blocks and ends of files; None after the last ones.

        A None among them stands for a block that was read for its checksum only, because the receiver has it.

        Raises:
          TransferFailed: the file `index` has changed since it was offered, or cannot be read.
        """
        batch: list[ReadBlock | Ended | None] = []
        if self._failure is not None:
            raise self._failure
        try:
            self._read_into(batch)
        except TransferFailed as failure:
            if not batch:
                raise
            self._failure = failure  # raised by the next call, after this batch
        return batch or None

    def _read_into(self, batch: list[ReadBlock | Ended | None]) -> None:
        size = files = 0
        while size < BATCH and files < MAX_BATCH:
            step = next(self._steps, self)
            if step is self:
                if (index := next(self._left, None)) is None:
                    return
                self.index = index
                self._steps = self._read_file(index, self._outgoing.entries[index].size)
                files += 1
                continue
            assert not isinstance(step, Reading)
            batch.append(step)
            size += BLOCK if step is None else step.size if isinstance(step, ReadBlock) else 0

    def _read_file(self, index: int, size: int) -> Iterator[ReadBlock | Ended | None]:
        self._open(index)
        known = self._outgoing.digests.setdefault(index, bytearray())
        digest, number = FileDigest(), 0
        held = self._held.get(index)
        if held is not None:
            while len(known) < held.blocks * DIGEST_LENGTH:
                yield None
                known += self._read_block(index, size, len(known) // DIGEST_LENGTH).digest
            there = FileDigest([bytes(known[: held.blocks * DIGEST_LENGTH])])
            if there.digest() == held.digest:
                digest, number = there, held.blocks
        del known[number * DIGEST_LENGTH :]
        while number < block_count(size):
            block = self._read_block(index, size, number)
            digest.add(block.digest)
            known += block.digest
            yield block
            number += 1
        self._check(index)
        self.close()
        if size <= BLOCK:
            del self._outgoing.digests[index]
        yield Ended(index, digest.digest())

    def _open(self, index: int) -> None:
        self.close()
        source = self._outgoing.sources[index]
        assert source is not None
        try:
            self._descriptor = os.open(source.path, _FLAGS)
        except OSError as error:
            raise self._changed(index, f"cannot be read: {reason_of(error)}") from error
        self._check(index)
        with suppress(AttributeError, OSError):  # only Linux and some other systems have it
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def _check(self, index: int) -> None:
        source = self._outgoing.sources[index]
        assert source is not None
        if _identity(os.fstat(self._descriptor)) != source.identity:
            raise self._changed(index, "has changed")

    def _read_block(self, index: int, size: int, number: int) -> ReadBlock:
        wanted = left = block_size(size, number)
        pieces: list[bytes] = []
        state = BlockDigest()
        try:
            os.lseek(self._descriptor, block_start(number), os.SEEK_SET)
            while left:
                piece = os.read(self._descriptor, min(left, PIECE if pieces else FIRST))
                if not piece:
                    raise self._changed(index, "has become shorter")
                state.add(piece)
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise self._changed(index, f"cannot be read: {reason_of(error)}") from error
        return ReadBlock(index, number, state.digest(), tuple(pieces), wanted)

    def _changed(self, index: int, why: str) -> TransferFailed:
        path = self._outgoing.entries[index].path
        self.close()
        return TransferFailed(Reason.CHANGED, f"{path!r} {why}", by_peer=False)
