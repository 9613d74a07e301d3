"""The frames by which clients publish and look up key records (`address.key_record`) at a server.  No I/O.

They are for clients that registered by version 3, at a server that has announced `Capability.KEY_RECORDS`.

    C->S  0x40 PUBLISH    record 1..1,024: of the client's own key; replaces the one that it published before
    S->C  0x41 PUBLISHED  status u8: 0 it is stored; 1 it is not valid for this key, or of an unknown version
    C->S  0x42 LOOKUP     id u32, key 32
    S->C  0x43 FOUND      id u32, status u8: 0 followed by the record; 1 no registered client of that key has published
                          one; 2 too many lookups from this address, ask later
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import final

import msgspec

from ..address import MAX_KEY_RECORD
from ..errors import RemoteProtocolError
from .relay_frames import check_width

__all__ = ["FindStatus", "Found", "Lookup", "Publish", "PublishStatus", "Published"]


class PublishStatus(IntEnum):
    """The result of a PUBLISH.  Readers treat an unknown code like 1."""

    KEPT = 0
    NOT_TAKEN = 1


class FindStatus(IntEnum):
    """The result of a LOOKUP.  Readers treat an unknown code like 1."""

    RECORD = 0
    NOBODY = 1
    TOO_MANY = 2


@final
class Publish(msgspec.Struct, frozen=True):
    """A client's record of its own key."""

    record: bytes

    def encode(self) -> bytes:
        return b"\x40" + self.record

    @classmethod
    def decode(cls, data: bytes) -> Publish:
        if not 2 <= len(data) <= 1 + MAX_KEY_RECORD:
            raise RemoteProtocolError(f"PUBLISH frame of {len(data)} bytes, not 2 to {1 + MAX_KEY_RECORD}")
        return cls(data[1:])


@final
class Published(msgspec.Struct, frozen=True):
    """The result of a PUBLISH; `status`: a `PublishStatus`, or one of a later release."""

    status: int

    def encode(self) -> bytes:
        return struct.pack("!BB", 0x41, self.status)

    @classmethod
    def decode(cls, data: bytes) -> Published:
        check_width(data, 2, "PUBLISHED")
        return cls(data[1])


@final
class Lookup(msgspec.Struct, frozen=True):
    """A client asks for the record of a key."""

    id: int
    key: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI32s", 0x42, self.id, self.key)

    @classmethod
    def decode(cls, data: bytes) -> Lookup:
        check_width(data, 37, "LOOKUP")
        return cls(int.from_bytes(data[1:5], "big"), data[5:])


@final
class Found(msgspec.Struct, frozen=True):
    """The result of a LOOKUP; `status`: a `FindStatus`, or one of a later release; `record`: empty unless RECORD."""

    id: int
    status: int
    record: bytes = b""

    def encode(self) -> bytes:
        return struct.pack("!BIB", 0x43, self.id, self.status) + self.record

    @classmethod
    def decode(cls, data: bytes) -> Found:
        if not 6 <= len(data) <= 6 + MAX_KEY_RECORD:
            raise RemoteProtocolError(f"FOUND frame of {len(data)} bytes, not 6 to {6 + MAX_KEY_RECORD}")
        if (data[5] == FindStatus.RECORD) is (len(data) == 6):
            raise RemoteProtocolError("FOUND frame whose status does not match its record")
        return cls(int.from_bytes(data[1:5], "big"), data[5], data[6:])
