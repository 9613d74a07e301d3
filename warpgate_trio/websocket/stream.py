"""The byte stream under a WebSocket, and the task that reads it: what trio-websocket leaves to its caller.

* `Wire` bounds what comes in, and breaks when a write was cut off.
* `Parts` bounds the number of pieces of a message.
* `Reader` records how the reader task ended, and wakes tasks that wait for data that can no longer come.
* `Front` lets a server read what comes in front of TLS: the header of a reverse proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Final, Protocol, cast, final

import trio
from wsproto import WSConnection
from wsproto.events import BytesMessage, Event, Ping, Pong, TextMessage

from ..errors import RemoteProtocolError
from ..sockaddr import TransportAddress
from .proxies import MAX_PROXY_HEADER, ProxyReader

__all__ = ["Front", "Reader", "Wire", "read_proxy_header"]

RECEIVE_SIZE: Final = 65536
"""Bytes of the largest read.  trio-websocket's own default, 4 KiB, costs a relay three quarters of its throughput."""
BUDGET_EXTRA: Final = 65536
"""Bytes that a peer may send beyond its messages: headers of the handshake, frame headers, pings."""
BUDGET_RATE: Final = 64.0
"""Bytes per second by which the budget for bytes beyond messages recovers: a ping every second (10 bytes, as sent here)
stays well below that."""
SMALL_PART: Final = 4096
"""Bytes of an unfinished message that are collected before they are handed on: each piece costs some 60 bytes of
overhead."""
MAX_FRAMES: Final = 1024
"""Frames of one message, together with the pings and pongs of one read: at most 12 ms of parsing before another
connection has its turn.  Each message of ours is one frame."""


@final
class Wire(trio.abc.Stream):
    """The byte stream under one WebSocket: bounds what comes in, and breaks when a write was cut off."""

    def __init__(self, stream: trio.abc.Stream, *, max_message: int) -> None:
        self._stream = stream
        self._cut_off = False
        # After the last message that the application took, one can be in trio-websocket's queue, one can wait for its
        # reader to queue it, and one can be arriving.
        self._budget_full = 3 * max_message + BUDGET_EXTRA + RECEIVE_SIZE
        self._budget = float(self._budget_full)
        self.last_heard: float = trio.current_time()
        self.fault: str = ""

    def message_taken(self) -> None:
        self._budget = float(self._budget_full)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._cut_off:
            raise trio.BrokenResourceError("an earlier write was cancelled halfway")
        await trio.lowlevel.checkpoint_if_cancelled()  # a send that is cancelled before it begins does no harm
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
            self.fault = "too many bytes from the peer without a complete message"
            raise trio.BrokenResourceError(self.fault)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


@final
class Parts:
    """Filters wsproto's events: joins small pieces of a message, and refuses too many frames.

    trio-websocket keeps every piece of an unfinished message, and parses all of a read before other tasks have their
    turn.  So the bytes that `Wire` allows, sent one at a time or as empty frames, would cost many times as much here.

    Args:
      events: wsproto's own `events` method, which returns the events of the last read.
    """

    def __init__(self, events: Callable[[], Iterable[Event]]) -> None:
        self._events = events
        self._data = bytearray()
        self._frames = 0

    def events(self) -> Generator[Event]:
        """The events of the last read.

        Raises:
          RemoteProtocolError: there are more than `MAX_FRAMES` frames of one message, or pings and pongs in one read.
        """
        controls = 0
        for event in self._events():
            if isinstance(event, BytesMessage):
                if event.message_finished and not self._data:  # nearly always
                    self._frames = 0
                    yield event
                    continue
                yield from self._add(event)
            elif isinstance(event, TextMessage):
                yield replace(event, message_finished=True)  # text is refused, so its first piece is enough
            else:
                controls += isinstance(event, Ping | Pong)
                yield event
            if self._frames + controls > MAX_FRAMES:
                raise RemoteProtocolError("too many frames from the peer for one message, or too many pings at once")

    def _add(self, event: BytesMessage) -> Generator[Event]:
        self._frames = 0 if event.message_finished else self._frames + event.frame_finished
        self._data += event.data
        if event.message_finished or len(self._data) >= SMALL_PART:
            data, self._data = bytes(self._data), bytearray()
            yield replace(event, data=data)


class _Connected(Protocol):
    """A connection of trio-websocket."""

    _wsproto: WSConnection


@final
class Reader:
    """Stands in for the nursery of trio-websocket, so that we learn when and how its reader task ends.

    trio-websocket only calls `start_soon`, once, with a method of its connection.  The events of that connection are
    passed through `Parts`.

    Attributes:
      ended: the reader task has ended.
      error: the exception that ended it; None if there was none.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self.ended: bool = False
        self.error: Exception | None = None

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        protocol = cast(_Connected, cast(MethodType, reader).__self__)._wsproto
        protocol.events = Parts(protocol.events).events  # type: ignore[method-assign]
        try:
            await reader()
        except Exception as exc:  # including those of wsproto and h11: they end only this connection
            self.error = exc
        finally:
            del protocol.events  # breaks a reference cycle
            self.ended = True
            for scope in self._scopes:
                scope.cancel()

    @contextmanager
    def needed(self) -> Generator[None]:
        """Cancel the body when the reader ends, since what the body waits for cannot come then."""
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
    """A connection whose first bytes may be read in advance, and partly put back."""

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
    """Read the header of the PROXY protocol.  Returns the client's address; None: the proxy itself.

    Raises:
      RemoteProtocolError: there is no valid header, or the proxy closes the connection.
    """
    header = ProxyReader()
    try:
        while not header.feed(data := bytes(await front.receive_some(MAX_PROXY_HEADER))):
            if not data:
                raise RemoteProtocolError("the proxy closed the connection before its PROXY header was complete")
    except trio.BrokenResourceError as exc:
        raise RemoteProtocolError("the connection from the proxy broke before its PROXY header was complete") from exc
    front.put_back(header.rest)
    return header.source
