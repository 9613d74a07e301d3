"""Answering from the address that was asked, on a UDP socket that is bound to all of a machine's addresses.

Left to itself, the kernel takes the source of an answer from its routes: on a machine with two addresses in a network,
always the same one.  Who asked the other one ignores the answer, and so does its NAT.  RFC 1122 section 4.1.3.5 has the
application do it: the kernel tells with each datagram where it was sent to, and takes an answer's source the same way
(IP_PKTINFO, and IPV6_PKTINFO of RFC 3542 section 6).  Unlike one socket per address, this copes with addresses that
come and go.  Where the system has none of it, and on a socket that is bound to one address, it is an ordinary socket.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address
from typing import Any, Final, final

import trio

from ..sockaddr import parse_ip

__all__ = ["ReplySocket"]

_IP_PKTINFO: Final[int | None] = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else None)  # named in 3.12
_IPV6_RECVPKTINFO: Final[int | None] = getattr(socket, "IPV6_RECVPKTINFO", None)
_IPV6_PKTINFO: Final[int | None] = getattr(socket, "IPV6_PKTINFO", None)
_V4: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, our address, the header's destination
_V6: Final = struct.Struct("=16si")  # struct in6_pktinfo
_SPACE: Final = 64  # for one of them and its header

Ancillary = list[tuple[int, int, bytes]]


@final
class ReplySocket:
    """A bound UDP socket, whose owner stays who made it."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._tells = False
        if not parse_ip(sock.getsockname()[0]).is_unspecified or not hasattr(sock, "recvmsg"):
            return
        v6 = sock.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO) if v6 else (socket.IPPROTO_IP, _IP_PKTINFO)
        if option is not None:
            try:
                sock.setsockopt(level, option, 1)
                self._tells = True
            except OSError:  # a system that lacks it
                pass

    async def receive(self, size: int) -> tuple[bytes, Any, Ancillary]:
        """A datagram, its source, and what to `reply` with.  Raises `OSError` as a socket does."""
        if not self._tells:
            data, source = await self._sock.recvfrom(size)
            return data, source, []
        data, ancillary, _flags, source = await self._sock.recvmsg(size, _SPACE)
        return data, source, [found for each in ancillary if (found := _source(*each)) is not None]

    async def reply(self, data: bytes, to: Any, ancillary: Ancillary) -> None:
        """Answer a datagram that came with `ancillary`.  Raises `OSError` as a socket does."""
        if ancillary:
            await self._sock.sendmsg([data], ancillary, 0, to)
        else:
            await self._sock.sendto(data, to)


def _source(level: int, kind: int, data: bytes) -> tuple[int, int, bytes] | None:
    """What has an answer leave from where a datagram came in.  The routes go on choosing the interface."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _V4.size:
        _, ours, _ = _V4.unpack_from(data)
        return level, kind, _V4.pack(0, ours, bytes(4))
    if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO and len(data) >= _V6.size:
        destination, interface = _V6.unpack_from(data)
        ip = ip_address(destination)
        # Nothing is sent from a multicast address; a link-local one is one only together with its interface.
        return None if ip.is_multicast else (level, kind, _V6.pack(destination, interface if ip.is_link_local else 0))
    return None
