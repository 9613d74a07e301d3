"""A real haproxy in front of our servers, with the configuration that the documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.certificates import Authority
from tests.hangs import HANG
from tests.haproxy import haproxy
from tests.identities import ALICE, BOB
from tests.ports import free_port
from tests.waiting import wait_until
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import SignalUnavailable
from warpgate_trio.servers.health import open_health
from warpgate_trio.servers.rendezvous import RendezvousLimits, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import MAX_FRAME
from warpgate_trio.signal import Delivery, open_channel
from warpgate_trio.websocket import MAX_AHEAD, open_websocket
from warpgate_trio.websocket.proxies import ProxyHeader, TrustedProxies

pytestmark = [pytest.mark.needs("linux", "haproxy"), pytest.mark.slow("starts haproxy")]

UPGRADE = (
    b"GET /rendezvous HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize("header", list(ProxyHeader), ids=lambda header: header.value)
async def test_signals_through_haproxy(header: ProxyHeader, tmp_path: Path) -> None:
    """TLS ends at haproxy; clients are distinguished by source address, and learn of the server's shutdown."""
    authority = Authority(tmp_path)
    authority.server("127.0.0.1")
    trust = authority.client()
    port = free_port()
    url = ServerUrl.parse(f"wss://127.0.0.1:{port}/rendezvous")
    asked: list[bool] = []
    with trio.fail_after(HANG):
        async with open_rendezvous(
            public_urls=[url],
            trusted_proxies=TrustedProxies(["127.0.0.1"], header),
            limits=RendezvousLimits(connections_per_address=2),
        ) as server:

            def draining() -> bool:
                asked.append(server.draining)
                return server.draining

            async with open_health(list, host="127.0.0.1", port=0, draining=draining) as health:
                with haproxy(
                    tmp_path,
                    header,
                    port=port,
                    upstream=server.port,
                    health=health.port,
                    certificate=tmp_path / "127.0.0.1.pem",
                ):
                    opened = open_websocket(
                        url, ssl_context=trust, max_message=MAX_FRAME, ahead=lambda: bytes(MAX_AHEAD)
                    )
                    async with opened as websocket:  # with the longest call that fits a request
                        assert websocket.ahead == bytes(MAX_AHEAD)
                    await wait_until(lambda: server.statistics().connections == 0)
                    async with (
                        open_channel(url, ALICE, ssl_context=trust) as alice,
                        open_channel(url, BOB, ssl_context=trust) as bob,
                    ):
                        assert await alice.send(BOB.public_key, b"x") is Delivery.DELIVERED
                        assert await bob.receive() == b"x"
                        with pytest.raises(SignalUnavailable):
                            async with open_channel(url, ALICE, ssl_context=trust):
                                pytest.fail("a third one from this address")
                        tcp = await trio.open_tcp_stream("127.0.0.1", port, local_address="127.1.0.1")
                        async with trio.SSLStream(
                            tcp, trust, server_hostname="127.0.0.1", https_compatible=True
                        ) as tls:
                            await tls.send_all(UPGRADE)
                            assert bytes(await tls.receive_some()).startswith(b"HTTP/1.1 101")
                            await wait_until(lambda: asked)
                            await server.drain()
                        for channel in (alice, bob):
                            with pytest.raises(SignalUnavailable, match="code 1001: the server is shutting down"):
                                await channel.receive()
