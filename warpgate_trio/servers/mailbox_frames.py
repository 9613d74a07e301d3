"""The frames of pairing, which who registers by version 3 of the rendezvous protocol may speak.  No I/O.

Somebody *offers* a code: the server gives a *nameplate*, the number of a mailbox.  Somebody else *claims* it, by a
first message; the two then *post* messages to each other, which the server passes on.  Each claim is a *try*.  What
they say is a password-authenticated key exchange (`warpgate_trio.pairing`), of which the server learns nothing.

    C->S  0x11 OFFER    nameplate u32, lifetime u16: 0 takes what the server chooses; seconds
    S->C  0x12 OFFERED  nameplate u32, lifetime u16: what it is
    C->S  0x13 CLAIM    nameplate u32, payload 1..4,096
    S->C  0x14 CLAIMED  try u32, payload 1..4,096: to who offers
    both  0x15 POST     try u32, payload 1..4,096; the try is 0 on the connection of who has claimed
    both  0x16 SETTLE   try u32, outcome u8, wait u16

SETTLE ends a try, or an offer with try 0.  Who offers says by it how a try ended, `Outcome.PAIRED` or `Outcome.WRONG`,
which the server counts, or `Outcome.OWN_KEY`; who claimed says `Outcome.LEFT` or nothing.  From the server it says why:
nothing more comes. `wait` is 0 but where an outcome says that somebody has to wait: seconds.

A connection offers once or claims once: one that has offered may not claim, and the other way round, however that has
ended; what was refused does not count.  Whoever wants more opens another one.  A claim or a post for a try that has
ended is ignored, as ends cross on the wire.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, final

import msgspec

from .relay_frames import check_payload, check_width

__all__ = ["MAX_POST", "Claim", "Claimed", "Offer", "Offered", "Outcome", "Post", "Settle"]

MAX_POST: Final = 4096
"""Bytes in a message of a pairing: a signed address of 2,048, a signature, a proof and a key exchange, and room."""


class Outcome(enum.IntEnum):
    """How a try ended, or an offer.  A code that a reader does not know is as any other."""

    PAIRED = 1
    """The two know each other now, and the code is used."""
    WRONG = 2
    """The claimer had another code."""
    LEFT = 3
    """The other side has gone."""
    UNKNOWN = 4
    """No such code is offered."""
    USED = 5
    """The code has been used."""
    EXPIRED = 6
    """The code's time is over."""
    SPENT = 7
    """Wrong codes were tried too often, and so it is void."""
    AWAY = 8
    """Who offers it is not connected now."""
    BUSY = 9
    """As many as may are trying it now."""
    WAIT = 10
    """The claimer's address has tried too often: after `wait` seconds it may again."""
    TAKEN = 11
    """Somebody else offers by that nameplate, or has a moment ago."""
    TOO_MANY = 12
    """The server has as many offers as it takes, from this address or in all."""
    SLOW = 13
    """The try took too long."""
    OWN_KEY = 14
    """The claimer had the right code, and the offerer's own key: it may come again with another one."""

    @property
    def words(self) -> str:
        """What is to be said of it, as the end of a sentence."""
        return _WORDS[self]


_WORDS: Final = {
    Outcome.PAIRED: "the code is used: the two are paired",
    Outcome.WRONG: "the code is wrong",
    Outcome.LEFT: "the other side has gone",
    Outcome.UNKNOWN: "no code with that number is offered there",
    Outcome.USED: "the code has been used",
    Outcome.EXPIRED: "the code has expired",
    Outcome.SPENT: "wrong codes were tried for it too often, so it is void",
    Outcome.AWAY: "who offers it is not connected at the moment",
    Outcome.BUSY: "others are trying it at the moment",
    Outcome.WAIT: "there were too many tries from this address",
    Outcome.TAKEN: "its number is taken",
    Outcome.TOO_MANY: "the server has as many offers as it takes",
    Outcome.SLOW: "it took too long",
    Outcome.OWN_KEY: "who offers it has the same key",
}


@final
class Offer(msgspec.Struct, frozen=True):
    """A client offers a code; `nameplate`: the one that it wants, 0 for any; `lifetime`: seconds, 1 at least."""

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
    """A try has ended, or with number 0 the offer, or the claim; `outcome`: an `Outcome`, or what is none here."""

    number: int
    outcome: int
    wait: int = 0

    def encode(self) -> bytes:
        return struct.pack("!BIBH", 0x16, self.number, self.outcome, self.wait)

    @classmethod
    def decode(cls, data: bytes) -> Settle:
        check_width(data, 8, "SETTLE")
        return cls(int.from_bytes(data[1:5], "big"), data[5], int.from_bytes(data[6:], "big"))
