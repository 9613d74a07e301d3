"""The rendezvous server over WebSockets: the Trio shell of `warpgate_trio.servers.rendezvous_core`.

Idle cost decides how many nodes one server can hold, so an idle connection has two tasks (trio-websocket's reader and
its handler), one deadline, and no writer: a task that writes the queue exists only while there is something in it.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NoReturn, final

import trio

from .. import host as machine
from ..config import ServerUrl
from ..nurseries import open_background_nursery, require_trio
from ..ports.segments import clamp_segments
from ..sockaddr import show_address
from ..websocket import ConnectionLimits, WebSocket, WebSocketClosed, serve_websocket
from ..websocket.proxies import TrustedProxies
from .names import ServerNames
from .relay_core import NO_RELAY, RelayLimits, RelayRules, RelayStatistics
from .relay_frames import EndReason
from .rendezvous_core import (
    DEFAULT_LIMITS,
    RendezvousCore,
    RendezvousLimits,
    RendezvousStatistics,
    ServerConnection,
)
from .rendezvous_frames import MAX_FRAME, SUBPROTOCOLS, ErrorCode

__all__ = [
    "RelayLimits",
    "RelayRules",
    "RelayStatistics",
    "Rendezvous",
    "RendezvousLimits",
    "RendezvousServer",
    "RendezvousStatistics",
    "open_rendezvous",
    "serve_rendezvous",
]

logger: logging.Logger = logging.getLogger(__name__)

LAST_WORD: Final = 0.5
"""Seconds in which clients are told that the server goes down, where who shuts it down waits no longer: one way and the
close frame's answer, on the same continent."""
_GOING_AWAY: Final = 1001  # RFC 6455 §7.4.1


@final
class Rendezvous:
    """The mailboxes without a listener: `handle` serves one WebSocket, whichever server it came in by.

    Args:
      limits: what clients can make it hold.
      names: by which clients dial it.
      relay: between whom it relays.
    """

    def __init__(
        self,
        limits: RendezvousLimits = DEFAULT_LIMITS,
        names: ServerNames | None = None,
        *,
        relay: RelayRules = NO_RELAY,
    ) -> None:
        self.limits = limits
        self._names = names if names is not None else ServerNames()
        self._core = RendezvousCore(limits, relay=relay)
        self._outboxes: dict[ServerConnection, _Outbox] = {}
        self._served = 0
        self._all_left: Final = trio.lowlevel.ParkingLot()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._core.circuits.draining

    def statistics(self) -> RendezvousStatistics:
        """What the mailboxes hold now and have done so far."""
        return self._core.statistics()

    async def drain(self, *, leave: float = 0.0) -> None:
        """Shut it down; see `RendezvousServer.drain`."""
        try:
            if leave > 0:
                self._core.warn(trio.current_time())
                self._wake_all()
                with trio.move_on_after(leave):
                    await self._wait_all_left()
            self._core.drain(trio.current_time())
            self._wake_all()
            await trio.lowlevel.checkpoint()
            await self._wait_all_left()
        except trio.Cancelled:
            self._core.drain(trio.current_time())
            self._core.give_up_waiting()
            self._wake_all()
            with trio.CancelScope(deadline=trio.current_time() + LAST_WORD, shield=True):
                await self._wait_all_left()
            for outbox in self._outboxes.values():
                outbox.end()
            raise

    def _wake_all(self) -> None:
        for outbox in self._outboxes.values():
            outbox.wake()

    async def _wait_all_left(self) -> None:
        while self._served:
            await self._all_left.park()

    async def handle(self, websocket: WebSocket) -> None:
        """Serve one client until it leaves, breaks a rule, falls silent, is replaced, or all are told to go away.

        Nothing of a payload is logged.
        """
        self._served += 1
        try:
            if not self._core.circuits.draining:
                await self._serve(websocket)
            if self._core.circuits.draining:
                await websocket.aclose(code=_GOING_AWAY, reason=EndReason.SHUTTING_DOWN.words)
        finally:
            self._served -= 1
            if not self._served:
                self._all_left.unpark_all()

    async def _serve(self, websocket: WebSocket) -> None:
        accepted = websocket.accepted
        assert accepted is not None, "a client's end"
        connection, challenge = self._core.connect(
            machine.current().entropy(32),
            trio.current_time(),
            host=accepted.host,
            version=SUBPROTOCOLS.get(websocket.subprotocol or "", 1),
            names=self._names.of(accepted),
        )
        try:
            async with open_background_nursery() as nursery:
                outbox = _Outbox(websocket, self._core, connection, nursery, self._wake_circuits)
                self._outboxes[connection] = outbox
                try:
                    self._wake(self._core.call_ahead(connection, websocket.ahead, trio.current_time()))
                    await outbox.write(challenge)
                    await self._converse(websocket, connection, outbox)
                finally:
                    # Before the nursery closes: somebody may send to this mailbox in that very moment, and wake us.
                    del self._outboxes[connection]
                    self._core.disconnect(connection, trio.current_time())
                    self._wake_circuits()
        except WebSocketClosed:
            pass  # the usual end
        except trio.TooSlowError:
            logger.debug("%r does not read: closed", websocket)

    async def _converse(self, websocket: WebSocket, connection: ServerConnection, outbox: _Outbox) -> None:
        registration_ends = trio.current_time() + self.limits.registration
        while not connection.closing:
            answer = self._look_at_clock(websocket, connection, registration_ends)
            if answer is None:
                answer = await self._hear(websocket, connection, registration_ends)
            if answer is not None:
                # By this task, not through the queue: a client that does not read its answers is not read from either.
                await outbox.write(answer)

    def _look_at_clock(
        self, websocket: WebSocket, connection: ServerConnection, registration_ends: float
    ) -> bytes | None:
        """Do what is due; returns the frame to answer with when the client's time is up."""
        now = trio.current_time()
        if self._patience(websocket, connection, registration_ends) <= now:
            return self._core.fail(connection, ErrorCode.SLOW, "not registered in time, or silent for too long", now)
        if self._core.deadline(connection) <= now:
            self._core.handle_timer(connection, now)
            self._wake_circuits()
        return None

    def _patience(self, websocket: WebSocket, connection: ServerConnection, registration_ends: float) -> float:
        """Until when the client may be silent."""
        # Pings never get as far as the handler, so silence is measured where bytes come in.
        return registration_ends if connection.key is None else websocket.last_heard + self.limits.silence

    async def _hear(self, websocket: WebSocket, connection: ServerConnection, registration_ends: float) -> bytes | None:
        """Take frames until there is one to answer, returned, or something may be due.

        One scope for many frames, whose deadline never moves on: a scope for each is a tenth of what a frame costs.
        """
        with trio.CancelScope() as scope:
            while not connection.closing:
                patience = self._patience(websocket, connection, registration_ends)
                due = min(patience, self._core.deadline(connection))
                if due < scope.deadline:
                    scope.deadline = due
                # No name for the frame: it would be held until the next one is in.
                answer, woken = self._core.receive(connection, await websocket.receive(), trio.current_time())
                self._wake(woken)
                if answer is not None:
                    return answer
        return None

    def _wake(self, woken: Iterable[ServerConnection]) -> None:
        for other in woken:
            self._outboxes[other].wake(last=other.closing)
        self._wake_circuits()

    def _wake_circuits(self) -> None:
        for connection in self._core.woken():
            outbox = self._outboxes.get(connection)
            if outbox is not None:
                outbox.wake()


@final
class _Outbox:
    """Writes to one client, each frame within the time that the limits give it."""

    def __init__(
        self,
        websocket: WebSocket,
        core: RendezvousCore,
        connection: ServerConnection,
        nursery: trio.Nursery,
        wake_circuits: Callable[[], None],
    ) -> None:
        self._websocket = websocket
        self._core = core
        self._connection = connection
        self._nursery = nursery
        self._wake_circuits = wake_circuits
        self._writing = False
        self._last = False

    async def write(self, frame: bytes) -> None:
        with trio.fail_after(self._core.limits.write):
            await self._websocket.send(frame)

    def wake(self, *, last: bool = False) -> None:
        """The queue got longer; `last`: the connection ends once it is written."""
        self._last = self._last or last
        if not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write_queue)

    def end(self) -> None:
        """End the connection, whatever waits."""
        self._nursery.cancel_scope.cancel()

    async def _write_queue(self) -> None:
        whole = self._nursery.cancel_scope  # who does not take a frame in time loses the connection
        try:
            while (frame := self._core.transmit(self._connection, trio.current_time())) is not None:
                whole.deadline = trio.current_time() + self._core.limits.write
                await self._websocket.send(frame)
                self._core.written(self._connection)
                self._wake_circuits()
        except WebSocketClosed:
            self._last = True  # the handler, which only reads, might not notice for long
        whole.deadline = math.inf
        self._writing = False
        if self._last or self._core.is_over(self._connection):
            self.end()


@final
class RendezvousServer:
    """A running rendezvous server, made by `open_rendezvous` and `serve_rendezvous`."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        urls: tuple[str, ...],
        port: int,
        listeners: Sequence[trio.SocketListener] = (),
    ) -> None:
        self._rendezvous = rendezvous
        self._listeners = listeners
        self.urls = urls
        """One URL per listening socket, whatever the public ones are."""
        self.port = port
        """The port of the first listening socket."""

    def __repr__(self) -> str:
        return f"<RendezvousServer {' '.join(self.urls)}>"

    @property
    def url(self) -> str:
        """The first of `urls`."""
        return self.urls[0]

    def statistics(self) -> RendezvousStatistics:
        """What the server holds now and has done so far."""
        return self._rendezvous.statistics()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._rendezvous.draining

    async def drain(self, *, leave: float = 0.0) -> None:
        """Shut the server down well, and return when the last client has left; the caller bounds the time.

        From here on nobody gets in, and no circuit comes to be.  Circuits end with `EndReason.SHUTTING_DOWN`, behind
        what was sent on them; then, behind the signals that wait for it, each client is told that the server goes away
        (WebSocket close code 1001, RFC 6455 §7.4.1), so that it turns to another one at once.

        Args:
          leave: seconds for which circuits go on that are answered.  Their clients are told at once, so that they leave
            them for other ways, and stay connected until they have.

        Cancelled: what waits for clients that do not take it is dropped, they are told nevertheless, within
        `LAST_WORD` seconds, and all connections end.  There is no way back.
        """
        for listener in self._listeners:
            listener.socket.close()
        await self._rendezvous.drain(leave=leave)


async def serve_rendezvous(
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    limits: RendezvousLimits = DEFAULT_LIMITS,
    public_urls: Sequence[ServerUrl | str] = (),
    external_ips: Iterable[str] = (),
    trusted_proxies: TrustedProxies | None = None,
    relay: RelayRules = NO_RELAY,
    task_status: trio.TaskStatus[RendezvousServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `nursery.start` returns the `RendezvousServer` once it listens.

    Args:
      host: the address to listen on; None: all, IPv4 and IPv6 (with ``port=0`` each gets a port of its own).
      port: 0 lets the system choose.
      ssl_context: serve ``wss``; a function is asked for each connection, so that certificates can be renewed.
      limits: what clients can make it hold.
      public_urls: by which clients dial it, all of them: behind a reverse proxy or a NAT, or by a DNS name.  Clients
        sign the name that they have dialled, and one that is not known here is refused.  Without any: the address
        and port that a connection comes in at, and the names in the certificate (`servers.names`).
      external_ips: the addresses of a NAT in front that hands everything on, port by port, as clouds have it.
      trusted_proxies: reverse proxies in front of it, which say whose connection it is.
      relay: between whom it relays; between nobody where that is not said.

    Raises:
      ConfigError: one of `public_urls` is no URL of a WebSocket.
      OSError: the address cannot be listened on.
    """
    rendezvous = Rendezvous(
        limits,
        ServerNames(public_urls, ssl_context, machine.current().name(), external_ips),
        relay=relay,
    )
    listeners = await trio.open_tcp_listeners(port, host=host)
    try:
        names = [listener.socket.getsockname() for listener in listeners]
        for listener, name in zip(listeners, names, strict=True):  # before the first SYN that is answered
            clamp_segments(listener.socket, name[0])
        scheme = "ws" if ssl_context is None else "wss"
        urls = tuple(f"{scheme}://{show_address(name[:2])}" for name in names)
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(
                    serve_websocket,
                    rendezvous.handle,
                    listeners,
                    ssl_context=ssl_context,
                    subprotocols=list(SUBPROTOCOLS),
                    max_message=MAX_FRAME,
                    handshake_timeout=limits.registration,
                    limits=ConnectionLimits(total=limits.connections, per_address=limits.connections_per_address),
                    trusted_proxies=trusted_proxies,
                    reads_ahead=True,
                )
            )
            task_status.started(RendezvousServer(rendezvous, urls, names[0][1], listeners))
            await trio.sleep_forever()
    finally:
        for listener in listeners:
            listener.socket.close()
    raise AssertionError("unreachable")  # pragma: no cover


@asynccontextmanager
async def open_rendezvous(
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    limits: RendezvousLimits = DEFAULT_LIMITS,
    public_urls: Sequence[ServerUrl | str] = (),
    external_ips: Iterable[str] = (),
    trusted_proxies: TrustedProxies | None = None,
    relay: RelayRules = NO_RELAY,
) -> AsyncGenerator[RendezvousServer]:
    """Run a rendezvous server for the time of the body; arguments as for `serve_rendezvous`.

    Raises:
      ConfigError: one of `public_urls` is no URL of a WebSocket.
      OSError: the address cannot be listened on.
      RuntimeError: this is not Trio.
      Whatever the body raises, bare.
    """
    require_trio("open_rendezvous")
    async with open_background_nursery() as nursery:
        yield await nursery.start(
            partial(
                serve_rendezvous,
                host=host,
                port=port,
                ssl_context=ssl_context,
                limits=limits,
                public_urls=public_urls,
                external_ips=external_ips,
                trusted_proxies=trusted_proxies,
                relay=relay,
            )
        )
