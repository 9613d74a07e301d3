"""Byte streams over real loopback sockets: WebSockets from both sides, and TLS."""

from __future__ import annotations

import base64
import hashlib
import logging
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, final

import trio
import trio.testing

from tests.fuzz.registry import target
from tests.identities import ALICE, BOB
from warpgate_trio.carrier import TlsCarrier, TlsContexts
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import CarrierError, ProxyError
from warpgate_trio.ports.socks import ask_socks
from warpgate_trio.websocket import WebSocket, WebSocketError, open_websocket, serve_websocket

MAX_MESSAGE: Final = 2000
PATIENCE: Final = 30.0
"""Seconds after which a run counts as hung, on a host that is also busy with other work."""
_RESET: Final = struct.pack("ii", 1, 0)  # no TIME-WAIT: there are many of these connections


@final
class _Errors(logging.Handler):
    """Collects what a server logs as its own error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def no_errors_logged() -> Iterator[None]:
    logger, errors = logging.getLogger("warpgate_trio"), _Errors()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(errors)
    try:
        yield
    finally:
        logger.removeHandler(errors)
        logger.propagate = propagated
    for record in errors.records:
        raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)


def against(peer: Callable[[trio.SocketStream], Awaitable[None]], ours: Callable[[int], Awaitable[None]]) -> None:
    """Run `ours` with the port of a server that handles each connection with `peer`."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _RESET)
            async with stream:
                await peer(stream)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, serve, listeners)
                try:
                    await ours(listeners[0].socket.getsockname()[1])
                finally:
                    nursery.cancel_scope.cancel()

    _run(main)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """`trio.run`, with exceptions unwrapped from groups of one."""
    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
            group = group.exceptions[0]
        raise group from None


# -- WebSockets --------------------------------------------------------------------------------------------------------

_UPGRADE: Final = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: ACCEPT\r\n\r\n"
)


def _frames(mask: bytes) -> list[bytes]:
    """RFC 6455 §5.2; a mask of zeros changes nothing."""
    marked = 0x80 if mask else 0
    short = [
        bytes([first, marked | len(content)]) + mask + content
        for first, content in (
            *((0x82, b"hello"), (0x81, b"text"), (0x02, b"begun"), (0x80, b"ended"), (0x00, b"")),
            *((0x89, b"ping"), (0x8A, b"pong"), (0x88, b"\x03\xe8bye"), (0x88, b"")),
        )
    ]
    return [*short, bytes([0x82, marked | 126]) + (1000).to_bytes(2, "big") + mask + bytes(1000)]


def _requests() -> list[bytes]:
    frames = _frames(bytes(4))
    ahead = _UPGRADE.replace(b"\r\n\r\n", b"\r\nWarpgate-Ahead: aGVsbG8=\r\n\r\n")
    return [ahead, *(_UPGRADE + b"".join(some) for some in ([], frames[:2], frames[2:4], frames[5:8], frames))]


@target(_requests, inputs=150)
def websocket_from_a_client(data: bytes) -> None:
    """To an echo server: a misbehaving client ends its own connection, and nothing is logged as an error."""

    async def echo(websocket: WebSocket) -> None:
        while True:
            await websocket.send(await websocket.receive())

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        serve = partial(
            serve_websocket,
            echo,
            listeners,
            max_message=MAX_MESSAGE,
            handshake_timeout=PATIENCE,
            close_timeout=0.01,
            reads_ahead=True,
        )
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                async with await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1]) as stream:
                    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _RESET)
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all(data)
                        await stream.send_eof()
                        async for _ in stream:
                            pass
                nursery.cancel_scope.cancel()

    with no_errors_logged():
        _run(main)


def _responses() -> list[bytes]:
    frames = _frames(b"")
    return [_SWITCHING + b"".join(some) for some in ([], frames[:2], frames[2:4], frames[5:8], frames)]


@target(_responses, WebSocketError, inputs=150)
def websocket_from_a_server(data: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        await stream.send_all(data.replace(b"ACCEPT", base64.b64encode(digest)))

    async def ours(port: int) -> None:
        async with open_websocket(f"ws://127.0.0.1:{port}", max_message=MAX_MESSAGE, close_timeout=0.01) as websocket:
            while True:
                await websocket.receive()

    with no_errors_logged():
        against(answer, ours)


# -- TLS ---------------------------------------------------------------------------------------------------------------


def _tls_flights() -> tuple[bytes, bytes]:
    """The first flights of a client and of a server."""
    contexts = TlsContexts(ALICE), TlsContexts(BOB)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[0].client.wrap_bio(to_client, to_server)
    server = contexts[1].server.wrap_bio(to_server, to_client, server_side=True)
    flights: list[bytes] = []
    for side, out, into in ((client, to_server, to_server), (server, to_client, to_client)):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
        flights.append(out.read())
        into.write(flights[-1])
    return flights[0], flights[1]


@target(lambda: [_tls_flights()[0]], CarrierError, inputs=150)
def tls_from_a_client(data: bytes) -> None:
    failure: list[Exception] = []

    async def serve(stream: trio.SocketStream) -> None:
        try:
            (await TlsCarrier.serve(stream.socket, TlsContexts(BOB))).close_nowait()
        except Exception as error:
            failure.append(error)

    async def ours(port: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                await stream.send_eof()
                async for _ in stream:
                    pass

    against(serve, ours)
    if failure:
        raise failure[0]


@target(lambda: [_tls_flights()[1]], CarrierError, inputs=150)
def tls_from_a_server(data: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)

    async def ours(port: int) -> None:
        sock = trio.socket.socket()
        await sock.connect(("127.0.0.1", port))
        carrier = await TlsCarrier.dial(sock, TlsContexts(ALICE), peer_key=BOB.public_key)
        carrier.close_nowait()

    against(answer, ours)


# -- proxies -----------------------------------------------------------------------------------------------------------


def _answers_of_socks() -> list[bytes]:
    return [
        method + granted + b"\x05\x00\x00" + address + b"\x01\xbb"
        for method, granted in ((b"\x05\x00", b""), (b"\x05\x02", b"\x01\x00"))
        for address in (b"\x01\xc0\x00\x02\x01", b"\x03\x07example", b"\x04" + bytes(16))
    ] + [b"\x05\x00\x05\x05\x00\x01" + bytes(6), b"\x05\xff", b"\x05\x02\x01\x01"]


@target(_answers_of_socks, ProxyError, trio.BrokenResourceError, inputs=500)
def answer_of_a_socks_proxy(data: bytes) -> None:
    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()
        await there.send_all(data)
        await there.send_eof()
        with trio.fail_after(PATIENCE):
            await ask_socks(here, ServerUrl("socks5", "proxy.example", 1080, "ann", "pw"), "a.example", 443)

    _run(main)
