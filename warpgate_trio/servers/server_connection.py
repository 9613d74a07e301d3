"""What a rendezvous server keeps of one client: its mailbox's queue, and its ends of circuits.  No I/O.

Data; `rendezvous_core` and `relay_core` know what it means.
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
"""Bytes that a queued payload is counted as beside its own: objects, and its place in the queue."""


@final
@dataclass(frozen=True, slots=True)
class Queued:
    """A frame that waits for a connection; `host`: of whom it came from, None where it costs nobody anything."""

    frame: bytes
    host: str | None = None

    @property
    def cost(self) -> int:
        return len(self.frame) + QUEUED_OVERHEAD


@final
class ServerConnection:
    """One client's state on the server.  Made by `RendezvousCore.connect`; `queue` is what waits to be written to it.

    The shell writes what `RendezvousCore.transmit` hands out, calls `RendezvousCore.written`, and so on, and closes the
    connection once `closing` is set and the queue is empty.  `key` is None until it is `registered`, and once it has
    left its mailbox; the rest is the core's own.
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
        self.pairs: bool = False  # it has offered a code, or claimed one, which a connection does once
        # What circuits need: whether it speaks of them, whether it has the server's token, its ends of them by number,
        # those that have something to write, and what of theirs is being written.
        self.relays: bool = False
        self.has_token: bool = False
        self.legs: dict[int, Leg] = {}
        self.ready: deque[Leg] = deque()
        self.sending: Piece | None = None
        self.circuits_made: int = 0

    def next_circuit(self) -> int:
        """An even number that no circuit of this connection has, and that may have one."""
        while True:
            self.circuits_made = (self.circuits_made + 2) % 2**32
            if self.circuits_made not in self.legs and self.circuits_made != ALL_CIRCUITS:
                return self.circuits_made


@final
class Leg:
    """One end of a circuit: a number on a connection.  What it counts is `relay_core`'s."""

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
        # From this client to us.
        self.limit: int = 0
        self.received: int = 0
        self.drained: int = 0  # of that, what has been written on
        self.window: int = INITIAL_CREDIT
        self.exhausted: bool = False  # it had sent all that it was granted, when it was last heard of
        self.credit_due: bool = False
        # From us to this client.
        self.credit: int = INITIAL_CREDIT
        self.sent: int = 0
        self.waiting: deque[bytes] = deque()
        self.held: int = 0  # bytes that wait or are being written
        self.end: EndReason | None = None
        self.listed: bool = False  # among those of its connection that have something to write
        self.deadline: float = math.inf

    @property
    def ready(self) -> bool:
        """Whether there is something to write for it now."""
        if self.credit_due or (self.waiting and self.sent < self.credit):
            return True
        return self.end is not None and not self.waiting

    @property
    def urgent(self) -> bool:
        """Whether that is credit or an end."""
        return self.credit_due or not self.waiting


@final
class Circuit:
    """What the ends of a circuit have in common.

    Attributes:
      host: who is counted for it.
      caller, answerer: its two ends; the second one once there is an answer.
      rung: the ends of those who may answer.
      legs: how many of all of them there are still.
    """

    __slots__ = ("answerer", "caller", "host", "legs", "rung")

    def __init__(self, host: str) -> None:
        self.host: Final = host
        self.caller: Leg | None = None
        self.answerer: Leg | None = None
        self.rung: list[Leg] = []
        self.legs: int = 0

    def other(self, leg: Leg) -> Leg | None:
        """The other end of an answered circuit."""
        return self.answerer if leg is self.caller else self.caller


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """A frame of a circuit that is being written; `size`: the relayed bytes in it."""

    frame: bytes
    leg: Leg
    size: int = 0
