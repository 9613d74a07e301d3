"""The byte stream under a WebSocket, and the task that reads it: what trio-websocket leaves to its caller.

* `Wire` bounds what comes in, and breaks when a write was cut off.
* `Reader` tells how the reader task ended, and wakes whoever waits for what it can no longer bring.
* `Front` lets a server look at what stands in front of TLS: the header of a reverse proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final, cast, final

import trio

from ..errors import RemoteProtocolError
from ..sockaddr import TransportAddress
from .proxies import MAX_PROXY_HEADER, ProxyReader

__all__ = ["Front", "Reader", "Wire", "read_proxy_header"]

RECEIVE_SIZE: Final = 65536
"""Bytes of the largest read.  trio-websocket's own default, 4 KiB, costs a relay three quarters of its speed."""
BUDGET_EXTRA: Final = 65536
"""Bytes that a peer may send beyond its messages: headers of the handshake, frame headers, pings."""
BUDGET_RATE: Final = 64.0
"""Bytes per second that it may send so: a ping every second (10 bytes, as sent here) stays well inside."""


@final
class Wire(trio.abc.Stream):
    """The byte stream under one WebSocket: bounds what comes in, and breaks when a write was cut off."""

    def __init__(self, stream: trio.abc.Stream, *, max_message: int) -> None:
        self._stream = stream
        self._cut_off = False
        # Behind the last message that the application took there can be one in trio-websocket's queue, one that its
        # reader is trying to queue, and one that is arriving.
        self._budget_full = 3 * max_message + BUDGET_EXTRA + RECEIVE_SIZE
        self._budget = float(self._budget_full)
        self.last_heard: float = trio.current_time()
        self.fault: str = ""

    def message_taken(self) -> None:
        self._budget = float(self._budget_full)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._cut_off:
            raise trio.BrokenResourceError("an earlier write was cancelled halfway")
        await trio.lowlevel.checkpoint_if_cancelled()  # a send that was cancelled before it began does no harm
        self._cut_off = True
        await self._stream.send_all(data)
        self._cut_off = False

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        now = trio.current_time()
        self._budget = min(self._budget_full, self._budget + (now - self.last_heard) * BUDGET_RATE) - len(data)
        self.last_heard = now
        if self._budget < 0:
            self.fault = "the peer sends bytes that never make a message"
            raise trio.BrokenResourceError(self.fault)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


@final
class Reader:
    """What trio-websocket gets for a nursery, so that we learn when and how the reader task ended that it spawns.

    trio-websocket calls `start_soon` once and nothing else of a nursery.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self.ended: bool = False
        self.error: Exception | None = None

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception as exc:  # wsproto and h11 errors included: they end this connection and nothing else
            self.error = exc
        finally:
            self.ended = True
            for scope in self._scopes:
                scope.cancel()

    @contextmanager
    def needed(self) -> Generator[None]:
        """Cancel the body when the reader ends: what the body waits for will not come."""
        with trio.CancelScope() as scope:
            if self.ended:
                scope.cancel()
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)

    def as_nursery(self) -> trio.Nursery:
        return cast(trio.Nursery, cast(object, self))


@final
class Front(trio.abc.Stream):
    """A connection whose first bytes may be read before all else, and partly put back."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._put_back = b""

    def put_back(self, data: bytes) -> None:
        self._put_back = data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._put_back:
            await trio.lowlevel.checkpoint()
            data, self._put_back = self._put_back, b""
            return data
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def read_proxy_header(front: Front) -> TransportAddress | None:
    """Read the header of the PROXY protocol: who the client is; None: the proxy itself.

    Raises:
      RemoteProtocolError: it is none, or the proxy hangs up.
    """
    header = ProxyReader()
    try:
        while not header.feed(data := bytes(await front.receive_some(MAX_PROXY_HEADER))):
            if not data:
                raise RemoteProtocolError("the proxy hung up before it said who the client is")
    except trio.BrokenResourceError as exc:
        raise RemoteProtocolError("the proxy hung up before it said who the client is") from exc
    front.put_back(header.rest)
    return header.source
