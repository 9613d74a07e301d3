"""WebSockets that carry binary messages: the only module that imports trio-websocket.

Theory of operation.  trio-websocket speaks the protocol; what it leaves to its caller, and what this module therefore
owns, is

* **The TCP stream.**  We open it, wrap it in TLS, and close it on every way out.  trio-websocket never closes the
  client's socket after a close with code 1009, nor when it is cancelled in the middle of the handshake.
* **The reader's end.**  trio-websocket starts one reader task per connection.  When that task ends during the handshake
  (the server hung up, or sent garbage), the waiting opener is not told; when a pong can no longer come, `ping` is not
  told either. `Reader` watches the task, keeps its exception from cancelling the user's code, and wakes whoever waits
  for what it can no longer bring.
* **Framing under cancellation.**  A frame that was cut off halfway makes everything behind it nonsense, so a cancelled
  write breaks the connection instead of corrupting it (`Wire.send_all`).
* **A memory bound.**  ``max_message`` bounds what a message may hold, not how many empty fragments may announce it.
  `Wire` therefore counts the bytes that came in since the last whole message, and `Parts` the frames.
* **Who comes in.**  A server counts connections by subscriber (`limits.Gate`), behind a reverse proxy by whom the
  proxy names (`proxies`): in front of TLS, or in the request, so that such a connection has a name only then.
* **What goes ahead.**  A client may send some bytes with its request, in a header, a round trip before its first
  message.  The server says in its answer whether it reads them.

No timeout hides in here.  The caller bounds `open_websocket`, `WebSocket.send`, `WebSocket.receive` and
`WebSocket.ping` with its own scope; the two timeouts that a server and an exit cannot do without, ``handshake_timeout``
and ``close_timeout``, are arguments.
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
"""Seconds that a polite close may take: enough for a peer on the same continent, and nobody waits for more on the way
out.
"""


UNSENT_MAX: Final = 64 * 1024
"""Bytes that the kernel takes before it has sent what it took: what a short message waits for behind long ones.  Linux
alone would take megabytes."""
MAX_AHEAD: Final = 4096
"""Bytes that may go with a request: 5.4 KiB in base64, as reverse proxies take 8 KiB in a header (nginx, Apache)."""
_AHEAD: Final = b"warpgate-ahead"
_READ: Final = b"read"
"""What a server answers that hands them on."""


class WebSocketError(WarpgateError):
    """The WebSocket handshake failed (TLS and its certificate included), or the peer broke the protocol."""


class WebSocketClosed(WebSocketError):
    """No more messages: the connection has ended.

    Attributes:
      code: the close code of RFC 6455 section 7.4; 1006 when the connection was lost without one.
      reason: what the peer said about it; may be empty.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the WebSocket is closed (code {code}{': ' if reason else ''}{reason})")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections a server holds at once; what is over the limit is closed before TLS costs anything.

    Attributes:
      total: connections in all; beyond, the youngest of the heaviest subscriber gives way (`limits.Gate`).
      per_address: connections from one IPv4 address or one IPv6 /64 (what one subscriber usually has).
    """

    total: int = 16_384
    per_address: int = 256


_DEFAULT_LIMITS = ConnectionLimits()


@dataclass(frozen=True, slots=True)
class Accepted:
    """Between which addresses a server's connection runs.

    Attributes:
      host, port: the client's; behind a trusted proxy those that it names (port 0 where it names none).
      local: the address and port that the connection came in at.
    """

    host: str
    port: int
    local: TransportAddress

    def __str__(self) -> str:
        return show_address((self.host, self.port))


@final
class WebSocket(trio.abc.AsyncResource):
    """One open WebSocket connection, made by `open_websocket` and `serve_websocket`.

    Any number of tasks may `send` and `ping`; one task receives.  At most one whole message waits inside; then the peer
    feels TCP's back-pressure.
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
        """On a server: who came, and where.  None on a client."""
        self.ahead: Final = ahead
        """What went with the request: of a server what came so, of a client what the server has read."""
        self.upgrade: Final = upgrade
        """On a client: seconds from its request to the answer, about a round trip.  None on a server."""
        self.ends: Final = ends
        """On a client: the addresses of the TCP connection, ours and the other one; None where it is none."""

    def __repr__(self) -> str:
        return f"<WebSocket with {self._remote}>"

    @property
    def path(self) -> str:
        """The requested path with its query, as it stands in the URL: chosen by the client, so hostile on a server."""
        return self._connection.path or "/"

    @property
    def subprotocol(self) -> str | None:
        """What both sides have agreed on (RFC 6455 section 1.9); None: nothing."""
        return self._connection.subprotocol

    @property
    def remote(self) -> str:
        """Who is at the other end: the URL that was opened, or the client's ``ip:port``.  For logs."""
        return self._remote

    @property
    def last_heard(self) -> float:
        """When the last byte of any kind, pongs included, came in (`trio.current_time`)."""
        return self._wire.last_heard

    async def send(self, data: bytes) -> None:
        """Send one binary message.

        Cancelled before the first byte is out: nothing happened.  Cancelled while the peer does not read: the
        connection is broken, as half a frame cannot be taken back.  Who may be cancelled at any time should hand its
        messages to a task that is not.

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
        """Return the next binary message.  Cancelled: nothing is lost.

        Raises:
          WebSocketClosed: there is no further message, whoever ended the connection.
          WebSocketError: the peer sent text.
        """
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._closed() from self._reader.error
        self._wire.message_taken()
        if isinstance(message, str):
            raise WebSocketError("the peer sent text where only binary messages are spoken")
        return message

    async def ping(self) -> None:
        """Send a ping and return when its pong is in, or that of a later ping.

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
        """Nothing gets out any more: `aclose` is to wait for nothing."""
        self._close_timeout = 0.0

    async def aclose(self, *, code: int = 1000, reason: str | None = None) -> None:
        """Close: a close frame, at most ``close_timeout`` seconds for its answer, then TCP.  Cancelled: TCP at once.

        Args:
          code: the close code (RFC 6455 section 7.4).
          reason: what the peer is told beside it, at most 123 bytes.
        """
        try:
            with trio.move_on_after(self._close_timeout):
                await self._connection.aclose(code, reason)
        except trio.Cancelled:
            raise
        except Exception as exc:
            # A silent, dead or confused peer: the polite part failed, the connection is closed below all the same.
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

    No timeout is built in: bound the opening with a scope of your own, whose deadline you move once you are in.

    Args:
      ssl_context: for ``wss``; the platform's trust by default.  The host name (or IP literal) is verified.
      subprotocols: what we can speak, the dearest first; a server that knows none of them is none the worse for us.
      max_message: bytes in one message, sent or received; a peer that sends more is closed with code 1009.
      close_timeout: seconds that an exit which is not a cancellation may wait for the peer's close frame.
      dial: opens the TCP connection; `trio.open_tcp_stream` by default.
      ahead: asked, when the request goes out, for at most `MAX_AHEAD` bytes to go with it; `WebSocket.ahead` says
        whether the server has read them.

    Raises:
      OSError: no TCP connection (name resolution included).
      WebSocketError: TLS or WebSocket handshake refused, broken or answered with nonsense.
      ConfigError: `url` is no URL of a WebSocket.
      Whatever the body raises, bare.
    """
    target = ServerUrl.parse(url) if isinstance(url, str) else url
    if target.scheme not in ("ws", "wss"):
        raise ConfigError(f"{target.redacted}: not the URL of a WebSocket")
    stream: trio.abc.Stream = await (dial or trio.open_tcp_stream)(target.host, target.port)
    ends = None
    if isinstance(stream, trio.SocketStream):
        limit_unsent(stream.socket, UNSENT_MAX)
        with suppress(OSError):  # it broke already, which is noticed below
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
    # Done apart from the first write, since trio-websocket would swallow the reason why a certificate was refused.
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
            ),  # annotated more narrowly than what WebSocketConnection takes: any Stream
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
    """Serve WebSockets on `listeners` until cancelled, and close them; each connection gets a task that runs `handler`.

    A connection ends when its handler returns.  What a handler raises ends its connection and is logged; it never ends
    the server.  Being cancelled closes every connection at once, without close frames.

    Args:
      ssl_context: for ``wss``; a function is asked for each connection, so that certificates can be renewed.
      subprotocols: what `handler` can speak; the first one that a client proposes and that is among these is agreed on.
      max_message: bytes in one message; a client that sends more is closed with code 1009.
      handshake_timeout: seconds from the TCP connection to the end of the WebSocket handshake, TLS included.
      limits: connections held at once; further ones are closed unanswered, or take the place of who has too many.
      trusted_proxies: reverse proxies that say whose connection it is; connections from elsewhere are taken as ever.
      close_timeout: seconds that a client gets to answer our close frame.
      reads_ahead: `handler` reads what came with a request (`WebSocket.ahead`).
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
    """What all connections of `serve_websocket` have in common; its arguments."""

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
        """`unnamed`: the place of a proxy's connection, while nobody has said whose it is."""
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
    """What came with a request; nothing where that is too long, or no base64."""
    value = next((value for name, value in headers if name.lower() == _AHEAD), b"")
    if len(value) > 4 * (MAX_AHEAD // 3 + 1):
        return b""
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return b""
