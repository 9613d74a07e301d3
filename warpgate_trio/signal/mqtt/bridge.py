"""The bridge between paho, which wants a socket of its own, and a Trio stream to the broker.

paho connects, and does its TLS handshake, in a blocking call in a thread, which cannot be cancelled: a broker that
never answers would hold the caller for paho's own five seconds.  Therefore we open the TCP and TLS stream ourselves,
and paho connects to *us*: to a loopback port that takes one connection, behind which two tasks (`Bridge`) forward the
bytes.  Two things still happen in a thread: a connect to 127.0.0.1, which takes microseconds, and the name resolution
inside `trio.open_tcp_stream`, which Trio abandons when it is cancelled.

The bridge has three more uses:

* It bounds what comes in (`signal.mqtt.packets`).
* It knows when the broker has closed the connection, which aiomqtt does not tell to tasks that wait for an answer.
* It makes paho close its socket: half-closing the bridge is the only way to that without private names of paho's.

The loopback port is open only for a moment.  Another local program may take the one connection.  It then gets a tunnel
to a broker that it could have connected to itself, without the login, which paho sends.  Our opening fails or is given
up, and is tried again.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final, final

import trio

from ...errors import RemoteProtocolError
from .packets import PacketFilter

__all__ = ["Bridge"]

logger: logging.Logger = logging.getLogger(__name__)


@final
class Bridge:
    """Carries bytes between paho, which connects to `listener`, and the broker's stream.

    It is shielded from cancellation, since DISCONNECT still has to go over it; `stop` ends it.
    """

    def __init__(self, stream: trio.abc.Stream, listener: trio.SocketListener, packets: PacketFilter) -> None:
        self._stream = stream
        self._listener = listener
        self._packets = packets
        self._local: trio.SocketStream | None = None
        self._scope = trio.CancelScope(shield=True)
        self._accepted = trio.Event()
        self._paho_closed = trio.Event()
        self._broker_closed = trio.Event()
        self._reason: str | None = None
        self.paho_connected: Final = trio.Event()
        """The owner sets it when paho's blocking connect has returned."""
        self.until_paho_closed: Final = trio.CancelScope(shield=True)
        """A scope for waiting on paho; it is cancelled when paho has closed its socket, and so will not answer."""

    @property
    def refusal(self) -> str | None:
        """Why the broker's CONNACK refused us; None: it has not."""
        return self._packets.refusal

    @property
    def reason(self) -> str:
        """Why the connection has ended."""
        return self.refusal or self._reason or "the connection to the broker was lost"

    async def run(self) -> None:
        """Accept paho's connection, and forward bytes both ways until both sides have ended, or `stop`."""
        with self._scope:
            async with self._listener:
                self._local = await self._listener.accept()
                self._accepted.set()
            async with self._local, trio.open_nursery() as nursery:
                nursery.start_soon(self._to_broker, self._local)
                nursery.start_soon(self._from_broker, self._local)

    async def hang_up(self, patience: float) -> None:
        """Let paho read to the end and close its socket, within `patience` seconds."""
        with trio.CancelScope(shield=True):
            await self.paho_connected.wait()  # microseconds; paho itself gives up after five seconds
            with trio.move_on_after(patience):
                await self._accepted.wait()
                if self._local is not None:
                    _say_end(self._local)
                await self._paho_closed.wait()
        self.until_paho_closed.cancel()

    async def wait_closed(self) -> None:
        """Wait until paho has closed, what it wrote has gone out, and the broker has closed.  That may never happen."""
        if self._local is not None:
            _say_end(self._local)  # paho may have failed on what it read, without closing its socket
        await self._paho_closed.wait()
        await self._broker_closed.wait()

    def stop(self) -> None:
        """Cancel `run` at once; bytes that are not forwarded yet are lost."""
        self._scope.cancel()

    async def _to_broker(self, local: trio.SocketStream) -> None:
        broken = False
        with suppress(trio.BrokenResourceError):
            async for data in local:
                if not broken:
                    try:
                        await self._stream.send_all(data)
                    except trio.BrokenResourceError as error:
                        self._ended(f"the connection to the broker broke: {error.__cause__ or error}")
                        broken = True
        self._paho_closed.set()
        self.until_paho_closed.cancel()

    async def _from_broker(self, local: trio.SocketStream) -> None:
        await self.paho_connected.wait()  # until then trio-asyncio swallows the cancellation that ends the opening
        try:
            async for data in self._stream:
                passed = self._packets.feed(bytes(data))
                # On these errors paho or we have closed the loopback side; the broker's end is still to come.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await local.send_all(passed)
            self._ended("the broker closed the connection")
        except trio.BrokenResourceError as error:
            self._ended(f"the connection to the broker broke: {error.__cause__ or error}")
        except RemoteProtocolError as error:
            self._ended(str(error))
        self._broker_closed.set()
        _say_end(local)

    def _ended(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason


def _say_end(local: trio.SocketStream) -> None:
    # Not `send_eof`, which refuses while another task is sending; that send may fail.
    with suppress(OSError):
        local.socket.shutdown(trio.socket.SHUT_WR)
