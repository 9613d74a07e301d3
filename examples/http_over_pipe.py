"""HTTP between two homes, with httpx on one side and hypercorn on the other; no port is open to the internet.

    http_over_pipe.py                          there: serves an ASGI application, prints an address
    http_over_pipe.py wg1… http://app/hello    here: fetches from it

hypercorn listens on the loopback address only.  Each connection of httpx is forwarded to it over a Pipe of its own.
It needs both packages: pip install httpx hypercorn
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import httpcore
import httpx
import hypercorn.config
import hypercorn.trio
import trio

from warpgate_trio import Identity, NodeConfig, Pipe, anyone, load_config, open_node, serve_pipes
from warpgate_trio.errors import WarpgateError
from warpgate_trio.forwarding import Exposed, Target, handle_forward, is_forward, open_target

HERE = "127.0.0.1:8080"  # on the serving side


@contextmanager
def in_httpcores_terms(broken: type[Exception], late: type[Exception], timeout: float | None) -> Iterator[None]:
    try:
        with trio.fail_after(math.inf if timeout is None else timeout):
            yield
    except trio.TooSlowError as error:
        raise late(f"nothing for {timeout} s") from error
    except (trio.BrokenResourceError, trio.ClosedResourceError, WarpgateError) as error:
        raise broken(str(error)) from error


@contextmanager
def in_httpxs_terms() -> Iterator[None]:
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.TimeoutException,
        httpcore.UnsupportedProtocol,
    ) as e:
        raise getattr(httpx, type(e).__name__)(str(e)) from e  # httpx has exceptions of the same names


class PipeStream(httpcore.AsyncNetworkStream):
    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with in_httpcores_terms(httpcore.ReadError, httpcore.ReadTimeout, timeout):
            return await self.pipe.receive_some(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with in_httpcores_terms(httpcore.WriteError, httpcore.WriteTimeout, timeout):
            await self.pipe.send_all(buffer)

    async def aclose(self) -> None:
        await self.pipe.aclose()


class PipeNetwork(httpcore.AsyncNetworkBackend):
    """A network in which every connection, whatever the host of the URL, leads to the peer's application."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> PipeStream:
        with in_httpcores_terms(httpcore.ConnectError, httpcore.ConnectTimeout, timeout):
            return PipeStream(await open_target(self.pipe, Target.parse(HERE)))


class PipeTransport(httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient`: a pool of connections to the peer."""

    def __init__(self, pipe: Pipe) -> None:
        self.pool = httpcore.AsyncConnectionPool(network_backend=PipeNetwork(pipe))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with in_httpxs_terms():
            answer = await self.pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    str(request.url),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=Body(answer), extensions=answer.extensions, request=request
        )

    async def aclose(self) -> None:
        await self.pool.aclose()


class Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self.answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with in_httpxs_terms():
            async for part in self.answer.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self.answer.aclose()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """An example; any ASGI application works, such as one of FastAPI or Starlette."""
    while scope["type"] == "lifespan":  # startup, and later shutdown
        await send({"type": (await receive())["type"] + ".complete"})
    body = f"hello from {scope['path']}\n".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def lead(pipe: Pipe) -> None:
    """A handler: connections go to the application; the call itself stays open until the caller ends it."""
    if is_forward(pipe):
        await handle_forward(pipe, exposed=Exposed([HERE]))
    else:
        async for _ in pipe:
            pass


async def main(config: NodeConfig, address: str = "", *urls: str) -> None:
    if address:
        async with open_node(config, identity=Identity.generate()) as node, await node.auto_connect(address) as pipe:
            async with httpx.AsyncClient(transport=PipeTransport(pipe)) as client:
                for url in urls:
                    print((await client.get(url)).text, end="", flush=True)
        return
    served = hypercorn.config.Config()
    served.bind = [HERE]
    async with open_node(config, authorize=anyone) as node, trio.open_nursery() as nursery:
        await nursery.start(partial(hypercorn.trio.serve, application, served, mode="asgi"))
        await node.wait_published()
        print(node.address, flush=True)
        await serve_pipes(lead, node)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(partial(main, load_config(), *sys.argv[1:]))
