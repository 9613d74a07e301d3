"""Programs and libraries that run unchanged in the simulator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import hypercorn
import hypercorn.trio
import pytest
import trio
import trio.testing
from anyio.abc import SocketAttribute
from trio_websocket import WebSocketConnection, WebSocketRequest, open_websocket_url, serve_websocket

from tests.certificates import Authority
from tests.sim.worlds import run
from warpgate_trio.sim import Host, Link, Network, presets


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        async for chunk in _chunks(stream):
            await stream.send_all(chunk)


async def _chunks(stream: trio.abc.Stream):  # type: ignore[no-untyped-def]
    while chunk := await stream.receive_some():
        yield chunk


def pair_of_hosts(net: Network) -> tuple[Host, Host]:
    """A public server, and a client behind a NAT."""
    server = net.host("server.example", link=Link(latency=0.02))
    client = net.lan("home", nat=presets.LINUX, uplink=Link(latency=0.01)).host("client")
    return server, client


def test_serve_tcp_and_open_tcp_stream() -> None:
    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)

        async def talk() -> None:
            started = trio.current_time()
            async with await trio.open_tcp_stream("server.example", 80) as stream:
                assert trio.current_time() - started == pytest.approx(0.06)
                await stream.send_all(b"x" * 100_000)
                await stream.send_eof()
                got = b"".join([chunk async for chunk in stream])
            assert got == b"x" * 100_000

        async with trio.open_nursery() as nursery:
            with server:
                await nursery.start(trio.serve_tcp, echo, 80)
            await client.run(talk)
            nursery.cancel_scope.cancel()

    run(world)


def test_a_stream_from_a_chosen_address() -> None:
    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)
        with server:
            (listener,) = await trio.open_tcp_listeners(80, host="0.0.0.0")
        with client:
            stream = await trio.open_tcp_stream("server.example", 80, local_address=client.ip)
        assert stream.socket.getsockname()[0] == client.ip
        await stream.aclose()
        await listener.aclose()

    run(world)


def test_happy_eyeballs_pass_a_black_hole() -> None:
    async def world(net: Network) -> None:
        server = net.host("server")
        net.host("dead", link=Link(loss=1))
        net.add_name("both", net.hosts["dead"].ip, server.ip)
        client = net.host("client", link=Link(latency=0.01))

        async def talk() -> None:
            started = trio.current_time()
            async with await trio.open_tcp_stream("both", 80):
                assert trio.current_time() - started == pytest.approx(0.27)

        async with trio.open_nursery() as nursery:
            with server:
                await nursery.start(trio.serve_tcp, echo, 80)
            await client.run(talk)
            nursery.cancel_scope.cancel()

    run(world)


def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    serving = authority.server("server.example")
    trusting = authority.client()

    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)

        async def talk() -> None:
            stream = await trio.open_ssl_over_tcp_stream("server.example", 443, ssl_context=trusting)
            async with stream:
                await stream.send_all(b"secret")
                assert await stream.receive_some() == b"secret"

        async with trio.open_nursery() as nursery:
            with server:
                await nursery.start(trio.serve_ssl_over_tcp, echo, 443, serving)
            await client.run(talk)
            nursery.cancel_scope.cancel()

    run(world)


def test_trio_websocket() -> None:
    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)

        async def answer(request: WebSocketRequest) -> None:
            connection: WebSocketConnection = await request.accept()
            while True:
                try:
                    await connection.send_message(await connection.get_message())
                except Exception:
                    return

        async def talk() -> None:
            async with open_websocket_url("ws://server.example:8000/") as connection:
                await connection.send_message("hello")
                assert await connection.get_message() == "hello"

        async with trio.open_nursery() as nursery:
            with server:
                await nursery.start(partial(serve_websocket, answer, None, 8000, ssl_context=None))
            await client.run(talk)
            nursery.cancel_scope.cancel()

    run(world)


def test_anyio() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            assert stream.extra(SocketAttribute.local_port) == 80
            assert stream.extra(SocketAttribute.raw_socket).fileno() >= 0
            async for chunk in stream:
                await stream.send(chunk)

    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)

        async def talk() -> None:
            async with await anyio.connect_tcp("server.example", 80) as stream:
                assert stream.extra(SocketAttribute.remote_address) == (server.ip, 80)
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"

        with server:
            listener = await anyio.create_tcp_listener(local_port=80)
            assert listener.extra(SocketAttribute.local_port) == 80
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, serve)
            await client.run(talk)
            nursery.cancel_scope.cancel()
        await listener.aclose()

    run(world)


def test_anyio_by_udp() -> None:
    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)
        with server:
            there = await anyio.create_udp_socket(local_host="0.0.0.0", local_port=53)
        with client:
            here = await anyio.create_connected_udp_socket("server.example", 53)
        async with here, there:
            await here.send(b"who?")
            question, source = await there.receive()
            await there.sendto(question + b" me", *source)
            assert await here.receive() == b"who? me"

    run(world)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in hypercorn's imports
def test_hypercorn() -> None:
    """It makes its own sockets with the standard library."""
    config = hypercorn.Config()
    config.bind = ["0.0.0.0:80"]
    config.errorlog = config.accesslog = None

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                await send({"type": (await receive())["type"] + ".complete"})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)

        async def talk() -> None:
            async with await trio.open_tcp_stream("server.example", 80) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: server.example\r\nconnection: close\r\n\r\n")
                answer = b"".join([chunk async for chunk in stream])
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"\r\n\r\nhello")

        async with trio.open_nursery() as nursery:
            with server:
                binds = await nursery.start(partial(hypercorn.trio.serve, application, config, mode="asgi"))
            assert binds == ["http://0.0.0.0:80"]
            await client.run(talk)
            nursery.cancel_scope.cancel()
        await trio.sleep(1)

    run(world)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dtls() -> None:
    openssl = pytest.importorskip("OpenSSL.SSL")
    from cryptography import x509  # here, since it is only needed with pyOpenSSL
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server.example")])
    import datetime

    now = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=3650))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    serving = openssl.Context(openssl.DTLS_METHOD)
    serving.use_privatekey(key)
    serving.use_certificate(certificate)
    calling = openssl.Context(openssl.DTLS_METHOD)

    async def world(net: Network) -> None:
        server, client = pair_of_hosts(net)

        async def endpoint(port: int) -> trio.DTLSEndpoint:
            sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
            await sock.bind(("0.0.0.0", port))
            return trio.DTLSEndpoint(sock)

        async def answer(channel: trio.DTLSChannel) -> None:
            await channel.send(await channel.receive())

        async def talk() -> None:
            with await endpoint(0) as here:
                channel = here.connect((server.ip, 4433), calling)
                await channel.do_handshake()
                await channel.send(b"hello")
                assert await channel.receive() == b"hello"

        async with trio.open_nursery() as nursery:
            with await server.run(endpoint, 4433) as there:
                with server:
                    await nursery.start(there.serve, serving, answer)
                await client.run(talk)
                nursery.cancel_scope.cancel()

    run(world)


@pytest.mark.slow("sixteen pairs of streams, and megabytes through them")
@pytest.mark.parametrize("latency", [0.0, 0.05])
def test_the_laws_of_half_closeable_streams(latency: float) -> None:
    async def world(net: Network) -> None:
        host = net.host("host", link=Link(latency=latency))
        other = net.host("other", link=Link(latency=latency))

        async def make(buffer: int | None) -> tuple[trio.SocketStream, trio.SocketStream]:
            with host, trio.socket.socket() as listener:
                if buffer is not None:
                    listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffer)
                    listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, buffer)
                await listener.bind((host.ip, 0))
                listener.listen()
                with other:
                    sock = trio.socket.socket()
                if buffer is not None:
                    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffer)
                    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, buffer)
                await sock.connect(listener.getsockname())
                accepted, _ = await listener.accept()
                return trio.SocketStream(sock), trio.SocketStream(accepted)

        async def clogged() -> tuple[trio.SocketStream, trio.SocketStream]:
            a, b = await make(4096)
            for one in (a, b):
                while True:
                    with trio.move_on_after(10) as scope:
                        await one.socket.send(bytes(1024))
                    if scope.cancelled_caught:
                        break
            return a, b

        with trio.fail_after(10_000):
            await trio.testing.check_half_closeable_stream(lambda: make(None), clogged)
        await trio.sleep(1)

    run(world)
