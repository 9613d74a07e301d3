"""The embedded NTP server: the Trio shell of `warpgate_trio.servers.ntp_core`.

One task per socket reads a request, answers it and reads the next: answering is cheaper than passing it to another
task.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn, final

import trio

from .. import host as machine
from ..nurseries import open_background_nursery
from ..sockaddr import parse_ip, show_address
from ..unforeseen import Unforeseen
from .ntp_core import DEFAULT_LIMITS, STRATUM, NtpLimits, NtpResponder, NtpStatistics
from .replies import ReplySocket

__all__ = ["NtpServer", "NtpStatistics", "open_ntp", "serve_ntp"]

logger: logging.Logger = logging.getLogger(__name__)

_MAX_REQUEST = 1024  # bytes read of a packet; an authenticated request with extension fields has about 200


@final
class NtpServer:
    """A running NTP server, made by `open_ntp` and `serve_ntp`."""

    def __init__(self, responder: NtpResponder, urls: tuple[str, ...], port: int) -> None:
        self._responder = responder
        self.urls = urls
        """One URL per socket."""
        self.port = port
        """The port of the first socket."""

    def __repr__(self) -> str:
        return f"<NtpServer {' '.join(self.urls)}>"

    @property
    def url(self) -> str:
        """The first of `urls`."""
        return self.urls[0]

    def statistics(self) -> NtpStatistics:
        """Counts of the requests so far, by result."""
        return self._responder.statistics()


async def serve_ntp(
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    stratum: int = STRATUM,
    limits: NtpLimits = DEFAULT_LIMITS,
    task_status: trio.TaskStatus[NtpServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve this machine's wall clock until cancelled; `nursery.start` returns the `NtpServer` once it listens.

    Args:
      host: the address to listen on; None: all, IPv4 and IPv6 (with ``port=0`` each family gets its own port).  Answers
        leave from the address that the request was sent to.
      port: 0 lets the system choose.
      stratum: 1 to 15; clients prefer servers with a lower one.
      limits: rates per address and in all.

    Raises:
      OSError: the address cannot be listened on.
    """
    responder, unforeseen = NtpResponder(limits, stratum=stratum), Unforeseen(logger)
    sockets = await _open_sockets(host, port)
    try:
        names = [each.getsockname() for each in sockets]
        urls = tuple(f"ntp://{show_address(name[:2])}" for name in names)
        async with trio.open_nursery() as nursery:
            for each in sockets:
                nursery.start_soon(_serve_socket, responder, each, unforeseen)
            task_status.started(NtpServer(responder, urls, names[0][1]))
    finally:
        for each in sockets:
            each.close()
    raise AssertionError("unreachable")  # pragma: no cover


@asynccontextmanager
async def open_ntp(
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    stratum: int = STRATUM,
    limits: NtpLimits = DEFAULT_LIMITS,
) -> AsyncGenerator[NtpServer]:
    """Run an NTP server during the body; arguments as for `serve_ntp`.

    Raises:
      OSError: the address cannot be listened on.
      An exception of the body is not wrapped in an ExceptionGroup.
    """
    async with open_background_nursery() as nursery:
        yield await nursery.start(partial(serve_ntp, host=host, port=port, stratum=stratum, limits=limits))


async def _open_sockets(host: str | None, port: int) -> list[trio.socket.SocketType]:
    found = await trio.socket.getaddrinfo(
        host, port, type=trio.socket.SOCK_DGRAM, flags=trio.socket.AI_PASSIVE | trio.socket.AI_NUMERICSERV
    )
    sockets: list[trio.socket.SocketType] = []
    failed: OSError | None = None
    try:
        for family, kind, proto, _, address in found:
            try:
                sock = trio.socket.socket(family, kind, proto)
            except OSError as error:  # the system was built without this family
                failed = error
                continue
            sockets.append(sock)
            if family == trio.socket.AF_INET6:
                sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
            try:
                await sock.bind(address)
            except OSError as error:
                sockets.remove(sock)
                sock.close()
                if host is not None or error.errno != errno.EADDRNOTAVAIL:  # EADDRNOTAVAIL: IPv6 is disabled
                    raise
                failed = error
    except BaseException:
        for each in sockets:
            each.close()
        raise
    if not sockets:
        raise failed or OSError("no address to listen on")
    return sockets


async def _serve_socket(responder: NtpResponder, sock: trio.socket.SocketType, unforeseen: Unforeseen) -> NoReturn:
    wall = machine.current().wall_time
    asked = ReplySocket(sock)
    while True:
        try:
            data, source, at = await asked.receive(_MAX_REQUEST)
        except OSError as error:
            logger.debug("ICMP error for an earlier answer: %s", error)  # "port unreachable" on Windows
            await trio.lowlevel.checkpoint()
            continue
        received = wall()
        try:
            answer = responder.receive(
                data, parse_ip(source[0]), received=received, sent=wall(), now=trio.current_time()
            )
            if answer is not None:
                await asked.reply(answer, source, at)
        except OSError as error:
            # This client cannot be reached (port 0, no route); the others are not affected.
            logger.debug("answer not sent: %s", error)
        except BaseException as error:
            if not unforeseen.contains(error, "a request"):
                raise
