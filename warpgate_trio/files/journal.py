"""The journal of a receiver: the offer, and a record for each block that was checked and written.

A record is written after its block, but neither is synced to the disk.  After a restart a record therefore proves
nothing: the receiver reads each block again and compares it with the recorded checksum.  All records have the same
length.  Reading ends at a truncated or invalid record.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final

import msgspec

from ..errors import WarpgateError
from .digests import DIGEST_LENGTH, FileDigest, block_count
from .wire import Entry

__all__ = ["FileRecord", "Saved", "block_record", "complete_record", "read_journal", "read_saved", "write_journal"]

_RECORD: Final = struct.Struct(f">II{DIGEST_LENGTH}s")
_COMPLETE: Final = 0xFFFF_FFFF
MAX_SAVED: Final = 256 * 1024 * 1024
"""Bytes that are read of a saved offer or a journal: enough for the largest offer."""


@final
class Saved(msgspec.Struct, frozen=True, array_like=True):
    """The offer that a journal belongs to.

    Attributes:
      sender: the sender's peer id.
      run: the `run` of the offer.
      entries: the entries of the offer.
      published: the top-level names that were moved to their destination, each with its name there.
    """

    sender: str
    run: bytes
    entries: tuple[Entry, ...]
    published: dict[str, str] = {}


@final
@dataclass(slots=True)
class FileRecord:
    """What the receiver has of one file.

    Attributes:
      digests: the checksums of its first blocks, concatenated.
      complete: whether the whole file is there and its checksum was the sender's.
    """

    digests: bytearray = field(default_factory=bytearray)
    complete: bool = False

    @property
    def blocks(self) -> int:
        """The number of blocks that are there."""
        return len(self.digests) // DIGEST_LENGTH

    @property
    def digest(self) -> bytes:
        """The file checksum over the blocks that are there."""
        return FileDigest([bytes(self.digests)]).digest()

    def block(self, number: int) -> bytes:
        """The checksum of block `number`."""
        return bytes(self.digests[number * DIGEST_LENGTH : (number + 1) * DIGEST_LENGTH])

    def cut(self, blocks: int) -> None:
        """Keep only the first `blocks` blocks."""
        if blocks < self.blocks:
            del self.digests[blocks * DIGEST_LENGTH :]
            self.complete = False


def block_record(index: int, number: int, digest: bytes) -> bytes:
    """The record of a written block."""
    return _RECORD.pack(index, number, digest)


def complete_record(index: int, digest: bytes) -> bytes:
    """The record of a complete file."""
    return _RECORD.pack(index, _COMPLETE, digest)


def read_journal(data: bytes, entries: Sequence[Entry]) -> dict[int, FileRecord]:
    """Parse a journal, up to its first invalid record; returns the records by the index of their entry."""
    found: dict[int, FileRecord] = {}
    for position in range(0, len(data) - _RECORD.size + 1, _RECORD.size):
        index, number, digest = _RECORD.unpack_from(data, position)
        if index >= len(entries) or entries[index].is_folder:
            break
        record = found.setdefault(index, FileRecord())
        count = block_count(entries[index].size)
        if number == _COMPLETE:
            if record.blocks != count or record.digest != digest:
                break
            record.complete = True
            continue
        if number == 0:
            record.cut(0)
        if number != record.blocks or number >= count:
            break
        record.digests += digest
    return found


def write_journal(records: dict[int, FileRecord]) -> bytes:
    """The journal that `read_journal` reads as `records`."""
    written = bytearray()
    for index, record in sorted(records.items()):
        for number in range(record.blocks):
            written += block_record(index, number, record.block(number))
        if record.complete:
            written += complete_record(index, record.digest)
    return bytes(written)


def read_saved(data: bytes) -> Saved | None:
    """The saved offer of a journal; None where it cannot be decoded."""
    try:
        return msgspec.msgpack.decode(data, type=Saved)
    except (msgspec.MsgspecError, UnicodeDecodeError, WarpgateError):
        return None
