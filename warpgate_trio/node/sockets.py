"""The sockets that a node listens on, and their common port."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

import trio

from ..ports.accepting import rebind

__all__ = ["open_listening_sockets", "ports_of"]

_BACKLOG: Final = 128


async def open_listening_sockets(port: int) -> list[trio.socket.SocketType]:
    """Open sockets that listen on all IPv4 and all IPv6 addresses, on one port where both families exist.

    Port 0 takes any port that is free in both families.  A host without one of the families gets one socket.

    Raises:
      OSError: the port is taken, or the host has neither family.
    """
    for last_try in (*([False] * 9), True):
        try:
            return await _listen_on_both(port)
        except OSError:
            if port or last_try:  # with port 0 the second family may find the first one's port taken
                raise
    raise AssertionError("the last try returns or raises")


async def _listen_on_both(port: int) -> list[trio.socket.SocketType]:
    sockets: list[trio.socket.SocketType] = []
    try:
        for family, host in ((trio.socket.AF_INET, "0.0.0.0"), (trio.socket.AF_INET6, "::")):
            sock = await _listen(family, host, sockets[0].getsockname()[1] if sockets else port)
            if sock is not None:
                sockets.append(sock)
        if not sockets:
            raise OSError("this machine has neither IPv4 nor IPv6")
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def _listen(family: int, host: str, port: int) -> trio.socket.SocketType | None:
    """None when the host does not have the family."""
    try:
        sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        if family == trio.socket.AF_INET6:
            sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, True)
        rebind(sock)
        await sock.bind((host, port))
        sock.listen(_BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise
    return sock


def ports_of(sockets: Sequence[trio.socket.SocketType]) -> dict[int, int]:
    """The port that these sockets listen on, by IP version."""
    return {4 if sock.family == trio.socket.AF_INET else 6: sock.getsockname()[1] for sock in sockets}
