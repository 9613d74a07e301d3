"""The messages between sender and receiver, and how they are parsed from a stream.

Every message begins with a header of five bytes: its kind and the length of the rest.  In a BLOCK follow the index of
the file, the number of the block, its checksum, and its bytes.  In all other messages follows a msgpack array.

    sender                                  receiver
      ├─ OFFER, ENTRIES … ──────────────────►│  checks names, sizes and free space
      │◄──────────────────── ACCEPT(held) ───┤  or REFUSE
      ├─ BLOCK, BLOCK, …, FILE_END, … ──────►│  all files, without further round trips
      ├─ FINISH ────────────────────────────►│  the files get their names
      │◄───────────────────────────── DONE ──┤

After ACCEPT, the sender may end the transfer with WITHDRAW instead of its next message, and the receiver with STOP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final, final

import msgspec
from msgspec import Meta

from ..errors import RemoteProtocolError
from .digests import BLOCK, DIGEST_LENGTH
from .naming import MAX_PATH

__all__ = [
    "FURTHEST_TIME",
    "MAX_BYTES",
    "MAX_ENTRIES",
    "MAX_FILE",
    "MAX_MESSAGE",
    "VERSION",
    "Accept",
    "Block",
    "Done",
    "Entries",
    "Entry",
    "EntryKind",
    "FileEnd",
    "FileReader",
    "Finish",
    "Held",
    "Kind",
    "Message",
    "Offer",
    "Reason",
    "Refuse",
    "Stop",
    "Withdraw",
    "block_header",
    "encode",
]

VERSION: Final = 1
MAX_MESSAGE: Final = 64 * 1024
"""Bytes of a message other than BLOCK: room for a bit for each entry in ACCEPT, or for some hundred entries."""
MAX_ENTRIES: Final = 200_000
"""Files and folders of one offer: 60 MB of memory with names of usual length.  A larger tree has to be packed first."""
MAX_NAMES: Final = 32 * 1024 * 1024
"""Bytes of all paths of an offer: 160 for each entry."""
FURTHEST_TIME: Final = 1 << 62
"""Nanoseconds between 1970 and the modification time of a file, before or after: the years 1823 to 2116."""
MAX_FILE: Final = 1 << 42
"""Bytes of one file: 4 TiB.  The checksums of its blocks take 32 MiB."""
MAX_BYTES: Final = 1 << 50
"""Bytes of all files of an offer: more than any disk has, and sums of it fit into a machine word."""
MAX_TEXT: Final = 300
"""Bytes of the text of a reason: a sentence with a name in it."""
MAX_HELD: Final = 64
"""Partial files that an ACCEPT may list.  An interrupted transfer leaves one; changed offers may leave a few."""
LOOSE_PIECES: Final = 64
"""Pieces of an incomplete message that are kept unjoined, however small they are."""
PIECE_MEAN: Final = 4096
"""Average bytes of a piece below which more pieces than that are joined: each costs 200 bytes besides its content."""
_HEADER: Final = struct.Struct(">BI")
_BLOCK: Final = struct.Struct(f">II{DIGEST_LENGTH}s")

Key = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_LENGTH, max_length=DIGEST_LENGTH)]
Index = Annotated[int, Meta(ge=0, lt=MAX_ENTRIES)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class Kind(IntEnum):
    """The first byte of a message."""

    OFFER = 1
    ENTRIES = 2
    BLOCK = 3
    FILE_END = 4
    FINISH = 5
    WITHDRAW = 6
    ACCEPT = 16
    REFUSE = 17
    STOP = 18
    DONE = 19


class Reason(IntEnum):
    """Why a side sends REFUSE, STOP or WITHDRAW."""

    UNWANTED = 1
    """The receiver accepts no files, or none from this peer."""
    NAME = 2
    """The receiver does not accept a name."""
    TOO_MANY = 3
    """More files than the receiver accepts."""
    TOO_LARGE = 4
    """More bytes than the receiver accepts."""
    NO_SPACE = 5
    """The disk is too small, or has become full."""
    EXISTS = 6
    """No name is free."""
    BUSY = 7
    """The receiver is already receiving the same offer from the same peer, or other files."""
    CANNOT_WRITE = 8
    """The receiver's system does not let it write."""
    DAMAGED = 9
    """The received data does not match its checksum."""
    CHANGED = 10
    """A file has changed since it was offered, or can no longer be read."""
    UNSUPPORTED = 11
    """The receiver does not know the protocol version."""


class EntryKind(IntEnum):
    """The kind of an entry."""

    FILE = 0
    EXECUTABLE = 1
    FOLDER = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file or folder of an offer.

    Attributes:
      path: relative to the destination, with components separated by ``/``.
      size: bytes; 0 for a folder.
      modified: modification time in nanoseconds since 1970, limited to `FURTHEST_TIME`; 0 for a folder.
      version: differs, with `modified`, after the sender's file was changed or replaced.
    """

    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
    kind: EntryKind
    size: Annotated[int, Meta(ge=0, le=MAX_FILE)] = 0
    modified: Annotated[int, Meta(ge=-FURTHEST_TIME, le=FURTHEST_TIME)] = 0
    version: Annotated[bytes, Meta(max_length=8)] = b""

    @property
    def is_folder(self) -> bool:
        return self.kind is EntryKind.FOLDER


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """The first message of a sender.

    Attributes:
      version: of the protocol.
      key: a hash of the named paths on the sender's machine, by which a receiver finds data of an earlier transfer.
      run: random, and the same for all attempts of one send.  A receiver that has finished this run and receives the
        offer again knows that its DONE was lost.
      entries: the number of entries that follow.
      size: bytes of all files.
    """

    version: Annotated[int, Meta(ge=0, le=255)]
    key: Key
    run: Key
    entries: Annotated[int, Meta(ge=1, le=1 << 62)]
    size: Annotated[int, Meta(ge=0, le=1 << 62)]


class Entries(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Some of the entries, in order."""

    entries: Annotated[tuple[Entry, ...], Meta(min_length=1, max_length=4096)]


class Held(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The receiver has the first `blocks` blocks of a file; `digest` is their checksum."""

    index: Index
    blocks: Annotated[int, Meta(ge=1, le=MAX_FILE // BLOCK)]
    digest: Digest


class Accept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The receiver accepts the offer.

    Attributes:
      complete: a bit for each entry, the lowest first: whether the receiver has the whole file.  Missing bits are 0.
      held: files of which the receiver has a part.
    """

    complete: Annotated[bytes, Meta(max_length=-(-MAX_ENTRIES // 8))] = b""
    held: Annotated[tuple[Held, ...], Meta(max_length=MAX_HELD)] = ()


class FileEnd(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All blocks of a file were sent, if it has any; `digest` is the checksum of the file."""

    index: Index
    digest: Digest


class Finish(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All files were sent."""


class Done(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All files have their names."""


class _Reasoned(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    reason: Annotated[int, Meta(ge=0, le=255)]
    text: Text = ""


class Refuse(_Reasoned, frozen=True):
    """The receiver refuses the offer."""


class Stop(_Reasoned, frozen=True):
    """The receiver cannot continue."""


class Withdraw(_Reasoned, frozen=True):
    """The sender cannot continue; `index` is the file that has changed, of which the receiver keeps nothing."""

    index: Index | None = None


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A block of a file, in the pieces in which it arrived."""

    index: int
    number: int
    digest: bytes
    pieces: tuple[memoryview, ...]
    size: int


Message = Offer | Entries | Block | FileEnd | Finish | Withdraw | Accept | Refuse | Stop | Done
_TYPES: Final[dict[Kind, type[msgspec.Struct]]] = {
    Kind.OFFER: Offer,
    Kind.ENTRIES: Entries,
    Kind.FILE_END: FileEnd,
    Kind.FINISH: Finish,
    Kind.WITHDRAW: Withdraw,
    Kind.ACCEPT: Accept,
    Kind.REFUSE: Refuse,
    Kind.STOP: Stop,
    Kind.DONE: Done,
}
_KINDS: Final = {kind_type: kind for kind, kind_type in _TYPES.items()}
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(each) for kind, each in _TYPES.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """Encode a message other than BLOCK."""
    body = _ENCODER.encode(message)
    return _HEADER.pack(_KINDS[type(message)], len(body)) + body


def block_header(index: int, number: int, digest: bytes, size: int) -> bytes:
    """The header of a BLOCK, which precedes its bytes."""
    return _HEADER.pack(Kind.BLOCK, _BLOCK.size + size) + _BLOCK.pack(index, number, digest)


@final
class FileReader:
    """Parses messages from the data of a Pipe; the bytes of blocks are not copied.

    Args:
      kinds: the kinds that the other side may send.
    """

    def __init__(self, kinds: frozenset[Kind]) -> None:
        self._kinds: Final = kinds
        self._pieces: list[memoryview] = []
        self._held = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes.

        Raises:
          RemoteProtocolError: a message is malformed, of a wrong kind, or longer than its kind may be.
        """
        if data:
            self._pieces.append(memoryview(data))
            self._held += len(data)
            if len(self._pieces) > LOOSE_PIECES and len(self._pieces) * PIECE_MEAN > self._held:
                self._pieces = [memoryview(b"".join(self._pieces))]
        while (message := self._next()) is not None:
            yield message

    def check_end(self) -> None:
        """Raise `RemoteProtocolError` if the stream has ended in the middle of a message."""
        if self._held:
            raise RemoteProtocolError("the peer ended the stream in the middle of a message")

    def _next(self) -> Message | None:
        if self._held < _HEADER.size:
            return None
        number, length = _HEADER.unpack(self._peek(_HEADER.size))
        try:
            kind = Kind(number)
        except ValueError:
            raise RemoteProtocolError(
                f"the peer does not run a file transfer: it sent a message of kind {number}"
            ) from None
        if kind not in self._kinds:
            raise RemoteProtocolError(f"{kind.name} comes from the wrong side")
        least, most = (_BLOCK.size + 1, _BLOCK.size + BLOCK) if kind is Kind.BLOCK else (1, MAX_MESSAGE)
        if not least <= length <= most:
            raise RemoteProtocolError(f"{kind.name} of {length} bytes")
        if self._held < _HEADER.size + length:
            return None
        self._take(_HEADER.size)
        if kind is Kind.BLOCK:
            index, position, digest = _BLOCK.unpack(b"".join(self._take(_BLOCK.size)))
            return Block(index, position, digest, self._take(length - _BLOCK.size), length - _BLOCK.size)
        try:
            return _DECODERS[kind].decode(b"".join(self._take(length)))  # type: ignore[return-value]
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RemoteProtocolError(f"{kind.name} cannot be read: {error}") from error

    def _peek(self, size: int) -> bytes:
        first = self._pieces[0]
        if len(first) >= size:
            return bytes(first[:size])
        found = bytearray()
        for piece in self._pieces:
            found += piece[: size - len(found)]
            if len(found) == size:
                break
        return bytes(found)

    def _take(self, size: int) -> tuple[memoryview, ...]:
        """Take the next `size` bytes, without a copy."""
        taken: list[memoryview] = []
        self._held -= size
        used = 0
        for piece in self._pieces:
            if len(piece) > size:
                taken.append(piece[:size])
                self._pieces[used] = piece[size:]
                break
            taken.append(piece)
            size -= len(piece)
            used += 1
            if not size:
                break
        del self._pieces[:used]
        return tuple(taken)
