"""What a receiver has of an offer: the offer itself, and a record for each block that was checked and written.

A record is written after its block, and neither is waited for to be on the disk.  So a record is a claim: whoever reads
it again after a restart compares each block with its checksum, and believes the file.  Records have one length; one
that was cut off at the end, or that makes no sense, ends the journal.
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
"""Bytes of a saved offer, or of a journal: what the largest offer needs; a larger one is another file."""


@final
class Saved(msgspec.Struct, frozen=True, array_like=True):
    """The offer that a journal is about.

    Attributes:
      sender: the peer id.
      run: of the offer: its sender's process.
      published: the names at the top that have been given, with what they are called.
    """

    sender: str
    run: bytes
    entries: tuple[Entry, ...]
    published: dict[str, str] = {}


@final
@dataclass(slots=True)
class FileRecord:
    """What is there of one file.

    Attributes:
      digests: of its blocks, one after the other.
      complete: all of it is there, and its checksum was the sender's.
    """

    digests: bytearray = field(default_factory=bytearray)
    complete: bool = False

    @property
    def blocks(self) -> int:
        return len(self.digests) // DIGEST_LENGTH

    @property
    def digest(self) -> bytes:
        """Of all of its blocks."""
        return FileDigest([bytes(self.digests)]).digest()

    def block(self, number: int) -> bytes:
        """The checksum of one."""
        return bytes(self.digests[number * DIGEST_LENGTH : (number + 1) * DIGEST_LENGTH])

    def cut(self, blocks: int) -> None:
        """Only the first so many are there."""
        if blocks < self.blocks:
            del self.digests[blocks * DIGEST_LENGTH :]
            self.complete = False


def block_record(index: int, number: int, digest: bytes) -> bytes:
    """A block was written."""
    return _RECORD.pack(index, number, digest)


def complete_record(index: int, digest: bytes) -> bytes:
    """A file was closed."""
    return _RECORD.pack(index, _COMPLETE, digest)


def read_journal(data: bytes, entries: Sequence[Entry]) -> dict[int, FileRecord]:
    """What a journal says, by the number of the file."""
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
    """The journal that says so."""
    written = bytearray()
    for index, record in sorted(records.items()):
        for number in range(record.blocks):
            written += block_record(index, number, record.block(number))
        if record.complete:
            written += complete_record(index, record.digest)
    return bytes(written)


def read_saved(data: bytes) -> Saved | None:
    """The offer of a journal; None where it cannot be read: then nothing is there."""
    try:
        return msgspec.msgpack.decode(data, type=Saved)
    except (msgspec.MsgspecError, UnicodeDecodeError, WarpgateError):
        return None
