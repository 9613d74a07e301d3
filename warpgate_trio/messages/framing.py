"""The format of messages in a byte stream, without I/O: a length in four bytes, big-endian, and as many bytes.

A length field of fixed size is read in one go, and is also what Tokio's `LengthDelimitedCodec` and Erlang's
``{packet, 4}`` use.  A message may be empty.  There is nothing between two messages; only there may a stream end.

Data is cut only as messages are requested: a stream may contain very many tiny ones, each of which costs more as an
object than as bytes.
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
"""Bytes of the largest message by default: a Pipe's first window."""
LOOSE_PIECES: Final = 64
"""Pieces of a message that may wait for the rest unjoined, however small they are."""
PIECE_MEAN: Final = 4096
"""Bytes that more than `LOOSE_PIECES` pieces must hold on average, or they are joined: single bytes cost 40 each."""


def check_max_size(max_size: int) -> int:
    """Returns `max_size`; raises `ValueError` unless it is from 1 to `LARGEST_LENGTH`."""
    if not 1 <= max_size <= LARGEST_LENGTH:
        raise ValueError(f"max_size is {max_size}; it can be from 1 to {LARGEST_LENGTH}")
    return max_size


def encode_header(size: int) -> bytes:
    """The header of a message of `size` bytes, `LARGEST_LENGTH` at most."""
    return HEADER.pack(size)


@final
class MessageReader:
    """Cuts a byte stream into messages.

    Pass received data to `feed`, then call `next_message` until it returns None.  At the end of the stream, `check_end`
    raises if the stream may not end there.

    Args:
      max_size: bytes of the largest message.

    Raises:
      ValueError: `max_size` is not from 1 to `LARGEST_LENGTH`.
    """

    __slots__ = ("_at", "_data", "_max_size", "_missing", "_pieces", "_size")

    def __init__(self, max_size: int) -> None:
        self._max_size: Final = check_max_size(max_size)
        self._data = b""  # the data that was fed last; everything before `_at` has been cut
        self._at = 0
        self._size = 0  # of a message that has begun, and continues in the next data
        self._missing = 0  # bytes of that message that are still to come
        self._pieces: list[bytes] = []  # of that message

    def feed(self, data: bytes) -> None:
        """Take the next data of the stream."""
        # The rest is at most a part of a header, once all complete messages were taken.  An empty rest costs no copy.
        self._data, self._at = self._data[self._at :] + data, 0

    def next_message(self) -> bytes | None:
        """The next message; None if it is not complete yet.

        Raises:
          RemoteProtocolError: it has more than `max_size` bytes; nothing behind its length was taken.
        """
        data = self._data
        if not self._missing:
            begin = self._at + HEADER_SIZE
            if begin > len(data):
                return None
            (size,) = HEADER.unpack_from(data, self._at)
            if size > self._max_size:
                raise RemoteProtocolError(f"the peer announces a message of {size} bytes; max_size is {self._max_size}")
            end = begin + size
            if end <= len(data):
                self._at = end
                return data[begin:end]
            self._size = self._missing = size
            self._at = begin
        piece = data[self._at : self._at + self._missing]  # no copy if it is all of `data`
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
        """Check that the stream may end here.

        Raises:
          RemoteProtocolError: it has ended within a message.
        """
        if self._missing:
            got = self._size - self._missing
            raise RemoteProtocolError(f"the stream ended within a message, of which {got} of {self._size} bytes came")
        if self._at < len(self._data):
            raise RemoteProtocolError("the stream ended within the length of a message")
