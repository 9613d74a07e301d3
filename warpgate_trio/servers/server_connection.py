"""The state of one client on a rendezvous server: its queue, and its legs of circuits.  No I/O.

It is plain data; `rendezvous_core` and `relay_core` have the logic.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

from ..limits import TokenBucket
from .relay_frames import ALL_CIRCUITS, INITIAL_CREDIT, EndReason
from .rendezvous_frames import ANY_INSTANCE

__all__ = ["QUEUED_OVERHEAD", "Circuit", "Leg", "Piece", "Queued", "ServerConnection"]

QUEUED_OVERHEAD: Final = 128
"""Bytes of overhead that are counted for a queued payload: its objects, and its place in the queue."""


@final
@dataclass(frozen=True, slots=True)
class Queued:
    """A frame that waits for a connection; `host`: the sender's IP address, None for a frame that no budget counts."""

    frame: bytes
    host: str | None = None

    @property
    def cost(self) -> int:
        return len(self.frame) + QUEUED_OVERHEAD


@final
class ServerConnection:
    """One client's state on the server, made by `RendezvousCore.connect`; `queue` has the frames that wait for it.

    In a loop, the shell writes a frame from `RendezvousCore.transmit` and calls `RendezvousCore.written`.  It closes
    the connection once `closing` is set and the queue is empty.  `key` is None before the client has registered and
    after it has left its mailbox.  The other attributes are internal to the core.
    """

    __slots__ = (
        "circuits_made",
        "closing",
        "has_token",
        "host",
        "instance",
        "key",
        "legs",
        "names",
        "nonce",
        "pairs",
        "queue",
        "ready",
        "registered",
        "relays",
        "sending",
        "sends",
        "version",
    )

    def __init__(self, nonce: bytes, sends: TokenBucket, *, host: str, version: int, names: Collection[str]) -> None:
        self.nonce: bytes | None = nonce
        self.sends: TokenBucket = sends
        self.host: str = host
        self.version: int = version
        self.names: Collection[str] = names
        self.key: bytes | None = None
        self.registered: bool = False
        self.instance: bytes = ANY_INSTANCE
        self.queue: deque[Queued] = deque()
        self.closing: bool = False
        self.pairs: bool = False  # it has offered or claimed a code, which a connection may do once
        # For circuits: whether it supports them, whether it has the server's relay token, its legs by number, the legs
        # that have something to write, and the frame that is being written.
        self.relays: bool = False
        self.has_token: bool = False
        self.legs: dict[int, Leg] = {}
        self.ready: deque[Leg] = deque()
        self.sending: Piece | None = None
        self.circuits_made: int = 0

    def next_circuit(self) -> int:
        """A free even circuit number for a call to this connection."""
        while True:
            self.circuits_made = (self.circuits_made + 2) % 2**32
            if self.circuits_made not in self.legs and self.circuits_made != ALL_CIRCUITS:
                return self.circuits_made


@final
class Leg:
    """One end of a circuit: a circuit number on a connection.  `relay_core` maintains the counts."""

    __slots__ = (
        "circuit",
        "connection",
        "credit",
        "credit_due",
        "deadline",
        "drained",
        "end",
        "exhausted",
        "held",
        "limit",
        "listed",
        "number",
        "received",
        "sent",
        "waiting",
        "window",
    )

    def __init__(self, connection: ServerConnection, number: int, circuit: Circuit) -> None:
        self.connection: Final = connection
        self.number: Final = number
        self.circuit: Final = circuit
        # From this client to the server.
        self.limit: int = 0
        self.received: int = 0
        self.drained: int = 0  # of these, the bytes that were written to the other side
        self.window: int = INITIAL_CREDIT
        self.exhausted: bool = False  # with its last RELAY it had used all of its credit
        self.credit_due: bool = False
        # From the server to this client.
        self.credit: int = INITIAL_CREDIT
        self.sent: int = 0
        self.waiting: deque[bytes] = deque()
        self.held: int = 0  # bytes that wait or are being written
        self.end: EndReason | None = None
        self.listed: bool = False  # it is in `ready` of its connection
        self.deadline: float = math.inf

    @property
    def ready(self) -> bool:
        """Whether it has a frame to write now."""
        if self.credit_due or (self.waiting and self.sent < self.credit):
            return True
        return self.end is not None and not self.waiting

    @property
    def urgent(self) -> bool:
        """Whether that frame is credit or an end."""
        return self.credit_due or not self.waiting


@final
class Circuit:
    """What the legs of a circuit have in common.

    Attributes:
      host: the caller's IP address, which the circuit counts for.
      caller, answerer: its two legs; `answerer` is None before the answer.
      rung: the legs of the clients that may still answer.
      legs: the number of all legs that exist.
    """

    __slots__ = ("answerer", "caller", "host", "legs", "rung")

    def __init__(self, host: str) -> None:
        self.host: Final = host
        self.caller: Leg | None = None
        self.answerer: Leg | None = None
        self.rung: list[Leg] = []
        self.legs: int = 0

    def other(self, leg: Leg) -> Leg | None:
        """The other leg of an answered circuit."""
        return self.answerer if leg is self.caller else self.caller


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """A circuit's frame that is being written; `size`: the bytes of relayed data in it."""

    frame: bytes
    leg: Leg
    size: int = 0
