"""The frames of a Link, one class each (docs/wire_formats.md).

Channel 0 is the Pipe that the COMMIT made; the session's initiator opens odd channels, its responder even ones.
`warpgate_trio.link.frame_codec` encodes and decodes the frames.

A COMMIT and its ACCEPT may carry `Terms`.  Where both do, each side acknowledges what it receives
(`warpgate_trio.link.stream`), with ACK.  A peer that does not know terms ignores them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, final

import msgspec

__all__ = [
    "LINK_VERSION",
    "MAX_LABEL",
    "MAX_REASON_TEXT",
    "Accept",
    "Ack",
    "At",
    "Attach",
    "Attached",
    "Commit",
    "Credit",
    "Data",
    "Drop",
    "DropReason",
    "Fin",
    "Frame",
    "FrameType",
    "GoAway",
    "Item",
    "News",
    "Open",
    "Ping",
    "Pong",
    "Proof",
    "Refuse",
    "RefuseReason",
    "Reset",
    "ResetCode",
    "Terms",
]

LINK_VERSION: Final = 1
MAX_LABEL: Final = 255
"""Bytes of UTF-8 in an OPEN label."""
MAX_REASON_TEXT: Final = 200
"""Bytes of UTF-8 in a REFUSE text."""


class FrameType(IntEnum):
    """The type of a frame; `warpgate_trio.link.states` defines who may send it, and when."""

    PROOF = 0x01
    COMMIT = 0x02
    ACCEPT = 0x03
    REFUSE = 0x04
    OPEN = 0x05
    DATA = 0x06
    CREDIT = 0x07
    FIN = 0x08
    RESET = 0x09
    PING = 0x0A
    PONG = 0x0B
    GOAWAY = 0x0C
    ATTACH = 0x20
    ATTACHED = 0x21
    ACK = 0x22
    AT = 0x23
    DROP = 0x24
    NEWS = 0x25


class RefuseReason(IntEnum):
    """Why a COMMIT or an OPEN got no Pipe."""

    UNAUTHORIZED = 1
    """The peer's ``authorize`` said no: this ends the walk."""
    NOT_ACCEPTING = 2
    """The peer does not listen (any more)."""
    BUSY = 3
    """The peer's queue of Pipes, or its budget for channels or for a Link's carriers, is used up: try later."""
    SESSION_SPENT = 4
    """The session has already given the peer's application its one Pipe."""
    UNSUPPORTED = 5
    """A protocol version that the peer does not know."""
    TAKEN = 6
    """The peer serves one Pipe, and has it.  A release that does not know the number reads NOT_ACCEPTING."""
    UNKNOWN_LINK = 7
    """An ATTACH names a Link that the peer does not have, or does not prove that it belongs to it."""
    TOO_MANY_LANES = 8
    """The Link has as many carriers as it may; sent only by older releases, in which no carrier makes room."""


class ResetCode(IntEnum):
    """Why a channel ended before its FIN."""

    CLOSED = 0
    """The application closed the Pipe: it reads no more."""
    OVERRUN = 1
    """More bytes came than there was credit for."""
    ABORTED = 2
    """The application gave the Pipe up: what it has sent is incomplete."""


class DropReason(IntEnum):
    """Why a side drops a carrier."""

    NO_GOOD = 0
    """It does not carry what is sent."""
    GIVES_WAY = 1
    """It makes room for another carrier, or its relay will shut down."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The dialler proves its identity: `signature` is `identity.prove` over the server's key and the session.

    `attempt_id` tells the listener which of its attempts this carrier belongs to; it is informational.
    """

    client_key: bytes
    session_id: bytes
    attempt_id: bytes
    signature: bytes
    version: int = LINK_VERSION


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a side offers.  Terms take effect where both sides offer some: then each acknowledges what it receives.

    Attributes:
      resume_timeout: seconds for which the side keeps a Link without a path; the lesser of the two values counts.
      secret: 16 random bytes, the side's half of the secret by which later carriers of the Link are proven.
      instance: 8 random bytes that identify the side's process.
      hears_news: the side takes signals on the Link (`News`).
      keeps_ahead: the side keeps data that arrives before data sent earlier on another carrier
        (`warpgate_trio.link.ahead`).
      takes_early_data: a channel may carry DATA before the side has answered the OPEN.
    """

    resume_timeout: int
    secret: bytes
    instance: bytes
    hears_news: bool = True
    keeps_ahead: bool = True
    takes_early_data: bool = True


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """The initiator chooses this carrier; `epoch` counts the session's commits, `credit` is its first window, in
    bytes."""

    session_id: bytes
    link_id: bytes
    epoch: int
    credit: int
    terms: Terms | None = None
    version: int = LINK_VERSION


class Accept(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that takes a COMMIT (channel 0) or an OPEN; `credit` is the sender's window as an absolute offset."""

    channel: int
    credit: int
    terms: Terms | None = None


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that refuses a COMMIT or ATTACH (channel 0), or an OPEN; `text` is for people to read."""

    channel: int
    reason: int
    text: str = ""


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a further Pipe on this Link."""

    channel: int
    credit: int
    label: str


class Credit(msgspec.Struct, frozen=True, kw_only=True):
    """The receiver allows the sender to send up to `limit`, an absolute offset in the channel."""

    channel: int
    limit: int


class Fin(msgspec.Struct, frozen=True, kw_only=True):
    """No byte of this channel comes after `final_offset`."""

    channel: int
    final_offset: int


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of this frame reads no more of the channel; without a FIN before, it also writes no more."""

    channel: int
    code: int


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a `Pong` with the same token."""

    token: int


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    """Answers the `Ping` with this token, and all before it."""

    token: int


class GoAway(msgspec.Struct, frozen=True, kw_only=True):
    """The last frame of its sender."""

    code: int = 0


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of this frame has received all units of the other side's stream before `position`."""

    position: int


class Attach(msgspec.Struct, frozen=True, kw_only=True):
    """The sender offers this carrier to an existing Link.

    Attributes:
      link_id: the Link.
      lane: the number of the carrier within the Link.
      received: the position up to which the sender has received the other side's stream.
      turn: the highest turn that the sender knows.
      mac: proves that the sender is a side of the Link (`warpgate_trio.link.attaching`).
      graceful: the sender speaks on a lane that is well, and is about to try this one, so that both directions can be
        tried at once.
      hurried: the lane that it speaks on will be gone before long.
    """

    link_id: bytes
    lane: int
    received: int
    turn: int
    mac: bytes
    graceful: bool = False
    hurried: bool = False
    version: int = LINK_VERSION


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """The other side takes the ATTACH; fields as there."""

    lane: int
    received: int
    turn: int
    mac: bytes


class At(msgspec.Struct, frozen=True, kw_only=True):
    """From this frame on, the sender's stream continues on this lane at `position`; `turn` counts changes of lane.

    `graceful`: the sender has left a lane that is well, so there is time to try this one before following.
    """

    position: int
    turn: int
    graceful: bool = False


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """The sender drops another lane of the Link, so both sides close it; `reason` is a `DropReason`."""

    lane: int
    reason: int = 0


class News(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed signal to the peer, as a server would forward it (`warpgate_trio.signal.message`)."""

    payload: bytes


OfCarrier = Proof | Commit | Refuse | Ping | Pong | Ack | Attach | Attached | At | Drop | News
OfChannels = Accept | Open | Credit | Fin | Reset | GoAway
Frame = OfCarrier | OfChannels


@final
class Data(msgspec.Struct):
    """Payload of consecutive DATA frames of one channel, in the pieces in which it came."""

    channel: int
    pieces: list[bytes | memoryview]
    size: int
    frames: int = 1


Item = Frame | Data
"""What a `FrameReader` returns."""
