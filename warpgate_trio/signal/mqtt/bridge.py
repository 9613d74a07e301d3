"""The bridge between paho, which wants a socket of its own, and a stream of Trio's to the broker.

paho connects, and does its TLS handshake, in a blocking call in a thread, which nothing can cancel: a broker that is a
black hole would hold its caller for paho's own five seconds.  Therefore we open the TCP and TLS stream ourselves, and
paho connects to *us*: to a loopback port that takes one connection, behind which a pair of tasks (`Bridge`) carries the
bytes on.  What is left to a thread is a connect to 127.0.0.1, which takes microseconds, and the name resolution inside
`trio.open_tcp_stream`, which Trio abandons when it is cancelled.  The bridge serves for three things more.  It bounds
what comes in (`signal.mqtt.packets`); it knows when the broker has hung up, which aiomqtt does not tell to those who
wait for an answer; and it makes paho close its socket, since a half-closed bridge is the one signal for that which
needs no private name of paho's.

The loopback port is open for the moment between two lines of this program.  Another local program that takes the one
connection gets a tunnel to a broker that it could have called itself, without the login, which paho sends; we get an
opening that fails or is given up, and try again.
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

    It shields itself, as the goodbyes go over it; `stop` ends it.
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
        """Is to be set when paho's blocking connect has returned."""
        self.until_paho_closed: Final = trio.CancelScope(shield=True)
        """Is cancelled when paho has closed its socket: what is waited for in here will not come."""

    @property
    def refusal(self) -> str | None:
        """What the broker's CONNACK said against us."""
        return self._packets.refusal

    @property
    def reason(self) -> str:
        """Why the connection has ended."""
        return self.refusal or self._reason or "the connection to the broker was lost"

    async def run(self) -> None:
        with self._scope:
            async with self._listener:
                self._local = await self._listener.accept()
                self._accepted.set()
            async with self._local, trio.open_nursery() as nursery:
                nursery.start_soon(self._to_broker, self._local)
                nursery.start_soon(self._from_broker, self._local)

    async def hang_up(self, patience: float) -> None:
        """Let paho read to the end and close its socket, for which it is given `patience` seconds."""
        with trio.CancelScope(shield=True):
            await self.paho_connected.wait()  # microseconds; paho itself gives up after five seconds
            with trio.move_on_after(patience):
                await self._accepted.wait()
                if self._local is not None:
                    _say_end(self._local)
                await self._paho_closed.wait()
        self.until_paho_closed.cancel()

    async def wait_closed(self) -> None:
        """Wait until paho has closed, what it wrote has gone out, and the broker has closed; perhaps in vain."""
        if self._local is not None:
            _say_end(self._local)  # for when paho stumbled over what it read, and did not close
        await self._paho_closed.wait()
        await self._broker_closed.wait()

    def stop(self) -> None:
        """Drop everything at once."""
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
                # paho has closed, or we have hung up; the broker's end is still to come.
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
    # Not `send_eof`, which refuses while another task is sending; that one may as well fail.
    with suppress(OSError):
        local.socket.shutdown(trio.socket.SHUT_WR)
