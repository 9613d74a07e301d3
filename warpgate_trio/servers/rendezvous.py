"""The rendezvous server over WebSockets: the Trio shell of `warpgate_trio.servers.rendezvous_core`.

The cost of an idle connection decides how many nodes one server can hold.  So an idle connection has two tasks
(trio-websocket's reader and its handler), one deadline, and no writer: the task that writes the queue exists only while
the queue has frames.
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
"""Seconds for the close handshakes with clients when `drain` is cancelled: one round trip on the same continent."""
_GOING_AWAY: Final = 1001  # RFC 6455 §7.4.1


@final
class Rendezvous:
    """A rendezvous server without a listener: `handle` serves one WebSocket of any HTTP server.

    Args:
      limits: what clients can make it hold.
      names: the names by which clients dial it.
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
        """Counts of what the server holds now and has done so far."""
        return self._core.statistics()

    async def drain(self, *, leave: float = 0.0) -> None:
        """Shut the server down; see `RendezvousServer.drain`."""
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
        """Serve one client until it leaves, breaks a rule, is silent for too long, is replaced, or the server drains.

        Payloads are never logged.
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
        assert accepted is not None, "this WebSocket is a client's end, not a server's"
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
                    # Before the nursery closes: otherwise a SEND to this mailbox could start a task in it.
                    del self._outboxes[connection]
                    self._core.disconnect(connection, trio.current_time())
                    self._wake_circuits()
        except WebSocketClosed:
            pass  # the usual end
        except trio.TooSlowError:
            logger.debug("%r did not accept a frame in time: closed", websocket)

    async def _converse(self, websocket: WebSocket, connection: ServerConnection, outbox: _Outbox) -> None:
        registration_ends = trio.current_time() + self.limits.registration
        while not connection.closing:
            answer = self._look_at_clock(websocket, connection, registration_ends)
            if answer is None:
                answer = await self._hear(websocket, connection, registration_ends)
            if answer is not None:
                # By this task and not through the queue: while a client does not read its answers, nothing is read
                # from it.
                await outbox.write(answer)

    def _look_at_clock(
        self, websocket: WebSocket, connection: ServerConnection, registration_ends: float
    ) -> bytes | None:
        """Run the timers that are due; returns an ERROR frame if the client has exceeded its time."""
        now = trio.current_time()
        if self._patience(websocket, connection, registration_ends) <= now:
            return self._core.fail(connection, ErrorCode.SLOW, "not registered in time, or silent for too long", now)
        if self._core.deadline(connection) <= now:
            self._core.handle_timer(connection, now)
            self._wake_circuits()
        return None

    def _patience(self, websocket: WebSocket, connection: ServerConnection, registration_ends: float) -> float:
        """The time until which the client may be silent."""
        # Pings do not reach the handler, so the WebSocket measures silence, by the bytes that it receives.
        return registration_ends if connection.key is None else websocket.last_heard + self.limits.silence

    async def _hear(self, websocket: WebSocket, connection: ServerConnection, registration_ends: float) -> bytes | None:
        """Process frames until one needs an answer, which is returned, or a timer may be due (None).

        One cancel scope serves many frames, and its deadline is never moved later: a scope for each frame would cost a
        tenth of the time that a frame takes.
        """
        with trio.CancelScope() as scope:
            while not connection.closing:
                patience = self._patience(websocket, connection, registration_ends)
                due = min(patience, self._core.deadline(connection))
                if due < scope.deadline:
                    scope.deadline = due
                # The frame gets no name: a variable would keep it in memory until the next one arrives.
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
    """Writes frames to one client, each within `RendezvousLimits.write` seconds."""

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
        """Write what waits; `last`: end the connection after that."""
        self._last = self._last or last
        if not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write_queue)

    def end(self) -> None:
        """End the connection, even if frames wait."""
        self._nursery.cancel_scope.cancel()

    async def _write_queue(self) -> None:
        whole = self._nursery.cancel_scope  # a client that does not accept a frame in time loses the connection
        try:
            while (frame := self._core.transmit(self._connection, trio.current_time())) is not None:
                whole.deadline = trio.current_time() + self._core.limits.write
                await self._websocket.send(frame)
                self._core.written(self._connection)
                self._wake_circuits()
        except WebSocketClosed:
            self._last = True  # the handler only reads, and might not notice for a long time
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
        """One URL per listening socket; the public URLs may differ."""
        self.port = port
        """The port of the first listening socket."""

    def __repr__(self) -> str:
        return f"<RendezvousServer {' '.join(self.urls)}>"

    @property
    def url(self) -> str:
        """The first of `urls`."""
        return self.urls[0]

    def statistics(self) -> RendezvousStatistics:
        """Counts of what the server holds now and has done so far."""
        return self._rendezvous.statistics()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._rendezvous.draining

    async def drain(self, *, leave: float = 0.0) -> None:
        """Shut the server down gracefully, and return when the last client has left; the caller bounds the time.

        New connections and new circuits are refused from now on.  Circuits end with `EndReason.SHUTTING_DOWN`, behind
        the data that was sent on them.  Then, behind the signals that wait for it, each client receives WebSocket close
        code 1001 (going away, RFC 6455 §7.4.1), so that it uses another server at once.

        Args:
          leave: seconds for which answered circuits go on.  Their clients learn of the shutdown at once, so that they
            can move to other paths, and stay connected until they have, or the time is over.

        If it is cancelled, data that clients do not accept is dropped, the clients still have `LAST_WORD` seconds to
        receive the close code, and all connections end.  Draining cannot be undone.
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
      host: the address to listen on; None: all, IPv4 and IPv6 (with ``port=0`` each family gets its own port).
      port: 0 lets the system choose.
      ssl_context: serve ``wss``; a function is called for each connection, so that certificates can be renewed.
      limits: what clients can make it hold.
      public_urls: all URLs by which clients dial it: behind a reverse proxy or a NAT, or by a DNS name.  Clients sign
        the name that they have dialled, and any other name is refused.  Without URLs the server knows the address and
        port at which a connection arrives, the host's name, and the names in the certificate (`servers.names`).
      external_ips: the addresses of a NAT in front that forwards all ports unchanged, as in clouds.
      trusted_proxies: reverse proxies in front of it that are believed about the client's address.
      relay: between whom it relays; by default between nobody.

    Raises:
      ConfigError: one of `public_urls` is not a WebSocket URL.
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
    """Run a rendezvous server during the body; arguments as for `serve_rendezvous`.

    Raises:
      ConfigError: one of `public_urls` is not a WebSocket URL.
      OSError: the address cannot be listened on.
      RuntimeError: it does not run under Trio.
      An exception of the body is not wrapped in an ExceptionGroup.
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
