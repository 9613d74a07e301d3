"""How large TCP's segments are, on paths that do not say what they carry; and how much waits in its sockets.

A path may carry less than its ends' links, and its routers may say nothing about it: ICMP is filtered, or a tunnel
drops what is too large (RFC 2923 §2.1).  TCP then connects, says little, and hangs at the first full segment.  RFC 4821
finds out by trying, which systems can do and do not by themselves.  So segments are made no larger than every path
carries that carries IPv6, 1,280 bytes, QUIC's datagrams included.

Linux takes TCP_MAXSEG before `connect` or `listen` and keeps to it for the life of the connection, in both directions:
the SYN tells the peer, and what is sent is bounded by the same.  So it is enough that the dialler asks for it, who
knows where the path leads; a node's listener does not, since it would cost programs on one machine 7 to 17 % of a
Pipe's throughput.  It cannot be raised later (measured, 6.18): a path that has shown that it carries more keeps the
small segments, which cost 1 % of an Ethernet's bytes.  Systems other than Linux refuse the option; there, and where the
path carries even less, the padding of the Link's handshake (`LinkProtocol`) sees to it that the path does not win.
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
    """Bound the segments of a connection, before it is made, or of those that a listener will have.

    Args:
      ip: where it will lead, or where the listener is.  On loopback there is no path, and large segments are faster.
    """
    address = parse_ip(ip)
    if not address.is_loopback:
        with suppress(OSError, AttributeError):  # not every system has it, or takes it
            option: int = trio.socket.TCP_MAXSEG
            sock.setsockopt(trio.socket.IPPROTO_TCP, option, MAX_PACKET - _HEADERS[address.version])


def limit_unsent(sock: trio.socket.SocketType, size: int) -> None:
    """Have the kernel take no more from us while it has not sent `size` bytes of what it took.

    What is most urgent then goes next, and is not behind megabytes that nobody can take back.
    """
    with suppress(OSError, AttributeError):  # not every system has it
        sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, size)
