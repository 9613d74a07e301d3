"""The health pages of the servers, for monitoring, on real sockets and against slow and greedy clients."""

from __future__ import annotations

import json
import logging
import re
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.documented import changed, code, page
from tests.hangs import HANG
from tests.identities import ALICE
from warpgate_trio.config import ServerUrl
from warpgate_trio.servers.health import HealthLimits, HealthServer, open_health, serve_health
from warpgate_trio.servers.metrics import Statistics
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.signal import open_channel

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def serving(*statistics: Statistics, **options: Any) -> AsyncGenerator[HealthServer]:
    with trio.fail_after(HANG):
        async with open_health(lambda: statistics, host="127.0.0.1", port=0, **options) as server:
            yield server


async def talk(server: HealthServer, data: bytes) -> bytes:
    """Sends bytes; returns everything that is answered until the connection ends."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(data)
        return b"".join([bytes(part) async for part in stream])


async def test_the_servers_of_serve() -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_stun_server() as stun,
        open_turn_server(TurnCredentials("example.org")) as turn,
        open_ntp() as ntp,
    ):
        servers = (rendezvous, stun, turn, ntp)
        with trio.fail_after(HANG):
            async with open_health(
                lambda: [each.statistics() for each in servers],
                host="127.0.0.1",
                port=0,
                draining=lambda: rendezvous.draining,
            ) as server:
                async with open_channel(ServerUrl.parse(rendezvous.url), ALICE):
                    text = await talk(server, GET % b"/metrics")
                    for name in ("rendezvous_connections 1", "relay_circuits 0", "stun_answered_requests_total 0"):
                        assert f"\nwarpgate_{name}\n".encode() in text
                    for name in ("turn_allocations 0", "ntp_answered_requests_total 0"):
                        assert f"\nwarpgate_{name}\n".encode() in text
                    assert (await talk(server, GET % b"/healthz")).startswith(b"HTTP/1.1 200 OK\r\n")
                    await rendezvous.drain()
                answer = await talk(server, GET % b"/healthz")
                assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert answer.endswith(b"\r\n\r\nshutting down\n")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))])
async def test_it_listens_where_it_is_told(host: str) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_health, list, host=host, port=0))
        assert server.urls == (f"http://{'[::1]' if host == '::1' else host}:{server.port}",)
        assert repr(server) == f"<HealthServer {server.url}>"
        async with await trio.open_tcp_stream(host, server.port) as stream:
            await stream.send_all(GET % b"/healthz")
            assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError, match=r"(?i)in use"):
            async with open_health(list, host=host, port=server.port):
                pytest.fail("two on one port")
        nursery.cancel_scope.cancel()


async def test_a_body_takes_no_answer_back() -> None:
    async with serving() as server:
        data = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + bytes(60_000)
        assert (await talk(server, data)).startswith(b"HTTP/1.1 405 ")


async def test_who_still_sends_his_body_is_not_cut_off_behind_the_answer() -> None:
    """On systems other than Linux, a reset discards what the client has not read yet."""
    async with serving() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
            answer = b"".join([bytes(part) async for part in stream])
            assert answer.startswith(b"HTTP/1.1 405 ")
            for _ in range(10):
                await stream.send_all(bytes(6000))
                await trio.testing.wait_all_tasks_blocked()


async def test_who_is_slow_is_left() -> None:
    async with serving(limits=HealthLimits(time=0.05)) as server:
        assert await talk(server, b"GET /healthz HTTP/1.1\r\nHost: ") == b""


async def test_who_stays_behind_the_answer_is_left() -> None:
    async with serving(limits=HealthLimits(time=0.05)) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(GET % b"/healthz")
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"more")
                    await trio.lowlevel.checkpoint()


async def test_a_head_that_never_ends() -> None:
    async with serving(limits=HealthLimits(head=1000)) as server:
        assert (await talk(server, b"GET /" + b"x" * 2000)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("source", ["127.0.0.1", pytest.param("127.1.0.1", marks=pytest.mark.needs("linux"))])
async def test_connections_are_limited(source: str) -> None:
    async with serving(limits=HealthLimits(connections=1)) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as first:
            await first.send_all(b"GET ")
            await trio.testing.wait_all_tasks_blocked()
            async with await trio.open_tcp_stream("127.0.0.1", server.port, local_address=source) as second:
                assert await second.receive_some() == b""
            await first.send_all(b"/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert bytes(await first.receive_some()).startswith(b"HTTP/1.1 200")


async def test_statistics_that_raise_end_their_request_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Statistics]:
        raise ZeroDivisionError

    with trio.fail_after(HANG):
        async with open_health(broken, host="127.0.0.1", port=0) as server:
            assert await talk(server, GET % b"/metrics") == b""
            assert (await talk(server, GET % b"/healthz")).endswith(b"ok\n")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR


async def test_a_client_that_leaves_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        for data in (b"", b"GET /healthz"):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(data)
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"GET")
        await trio.testing.wait_all_tasks_blocked()
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()  # by a reset
        assert (await talk(server, GET % b"/healthz")).endswith(b"ok\n")
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.slow("starts Python")
async def test_the_health_check_of_the_container() -> None:
    """The check in docs/howto/container.md exits with 0 if all is well, and with another code if not."""
    (text,) = code(page("howto/container.md"), "dockerfile")
    (check,) = re.findall(r"^HEALTHCHECK CMD (.*)$", text, re.MULTILINE)
    well = True
    async with serving(draining=lambda: not well) as server:
        program, *words = json.loads(changed(check, {"127.0.0.1:9100": f"127.0.0.1:{server.port}"}))
        assert program == "python"
        run = await trio.run_process([sys.executable, *words], check=False)
        assert run.returncode == 0
        well = False
        run = await trio.run_process([sys.executable, *words], check=False, stderr=subprocess.DEVNULL)
        assert run.returncode == 1
