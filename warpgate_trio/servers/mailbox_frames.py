"""The frames of pairing, for clients that registered by version 3 of the rendezvous protocol.  No I/O.

One client, the offerer, *offers* a code; the server assigns a *nameplate*, the number of a mailbox.  Another client,
the claimer, *claims* it with a first message.  The two then *post* messages to each other, which the server forwards.
Each claim is a *try*.  The messages are a password-authenticated key exchange (`warpgate_trio.pairing`), of which the
server learns nothing.

    C->S  0x11 OFFER    nameplate u32, 0: the server chooses; lifetime u16, seconds
    S->C  0x12 OFFERED  nameplate u32, lifetime u16: those that it has got
    C->S  0x13 CLAIM    nameplate u32, payload 1..4,096
    S->C  0x14 CLAIMED  try u32, payload 1..4,096: to the offerer
    both  0x15 POST     try u32, payload 1..4,096; on the claimer's connection the try is 0
    both  0x16 SETTLE   try u32, outcome u8, wait u16

SETTLE ends a try, or with try 0 an offer; on the claimer's connection the try is 0 too.  The offerer reports by it how
a try ended: `Outcome.PAIRED` or `Outcome.WRONG`, which the server counts, or `Outcome.OWN_KEY`.  The claimer sends
`Outcome.LEFT` or nothing.  The server sends it with the reason why nothing more will come.  `wait` is the number of
seconds to wait with `Outcome.WAIT`, and otherwise 0.

A connection may offer once or claim once, but not both, whatever the outcome; refused offers and claims do not count.
For another one a client opens another connection.  A POST or SETTLE for a try that has ended is ignored, since the
two sides' frames may cross on the wire.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, final

import msgspec

from .relay_frames import check_payload, check_width

__all__ = ["MAX_POST", "Claim", "Claimed", "Offer", "Offered", "Outcome", "Post", "Settle"]

MAX_POST: Final = 4096
"""Bytes in a message of a pairing: a signed address of 2,048, a signature, a proof, a key exchange, and spare room."""


class Outcome(enum.IntEnum):
    """How a try or an offer ended.  Readers treat an unknown code like any other."""

    PAIRED = 1
    """The two are paired, and the code is used."""
    WRONG = 2
    """The claimer had another code."""
    LEFT = 3
    """The other side has gone."""
    UNKNOWN = 4
    """No such code is offered."""
    USED = 5
    """The code has been used."""
    EXPIRED = 6
    """The code's lifetime is over."""
    SPENT = 7
    """The code is void, because wrong codes were tried too often."""
    AWAY = 8
    """The offerer is not connected now."""
    BUSY = 9
    """The limit of simultaneous tries is reached, or this connection has offered or claimed already."""
    WAIT = 10
    """The claimer's address has tried too often, and may try again after `wait` seconds."""
    TAKEN = 11
    """The nameplate belongs to another offer, or did until recently."""
    TOO_MANY = 12
    """The limit of offers is reached, for this connection, this address or in all."""
    SLOW = 13
    """The try took too long."""
    OWN_KEY = 14
    """The claimer had the right code but the offerer's own key; it may try again with another key."""

    @property
    def words(self) -> str:
        """The outcome in words, as the end of a sentence."""
        return _WORDS[self]


_WORDS: Final = {
    Outcome.PAIRED: "the code is used: the two are paired",
    Outcome.WRONG: "the code is wrong",
    Outcome.LEFT: "the other side has gone",
    Outcome.UNKNOWN: "no code with that number is offered there",
    Outcome.USED: "the code has been used",
    Outcome.EXPIRED: "the code has expired",
    Outcome.SPENT: "the code is void, because it was tried too often",
    Outcome.AWAY: "the side that offers the code is not connected at the moment",
    Outcome.BUSY: "too many others are trying the code at the moment",
    Outcome.WAIT: "there were too many tries from this address",
    Outcome.TAKEN: "another offer has the code's number",
    Outcome.TOO_MANY: "the server's limit of offers is reached, for this address or in all",
    Outcome.SLOW: "the pairing took too long",
    Outcome.OWN_KEY: "the side that offers the code has the same key",
}


@final
class Offer(msgspec.Struct, frozen=True):
    """A client offers a code; `nameplate`: the wanted one, 0 for any; `lifetime`: seconds, at least 1."""

    nameplate: int
    lifetime: int

    def encode(self) -> bytes:
        return struct.pack("!BIH", 0x11, self.nameplate, self.lifetime)

    @classmethod
    def decode(cls, data: bytes) -> Offer:
        check_width(data, 7, "OFFER")
        return cls(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:], "big"))


@final
class Offered(msgspec.Struct, frozen=True):
    """The mailbox is open."""

    nameplate: int
    lifetime: int

    def encode(self) -> bytes:
        return struct.pack("!BIH", 0x12, self.nameplate, self.lifetime)

    @classmethod
    def decode(cls, data: bytes) -> Offered:
        check_width(data, 7, "OFFERED")
        return cls(int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:], "big"))


@final
class Claim(msgspec.Struct, frozen=True):
    """A client tries a code."""

    nameplate: int
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI", 0x13, self.nameplate) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        check_payload(data, 5, "CLAIM", MAX_POST)
        return cls(int.from_bytes(data[1:5], "big"), data[5:])


@final
class Claimed(msgspec.Struct, frozen=True):
    """Somebody tries the code."""

    number: int
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI", 0x14, self.number) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Claimed:
        check_payload(data, 5, "CLAIMED", MAX_POST)
        return cls(int.from_bytes(data[1:5], "big"), data[5:])


@final
class Post(msgspec.Struct, frozen=True):
    """A message of a try."""

    number: int
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack("!BI", 0x15, self.number) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Post:
        check_payload(data, 5, "POST", MAX_POST)
        return cls(int.from_bytes(data[1:5], "big"), data[5:])


@final
class Settle(msgspec.Struct, frozen=True):
    """A try has ended, or with number 0 the offer or the claim; `outcome`: an `Outcome`, or an unknown code."""

    number: int
    outcome: int
    wait: int = 0

    def encode(self) -> bytes:
        return struct.pack("!BIBH", 0x16, self.number, self.outcome, self.wait)

    @classmethod
    def decode(cls, data: bytes) -> Settle:
        check_width(data, 8, "SETTLE")
        return cls(int.from_bytes(data[1:5], "big"), data[5], int.from_bytes(data[6:], "big"))
