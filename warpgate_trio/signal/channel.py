"""What a signal transport is: the small interface that stands between `SignalHub` and a server's own protocol.

A channel is one connection of one node to one signal server, registered under the node's key.  Everything above it
(which server, racing, de-duplication, reconnecting) is the hub's; everything below (frames, topics, pings) is the
transport's.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from ..ports.server_dial import Dial
from .circuits import Circuit, Leaving, Ringing

if TYPE_CHECKING:
    from ..report import LookupOutcome

__all__ = ["Delivery", "Dial", "KeyRecords", "Relays", "SignalChannel"]


class Delivery(enum.IntEnum):
    """What a server did with a payload; the higher, the better."""

    NOBODY_HOME = 0
    """The server knows that the receiver is not there."""
    FULL = 1
    """The receiver is there, but takes nothing at the moment: try again."""
    QUEUED = 2
    """The server took it, and tells no more than that."""
    DELIVERED = 3
    """It was handed to at least one connection of the receiver."""


class Relays(enum.Enum):
    """For whom a server relays."""

    NOBODY = "nobody"
    WHO_HAS_ITS_TOKEN = "who has its token"
    """We have not; the peer may have."""
    US = "us"


class KeyRecords(Protocol):
    """The key records of one channel: ours, which the server keeps, and those that it is asked for."""

    def publish(self, record: bytes) -> None:
        """Have the server keep our record, in place of an earlier one; nothing where it keeps none."""
        ...

    async def wait_published(self) -> None:
        """Return once it is known what became of our record, or never will be; the caller bounds the time."""
        ...

    async def look_up(self, key: bytes) -> tuple[LookupOutcome, bytes]:
        """What the server has of a key, and the record, not judged yet, where that is RECORD.

        Raises:
          SignalUnavailable: the connection has ended.
        """
        ...


class SignalChannel(Protocol):
    """One open, registered connection to a signal server."""

    @property
    def url(self) -> str:
        """The server, without a password."""
        ...

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time between us and the server in seconds; None: not measured yet."""
        ...

    @property
    def answered(self) -> bool:
        """Whether the server has been heard of since the channel was opened, or has shown then that it passes messages
        on: one that registers us and does no more is of no use."""
        ...

    @property
    def tells_apart(self) -> bool:
        """Whether the server hands what is for this process alone to no other one of our key, as far as is known."""
        ...

    async def wait_tells_apart(self) -> None:
        """Return once that is known, or the channel is gone; a server may never tell, so the caller bounds the time."""
        ...

    async def wait_registered(self) -> None:
        """Return once the server has said that it takes us: from then on we get what others send.

        Raises:
          SignalUnavailable: it refused us, or the channel is gone.
        """
        ...

    async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
        """Send 1 to 16,384 bytes to whoever is registered under the 32-byte key; where the server can tell processes
        of one key apart, to the one that has this instance.  A broker knows it by its topic (`instances.topic_of`).

        Any number of tasks may send.  Cancelled: the payload may or may not go out; the channel stays usable.

        Raises:
          SignalUnavailable: the channel is gone.
          ValueError: a length is wrong.
        """
        ...

    async def receive(self) -> bytes | Ringing | Leaving:
        """The next payload for us, a peer's call, or that the server leaves.  Cancelled: nothing is lost.  One task
        receives, and quickly: the channel's buffer is small.

        Raises:
          SignalUnavailable: the channel is gone.
        """
        ...

    @property
    def relays(self) -> Relays | None:
        """Whether the server relays for us; None while it has not said so.

        Where we have its token it is taken to do so until it has said otherwise.
        """
        ...

    def circuit(self) -> Circuit:
        """A circuit to call a peer by.

        Raises:
          CircuitRefused: the server relays nothing, or there are too many.
        """
        ...

    @property
    def records(self) -> KeyRecords:
        """Key records at the server."""
        ...

    def check(self) -> bool:
        """There is reason to doubt the connection: ask the server now, and take it for gone unless it answers soon.

        Returns whether there is anything to ask: a connection from an address that the machine has no more is gone.
        """
        ...
