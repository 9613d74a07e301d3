"""The frames of relayed circuits, for clients that registered by version 3 of the rendezvous protocol.  No I/O.

A *circuit* is a bidirectional byte stream between two registered nodes, over their existing connections to the server.
The caller names the receiver's key; the first process of that key that answers gets the circuit.  The two speak TLS on
it, with the keys of both; the server only counts and forwards the bytes.

    C->S  0x0b CALL          circuit u32 (odd, new), receiver key 32, receiver's instance 8 or zeros, payload 1..16,384
    S->C  0x0c RING          circuit u32 (even), payload 1..16,384
    both  0x0d ANSWER        circuit u32, payload 1..16,384: from the client that was rung, and on to the caller
    both  0x0e RELAY         circuit u32, bytes 1..65,536
    both  0x0f RELAY_CREDIT  circuit u32, limit u64: the other side may send up to this offset of its bytes
    both  0x10 RELAY_END     circuit u32, reason u8: nothing more comes on it, either way

Circuit numbers belong to one connection: the client chooses odd ones, the server even ones.  The payloads of CALL and
ANSWER are signals, sealed like those of SEND.

*Credit is hop by hop.*  On each connection, each side tells the other up to which absolute byte offset it may send on a
circuit.  After ANSWER, `INITIAL_CREDIT` bytes may be sent before the first RELAY_CREDIT.  The server renews credit as
it writes to the other side (`relay_core`), a client as its application reads.  So nobody holds more of a circuit than
it has granted, and a circuit that is not read blocks no other.  A circuit ends if a client exceeds its credit.

Frames for a circuit that has ended are ignored, since the ends of both sides may cross on the wire.

*All circuits.*  A server that is about to be shut down sends RELAY_END for circuit 0, a number that no circuit has.  It
means that the server makes no new circuits and will end the existing ones soon, so that clients find other paths.
Clients of older releases ignore it, like the end of any circuit that they do not have.
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
"""A number that no circuit has, and that stands for all circuits of the connection."""
MAX_PAYLOAD: Final = 16_384
"""Bytes in a payload, the size limit of a signal (`warpgate_trio.signal.MAX_SIGNAL`)."""
MAX_RELAY: Final = 65_536
"""Bytes of data in one RELAY.  A relay in Trio is fastest at this size; with 16 KiB or 256 KiB it has half of the
speed."""
MAX_RELAY_FRAME: Final = 1 + 4 + MAX_RELAY
"""Bytes in the longest frame of a circuit, a full RELAY."""
MERGED: Final = 1024
"""Bytes up to which waiting data is merged: a frame may carry one byte, and an object has 40 bytes of overhead."""
INITIAL_CREDIT: Final = 64 * 1024
"""Bytes that each side may send on an answered circuit before it receives a RELAY_CREDIT: one full RELAY."""


class EndReason(enum.IntEnum):
    """Why a circuit ended, or was not made.  Readers treat an unknown code like any other."""

    CLOSED = 1
    """The other side closed it."""
    REFUSED = 2
    """The other side refuses the call."""
    GONE = 3
    """The other side's connection to the server has ended."""
    NOBODY_HOME = 4
    """No other client that takes calls is registered with that key."""
    FULL = 5
    """The receiver has no room for the call, or the caller none for the answer."""
    NOT_ALLOWED = 6
    """Neither of the two has the server's relay token, and the server is not open."""
    TOO_MANY_HERE = 7
    """The caller's connection has reached its limit of circuits."""
    TOO_MANY_OF_ADDRESS = 8
    """The caller's address has reached its limit of circuits."""
    TOO_MANY_IN_ALL = 9
    """The server has reached its limit of circuits."""
    UNANSWERED = 10
    """Nobody answered in time."""
    IDLE = 11
    """Nothing was sent on it for too long."""
    OVERRUN = 12
    """More was sent on it than the credit allowed."""
    ANSWERED_ELSEWHERE = 13
    """Another process of the same key has answered."""
    SHUTTING_DOWN = 14
    """The server is being shut down: it makes no new circuits and ends the existing ones."""

    @property
    def words(self) -> str:
        """The reason in words, as the end of a sentence."""
        return _WORDS[self]


_WORDS: Final = {
    EndReason.CLOSED: "the other side closed it",
    EndReason.REFUSED: "the peer refused the call",
    EndReason.GONE: "the other side's connection to the server has ended",
    EndReason.NOBODY_HOME: "the peer is not connected to this server, or takes no calls",
    EndReason.FULL: "the receiver has no room for the call, or the caller none for the answer",
    EndReason.NOT_ALLOWED: "neither side has the server's relay token",
    EndReason.TOO_MANY_HERE: "this connection has reached its limit of circuits",
    EndReason.TOO_MANY_OF_ADDRESS: "this address has reached its limit of circuits",
    EndReason.TOO_MANY_IN_ALL: "the server has reached its limit of circuits",
    EndReason.UNANSWERED: "nobody answered in time",
    EndReason.IDLE: "nothing was sent on it for too long",
    EndReason.OVERRUN: "more was sent on it than its credit allowed",
    EndReason.ANSWERED_ELSEWHERE: "another process of the same key has answered",
    EndReason.SHUTTING_DOWN: "the server is shutting down",
}


@final
class Call(msgspec.Struct, frozen=True):
    """A client requests a circuit with any process of a key, or with one (`instance`)."""

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
    """The server passes a call on to a client of the receiver's key."""

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
    """The call is accepted; the circuit is open."""

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
    """The other side may send up to this offset, counted from the start of its bytes."""

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
    """Append data to the queue of a circuit, merging small pieces (`MERGED`) so that memory matches the byte count."""
    if waiting and len(waiting[-1]) + len(data) <= MERGED:
        waiting[-1] += data
    else:
        waiting.append(data)
