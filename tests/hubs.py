"""Signal hubs without nodes, and servers for them that do what the test says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.hangs import HANG
from tests.waiting import wait_until
from warpgate_trio.config import ServerUrl
from warpgate_trio.identity import Identity
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous_frames import SUBPROTOCOL
from warpgate_trio.signal import ServerState, SignalHub, keeper
from warpgate_trio.websocket import WebSocket, serve_websocket


def anywhere(_: object) -> bool:
    """A `MayConnect` that allows every address, for peers on this machine."""
    return True


@pytest.fixture
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a hub reconnect to a lost server after 10 ms; a module asks for it by ``usefixtures("no_long_pauses")``."""
    monkeypatch.setattr(keeper, "BACKOFF_FIRST", 0.01)


@asynccontextmanager
async def hub_for(
    identity: Identity,
    *urls: object,
    ca_file: Path | None = None,
    listens: bool = True,
    connected: bool = True,
    everywhere: bool = False,
) -> AsyncGenerator[SignalHub]:
    """A running hub; the body may take `HANG` seconds.

    The body begins when one server is connected, if `connected`; when all are, if `everywhere`; otherwise at once.
    """
    hub = SignalHub(identity, [ServerUrl.parse(str(url)) for url in urls], ca_file=ca_file, listens=listens)
    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            await nursery.start(hub.run)
            if connected:
                await hub.wait_connected()
            if everywhere:
                await wait_until(lambda: states(hub) == [ServerState.CONNECTED] * len(urls))
            yield hub


def states(hub: SignalHub) -> list[ServerState]:
    return [status.state for status in hub.status()]


@asynccontextmanager
async def tcp_server(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """Serve raw TCP by `handler` where a WebSocket server is expected; yields its ws:// URL."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_background_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


@asynccontextmanager
async def websocket_server(handler: Callable[[WebSocket], Awaitable[None]]) -> AsyncGenerator[str]:
    """Serve WebSocket by `handler`, which plays no rendezvous server, or a bad one; yields its URL."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_background_nursery() as nursery:
        await nursery.start(
            partial(
                serve_websocket,
                handler,
                listeners,
                subprotocols=[SUBPROTOCOL],
                max_message=100_000,
                handshake_timeout=5,
                close_timeout=0.01,
            )
        )
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
