"""A CONNECT proxy in plain Trio, for simulated hosts, where squid cannot run."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio

__all__ = ["serve_connect_proxy", "serve_tunnel"]


async def serve_connect_proxy(
    port: int, asked: list[str], *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; the target of each request, ``host:port``, is appended to `asked`."""
    await trio.serve_tcp(partial(serve_tunnel, asked), port, task_status=task_status)


async def serve_tunnel(asked: list[str], client: trio.SocketStream) -> None:
    """Serve one client of the proxy."""
    with suppress(trio.BrokenResourceError):
        async with client:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await client.receive_some()
                if not data:
                    return
                head += data
            target = head.split(b" ")[1].decode("ascii")
            asked.append(target)
            host, _, port = target.rpartition(":")
            try:
                server = await trio.open_tcp_stream(host.strip("[]"), int(port))
            except OSError:
                await client.send_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                return
            async with server:
                await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                async with trio.open_nursery() as nursery:
                    for source, sink in ((client, server), (server, client)):
                        nursery.start_soon(_pass_on, source, sink, nursery.cancel_scope)


async def _pass_on(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Copy one direction; as with real proxies, the end of either direction ends both."""
    with suppress(trio.BrokenResourceError):
        async for data in source:
            await sink.send_all(data)
    scope.cancel()
