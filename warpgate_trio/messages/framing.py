"""The format of messages in a byte stream, without I/O: four bytes with a length, big-endian, and so many bytes.

A fixed length is read in one go, and is what `LengthDelimitedCodec` of Tokio and ``{packet, 4}`` of Erlang speak.  A
message may be empty.  There is nothing between two messages, and that is the only place where a stream may end.

What is read is cut only as messages are asked for: a stream can hold very many tiny ones, each of which costs more as
an object than it does as bytes.
"""

from __future__ import annotations

import struct
from typing import Final, final

from ..errors import RemoteProtocolError

__all__ = ["DEFAULT_MAX_SIZE", "HEADER_SIZE", "LARGEST_LENGTH", "MessageReader", "check_max_size", "encode_header"]

HEADER: Final = struct.Struct("!I")
HEADER_SIZE: Final = HEADER.size
LARGEST_LENGTH: Final = 2**32 - 1
DEFAULT_MAX_SIZE: Final = 1024 * 1024
"""Bytes of a message at most, where nobody says otherwise: as much as a Pipe holds for its reader to begin with."""
LOOSE_PIECES: Final = 64
"""Pieces of a message that may wait for the rest as they came, however small they are."""
PIECE_MEAN: Final = 4096
"""Bytes that more pieces than that have to hold on average, or they are joined: single bytes cost 40 each."""


def check_max_size(max_size: int) -> int:
    """The same number; ValueError where no message could have so many bytes, or every one."""
    if not 1 <= max_size <= LARGEST_LENGTH:
        raise ValueError(f"max_size is {max_size}; it can be from 1 to {LARGEST_LENGTH}")
    return max_size


def encode_header(size: int) -> bytes:
    """What stands in front of a message of so many bytes, `LARGEST_LENGTH` of them at most."""
    return HEADER.pack(size)


@final
class MessageReader:
    """Cuts a byte stream into messages.

    What comes goes into `feed`, then `next_message` gives one after the other until there is none that is whole.  At
    the end of the stream `check_end` says whether it may end there.

    Args:
      max_size: bytes of a message at most.
    """

    __slots__ = ("_at", "_data", "_max_size", "_missing", "_pieces", "_size")

    def __init__(self, max_size: int) -> None:
        self._max_size: Final = check_max_size(max_size)
        self._data = b""  # what was fed last, of which all before `_at` has been cut
        self._at = 0
        self._size = 0  # of a message that has begun, and goes on in what is fed next
        self._missing = 0  # bytes of it that are still to come
        self._pieces: list[bytes] = []  # of it

    def feed(self, data: bytes) -> None:
        """Take what comes next in the stream."""
        # What is left is a part of a header, where all whole messages were asked for; nothing and `data` is no copy.
        self._data, self._at = self._data[self._at :] + data, 0

    def next_message(self) -> bytes | None:
        """The next message, None where it is not whole.

        Raises:
          RemoteProtocolError: it has more than `max_size` bytes; nothing behind its length was taken in.
        """
        data = self._data
        if not self._missing:
            begin = self._at + HEADER_SIZE
            if begin > len(data):
                return None
            (size,) = HEADER.unpack_from(data, self._at)
            if size > self._max_size:
                raise RemoteProtocolError(
                    f"the peer announces a message of {size} bytes, which may have {self._max_size}"
                )
            end = begin + size
            if end <= len(data):
                self._at = end
                return data[begin:end]
            self._size = self._missing = size
            self._at = begin
        piece = data[self._at : self._at + self._missing]  # all of it is no copy
        self._missing -= len(piece)
        self._at += len(piece)
        pieces = self._pieces
        pieces.append(piece)
        if not self._missing:
            self._pieces = []
            return b"".join(pieces)
        if len(pieces) > LOOSE_PIECES and len(pieces) * PIECE_MEAN > self._size - self._missing:
            self._pieces = [b"".join(pieces)]
        return None

    def check_end(self) -> None:
        """The stream has ended.

        Raises:
          RemoteProtocolError: within a message.
        """
        if self._missing:
            got = self._size - self._missing
            raise RemoteProtocolError(f"the stream ended within a message, of which {got} of {self._size} bytes came")
        if self._at < len(self._data):
            raise RemoteProtocolError("the stream ended within the length of a message")
