"""WebSockets that carry binary messages: the only module that imports trio-websocket.

Theory of operation.  trio-websocket speaks the protocol.  It leaves to its caller what this module therefore owns:

* **The TCP stream.**  This module opens it, wraps it in TLS, and closes it in every case.  trio-websocket does not
  close the client's socket after a close with code 1009, nor when it is cancelled during the handshake.
* **The reader's end.**  trio-websocket starts one reader task for each connection.  If that task ends during the
  handshake (the server closed the connection, or sent garbage), it does not wake the waiting opener; nor does it wake
  `ping` when a pong can no longer come.  `Reader` watches the task, keeps its exception from cancelling the user's
  code, and wakes tasks that wait for data that can no longer come.
* **Framing under cancellation.**  After half a frame nothing can be parsed, so a cancelled write breaks the connection
  instead of corrupting it (`Wire.send_all`).
* **A memory bound.**  ``max_message`` bounds the size of a message, but not the number of its empty fragments.  So
  `Wire` counts the bytes since the last complete message, and `Parts` counts the frames.
* **Admission.**  A server counts connections by subscriber (`limits.Gate`).  Behind a reverse proxy the subscriber is
  the client that the proxy names (`proxies`), in front of TLS or in the request; it is unknown before.
* **Data ahead.**  A client may send some bytes with its request, in a header, a round trip before its first message.
  The server's answer says whether it reads them.

There are no hidden timeouts.  The caller bounds `open_websocket`, `WebSocket.send`, `WebSocket.receive` and
`WebSocket.ping` with its own scope.  A server cannot do without a limit for handshakes, nor an exit without one for its
close frame: ``handshake_timeout`` and ``close_timeout`` are arguments.
"""

from __future__ import annotations

import base64
import binascii
import encodings.idna  # noqa: F401 - which the first handshake would load, in the midst of a call
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn, cast, final

import trio
import trio_websocket

from ..config import ServerUrl
from ..errors import ConfigError, RemoteProtocolError, WarpgateError
from ..limits import Gate, Place
from ..nurseries import open_background_nursery
from ..ports.accepting import accept_connections
from ..ports.segments import limit_unsent
from ..sockaddr import TransportAddress, show_address
from ..unforeseen import Unforeseen
from .proxies import ProxyHeader, TrustedProxies
from .stream import RECEIVE_SIZE, Front, Reader, Wire, read_proxy_header

__all__ = [
    "MAX_AHEAD",
    "Accepted",
    "ConnectionLimits",
    "WebSocket",
    "WebSocketClosed",
    "WebSocketError",
    "open_websocket",
    "serve_websocket",
]

logger: logging.Logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 0.2
"""Seconds that a clean close may take: enough for a peer on the same continent.
"""


UNSENT_MAX: Final = 64 * 1024
"""Bytes that the kernel may hold unsent, for which a short message waits behind long ones.  By default Linux would hold
megabytes."""
MAX_AHEAD: Final = 4096
"""Bytes that may go with a request: 5.4 KiB in base64, since reverse proxies accept 8 KiB in a header (nginx,
Apache)."""
_AHEAD: Final = b"warpgate-ahead"
_READ: Final = b"read"
"""The header value of a server that reads the bytes ahead."""


class WebSocketError(WarpgateError):
    """The handshake failed (WebSocket, or TLS including the certificate), or the peer broke the protocol."""


class WebSocketClosed(WebSocketError):
    """No more messages: the connection has ended.

    Attributes:
      code: the close code of RFC 6455 section 7.4; 1006 when the connection was lost without one.
      reason: the peer's reason, or an error; may be empty.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the WebSocket is closed (code {code}{': ' if reason else ''}{reason})")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections a server holds at once; further ones are closed before TLS costs anything.

    Attributes:
      total: connections in all; one more closes the newest of the subscriber that has most (`limits.Gate`).
      per_address: connections from one IPv4 address or one IPv6 /64 (what one subscriber usually has).
    """

    total: int = 16_384
    per_address: int = 256


_DEFAULT_LIMITS = ConnectionLimits()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The addresses of a connection at a server.

    Attributes:
      host, port: the client's; behind a trusted proxy those that the proxy names (port 0 if it names none).
      local: the address and port at which the connection was accepted.
    """

    host: str
    port: int
    local: TransportAddress

    def __str__(self) -> str:
        return show_address((self.host, self.port))


@final
class WebSocket(trio.abc.AsyncResource):
    """One open WebSocket connection, made by `open_websocket` and `serve_websocket`.

    Any number of tasks may `send` and `ping`; one task receives.  At most one complete message waits inside; then TCP's
    flow control stops the peer.
    """

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        reader: Reader,
        wire: Wire,
        *,
        max_message: int,
        close_timeout: float,
        remote: str,
        accepted: Accepted | None = None,
        ahead: bytes = b"",
        upgrade: float | None = None,
        ends: tuple[TransportAddress, TransportAddress] | None = None,
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._wire = wire
        self._max_message = max_message
        self._close_timeout = close_timeout
        self._ping_number = 0
        self._remote = remote
        self.accepted = accepted
        """On a server: the addresses of the connection.  None on a client."""
        self.ahead: Final = ahead
        """The bytes that went with the request: on a server those that came, on a client those that the server has
        read."""
        self.upgrade: Final = upgrade
        """On a client: seconds from its request to the answer, about a round trip.  None on a server."""
        self.ends: Final = ends
        """On a client: the local and the remote address of the TCP connection; None if the stream is not one."""

    def __repr__(self) -> str:
        return f"<WebSocket with {self._remote}>"

    @property
    def path(self) -> str:
        """The requested path with its query, as in the URL.  On a server the client has chosen it: do not trust it."""
        return self._connection.path or "/"

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that both sides have agreed on (RFC 6455 section 1.9), or None."""
        return self._connection.subprotocol

    @property
    def remote(self) -> str:
        """The other end, for logs: the URL that was opened, or the client's ``ip:port``."""
        return self._remote

    @property
    def last_heard(self) -> float:
        """When the last byte of any kind came in, including pongs (`trio.current_time`)."""
        return self._wire.last_heard

    async def send(self, data: bytes) -> None:
        """Send one binary message.

        A call that is cancelled before its first byte is sent has no effect.  If it is cancelled later, while the peer
        does not read, the connection is broken, as half a frame cannot be withdrawn.  Code that may be cancelled at any
        time should hand its messages to a task that is not.

        Raises:
          ValueError: `data` is longer than ``max_message``.
          WebSocketClosed: the connection has ended.
        """
        if len(data) > self._max_message:
            raise ValueError(f"a message of {len(data)} bytes is over the limit of {self._max_message}")
        try:
            await self._connection.send_message(data)
        except trio_websocket.ConnectionClosed:
            raise self._closed() from None
        except Exception as exc:
            # wsproto refuses to send after a close frame that trio-websocket has not noticed yet.
            raise self._closed() from exc

    async def receive(self) -> bytes:
        """Return the next binary message.  A cancelled call loses nothing.

        Raises:
          WebSocketClosed: there is no further message; either side may have ended the connection.
          WebSocketError: the peer sent text.
        """
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._closed() from self._reader.error
        self._wire.message_taken()
        if isinstance(message, str):
            raise WebSocketError("the peer sent a text message; only binary ones are allowed")
        return message

    async def ping(self) -> None:
        """Send a ping and return when its pong has come, or that of a later ping.

        Raises:
          WebSocketClosed: the connection ended before the pong came.
        """
        self._ping_number = (self._ping_number + 1) % 2**32
        payload = self._ping_number.to_bytes(4, "big")
        answered = False
        with self._reader.needed():
            try:
                await self._connection.ping(payload)
            except trio_websocket.ConnectionClosed:
                raise self._closed() from None
            answered = True
        if not answered:
            raise self._closed() from self._reader.error

    def abandon(self) -> None:
        """Have `aclose` wait for nothing, because nothing can be sent any more."""
        self._close_timeout = 0.0

    async def aclose(self, *, code: int = 1000, reason: str | None = None) -> None:
        """Send a close frame, wait at most ``close_timeout`` seconds for its answer, then close TCP.

        A cancelled call closes TCP at once.

        Args:
          code: the close code (RFC 6455 section 7.4).
          reason: a text for the peer, at most 123 bytes.
        """
        try:
            with trio.move_on_after(self._close_timeout):
                await self._connection.aclose(code, reason)
        except trio.Cancelled:
            raise
        except Exception as exc:
            # A silent, dead or faulty peer: the clean close failed, but the connection is closed below.
            logger.debug("%r: no clean close: %r", self, exc)
        finally:
            await trio.aclose_forcefully(self._wire)

    def _closed(self) -> WebSocketClosed:
        reason = self._connection.closed
        if reason is None:
            return WebSocketClosed(1006, str(self._reader.error or ""))
        return WebSocketClosed(reason.code, self._wire.fault or reason.reason or "")


@asynccontextmanager
async def open_websocket(
    url: ServerUrl | str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    subprotocols: Sequence[str] = (),
    max_message: int,
    close_timeout: float = CLOSE_TIMEOUT,
    dial: Callable[[str, int], Awaitable[trio.abc.Stream]] | None = None,
    ahead: Callable[[], bytes] = bytes,
) -> AsyncGenerator[WebSocket]:
    """Open a WebSocket to `url` (``ws://`` or ``wss://``) for the time of the body.

    No timeout is built in: bound the opening with a scope of your own, and move its deadline once the body runs.

    Args:
      url: the URL, parsed or not.
      ssl_context: for ``wss``; the platform's trust store by default.  The host name (or IP literal) is verified.
      subprotocols: those that we can speak, in order of preference; a server that knows none of them is accepted, too.
      max_message: bytes of the largest message, sent or received; a connection with a larger one is closed with code
        1009.
      close_timeout: seconds that an exit without cancellation may wait for the peer's close frame.
      dial: opens the TCP connection; `trio.open_tcp_stream` by default.
      ahead: called when the request is sent; returns at most `MAX_AHEAD` bytes to go with it.  `WebSocket.ahead` has
        them if the server has read them.

    Raises:
      OSError: no TCP connection (including name resolution).
      WebSocketError: the TLS or WebSocket handshake was refused, broken, or answered with garbage.
      ConfigError: `url` is not the URL of a WebSocket.
      Whatever the body raises, bare.
    """
    target = ServerUrl.parse(url) if isinstance(url, str) else url
    if target.scheme not in ("ws", "wss"):
        raise ConfigError(f"{target.redacted}: not a WebSocket URL (ws:// or wss://)")
    stream: trio.abc.Stream = await (dial or trio.open_tcp_stream)(target.host, target.port)
    ends = None
    if isinstance(stream, trio.SocketStream):
        limit_unsent(stream.socket, UNSENT_MAX)
        with suppress(OSError):  # it is broken already, which is noticed below
            ends = stream.socket.getsockname()[:2], stream.socket.getpeername()[:2]
    if target.scheme == "wss":
        context = ssl_context if ssl_context is not None else ssl.create_default_context()
        stream = trio.SSLStream(stream, context, server_hostname=target.host_name, https_compatible=True)
    wire = Wire(stream, max_message=max_message)
    try:
        await _finish_tls(stream, target.redacted)
        async with open_background_nursery() as nursery:
            reader = Reader(nursery)
            began = trio.current_time()
            sent = ahead()
            connection = await _open_client(reader, wire, target, subprotocols, max_message=max_message, ahead=sent)
            websocket = WebSocket(
                connection,
                reader,
                wire,
                max_message=max_message,
                close_timeout=close_timeout,
                remote=target.redacted,
                ahead=sent if (_AHEAD, _READ) in connection.handshake_headers else b"",
                upgrade=trio.current_time() - began,
                ends=ends,
            )
            try:
                yield websocket
            finally:
                await websocket.aclose()
    finally:
        await trio.aclose_forcefully(wire)


async def _finish_tls(stream: trio.abc.Stream, name: str) -> None:
    # Done before the first write, since trio-websocket would hide why a certificate was refused.
    if isinstance(stream, trio.SSLStream):
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as exc:
            raise WebSocketError(f"{name}: TLS handshake failed: {exc.__cause__ or exc}") from exc


async def _open_client(
    reader: Reader, wire: Wire, target: ServerUrl, subprotocols: Sequence[str], *, max_message: int, ahead: bytes
) -> trio_websocket.WebSocketConnection:
    headers = [(_AHEAD, base64.b64encode(ahead))] if ahead else []
    if target.username is not None:
        credentials = f"{target.username}:{target.password or ''}".encode()
        headers.append((b"Authorization", b"Basic " + base64.b64encode(credentials)))
    with reader.needed():
        return await trio_websocket.wrap_client_stream(
            reader.as_nursery(),
            cast(
                trio.SocketStream, cast(object, wire)
            ),  # annotated too narrowly: WebSocketConnection accepts any Stream
            target.authority,
            target.target,
            subprotocols=list(subprotocols),
            extra_headers=headers,
            max_message_size=max_message,
            receive_buffer_size=RECEIVE_SIZE,
        )
    error = reader.error
    if isinstance(error, trio_websocket.ConnectionRejected):
        raise WebSocketError(f"{target.redacted}: refused with HTTP status {error.status_code}") from error
    reason = wire.fault or (f"{error}" if error is not None else "the server hung up or is no WebSocket server")
    raise WebSocketError(f"{target.redacted}: WebSocket handshake failed: {reason}") from error


async def serve_websocket(
    handler: Callable[[WebSocket], Awaitable[None]],
    listeners: Sequence[trio.SocketListener],
    *,
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    subprotocols: Sequence[str] = (),
    max_message: int,
    handshake_timeout: float,
    limits: ConnectionLimits = _DEFAULT_LIMITS,
    trusted_proxies: TrustedProxies | None = None,
    close_timeout: float = CLOSE_TIMEOUT,
    reads_ahead: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve WebSockets on `listeners` until cancelled, then close the listeners.

    Each connection has a task that runs `handler`, and ends when the handler returns.  An exception of a handler ends
    its connection and is logged; it never ends the server.  Cancellation closes every connection at once, without close
    frames.

    Args:
      handler: serves one connection.
      listeners: the listening sockets.
      ssl_context: for ``wss``; a function is called for each connection, so that certificates can be renewed.
      subprotocols: those that `handler` can speak; the first of a client's proposals that is among them is chosen.
      max_message: bytes of the largest message; the connection of a client that sends more is closed with code 1009.
      handshake_timeout: seconds from the TCP connection to the end of the WebSocket handshake, including TLS.
      limits: connections held at once; further ones are closed unanswered, or replace one of a subscriber that has too
        many.
      trusted_proxies: reverse proxies that name their clients; other connections count as their own.
      close_timeout: seconds that a client has to answer our close frame.
      reads_ahead: `handler` reads the bytes that came with a request (`WebSocket.ahead`).
    """
    server = _Server(
        handler=handler,
        gate=Gate(total=limits.total, per_address=limits.per_address),
        ssl_context=ssl_context if callable(ssl_context) or ssl_context is None else lambda: ssl_context,
        subprotocols=frozenset(subprotocols),
        max_message=max_message,
        handshake_timeout=handshake_timeout,
        trusted_proxies=trusted_proxies,
        close_timeout=close_timeout,
        reads_ahead=reads_ahead,
        unforeseen=Unforeseen(logger),
    )
    try:
        async with trio.open_nursery() as nursery:

            def serve(sock: trio.socket.SocketType, source: TransportAddress) -> None:
                nursery.start_soon(server.serve, sock, source)

            for listener in listeners:
                nursery.start_soon(accept_connections, listener.socket, serve)
            task_status.started()
            await trio.sleep_forever()
    finally:
        for listener in listeners:
            listener.socket.close()
    raise AssertionError("unreachable")  # pragma: no cover


@final
@dataclass(frozen=True, kw_only=True)
class _Server:
    """What all connections of `serve_websocket` share: its arguments."""

    handler: Callable[[WebSocket], Awaitable[None]]
    gate: Gate
    ssl_context: Callable[[], ssl.SSLContext] | None
    subprotocols: frozenset[str]
    max_message: int
    handshake_timeout: float
    trusted_proxies: TrustedProxies | None
    close_timeout: float
    reads_ahead: bool
    unforeseen: Unforeseen

    async def serve(self, sock: trio.socket.SocketType, source: TransportAddress) -> None:
        """Serve one connection, from its first byte to its end."""
        limit_unsent(sock, UNSENT_MAX)
        stream = Front(trio.SocketStream(sock))
        with self.unforeseen.containing("the handler of a WebSocket, whose connection is closed,"):
            try:
                accepted = Accepted(source[0], source[1], sock.getsockname()[:2])
                proxied = self.trusted_proxies is not None and self.trusted_proxies.covers(accepted.host)
                with self.gate.admit(None if proxied else accepted.host) as place:
                    if place is not None:
                        await self._serve(stream, accepted, place if proxied else None)
            except (WebSocketError, RemoteProtocolError) as exc:
                logger.debug("a client's connection ended: %s", exc)
            except trio_websocket.ConnectionClosed:
                logger.debug("a client left during the handshake")
            finally:
                await trio.aclose_forcefully(stream)

    async def _serve(self, front: Front, accepted: Accepted, unnamed: Place | None) -> None:
        """Serve one connection; `unnamed`: its place, if it comes from a proxy that has not named the client yet."""
        stream: trio.abc.Stream = front
        if self.ssl_context is not None:
            stream = trio.SSLStream(front, self.ssl_context(), server_side=True, https_compatible=True)
        wire = Wire(stream, max_message=self.max_message)
        async with open_background_nursery() as nursery:
            reader = Reader(nursery)
            connection: trio_websocket.WebSocketConnection | None = None
            with trio.move_on_after(self.handshake_timeout), reader.needed():
                if unnamed is not None and self._header is ProxyHeader.PROXY:
                    client = await read_proxy_header(front)
                    accepted = accepted if client is None else Accepted(*client, accepted.local)
                    if not unnamed.name(accepted.host):
                        return
                await _finish_tls(stream, "client")
                request = await trio_websocket.wrap_server_stream(
                    reader.as_nursery(), wire, max_message_size=self.max_message, receive_buffer_size=RECEIVE_SIZE
                )
                if unnamed is not None and self._header is ProxyHeader.FORWARDED:
                    assert self.trusted_proxies is not None
                    host = self.trusted_proxies.client(accepted.host, request.headers)
                    accepted = accepted if host == accepted.host else Accepted(host, 0, accepted.local)
                    if not unnamed.name(host):
                        return
                agreed = next((each for each in request.proposed_subprotocols if each in self.subprotocols), None)
                ahead = _read_ahead(request.headers) if self.reads_ahead else b""
                says = [(_AHEAD, _READ)] if ahead else []
                connection = await request.accept(subprotocol=agreed, extra_headers=says)
            if connection is None:
                return
            websocket = WebSocket(
                connection,
                reader,
                wire,
                max_message=self.max_message,
                close_timeout=self.close_timeout,
                remote=str(accepted),
                accepted=accepted,
                ahead=ahead,
            )
            try:
                await self.handler(websocket)
            finally:
                await websocket.aclose()

    @property
    def _header(self) -> ProxyHeader | None:
        return self.trusted_proxies.header if self.trusted_proxies is not None else None


def _read_ahead(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The bytes ahead in a request; empty if the header is missing, too long, or not base64."""
    value = next((value for name, value in headers if name.lower() == _AHEAD), b"")
    if len(value) > 4 * (MAX_AHEAD // 3 + 1):
        return b""
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return b""
