"""The interface that a Link needs of a carrier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from ..sockaddr import TransportAddress

__all__ = ["Buffer", "Carrier", "closing_on_error"]

Buffer = bytes | bytearray | memoryview


@runtime_checkable
class Carrier(Protocol):
    """An encrypted, ordered byte stream; see the room's page for the division of labour.

    Attributes:
      dialler: True on the side that dialled, which is the TLS or QUIC client and the one that pins the other's key.
      server_key: the Ed25519 public key (32 bytes) of the side that was dialled: our own on that side.
      name: ``"tls"`` or ``"quic"``.
      idle_interval: seconds of silence after which the Link asks for a sign of life.
      began: when the handshake did, by `trio.current_time`; of a side that waits, when the other one was first heard.
      local, remote: socket addresses of the path.
    """

    @property
    def dialler(self) -> bool: ...
    @property
    def server_key(self) -> bytes: ...
    @property
    def name(self) -> str: ...
    @property
    def idle_interval(self) -> float: ...
    @property
    def began(self) -> float: ...
    @property
    def local(self) -> TransportAddress: ...
    @property
    def remote(self) -> TransportAddress: ...

    @property
    def owed(self) -> bool:
        """Whether ciphertext waits to be sent."""

    def feed(self, *parts: Buffer) -> None:
        """Encrypt ``parts``, in order, into what the carrier owes.  Synchronous; nothing is sent.

        Raises:
          trio.BrokenResourceError: the carrier cannot encrypt any more.
        """

    async def flush(self) -> None:
        """Send what is owed; a checkpoint always.  After a cancellation the rest is still owed, in order.

        Raises:
          trio.BrokenResourceError: the path is gone.
          trio.ClosedResourceError: this side closed the carrier.
        """

    def limit_unsent(self, size: int, /) -> None:
        """Have `flush` wait while more than about ``size`` bytes are not sent that were taken, as far as can be said.

        What is most urgent is then not behind much that nobody can take back.
        """

    async def receive(self) -> list[bytes]:
        """Wait for plaintext and return it in pieces, none of them empty; ``[]`` means the peer's clean end.

        Cancelling it loses nothing.

        Raises:
          trio.BrokenResourceError: the path is gone, was cut without a clean end, or carried forged bytes.
          trio.ClosedResourceError: this side closed the carrier.
        """

    def feed_end(self) -> None:
        """Owe the clean end (close_notify); nothing may be fed after it."""

    def close_nowait(self) -> None:
        """Close the socket now, without a goodbye.  Idempotent; wakes whoever waits in `flush` or `receive`."""


@contextmanager
def closing_on_error(carrier: Carrier) -> Iterator[None]:
    """Close a carrier whose handshake fails or is cancelled: nobody has it yet."""
    try:
        yield
    except BaseException:
        carrier.close_nowait()
        raise
