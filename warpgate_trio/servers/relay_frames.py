"""The frames of relayed circuits, which who registers by version 3 of the rendezvous protocol may speak.  No I/O.

A *circuit* is a byte stream both ways between two registered nodes, on the connections that they have open anyway.  One
calls the other by key; the first process that answers has the circuit.  What they say on it is theirs (TLS, with the
keys of both); the server counts it and passes it on.

    C->S  0x0b CALL          circuit u32 (odd, new), receiver key 32, receiver's instance 8 or zeros, payload 1..16,384
    S->C  0x0c RING          circuit u32 (even), payload 1..16,384
    both  0x0d ANSWER        circuit u32, payload 1..16,384: by who was rung, and so to who called
    both  0x0e RELAY         circuit u32, bytes 1..65,536
    both  0x0f RELAY_CREDIT  circuit u32, limit u64: the other side may send up to this offset of its bytes
    both  0x10 RELAY_END     circuit u32, reason u8: nothing more comes on it, either way

Numbers are those of one connection: odd ones its client's, even ones the server's.  The payloads of CALL and ANSWER are
signals, sealed as those of SEND.

*Credit goes hop by hop.*  On each connection, each side says how much the other one may send on a circuit, as the
absolute offset of its last byte; from ANSWER on `INITIAL_CREDIT` bytes may be sent without having been told.  The
server renews what it grants as it writes on (`relay_core`), a client as its application reads.  So nobody holds more of
a circuit than it has granted, and a circuit that is not read stops nothing but itself.  Who sends beyond its credit
loses the circuit.

Frames for a circuit that has ended are ignored, as the two sides' ends cross on the wire.

*All circuits.*  A server that is about to be shut down says so by RELAY_END of circuit 0, which never is one: it makes
no circuits any more, and those that there are will end before long, so that their clients find other ways.  Clients of
older releases ignore it, as they do any end of a circuit that they do not have.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from typing import Final, final

import msgspec

from ..errors import RemoteProtocolError

__all__ = [
    "ALL_CIRCUITS",
    "INITIAL_CREDIT",
    "MAX_PAYLOAD",
    "MAX_RELAY",
    "MAX_RELAY_FRAME",
    "MERGED",
    "Answer",
    "Call",
    "EndReason",
    "Relay",
    "RelayCredit",
    "RelayEnd",
    "Ring",
    "check_payload",
    "check_width",
    "keep",
]

ALL_CIRCUITS: Final = 0
"""The number that no circuit has: what is said of it is said of all circuits."""
MAX_PAYLOAD: Final = 16_384
"""Bytes in a payload, the size limit of a signal (`warpgate_trio.signal.MAX_SIGNAL`)."""
MAX_RELAY: Final = 65_536
"""Bytes in one RELAY: the size at which a relay in Trio is fastest; 16 KiB costs it half of its speed, and so does
256 KiB."""
MAX_RELAY_FRAME: Final = 1 + 4 + MAX_RELAY
"""Bytes in the longest frame of a circuit, a full RELAY."""
MERGED: Final = 1024
"""Bytes up to which pieces that wait are made one: an object costs 40 beside its own, and a frame may hold one byte."""
INITIAL_CREDIT: Final = 64 * 1024
"""Bytes that each side may send on an answered circuit before it has heard of credit: one full RELAY."""


class EndReason(enum.IntEnum):
    """Why a circuit ended, or never came to be.  A code that a reader does not know is as any other."""

    CLOSED = 1
    """The other side closed it."""
    REFUSED = 2
    """The other side does not take the call."""
    GONE = 3
    """The other side's connection to the server has ended."""
    NOBODY_HOME = 4
    """Nobody is registered by that key who takes calls."""
    FULL = 5
    """The receiver has no room for the call, or the caller none for the answer."""
    NOT_ALLOWED = 6
    """Neither of the two has the server's token, and the server is not open."""
    TOO_MANY_HERE = 7
    """The caller's connection has as many circuits as one may have."""
    TOO_MANY_OF_ADDRESS = 8
    """The caller's address has as many circuits as one may have."""
    TOO_MANY_IN_ALL = 9
    """The server has as many circuits as it takes."""
    UNANSWERED = 10
    """Nobody answered in time."""
    IDLE = 11
    """Nothing was sent on it for too long."""
    OVERRUN = 12
    """More was sent on it than credit was given."""
    ANSWERED_ELSEWHERE = 13
    """Another process of the same key has answered."""
    SHUTTING_DOWN = 14
    """The server is being shut down: it makes no circuits any more, and ends those that there are."""

    @property
    def words(self) -> str:
        """What is to be said of it, as the end of a sentence."""
        return _WORDS[self]


_WORDS: Final = {
    EndReason.CLOSED: "the other side closed it",
    EndReason.REFUSED: "the peer does not take the call",
    EndReason.GONE: "the other side's connection to the server has ended",
    EndReason.NOBODY_HOME: "the peer is not connected to this server, or takes no calls",
    EndReason.FULL: "there is no room for the call",
    EndReason.NOT_ALLOWED: "neither side has the server's relay token",
    EndReason.TOO_MANY_HERE: "this connection has as many circuits as one may have",
    EndReason.TOO_MANY_OF_ADDRESS: "this address has as many circuits as one may have",
    EndReason.TOO_MANY_IN_ALL: "the server has as many circuits as it takes",
    EndReason.UNANSWERED: "nobody answered in time",
    EndReason.IDLE: "nothing was sent on it for too long",
    EndReason.OVERRUN: "more was sent on it than was allowed",
    EndReason.ANSWERED_ELSEWHERE: "another process of the same key has answered",
    EndReason.SHUTTING_DOWN: "the server is shutting down",
}


@final
class Call(msgspec.Struct, frozen=True):
    """A client wants a circuit with whoever has a key, or with one process of it."""

    circuit: int
    receiver: bytes
    instance: bytes
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI32s8s", 0x0B, self.circuit, self.receiver, self.instance) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Call:
        check_payload(data, 45, "CALL")
        return cls(_number(data), data[5:37], data[37:45], data[45:])


@final
class Ring(msgspec.Struct, frozen=True):
    """A client is called."""

    circuit: int
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI", 0x0C, self.circuit) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Ring:
        check_payload(data, 5, "RING")
        return cls(_number(data), data[5:])


@final
class Answer(msgspec.Struct, frozen=True):
    """The call is taken; the circuit is open."""

    circuit: int
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI", 0x0D, self.circuit) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Answer:
        check_payload(data, 5, "ANSWER")
        return cls(_number(data), data[5:])


@final
class Relay(msgspec.Struct, frozen=True):
    """Bytes of a circuit."""

    circuit: int
    data: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI", 0x0E, self.circuit) + self.data

    @classmethod
    def decode(cls, data: bytes) -> Relay:
        check_payload(data, 5, "RELAY", MAX_RELAY)
        return cls(_number(data), data[5:])


@final
class RelayCredit(msgspec.Struct, frozen=True):
    """The other side may send so many bytes in all."""

    circuit: int
    limit: int

    def encode(self) -> bytes:
        return struct.pack("!BIQ", 0x0F, self.circuit, self.limit)

    @classmethod
    def decode(cls, data: bytes) -> RelayCredit:
        check_width(data, 13, "RELAY_CREDIT")
        return cls(_number(data), int.from_bytes(data[5:], "big"))


@final
class RelayEnd(msgspec.Struct, frozen=True):
    """Nothing more comes on a circuit; `reason`: an `EndReason`, or a code that this release does not know."""

    circuit: int
    reason: int

    def encode(self) -> bytes:
        return struct.pack("!BIB", 0x10, self.circuit, self.reason)

    @classmethod
    def decode(cls, data: bytes) -> RelayEnd:
        check_width(data, 6, "RELAY_END")
        return cls(_number(data), data[5])


def _number(data: bytes) -> int:
    return int.from_bytes(data[1:5], "big")


def check_width(data: bytes, width: int, name: str) -> None:
    """Raise `RemoteProtocolError` unless a frame has this width."""
    if len(data) != width:
        raise RemoteProtocolError(f"{name} frame of {len(data)} bytes, not {width}")


def check_payload(data: bytes, start: int, name: str, most: int = MAX_PAYLOAD) -> None:
    """Raise `RemoteProtocolError` unless a frame has 1 to `most` bytes from `start` on."""
    if not 1 <= len(data) - start <= most:
        raise RemoteProtocolError(f"{name} frame with a payload of {len(data) - start} bytes, not 1 to {most}")


def keep(waiting: deque[bytes], data: bytes) -> None:
    """Have bytes of a circuit wait, at the end of those that do, so that what is held is what was counted."""
    if waiting and len(waiting[-1]) + len(data) <= MERGED:
        waiting[-1] += data
    else:
        waiting.append(data)
