"""ChannelData, and how it shares a datagram socket or a byte stream with STUN messages (RFC 8656 §12.4, §12.5).  Pure.

A ChannelData message is a channel number, a length, and that many bytes: 4 bytes of overhead, where an indication has
36.  Its first byte is 64 to 79; that of a STUN message is 0 to 3.  Over a stream it is padded to a multiple of four
bytes, and the padding does not count in its length.  Without padding some servers silently lose everything behind it.
"""

from __future__ import annotations

from typing import Final, final

from ..errors import StunMalformed
from ..stun.codec import HEADER_LENGTH, looks_like_stun

__all__ = [
    "CHANNELS",
    "CHANNEL_HEADER_LENGTH",
    "TurnStreamReader",
    "decode_channel_data",
    "encode_channel_data",
    "is_channel_data",
]

CHANNELS: Final = range(0x4000, 0x5000)
"""Channel numbers (§12); the others that RFC 5766 allowed are reserved now."""
CHANNEL_HEADER_LENGTH: Final = 4
"""Bytes in front of the data."""


def is_channel_data(data: bytes) -> bool:
    """Whether a datagram, or a message of a `TurnStreamReader`, is ChannelData by its first byte."""
    return len(data) >= CHANNEL_HEADER_LENGTH and 0x40 <= data[0] <= 0x4F


def encode_channel_data(channel: int, data: bytes, *, padded: bool = False) -> bytes:
    """A ChannelData message.

    Args:
      channel: one of `CHANNELS`.
      padded: to a multiple of four bytes, for a stream.

    Raises:
      OverflowError: `data` has more than 65,535 bytes.
    """
    head = channel.to_bytes(2, "big") + len(data).to_bytes(2, "big")
    return head + data + bytes(-len(data) % 4) if padded else head + data


def decode_channel_data(data: bytes) -> tuple[int, bytes]:
    """Channel number and data of a whole ChannelData message; bytes behind the data are padding.

    Raises:
      StunMalformed: it is not ChannelData, or shorter than its length field says.
    """
    if not is_channel_data(data):
        raise StunMalformed("not ChannelData")
    end = CHANNEL_HEADER_LENGTH + int.from_bytes(data[2:4], "big")
    if end > len(data):
        raise StunMalformed("ChannelData that is shorter than its length field says")
    return int.from_bytes(data[:2], "big"), data[CHANNEL_HEADER_LENGTH:end]


@final
class TurnStreamReader:
    """Cuts a TCP byte stream into STUN messages and ChannelData, undecoded; ChannelData with its padding.

    Args:
      most: the longest message in bytes.
      channels: numbers that ChannelData may have.

    Raises:
      StunMalformed: by `feed`, for bytes that begin no message, or one that is too long.  The next message cannot be
        found then, so the connection is unusable.
    """

    def __init__(self, *, most: int, channels: range = CHANNELS) -> None:
        self._most = most
        self._channel_bytes = range(channels[0] >> 8, (channels[-1] >> 8) + 1)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now; at most one incomplete message is kept."""
        buffer = self._buffer
        buffer += data
        found: list[bytes] = []
        at = 0
        try:
            while len(buffer) - at >= CHANNEL_HEADER_LENGTH:
                length = self._length(buffer, at)
                if length is None or len(buffer) - at < length:
                    break
                found.append(bytes(buffer[at : at + length]))
                at += length
        finally:
            del buffer[:at]
        return found

    def _length(self, buffer: bytearray, at: int) -> int | None:
        """Bytes of the message that begins at `at`; None while its header is incomplete."""
        length = int.from_bytes(buffer[at + 2 : at + 4], "big")
        if buffer[at] in self._channel_bytes:
            length += CHANNEL_HEADER_LENGTH + -length % 4
        elif buffer[at] < 4 and not length % 4:
            length += HEADER_LENGTH
            if len(buffer) - at >= HEADER_LENGTH and not looks_like_stun(bytes(buffer[at : at + HEADER_LENGTH])):
                raise StunMalformed("the stream does not carry STUN messages")
        else:
            raise StunMalformed("the stream carries neither STUN messages nor ChannelData")
        if length > self._most:
            raise StunMalformed(f"a message of {length} bytes in the stream; the most is {self._most}")
        return length if len(buffer) - at >= min(length, HEADER_LENGTH) else None
