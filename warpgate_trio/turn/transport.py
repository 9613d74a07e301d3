"""The transports of a TURN client: a UDP socket, or a byte stream over TCP or TLS.

A stream has its own writer task.  Senders put whole messages into its outbox, so that a cancelled sender never leaves
half a message on the stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Protocol, final

import trio

from ..errors import StunMalformed
from ..ports.datagrams import DatagramSocket
from ..sockaddr import TransportAddress
from .framing import TurnStreamReader

__all__ = ["MAX_MESSAGE", "MAX_OUTBOX", "StreamTransport", "TurnTransport", "UdpTransport"]

MAX_MESSAGE: Final = 4096
"""Bytes of a message from the server over a stream: twice the size of any relayed datagram of this package."""
MAX_OUTBOX: Final = 1 << 18
"""Bytes in a stream's outbox beyond which `send` waits and `send_nowait` drops, as for a full socket."""
_RECEIVE_SIZE: Final = 65536


class TurnTransport(Protocol):
    """Whole messages to and from one server.

    Attributes:
      server: its address.
      reliable: it is a byte stream, which loses no message.
    """

    server: TransportAddress
    reliable: bool

    async def run(self) -> None:
        """Run the transport's background work until cancelled."""

    async def receive(self) -> list[bytes]:
        """Wait for messages of the server, at least one.

        Raises:
          trio.BrokenResourceError: the connection broke or ended.
        """

    async def send(self, messages: Iterable[bytes]) -> None:
        """Send a batch; always a checkpoint.  Raises as `receive` does."""

    def send_nowait(self, messages: Iterable[bytes]) -> None:
        """Send a batch without waiting; messages that cannot be sent at once may be dropped.  Never raises."""

    async def aclose(self) -> None:
        """Close it at once; unsent messages are dropped."""


@final
class UdpTransport:
    """A UDP socket, which it owns; datagrams from other sources than the server are dropped."""

    def __init__(self, sock: DatagramSocket, server: TransportAddress) -> None:
        self._sock = sock
        self.server: TransportAddress = server
        self.reliable: bool = False

    async def run(self) -> None:
        await trio.sleep_forever()

    async def receive(self) -> list[bytes]:
        while True:
            found = [data for data, source in await self._sock.receive_batch() if source == self.server]
            if found:
                return found

    async def send(self, messages: Iterable[bytes]) -> None:
        await self._sock.send_batch([(message, self.server) for message in messages])

    def send_nowait(self, messages: Iterable[bytes]) -> None:
        self._sock.send_nowait([(message, self.server) for message in messages])

    async def aclose(self) -> None:
        self._sock.close()


@final
class StreamTransport:
    """A connected byte stream, which it owns; over TLS the handshake is done already."""

    def __init__(self, stream: trio.abc.Stream, server: TransportAddress) -> None:
        self._stream = stream
        self._reader = TurnStreamReader(most=MAX_MESSAGE)
        self._outbox = bytearray()
        self._filled = trio.Event()
        self._drained = trio.Event()
        self._broken: Exception | None = None
        self.server: TransportAddress = server
        self.reliable: bool = True

    async def run(self) -> None:
        try:
            while True:
                while self._outbox:
                    data = bytes(self._outbox)
                    self._outbox.clear()
                    await self._stream.send_all(data)
                    self._drained.set()
                self._filled = trio.Event()
                await self._filled.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(error)
            await trio.sleep_forever()  # `receive` reports it, after the server's last messages

    def _break(self, error: Exception) -> None:
        """Record why nothing is written any more, and wake the senders that wait for room."""
        self._broken = self._broken or error
        self._drained.set()

    async def receive(self) -> list[bytes]:
        try:
            while data := await self._stream.receive_some(_RECEIVE_SIZE):
                if found := self._reader.feed(bytes(data)):
                    return found
            raise trio.BrokenResourceError("the server closed the connection")
        except StunMalformed as error:
            self._break(error)
            raise trio.BrokenResourceError(str(error)) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(error)
            raise

    async def send(self, messages: Iterable[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._outbox) > MAX_OUTBOX and self._broken is None:
            if self._drained.is_set():  # not replaced while others wait for it
                self._drained = trio.Event()
            await self._drained.wait()
        if self._broken is not None:
            raise trio.BrokenResourceError(str(self._broken) or "the connection broke") from self._broken
        self._put(messages, math.inf)

    def send_nowait(self, messages: Iterable[bytes]) -> None:
        self._put(messages, MAX_OUTBOX)

    def _put(self, messages: Iterable[bytes], most: float) -> None:
        for message in messages:
            if len(self._outbox) <= most:
                self._outbox += message
        self._filled.set()

    async def aclose(self) -> None:
        self._break(trio.ClosedResourceError("this side closed the connection"))
        await trio.aclose_forcefully(self._stream)
