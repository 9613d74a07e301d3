"""What sender and receiver say to each other, and how it is cut out of a stream.

Every message begins with five bytes, its kind and the length of the rest.  A BLOCK is that, then the file's number, the
block's, its checksum, and its bytes; all others are msgpack arrays.

    sender                                  receiver
      ├─ OFFER, ENTRIES … ──────────────────►│  names and sizes judged, space looked for
      │◄──────────────────── ACCEPT(held) ───┤  or REFUSE
      ├─ BLOCK, BLOCK, …, FILE_END, … ──────►│  without a further question
      ├─ FINISH ────────────────────────────►│  the files get their names
      │◄───────────────────────────── DONE ──┤

Instead of what comes next the sender may say WITHDRAW at any time after ACCEPT, and the receiver STOP.
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
"""Bytes of a message that is no BLOCK: so many files as a bit each, or some hundred entries."""
MAX_ENTRIES: Final = 200_000
"""Files and folders of one offer: 60 MB of memory where their names are of usual length; who has more packs them."""
MAX_NAMES: Final = 32 * 1024 * 1024
"""Bytes of all paths of an offer: 160 for each entry."""
FURTHEST_TIME: Final = 1 << 62
"""Nanoseconds from 1970 to the last change of a file, either way: the years 1823 to 2116."""
MAX_FILE: Final = 1 << 42
"""Bytes of one file: 4 TiB, whose blocks' checksums are 64 MiB."""
MAX_BYTES: Final = 1 << 50
"""Bytes of all files of an offer: what no disk has, and what adds up within a machine word."""
MAX_TEXT: Final = 300
"""Bytes of a reason: a sentence with a name in it."""
MAX_HELD: Final = 64
"""Files of which a receiver says that it has a part: one sender leaves one, one that changed its mind a few."""
LOOSE_PIECES: Final = 64
"""Pieces of a message that wait as they came, however small they are."""
PIECE_MEAN: Final = 4096
"""Bytes that more pieces than that hold on average, or they are joined: each costs 200 bytes beside its own."""
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
    """Why a side says REFUSE, STOP or WITHDRAW."""

    UNWANTED = 1
    """The receiver takes nothing, or not from this peer."""
    NAME = 2
    """A name that it does not take."""
    TOO_MANY = 3
    """More files than it takes."""
    TOO_LARGE = 4
    """More bytes than it takes."""
    NO_SPACE = 5
    """The disk is too small, or has become full."""
    EXISTS = 6
    """No name is free."""
    BUSY = 7
    """It receives the same from the same peer already, or other files."""
    CANNOT_WRITE = 8
    """The system does not let it write."""
    DAMAGED = 9
    """What came is not what the checksum says."""
    CHANGED = 10
    """A file is not what was offered any more."""
    UNSUPPORTED = 11
    """A version that it does not know."""


class EntryKind(IntEnum):
    """What an entry is."""

    FILE = 0
    EXECUTABLE = 1
    FOLDER = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A file or folder of an offer.

    Attributes:
      path: below the destination, components between ``/``.
      size: bytes; 0 of a folder.
      modified: nanoseconds since 1970, or the nearest that there is to them; 0 of a folder.
      version: what is another one where the sender's file was changed or replaced.
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
    """What a sender begins with.

    Attributes:
      key: the same for the same paths of the sender's machine: what a receiver finds what it has of them by.
      run: the same as long as the sender does not start anew: who hears it again has not been heard.
      entries: how many follow.
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
    """The first `blocks` blocks of a file are there, whose checksum is `digest`."""

    index: Index
    blocks: Annotated[int, Meta(ge=1, le=MAX_FILE // BLOCK)]
    digest: Digest


class Accept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Send them.

    Attributes:
      complete: a bit for each entry, the lowest first, of what is there already; shorter where the rest is 0.
      held: files of which a part is there.
    """

    complete: Annotated[bytes, Meta(max_length=-(-MAX_ENTRIES // 8))] = b""
    held: Annotated[tuple[Held, ...], Meta(max_length=MAX_HELD)] = ()


class FileEnd(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All blocks of a file were sent, or it has none; the checksum of all of it."""

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
    """Nothing is to be sent."""


class Stop(_Reasoned, frozen=True):
    """The receiver cannot go on."""


class Withdraw(_Reasoned, frozen=True):
    """The sender cannot go on; `index`: the file that has changed, of which nothing is to be kept."""

    index: Index | None = None


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A block of a file, in the pieces that it came in."""

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
    """A message that is no BLOCK."""
    body = _ENCODER.encode(message)
    return _HEADER.pack(_KINDS[type(message)], len(body)) + body


def block_header(index: int, number: int, digest: bytes, size: int) -> bytes:
    """What stands before the bytes of a block."""
    return _HEADER.pack(Kind.BLOCK, _BLOCK.size + size) + _BLOCK.pack(index, number, digest)


@final
class FileReader:
    """Cuts messages out of what a Pipe brings; copies nothing of a block.

    Args:
      kinds: which the other side may say at all.
    """

    def __init__(self, kinds: frozenset[Kind]) -> None:
        self._kinds: Final = kinds
        self._pieces: list[memoryview] = []
        self._held = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now.

        Raises:
          RemoteProtocolError: it is none, or longer than one of its kind may be.
        """
        if data:
            self._pieces.append(memoryview(data))
            self._held += len(data)
            if len(self._pieces) > LOOSE_PIECES and len(self._pieces) * PIECE_MEAN > self._held:
                self._pieces = [memoryview(b"".join(self._pieces))]
        while (message := self._next()) is not None:
            yield message

    def check_end(self) -> None:
        """The stream has ended here; `RemoteProtocolError` in the middle of a message."""
        if self._held:
            raise RemoteProtocolError("the peer ended the stream in the middle of a message")

    def _next(self) -> Message | None:
        if self._held < _HEADER.size:
            return None
        number, length = _HEADER.unpack(self._peek(_HEADER.size))
        try:
            kind = Kind(number)
        except ValueError:
            raise RemoteProtocolError(f"the peer speaks no file transfer: a message of kind {number}") from None
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
        """The next bytes, without a copy."""
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
