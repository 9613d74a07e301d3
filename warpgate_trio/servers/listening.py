"""The sockets of a server that listens on the same port number over UDP and TCP."""

from __future__ import annotations

import errno
import socket as stdlib
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Final

import trio

from ..ports.accepting import rebind
from ..sockaddr import TransportAddress, socket_family

__all__ = ["BACKLOG", "bind_places", "listen", "listening_hosts"]

BACKLOG: Final = 128
"""Connections that may wait to be accepted; they are accepted at once, so this is the size of a burst."""
_BIND_TRIES: Final = 20  # of system-chosen ports, which may be taken for TCP or have no free neighbour


def listening_hosts(host: str | None, second: str | None) -> list[str]:
    """The addresses to listen on; ValueError unless `second` is another address of the same family as `host`."""
    if second is None:
        return ["0.0.0.0", "::"] if host is None else [host]
    if host is None:
        raise ValueError("a second host needs a first one (`host`)")
    one, two = ip_address(host), ip_address(second)
    if one == two or one.version != two.version or one.is_unspecified or two.is_unspecified:
        raise ValueError(
            f"{host} and {second}: the two hosts have to differ, be of one family, and not be 0.0.0.0 or ::"
        )
    return [host, second]


async def bind_places(
    stack: ExitStack, wanted: Sequence[tuple[str, int]], port: int, *, optional: bool = False
) -> list[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    """Bind a UDP socket and a TCP listener for each (host, offset to the port): all of them, or none.

    Args:
      stack: closes the sockets.
      wanted: hosts and offsets to `port`.
      port: 0 lets the system choose.
      optional: places whose address family this host lacks may be left out, as long as one is left.

    Raises:
      OSError: an address cannot be bound.
    """
    for attempt in range(1, _BIND_TRIES + 1):
        with ExitStack() as trial:
            try:
                found = await _bind_once(trial, wanted, port, optional)
            except OSError as error:
                if port == 0 and error.errno == errno.EADDRINUSE and attempt < _BIND_TRIES:
                    continue
                raise
            stack.push(trial.pop_all())
            return found
    raise AssertionError("unreachable")  # pragma: no cover


async def _bind_once(
    stack: ExitStack, wanted: Sequence[tuple[str, int]], port: int, optional: bool
) -> list[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    found: list[tuple[trio.socket.SocketType, trio.socket.SocketType]] = []
    for host, offset in wanted:
        if port == 0 and found:
            port = found[0][0].getsockname()[1]
        at = (host, port + offset if port else 0)
        if at[1] > 0xFFFF:
            raise OSError(errno.EADDRINUSE, "the server needs two consecutive ports, and there is none above 65535")
        try:
            udp = await _socket(stack, trio.socket.SOCK_DGRAM, at)
            listener = await listen(stack, (host, udp.getsockname()[1]))
        except OSError as error:
            if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and host != wanted[-1][0]:
                continue
            if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and found:
                continue
            raise
        found.append((udp, listener))
    return found


async def listen(stack: ExitStack, at: TransportAddress) -> trio.socket.SocketType:
    """Open a TCP listener, which `stack` closes.

    Raises:
      OSError: the address cannot be listened on.
    """
    listener = await _socket(stack, trio.socket.SOCK_STREAM, at)
    listener.listen(BACKLOG)
    return listener


async def _socket(stack: ExitStack, kind: stdlib.SocketKind, at: TransportAddress) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket_family(at[0]), kind)
    stack.callback(sock.close)
    if sock.family == trio.socket.AF_INET6:
        sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
    if kind == trio.socket.SOCK_STREAM:
        rebind(sock)
    await sock.bind(at)
    return sock
