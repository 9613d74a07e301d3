"""Pairing by our rendezvous server (`warpgate_trio.servers.mailboxes`).

It uses a connection of its own, registered under a key that is made for it.  So the server learns the IP addresses of
the two sides, but not which nodes they are.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, final

import trio

from .. import host as machine
from ..config import ServerUrl
from ..errors import PairingUnavailable, RemoteProtocolError, SignalUnsupported, printable
from ..identity import Identity
from ..nurseries import open_background_nursery
from ..ports.server_dial import Dial
from ..servers import rendezvous_frames as wire
from ..servers.mailbox_frames import Claimed, Offered, Post, Settle
from ..signal.keepalive import KeepAlive
from ..websocket import WebSocket, WebSocketError, open_websocket
from .mailbox import FromServer, ToServer

__all__ = ["RendezvousMailboxes"]

PING_INTERVAL: Final = 30.0
"""Seconds between pings: a third of the silence that a server allows."""
PONG_TIMEOUT: Final = 10.0
"""Seconds without a pong after which a server counts as gone, and is reconnected to."""
CLOSE_PATIENCE: Final = 0.5
"""Seconds for closing the WebSocket: the last frame has been sent, and only the server's close is still to come."""


@final
class _Channel:
    """A `MailboxChannel`."""

    def __init__(self, websocket: WebSocket, name: str, keep_alive: KeepAlive) -> None:
        self._websocket = websocket
        self._name = name
        self._keep_alive = keep_alive

    async def send(self, frame: ToServer) -> None:
        try:
            await self._websocket.send(frame.encode())
        except WebSocketError as error:
            raise PairingUnavailable(f"{self._name}: {error}") from error

    async def receive(self) -> FromServer:
        try:
            frame = wire.decode_from_server(await self._websocket.receive())
        except (WebSocketError, RemoteProtocolError, SignalUnsupported) as error:
            raise PairingUnavailable(f"{self._name}: {error}") from error
        if isinstance(frame, Offered | Claimed | Post | Settle):
            return frame
        said = f": {frame.text}" if isinstance(frame, wire.Error) else ""
        raise PairingUnavailable(
            f"{self._name}: the server sent an unexpected {type(frame).__name__} on a pairing connection{said}"
        )

    async def ping(self) -> None:
        """Ping the server until it is gone; `receive` then raises."""
        try:
            await self._keep_alive.run(
                self._websocket.ping, lambda _: None, interval=PING_INTERVAL, timeout=PONG_TIMEOUT
            )
        except trio.TooSlowError:
            self._websocket.abandon()
            await self._websocket.aclose()
        except WebSocketError:
            pass


@final
class RendezvousMailboxes:
    """One rendezvous server, as a `MailboxServer`.

    Args:
      dial: opens connections to it.
      trust: returns the TLS context for ``wss``; called at each connection.
    """

    def __init__(self, url: ServerUrl, *, dial: Dial, trust: Callable[[], ssl.SSLContext]) -> None:
        self._url = url
        self._dial = dial
        self._trust = trust
        self._identity = Identity.generate()
        self._registrant = wire.Registrant(machine.current().entropy(wire.INSTANCE_LENGTH))
        self._keep_alive: KeepAlive | None = None
        self.name: Final = url.redacted
        self.allocates: Final = True

    def check(self) -> None:
        """See `MailboxServer.check`."""
        if self._keep_alive is not None:
            self._keep_alive.check()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[_Channel]:
        """See `MailboxServer.open`."""
        opened = False
        try:
            async with open_websocket(
                self._url,
                ssl_context=self._trust() if self._url.tls else None,
                subprotocols=list(wire.SUBPROTOCOLS),
                max_message=wire.MAX_FRAME,
                close_timeout=CLOSE_PATIENCE,
                dial=self._dial,
            ) as websocket:
                await self._register(websocket)
                self._keep_alive = KeepAlive(lambda: websocket.last_heard)
                channel = _Channel(websocket, self.name, self._keep_alive)
                async with open_background_nursery() as nursery:
                    nursery.start_soon(channel.ping)
                    opened = True
                    yield channel
        except (WebSocketError, RemoteProtocolError, SignalUnsupported) as error:
            if opened:
                raise  # the body has raised it
            raise PairingUnavailable(f"{self.name}: {error}") from error

    async def _register(self, websocket: WebSocket) -> None:
        """Register at the server, and check that it can pair."""
        challenge = wire.decode_from_server(await websocket.receive())
        if isinstance(challenge, wire.Challenge) and challenge.version < wire.CIRCUITS_SINCE:
            raise RemoteProtocolError(
                f"this server cannot pair: it speaks version {challenge.version} of the protocol, and pairing needs "
                f"version {wire.CIRCUITS_SINCE}"
            )
        if not isinstance(challenge, wire.Challenge):
            raise RemoteProtocolError(_refusal(challenge))
        name = wire.server_name(self._url.host, self._url.port)
        await websocket.send(self._registrant.answer(self._identity, challenge, name).encode())
        answer = wire.decode_from_server(await websocket.receive())
        if not isinstance(answer, wire.Registered):
            raise RemoteProtocolError(_refusal(answer))
        if not (answer.capabilities or 0) & wire.Capability.PAIR:
            raise RemoteProtocolError("this server cannot pair: it does not announce that capability")


def _refusal(frame: wire.FromServer) -> str:
    if isinstance(frame, wire.Error):
        return f"the server refused: {printable(frame.text, 200)} (code {frame.code})"
    return f"the server sent an unexpected {type(frame).__name__} on a pairing connection"
