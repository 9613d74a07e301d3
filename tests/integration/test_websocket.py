"""WebSockets over real sockets and real TLS: what arrives, what breaks, and that nothing stays open.

A fixture of all tests fails a test that leaves a socket open.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import re
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.certificates import Authority
from tests.hangs import HANG
from warpgate_trio.errors import ConfigError
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.websocket import (
    ConnectionLimits,
    WebSocket,
    WebSocketClosed,
    WebSocketError,
    open_websocket,
    serve_websocket,
)
from warpgate_trio.websocket.proxies import ProxyHeader, TrustedProxies
from warpgate_trio.websocket.stream import MAX_FRAMES

pytestmark = pytest.mark.usefixtures("jumping_clock")

LIMIT = 10_000
Handler = Callable[[WebSocket], Awaitable[None]]


async def echo(websocket: WebSocket) -> None:
    while True:
        await websocket.send(await websocket.receive())


async def hold(websocket: WebSocket) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def server(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    authority: Authority | None = None,
    certificate_for: str | None = None,
    handshake_timeout: float = 5.0,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008
    subprotocols: Sequence[str] = (),
    trusted_proxies: TrustedProxies | None = None,
    reads_ahead: bool = False,
) -> AsyncGenerator[str]:
    """Serves for the time of the body, which is bounded; yields the URL."""
    listeners = await trio.open_tcp_listeners(0, host=host)
    port = listeners[0].socket.getsockname()[1]
    context = authority.server(certificate_for or host) if authority else None
    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            await nursery.start(
                partial(
                    serve_websocket,
                    handler,
                    listeners,
                    ssl_context=context,
                    max_message=LIMIT,
                    handshake_timeout=handshake_timeout,
                    limits=limits,
                    subprotocols=subprotocols,
                    trusted_proxies=trusted_proxies,
                    reads_ahead=reads_ahead,
                    close_timeout=0.05,
                )
            )
            yield f"{'wss' if authority else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def tcp_server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """A TCP server that runs the handler for each connection; yields the URL."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await handler(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            await nursery.start(trio.serve_listeners, serve, listeners)
            yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


async def accept_by_hand(stream: trio.SocketStream) -> bytes:
    """The server's side of RFC 6455, section 4.2.2, without a library; returns the request."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += await stream.receive_some()
    found = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
    assert found
    digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
    return request


@asynccontextmanager
async def connect_by_hand(url: str, header: bytes = b"") -> AsyncGenerator[trio.SocketStream]:
    """A client's handshake without a library; `header` is added to the request."""
    async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
        await stream.send_all(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + header + b"\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"ahead" not in answer.lower()
        yield stream


async def wait_closed(stream: trio.SocketStream) -> bytes:
    """Waits until the other side has closed; returns what still arrives."""
    received = b""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            received += data
    return received


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


# --- what works ---


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))])
@pytest.mark.parametrize("tls", [False, True])
async def test_echo(host: str, tls: bool, authority: Authority) -> None:
    async with server(echo, host=host, authority=authority if tls else None) as url:
        async with open_websocket(url, ssl_context=authority.client() if tls else None, max_message=LIMIT) as websocket:
            for message in (b"hello", b"", bytes(LIMIT)):
                await websocket.send(message)
                assert await websocket.receive() == message
            await websocket.ping()
            assert websocket.remote == url


async def test_a_long_conversation() -> None:
    """The budget for bytes beyond messages (`BUDGET_EXTRA`) does not limit the number of messages."""
    async with server(echo) as url, open_websocket(url, max_message=LIMIT) as websocket:
        for _ in range(40):
            await websocket.send(bytes(LIMIT))
            assert len(await websocket.receive()) == LIMIT


@pytest.mark.parametrize("cancelled", [False, True])
async def test_aclose_closes_tcp_whether_or_not_the_peer_answers(cancelled: bool) -> None:
    ended = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(b"\x82\x7e" + struct.pack("!H", LIMIT + 1) + bytes(LIMIT + 1))  # over the limit: 1009
        await wait_closed(stream)
        ended.set()

    async with tcp_server(handler) as url, open_websocket(url, max_message=LIMIT, close_timeout=0.01) as websocket:
        with pytest.raises(WebSocketClosed):
            await websocket.receive()
        with trio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            await websocket.aclose()
        await ended.wait()
        await websocket.aclose()
        with pytest.raises(WebSocketClosed):
            await websocket.send(b"x")


async def test_a_host_name(authority: Authority) -> None:
    async with server(echo, authority=authority, certificate_for="localhost") as url:
        name = url.replace("127.0.0.1", "localhost")
        async with open_websocket(name, ssl_context=authority.client(), max_message=LIMIT) as websocket:
            await websocket.ping()


async def test_path_and_login_reach_the_server() -> None:
    requests = []

    async def handler(stream: trio.SocketStream) -> None:
        requests.append(await accept_by_hand(stream))

    async with tcp_server(handler) as url:
        async with open_websocket(url.replace("//", "//me:s%40crt@") + "/a/b?c=d", max_message=LIMIT) as websocket:
            assert "s%40crt" not in repr(websocket)
    assert requests[0].startswith(b"GET /a/b?c=d HTTP/1.1\r\n")
    assert b"Basic " + base64.b64encode(b"me:s@crt") in requests[0]


async def test_the_server_sees_path_and_client() -> None:
    seen = []

    async def handler(websocket: WebSocket) -> None:
        seen.append((websocket.path, websocket.remote))

    async with server(handler) as url:
        async with open_websocket(url + "/relay?x=1", max_message=LIMIT) as websocket:
            with pytest.raises(WebSocketClosed) as closed:
                await websocket.receive()
    assert closed.value.code == 1000
    assert seen[0][0] == "/relay?x=1"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", seen[0][1])


async def test_messages_sent_before_the_close_still_arrive() -> None:
    async def handler(websocket: WebSocket) -> None:
        for number in range(3):
            await websocket.send(bytes([number]))

    async with server(handler) as url, open_websocket(url, max_message=LIMIT) as websocket:
        assert [await websocket.receive() for _ in range(3)] == [b"\x00", b"\x01", b"\x02"]
        for _ in range(2):
            with pytest.raises(WebSocketClosed):
                await websocket.receive()
        with pytest.raises(WebSocketClosed):
            await websocket.send(b"late")
        with pytest.raises(WebSocketClosed):
            await websocket.ping()


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with server(echo) as url, open_websocket(url, max_message=LIMIT) as websocket:
        with trio.move_on_after(0):
            await websocket.receive()
        await websocket.send(b"kept")
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await websocket.receive()
        assert await websocket.receive() == b"kept"


async def test_the_bodys_exception_leaves_bare() -> None:
    async with server(echo) as url:
        with pytest.raises(ZeroDivisionError):
            async with open_websocket(url, max_message=LIMIT):
                raise ZeroDivisionError


# --- what does not ---


async def test_nobody_listens() -> None:
    async with tcp_server(wait_closed_quietly) as url:
        pass
    with pytest.raises(OSError, match="all attempts to connect"):
        async with open_websocket(url, max_message=LIMIT):
            pass


async def test_not_the_url_of_a_websocket() -> None:
    for url in ("stun:127.0.0.1", "http://127.0.0.1", "ws//x"):
        with pytest.raises(ConfigError):
            async with open_websocket(url, max_message=LIMIT):
                pass


async def wait_closed_quietly(stream: trio.SocketStream) -> None:
    await wait_closed(stream)


async def _hangs_up(stream: trio.SocketStream) -> None:
    pass


async def _reads_and_hangs_up(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def _speaks_garbage(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\x00\xff" * 300)
    await wait_closed(stream)


async def _is_a_web_server(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope\n")
    await wait_closed(stream)


async def _sends_a_body_without_end(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
    while True:
        await stream.send_all(bytes(65536))


async def _accepts_wrongly(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAA\r\n\r\n"
    )
    await wait_closed(stream)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (_hangs_up, "handshake failed"),
        (_reads_and_hangs_up, "handshake failed: the server hung up"),
        (_speaks_garbage, "handshake failed"),
        (_is_a_web_server, "refused with HTTP status 404"),
        (_sends_a_body_without_end, "too many bytes from the peer without a complete message"),
        (_accepts_wrongly, "handshake failed"),
    ],
)
async def test_no_websocket_server(behaviour: Callable[[trio.SocketStream], Awaitable[None]], words: str) -> None:
    async with tcp_server(behaviour) as url:
        with pytest.raises(WebSocketError, match=words):
            async with open_websocket(url, max_message=LIMIT):
                pytest.fail("opened")


async def test_a_server_that_says_nothing_is_left_at_the_callers_deadline() -> None:
    async with tcp_server(wait_closed_quietly) as url:
        with trio.move_on_after(0.05) as scope:
            async with open_websocket(url, max_message=LIMIT):
                pytest.fail("opened")
        assert scope.cancelled_caught


@pytest.mark.parametrize("tls", [False, True])
async def test_cancelled_at_any_step_of_the_opening(tls: bool, authority: Authority) -> None:
    opened = 0
    context = authority.client()
    async with server(echo, authority=authority if tls else None) as url:

        async def attempt(scope: trio.CancelScope) -> None:
            nonlocal opened
            with scope:
                async with open_websocket(url, ssl_context=context if tls else None, max_message=LIMIT):
                    opened += 1
                    await trio.sleep_forever()

        for steps in range(0, 60, 3):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(attempt, scope)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    gc.collect()  # a stream that was dropped without a close warns here


async def test_a_certificate_of_an_unknown_authority(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    async with server(echo, authority=authority) as url:
        with pytest.raises(WebSocketError, match=r"TLS handshake failed.*CERTIFICATE_VERIFY_FAILED"):
            async with open_websocket(url, ssl_context=other.client(), max_message=LIMIT):
                pytest.fail("opened")
        # The platform does not know that authority either.
        with pytest.raises(WebSocketError, match="CERTIFICATE_VERIFY_FAILED"):
            async with open_websocket(url, max_message=LIMIT):
                pytest.fail("opened")


async def test_a_certificate_for_another_host(authority: Authority) -> None:
    async with server(echo, authority=authority, certificate_for="other.example") as url:
        with pytest.raises(WebSocketError, match=r"TLS handshake failed.*127\.0\.0\.1"):
            async with open_websocket(url, ssl_context=authority.client(), max_message=LIMIT):
                pytest.fail("opened")


async def test_tls_to_a_server_without(authority: Authority) -> None:
    async with server(echo) as url:
        with pytest.raises(WebSocketError, match="TLS handshake failed"):
            async with open_websocket(url.replace("ws:", "wss:"), ssl_context=authority.client(), max_message=LIMIT):
                pytest.fail("opened")


async def test_a_silent_peer_delays_the_exit_by_the_close_timeout() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await trio.sleep_forever()

    async with tcp_server(handler) as url:
        async with open_websocket(url, max_message=LIMIT, close_timeout=0.05):
            start = trio.current_time()
        assert 0.04 < trio.current_time() - start < 5


async def test_a_cancelled_exit_waits_for_nobody() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await trio.sleep_forever()

    async with tcp_server(handler) as url:
        with trio.CancelScope() as scope:
            async with open_websocket(url, max_message=LIMIT, close_timeout=30):
                scope.cancel()


async def test_a_message_over_the_limit() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(b"\x82\x7e" + struct.pack("!H", LIMIT + 1) + bytes(LIMIT + 1))
        await wait_closed(stream)

    async with tcp_server(handler) as url, open_websocket(url, max_message=LIMIT) as websocket:
        with pytest.raises(WebSocketClosed, match="1009") as closed:
            await websocket.receive()
        assert closed.value.code == 1009
        with pytest.raises(ValueError, match="a message of 10001 bytes is over the limit of 10000"):
            await websocket.send(bytes(LIMIT + 1))


@pytest.mark.parametrize("piece", [b"", b"x"])
async def test_a_message_in_tiny_frames_ends_the_connection_on_either_side(piece: bytes) -> None:
    """A frame costs many times its own size in memory and in processing time."""
    over = MAX_FRAMES + 1

    async def split(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(bytes([2, len(piece)]) + piece + (bytes([0, len(piece)]) + piece) * over)
        await wait_closed(stream)

    async with tcp_server(split) as url, open_websocket(url, max_message=LIMIT, close_timeout=0.0) as websocket:
        with pytest.raises(WebSocketClosed, match="1006"):
            await websocket.receive()
    async with server(echo) as url, connect_by_hand(url) as stream:
        masked = bytes([0x80 | len(piece)]) + bytes(4) + piece
        await stream.send_all(b"\x02" + masked + (b"\x00" + masked) * over)
        await wait_closed(stream)


async def test_a_message_in_several_frames_is_whole() -> None:
    async with server(echo) as url, connect_by_hand(url) as stream:
        masked = b"\x82" + bytes(4) + b"ab"
        await stream.send_all(b"\x02" + masked + (b"\x00" + masked) * (MAX_FRAMES - 1) + b"\x80" + masked)
        received = b""
        while len(received) < 4 + 2 * (MAX_FRAMES + 1):
            received += await stream.receive_some()
        assert received == b"\x82\x7e" + struct.pack("!H", 2 * (MAX_FRAMES + 1)) + b"ab" * (MAX_FRAMES + 1)


async def test_text() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(b"\x81\x05hello")
        await wait_closed(stream)

    async with tcp_server(handler) as url, open_websocket(url, max_message=LIMIT, close_timeout=0.01) as websocket:
        with pytest.raises(WebSocketError, match="a text message; only binary ones are allowed"):
            await websocket.receive()


@pytest.mark.parametrize("frames", [b"\xff\xff\xff\xff", b"\x82\x85abcdefghi", b"\x83\x00", b"\x89\x7e\xff\xff"])
async def test_broken_frames(frames: bytes) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.send_all(frames)
        await wait_closed(stream)

    async with tcp_server(handler) as url, open_websocket(url, max_message=LIMIT, close_timeout=0.01) as websocket:
        with pytest.raises(WebSocketClosed):
            await websocket.receive()


async def test_a_ping_ends_with_the_connection() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await accept_by_hand(stream)
        await stream.receive_some()

    async with tcp_server(handler) as url, open_websocket(url, max_message=LIMIT) as websocket:
        with pytest.raises(WebSocketClosed):
            await websocket.ping()


async def test_a_send_that_is_cut_off_breaks_the_connection() -> None:
    """Half a frame followed by another would be garbage to the peer, which must see an end instead."""
    async with server(hold) as url, open_websocket(url, max_message=LIMIT, close_timeout=0.01) as websocket:
        with trio.move_on_after(0.05) as scope:
            while True:
                await websocket.send(bytes(LIMIT))
        assert scope.cancelled_caught
        with pytest.raises(WebSocketClosed):
            await websocket.send(b"x")


async def test_a_send_that_is_cancelled_before_it_begins_does_no_harm() -> None:
    async with server(echo) as url, open_websocket(url, max_message=LIMIT) as websocket:
        with trio.CancelScope() as scope:
            scope.cancel()
            await websocket.send(b"not sent")
        await websocket.send(b"sent")
        assert await websocket.receive() == b"sent"


# --- the server against its clients ---


async def test_a_handler_that_fails_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(websocket: WebSocket) -> None:
        if await websocket.receive() == b"fail":
            raise ZeroDivisionError
        await websocket.send(b"fine")

    async with server(handler) as url:
        async with open_websocket(url, max_message=LIMIT) as failing, open_websocket(url, max_message=LIMIT) as fine:
            await failing.send(b"fail")
            with pytest.raises(WebSocketClosed):
                await failing.receive()
            await fine.send(b"go")
            assert await fine.receive() == b"fine"
    assert "ZeroDivisionError" in caplog.text


async def test_the_servers_end_is_the_clients_end() -> None:
    async with trio.open_nursery() as nursery:
        closed = trio.Event()

        async def client(url: str, task_status: trio.TaskStatus[None]) -> None:
            async with open_websocket(url, max_message=LIMIT) as websocket:
                task_status.started()
                with pytest.raises(WebSocketClosed):
                    await websocket.receive()
                closed.set()

        async with server(hold) as url:
            await nursery.start(client, url)
        with trio.fail_after(HANG):
            await closed.wait()


async def test_a_client_that_says_nothing() -> None:
    async with server(echo, handshake_timeout=0.05) as url:
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            assert await wait_closed(stream) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01 something that speaks TLS",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    ],
)
async def test_no_websocket_client(request_bytes: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with server(echo) as url:
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(request_bytes)
            assert b"101" not in await wait_closed(stream)
        async with open_websocket(url, max_message=LIMIT) as websocket:
            await websocket.ping()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.slow("the server parses 50,000 frames before it has had enough")
async def test_empty_fragments_without_end() -> None:
    """Each fragment adds nothing to the message, but an entry to the server's memory."""
    fragment = b"\x00\x80abcd"  # a continuation of length 0, masked
    async with server(echo) as url, connect_by_hand(url) as stream:
        await stream.send_all(b"\x02\x80abcd")
        sent = 0
        with suppress(trio.BrokenResourceError):
            while sent < 10_000_000:
                await stream.send_all(fragment * 1000)
                sent += 1000 * len(fragment)
        await wait_closed(stream)
    assert sent < 10_000_000


async def test_limits(caplog: pytest.LogCaptureFixture) -> None:
    limits = ConnectionLimits(total=3, per_address=2)
    async with server(echo, limits=limits) as url:
        async with open_websocket(url, max_message=LIMIT), open_websocket(url, max_message=LIMIT):
            with pytest.raises((WebSocketError, OSError)):
                async with open_websocket(url, max_message=LIMIT):
                    pytest.fail("a third from this address")
            port = int(url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2") as third:
                await third.send_all(b"G")
                async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2") as fourth:
                    assert await wait_closed(fourth) == b"", "with it, that address would have as many as the other"
        while True:  # the places are free again once the server has noticed the ends
            try:
                async with open_websocket(url, max_message=LIMIT) as websocket:
                    await websocket.ping()
                break
            except (WebSocketError, OSError):
                await trio.lowlevel.checkpoint()


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_one_network_does_not_keep_others_out() -> None:
    """Places held by one /24, or one IPv6 /48, are shared with clients from elsewhere; the youngest gives way."""
    async with server(echo, limits=ConnectionLimits(total=4, per_address=3)) as url:
        port = int(url.rpartition(":")[2])
        async with AsyncExitStack() as stack:
            held = [
                await stack.enter_async_context(
                    await trio.open_tcp_stream("127.0.0.1", port, local_address=f"127.0.0.{n}")
                )
                for n in (1, 1, 1, 2)
            ]
            async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.1.0.1") as light:
                await light.send_all(UPGRADE % b"")
                assert (await light.receive_some()).startswith(b"HTTP/1.1 101")
                assert await wait_closed(held[2]) == b"", "the youngest of the address that holds most"


# --- behind a reverse proxy ---

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%s\r\n"
)


async def tell_who_came(websocket: WebSocket) -> None:
    accepted = websocket.accepted
    assert accepted is not None
    await websocket.send(f"{accepted.host} {accepted.port}".encode())
    await trio.sleep_forever()


PROXY_HEADERS = [
    (b"PROXY TCP4 198.51.100.7 203.0.113.1 50000 443\r\n", b"198.51.100.7 50000"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n", b"2001:db8::7 50000"),
    (
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc6\x33\x64\x07\xcb\x00\x71\x01\xc3\x50\x01\xbb",
        b"198.51.100.7 50000",
    ),
    (b"PROXY UNKNOWN\r\n", b"127.0.0.1 "),
]


@pytest.mark.parametrize(("header", "who"), PROXY_HEADERS)
@pytest.mark.parametrize("tls", [False, True])
async def test_the_proxy_protocol_in_front(header: bytes, who: bytes, tls: bool, authority: Authority) -> None:
    proxies = TrustedProxies(["127.0.0.0/8"], ProxyHeader.PROXY)
    async with server(tell_who_came, authority=authority if tls else None, trusted_proxies=proxies) as url:

        async def forward(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in source:
                    await sink.send_all(data)

        async def proxy(client: trio.SocketStream) -> None:
            async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as upstream:
                await upstream.send_all(header)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(forward, upstream, client)
                    await forward(client, upstream)
                    nursery.cancel_scope.cancel()

        async with tcp_server(proxy) as front:
            own = front.replace("ws", url.partition(":")[0], 1)
            trust = authority.client() if tls else None
            async with open_websocket(own, ssl_context=trust, max_message=LIMIT, close_timeout=0.01) as websocket:
                assert (await websocket.receive()).startswith(who)


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n", b"PROXY TCP4 198.51.100.7 203.0.113.1 50000 443"])
async def test_a_proxy_that_does_not_say_who_it_is(first: bytes, caplog: pytest.LogCaptureFixture) -> None:
    proxies = TrustedProxies(["127.0.0.1"], ProxyHeader.PROXY)
    async with server(tell_who_came, trusted_proxies=proxies) as url:
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            await stream.send_all(first)
            await stream.send_eof()
            assert await wait_closed(stream) == b""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
@pytest.mark.parametrize("kind", list(ProxyHeader))
async def test_who_is_no_trusted_proxy_is_himself(kind: ProxyHeader) -> None:
    async with server(tell_who_came, trusted_proxies=TrustedProxies(["127.9.0.0/16"], kind)) as url:
        port = int(url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.1.0.1") as stream:
            await stream.send_all(UPGRADE % b"X-Forwarded-For: 198.51.100.7\r\nForwarded: for=198.51.100.7\r\n")
            answer = b""
            while b"127.1.0.1 " not in answer:
                answer += await stream.receive_some()
        if kind is ProxyHeader.PROXY:
            async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.1.0.1") as stream:
                await stream.send_all(PROXY_HEADERS[0][0] + UPGRADE % b"")
                assert b"101" not in await wait_closed(stream)


async def test_clients_behind_a_proxy_are_told_apart() -> None:
    """The limits apply to each client as soon as its request has arrived."""
    proxies = TrustedProxies(["127.0.0.1"], ProxyHeader.FORWARDED)
    limits = ConnectionLimits(total=8, per_address=2)
    async with server(tell_who_came, limits=limits, trusted_proxies=proxies) as url:
        port = int(url.rpartition(":")[2])

        async def ask(stream: trio.SocketStream, who: bytes) -> bytes:
            await stream.send_all(UPGRADE % (b"X-Forwarded-For: 203.0.113.66, " + who + b"\r\n"))
            answer = b""
            with suppress(trio.BrokenResourceError):
                while not answer.endswith(b" 0") and (data := await stream.receive_some()):
                    answer += data
            return answer

        async with AsyncExitStack() as stack:
            for number in range(6):
                who = b"198.51.100.%d" % (7 + number // 3)
                stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
                answer = await ask(stream, who)
                assert answer.endswith(who + b" 0") == (number % 3 != 2), "the third of each is over its limit"
            liar = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
            assert await ask(liar, b"198.51.100.9\r\nForwarded: for=203.0.113.1") == b"", "two headers, two clients"


# --- names, in TLS and in HTTP ---


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("ws://relay.example", "relay.example"),
        ("ws://relay.example:8080", "relay.example:8080"),
        ("ws://relay.example:443", "relay.example:443"),
        ("wss://relay.example/path", "relay.example"),
        ("wss://relay.example:443", "relay.example"),
        ("wss://relay.example:80", "relay.example:80"),
        ("wss://relay.example.", "relay.example"),
        ("ws://[2001:db8::1]", "[2001:db8::1]"),
        ("ws://[2001:db8::1]:8080", "[2001:db8::1]:8080"),
    ],
)
async def test_the_host_header_has_a_port_only_where_that_is_not_the_schemes_own(
    url: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6455 section 4.1; some proxies select the site by the whole header."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def connect(*_: object) -> trio.abc.Stream:
        return ours

    class Plain:
        def __new__(cls, stream: trio.abc.Stream, *_: object, **__: object) -> trio.abc.Stream:  # type: ignore[misc]
            return stream

    monkeypatch.setattr("trio.SSLStream", Plain)
    async with open_background_nursery() as nursery:

        async def open_it() -> None:
            async with open_websocket(url, max_message=LIMIT, dial=connect):
                pytest.fail("opened")

        nursery.start_soon(open_it)
        request = b""
        while b"\r\n\r\n" not in request:
            request += await theirs.receive_some()
    assert re.findall(rb"(?im)^host: (.*)\r$", request) == [host.encode()]


async def test_a_dot_at_the_end_of_a_name_is_no_part_of_it_in_tls(authority: Authority) -> None:
    """RFC 6066 section 3 requires the server's name without that dot, and certificates have none."""

    class Here(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, port: object, *_: object) -> Any:
            assert host == b"relay.example.", "to DNS it says that the name is whole"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async def getnameinfo(self, *_: object) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Here())
    async with server(echo, authority=authority, certificate_for="relay.example") as url:
        name = url.replace("127.0.0.1", "relay.example.")
        async with open_websocket(name, ssl_context=authority.client(), max_message=LIMIT) as websocket:
            await websocket.ping()


# --- data ahead of the first message ---


@pytest.mark.parametrize("reads_ahead", [True, False])
@pytest.mark.parametrize("data", [b"x", bytes(range(256)) * 16])
async def test_what_goes_with_the_request(data: bytes, reads_ahead: bool) -> None:
    came: list[bytes] = []

    async def handler(websocket: WebSocket) -> None:
        came.append(websocket.ahead)
        await echo(websocket)

    async with (
        server(handler, reads_ahead=reads_ahead) as url,
        open_websocket(url, max_message=LIMIT, ahead=lambda: data) as websocket,
    ):
        await websocket.send(b"hello")
        assert await websocket.receive() == b"hello"
        assert websocket.ahead == (data if reads_ahead else b"")
    assert came == [websocket.ahead]


async def test_nothing_goes_with_the_request() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        assert b"ahead" not in (await accept_by_hand(stream)).lower()
        await stream.receive_some()

    async with tcp_server(handler) as url, open_websocket(url, max_message=LIMIT) as websocket:
        assert websocket.ahead == b""


@pytest.mark.parametrize(
    "value", [b"", b"no base64", b"aGVsbG8", b"aGVs bG8=", b"=", base64.b64encode(bytes(4100)), b"\xff" * 8]
)
async def test_what_is_too_long_or_no_base64_is_not_read(value: bytes) -> None:
    came: list[bytes] = []

    async def handler(websocket: WebSocket) -> None:
        came.append(websocket.ahead)

    async with server(handler, reads_ahead=True) as url:
        async with connect_by_hand(url, b"Warpgate-Ahead: " + value + b"\r\n") as stream:
            await wait_closed(stream)
    assert came == [b""]


@pytest.mark.parametrize(
    ("proposed", "known", "agreed"),
    [
        ([], ["b"], None),
        (["a", "b"], ["b", "c"], "b"),
        (["a"], ["b"], None),
        (["a"], [], None),
        (["c", "b"], ["b", "c"], "c"),
    ],
)
async def test_subprotocols(proposed: list[str], known: list[str], agreed: str | None) -> None:
    seen: list[str | None] = []

    async def handler(websocket: WebSocket) -> None:
        seen.append(websocket.subprotocol)
        await websocket.receive()

    async with server(handler, subprotocols=known) as url:
        async with open_websocket(url, subprotocols=proposed, max_message=LIMIT) as websocket:
            assert websocket.subprotocol == agreed
            await websocket.send(b"x")
    assert seen == [agreed]


# --- the background nursery ---


async def test_background_tasks_end_with_the_body() -> None:
    ended = False

    async def task() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended = True

    async with open_background_nursery() as nursery:
        nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
    assert ended


async def test_a_group_of_the_body_stays_that_group() -> None:
    group = ExceptionGroup("mine", [ValueError("a"), KeyError("b")])
    with pytest.raises(ExceptionGroup) as raised:
        async with open_background_nursery():
            raise group
    assert raised.value is group


async def test_a_background_error_leaves_bare_and_both_do_not() -> None:
    async def fail() -> None:
        raise ValueError("background")

    with pytest.raises(ValueError, match="background"):
        async with open_background_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
    with pytest.raises(ExceptionGroup):
        async with open_background_nursery() as nursery:
            nursery.start_soon(fail)
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("body")
