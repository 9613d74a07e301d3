"""A real nginx in front of our servers: they learn the client's address, and the name that it dialled."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.certificates import Authority
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nginx import Ports, free_ports, nginx
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import SignalUnavailable
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import RendezvousLimits, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import MAX_FRAME
from warpgate_trio.signal import Delivery, open_channel
from warpgate_trio.websocket import MAX_AHEAD, WebSocket, open_websocket, serve_websocket
from warpgate_trio.websocket.proxies import ProxyHeader, TrustedProxies

pytestmark = [pytest.mark.needs("linux", "nginx"), pytest.mark.slow("starts nginx")]

UPGRADE = (
    b"GET /rendezvous HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%s\r\n"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.server("127.0.0.1")
    return authority


async def tell_who_came(websocket: WebSocket) -> None:
    assert websocket.accepted is not None
    await websocket.send(f"<{websocket.accepted.host}>".encode())
    await trio.sleep_forever()


@asynccontextmanager
async def who_comes(folder: Path, header: ProxyHeader) -> AsyncGenerator[Ports]:
    """A server behind nginx that tells each client the client's address."""
    ports = free_ports()
    (upstream,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            await nursery.start(
                partial(
                    serve_websocket,
                    tell_who_came,
                    [upstream],
                    max_message=1000,
                    handshake_timeout=5,
                    trusted_proxies=TrustedProxies(["127.0.0.1"], header),
                )
            )
            with nginx(folder, ports, upstream.socket.getsockname()[1], folder / "127.0.0.1.pem"):
                yield ports


async def ask(port: int, source: str, headers: bytes = b"") -> str | None:
    """The address that the server takes for ours, or None if we are refused."""
    async with await trio.open_tcp_stream("127.0.0.1", port, local_address=source) as stream:
        await stream.send_all(UPGRADE % headers)
        answer = b""
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                answer += data
                if b"502 Bad Gateway" in answer:
                    break
                if found := re.search(rb"<([0-9.]+)>$", answer):
                    return found[1].decode()
    return None


async def test_forwarded_by_nginx(tmp_path: Path, authority: Authority) -> None:
    async with who_comes(tmp_path, ProxyHeader.FORWARDED) as ports:
        for source in ("127.0.0.1", "127.1.0.1", "127.2.0.1"):
            assert await ask(ports.http, source) == source
        assert await ask(ports.http, "127.1.0.1", b"X-Forwarded-For: 203.0.113.66\r\n") == "127.1.0.1"
        # nginx writes no Forwarded header and passes on the client's; a client must gain nothing by that.
        assert await ask(ports.http, "127.1.0.1", b"Forwarded: for=203.0.113.66\r\n") is None


async def test_the_proxy_protocol_of_nginx(tmp_path: Path, authority: Authority) -> None:
    async with who_comes(tmp_path, ProxyHeader.PROXY) as ports:
        for source in ("127.0.0.1", "127.1.0.1", "127.2.0.1"):
            assert await ask(ports.stream, source) == source
        assert await ask(ports.stream, "127.1.0.1", b"X-Forwarded-For: 203.0.113.66\r\n") == "127.1.0.1"


@pytest.mark.parametrize(
    ("header", "scheme", "name"),
    [
        (ProxyHeader.FORWARDED, "wss", "https"),
        (ProxyHeader.FORWARDED, "ws", "http"),
        (ProxyHeader.PROXY, "wss", "tls_stream"),
        (ProxyHeader.PROXY, "ws", "stream"),
    ],
)
async def test_signals_through_nginx(
    header: ProxyHeader, scheme: str, name: str, tmp_path: Path, authority: Authority
) -> None:
    """TLS ends at nginx; the rendezvous server learns the name that clients dial, and counts the clients, not nginx."""
    ports = free_ports()
    url = ServerUrl.parse(f"{scheme}://127.0.0.1:{getattr(ports, name)}/rendezvous")
    trust = authority.client() if scheme == "wss" else None
    with trio.fail_after(HANG):
        async with open_rendezvous(
            public_urls=[url],
            trusted_proxies=TrustedProxies(["127.0.0.1"], header),
            limits=RendezvousLimits(connections_per_address=2),
        ) as server:
            with nginx(tmp_path, ports, server.port, tmp_path / "127.0.0.1.pem"):
                async with (
                    open_channel(url, ALICE, ssl_context=trust) as alice,
                    open_channel(url, BOB, ssl_context=trust) as bob,
                ):
                    assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
                    assert await bob.receive() == b"x"
                    with pytest.raises(SignalUnavailable):
                        async with open_channel(url, ALICE, ssl_context=trust):
                            pytest.fail("a third one from this address")
                    if scheme == "ws":
                        other = "http" if name == "http" else "stream"
                        port = getattr(ports, other)
                        async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.1.0.1") as carol:
                            await carol.send_all(UPGRADE % b"")
                            assert (await carol.receive_some()).startswith(b"HTTP/1.1 101")


async def test_a_server_behind_nginx_that_was_not_told_its_name(tmp_path: Path, authority: Authority) -> None:
    ports = free_ports()
    with trio.fail_after(HANG):
        async with open_rendezvous() as server:
            with nginx(tmp_path, ports, server.port, tmp_path / "127.0.0.1.pem"):
                url = ServerUrl.parse(f"wss://127.0.0.1:{ports.https}/rendezvous")
                with pytest.raises(SignalUnavailable, match="--public-url"):
                    async with open_channel(url, ALICE, ssl_context=authority.client()):
                        pytest.fail("registered")


async def test_the_longest_call_that_goes_with_a_request_passes_nginx(tmp_path: Path, authority: Authority) -> None:
    ports = free_ports()
    with trio.fail_after(HANG):
        async with open_rendezvous() as server:
            with nginx(tmp_path, ports, server.port, tmp_path / "127.0.0.1.pem"):
                url = f"wss://127.0.0.1:{ports.https}/rendezvous"
                opened = open_websocket(
                    url, ssl_context=authority.client(), max_message=MAX_FRAME, ahead=lambda: bytes(MAX_AHEAD)
                )
                async with opened as websocket:
                    assert websocket.ahead == bytes(MAX_AHEAD)
