"""``/healthz`` and ``/metrics`` for the monitoring of the servers: the Trio shell of `servers.health_core`.

One task per listener accepts connections, and one task per connection serves one request.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, final

import trio

from .. import host as machine
from ..limits import Gate
from ..nurseries import open_background_nursery
from ..ports.accepting import accept_connections
from ..sockaddr import TransportAddress, show_address
from .health_core import HealthRequest, Pages
from .metrics import Statistics

__all__ = ["HealthLimits", "HealthServer", "open_health", "serve_health"]

logger: logging.Logger = logging.getLogger(__name__)

_READ: Final = 4096
_LEFT_OVER: Final = 64 * 1024  # bytes of a body to discard: unread data at the close would reset the connection


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """What clients can make it hold.

    Attributes:
      connections: connections at once; beyond that a new one is closed unanswered, or replaces the oldest one of the
        address that has the most.
      head: bytes of a request.
      time: seconds that a connection may last.
    """

    connections: int = 32
    head: int = 8192
    time: float = 10.0


DEFAULT_LIMITS: Final = HealthLimits()


@final
class HealthServer:
    """A running server, made by `open_health` and `serve_health`."""

    def __init__(self, urls: tuple[str, ...], port: int) -> None:
        self.urls = urls
        """One URL per listening socket, without a path."""
        self.port = port
        """The port of the first listening socket."""

    def __repr__(self) -> str:
        return f"<HealthServer {' '.join(self.urls)}>"

    @property
    def url(self) -> str:
        """The first of `urls`."""
        return self.urls[0]


async def serve_health(
    statistics: Callable[[], Iterable[Statistics]],
    *,
    host: str | None,
    port: int,
    draining: Callable[[], bool] = lambda: False,
    limits: HealthLimits = DEFAULT_LIMITS,
    task_status: trio.TaskStatus[HealthServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `nursery.start` returns the `HealthServer` once it listens.

    ``GET /healthz`` is answered with 200, or with 503 while the servers are being shut down.  ``GET /metrics`` returns
    the servers' counts in the text format of Prometheus (`servers.metrics`).  There is no authentication and no
    encryption: anybody who can connect can read both.

    Args:
      statistics: returns the results of the servers' ``statistics()``; called for each answer.
      host: the address to listen on; None: all, IPv4 and IPv6.
      port: 0 lets the system choose.
      draining: whether the servers are being shut down.
      limits: what clients can make it hold.

    Raises:
      OSError: the address cannot be listened on.
    """
    pages = Pages(statistics, draining, machine.current().wall_time)
    listeners = await trio.open_tcp_listeners(port, host=host)
    try:
        names = [listener.socket.getsockname() for listener in listeners]
        server = _Server(pages, limits)
        async with trio.open_nursery() as nursery:

            def serve(sock: trio.socket.SocketType, source: TransportAddress) -> None:
                nursery.start_soon(server.serve, sock, source)

            for listener in listeners:
                nursery.start_soon(accept_connections, listener.socket, serve)
            task_status.started(HealthServer(tuple(f"http://{show_address(name[:2])}" for name in names), names[0][1]))
            await trio.sleep_forever()
    finally:
        for listener in listeners:
            listener.socket.close()
    raise AssertionError("unreachable")  # pragma: no cover


@asynccontextmanager
async def open_health(
    statistics: Callable[[], Iterable[Statistics]],
    *,
    host: str | None,
    port: int,
    draining: Callable[[], bool] = lambda: False,
    limits: HealthLimits = DEFAULT_LIMITS,
) -> AsyncGenerator[HealthServer]:
    """Run it during the body; arguments and errors as for `serve_health`.

    An exception of the body is not wrapped in an ExceptionGroup.
    """
    async with open_background_nursery() as nursery:
        yield await nursery.start(
            partial(serve_health, statistics, host=host, port=port, draining=draining, limits=limits)
        )


@final
class _Server:
    """All connections."""

    def __init__(self, pages: Pages, limits: HealthLimits) -> None:
        self._pages = pages
        self._limits = limits
        self._gate = Gate(total=limits.connections, per_address=limits.connections, oldest_first=True)

    async def serve(self, sock: trio.socket.SocketType, source: TransportAddress) -> None:
        """Serve one connection."""
        stream = trio.SocketStream(sock)
        try:
            with self._gate.admit(source[0]) as place, trio.move_on_after(self._limits.time):
                if place is not None:
                    await self._answer(stream)
        except trio.BrokenResourceError as error:
            logger.debug("a request for health was cut off: %s", error)
        except Exception:
            logger.exception("a request for health failed; its connection is closed")
        finally:
            sock.close()

    async def _answer(self, stream: trio.SocketStream) -> None:
        request = HealthRequest(self._pages, self._limits.head)
        while (answer := request.receive(bytes(await stream.receive_some(_READ)))) is None:
            pass
        if answer:
            await stream.send_all(answer)
            await stream.send_eof()
            left_over = _LEFT_OVER
            while left_over > 0 and (data := await stream.receive_some(_READ)):
                left_over -= len(data)
