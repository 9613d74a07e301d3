"""The interface of a signal transport, between `SignalHub` and a server's own protocol.

A channel is one connection of one node to one signal server, registered under the node's key.  The hub does everything
above it (choice of servers, racing, reconnecting); the transport does everything below it (frames, topics, pings).
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
    """What a server did with a payload; a higher value is a better result."""

    NOBODY_HOME = 0
    """The server knows that the receiver is not connected."""
    FULL = 1
    """The receiver is connected, but its queue is full: try again."""
    QUEUED = 2
    """The server took the payload, and does not tell whether the receiver is there."""
    DELIVERED = 3
    """The server handed the payload to at least one connection of the receiver."""


class Relays(enum.Enum):
    """For whom a server relays."""

    NOBODY = "nobody"
    WHO_HAS_ITS_TOKEN = "who has its token"
    """We do not have it; the peer may."""
    US = "us"


class KeyRecords(Protocol):
    """The key records of one channel: ours, which the server keeps, and look-ups of others."""

    def publish(self, record: bytes) -> None:
        """Have the server keep our record in place of an earlier one; no effect at a server that keeps none."""
        ...

    async def wait_published(self) -> None:
        """Return once it is known whether the server keeps our record, or will never be; the caller bounds the time."""
        ...

    async def look_up(self, key: bytes) -> tuple[LookupOutcome, bytes]:
        """Ask the server for the record of a key.  Returns the outcome, and for RECORD the record, not verified yet.

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
        """Whether the server has sent anything since it registered us, or has shown while the channel was opened that
        it passes messages on.  A server that only registers us is of no use."""
        ...

    @property
    def tells_apart(self) -> bool:
        """Whether the server is known to deliver what is for this process to no other process of our key."""
        ...

    async def wait_tells_apart(self) -> None:
        """Return once `tells_apart` is decided, or the channel is gone.  It may stay undecided: the caller bounds the
        time."""
        ...

    async def wait_registered(self) -> None:
        """Return once the server has accepted our registration: from then on we receive what others send.

        Raises:
          SignalUnavailable: it refused us, or the channel is gone.
        """
        ...

    async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
        """Send 1 to 16,384 bytes to the processes that are registered under a 32-byte key.

        Any number of tasks may send.  Cancelled: the payload may or may not go out; the channel stays usable.

        Args:
          instance: the only process to send to, if the server can tell processes of one key apart.  For a broker it is
            the level of a topic (`instances.topic_of`).

        Raises:
          SignalUnavailable: the channel is gone.
          ValueError: a length is wrong.
        """
        ...

    async def receive(self) -> bytes | Ringing | Leaving:
        """The next payload for us, a peer's call, or the server's notice that it will be shut down.

        Cancelled: nothing is lost.  One task receives, and quickly: the channel's buffer is small.

        Raises:
          SignalUnavailable: the channel is gone.
        """
        ...

    @property
    def relays(self) -> Relays | None:
        """For whom the server relays; None while that is not known.

        Until the server has said so, it is assumed to relay for us if we have its token.
        """
        ...

    def circuit(self) -> Circuit:
        """A new circuit to call a peer by.

        Raises:
          CircuitRefused: the server does not relay, or there are too many circuits.
        """
        ...

    @property
    def records(self) -> KeyRecords:
        """Key records at the server."""
        ...

    def check(self) -> bool:
        """Check the connection: ping the server now, and give the connection up unless it answers soon.

        Returns False if the connection is gone already, because the host no longer has its local address.
        """
        ...
