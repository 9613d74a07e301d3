"""Limits the size of TCP segments, for paths with an unknown MTU, and the unsent data in TCP sockets.

The MTU of a path may be smaller than that of the links at its ends, and its routers may not report it: ICMP is
filtered, or a tunnel drops large packets (RFC 2923 §2.1).  TCP then connects, exchanges small segments, and hangs at
the first full one.  RFC 4821 finds the MTU by probing, which systems support but do not enable by default.  So packets
are limited to 1,280 bytes, which every path that carries IPv6 can carry.  The same limit holds for QUIC's datagrams.

Linux accepts TCP_MAXSEG before `connect` or `listen`.  It applies for the life of the connection and in both
directions: the SYN announces it to the peer, and sent segments are limited too.  So it is enough that the dialler sets
it, who knows where the path leads.  A node's listener does not set it, since that would cost programs on one host 7 to
17 % of a Pipe's throughput.  It cannot be raised later (measured on Linux 6.18).  So the small segments stay on paths
that could carry more, which costs 1 % of an Ethernet's bytes.  Systems other than Linux refuse the option.  There, and
where the MTU is still smaller, the padding of the Link's handshake (`LinkProtocol`) ensures that such a path is not
chosen.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from ..sockaddr import parse_ip

__all__ = ["MAX_PACKET", "clamp_segments", "limit_unsent"]

MAX_PACKET: Final = 1280
"""Bytes of a packet with a full segment, IP header included: the least that a link must carry under IPv6 (RFC 8200 §5);
RFC 4821 §7.2 begins its search lower, at 1,024, where QUIC does not work either."""
_HEADERS: Final = {4: 40, 6: 60}  # of IP and TCP; TCP's options count as payload here (RFC 6691)


def clamp_segments(sock: trio.socket.SocketType, ip: str) -> None:
    """Limit the segments of a connection before it is made, or of a listener's future connections.

    Args:
      ip: the remote address, or the listener's.  Loopback is not limited: large segments are faster there.
    """
    address = parse_ip(ip)
    if not address.is_loopback:
        with suppress(OSError, AttributeError):  # not every system has the option, or accepts it
            option: int = trio.socket.TCP_MAXSEG
            sock.setsockopt(trio.socket.IPPROTO_TCP, option, MAX_PACKET - _HEADERS[address.version])


def limit_unsent(sock: trio.socket.SocketType, size: int) -> None:
    """Have the kernel accept no more data while `size` bytes that it has accepted are unsent.

    The most urgent data can then be sent next, instead of after megabytes that are already in the kernel.
    """
    with suppress(OSError, AttributeError):  # not every system has the option
        sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, size)
