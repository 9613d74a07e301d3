"""The interface that a Link needs from a carrier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from ..sockaddr import TransportAddress

__all__ = ["Buffer", "Carrier", "closing_on_error"]

Buffer = bytes | bytearray | memoryview


@runtime_checkable
class Carrier(Protocol):
    """An encrypted, ordered byte stream; the docstring of `warpgate_trio.carrier` describes the division of labour.

    Attributes:
      dialler: True on the side that dialled: it is the TLS or QUIC client, and pins the other side's key.
      server_key: the Ed25519 public key (32 bytes) of the side that was dialled, which on that side is our own.
      name: ``"tls"`` or ``"quic"``.
      idle_interval: seconds of silence after which the Link asks for a sign of life.
      began: when the handshake began, by `trio.current_time`; a QUIC server counts from the client's first datagram.
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
        """Encrypt ``parts``, in order, for `flush` to send.  Synchronous; nothing is sent.

        Raises:
          trio.BrokenResourceError: the carrier cannot encrypt any more.
        """

    async def flush(self) -> None:
        """Send the pending ciphertext; a checkpoint always.  After a cancellation the rest is still pending, in order.

        Raises:
          trio.BrokenResourceError: the path is gone.
          trio.ClosedResourceError: this side closed the carrier.
        """

    def limit_unsent(self, size: int, /) -> None:
        """Have `flush` wait while about ``size`` bytes or more that were accepted are unsent, as far as is known.

        Then urgent data does not wait behind much that cannot be withdrawn.
        """

    async def receive(self) -> list[bytes]:
        """Wait for plaintext and return it in pieces, none of them empty; ``[]`` means the peer's clean end.

        A cancelled call loses nothing.

        Raises:
          trio.BrokenResourceError: the path is gone, was cut without a clean end, or carried forged bytes.
          trio.ClosedResourceError: this side closed the carrier.
        """

    def feed_end(self) -> None:
        """Have `flush` send the clean end (TLS close_notify, QUIC FIN); nothing may be fed after it."""

    def close_nowait(self) -> None:
        """Close the socket now, without a clean end.  Idempotent; wakes tasks that wait in `flush` or `receive`."""


@contextmanager
def closing_on_error(carrier: Carrier) -> Iterator[None]:
    """Close a carrier whose handshake fails or is cancelled: no caller has it yet."""
    try:
        yield
    except BaseException:
        carrier.close_nowait()
        raise
