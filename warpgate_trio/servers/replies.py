"""Answering from the address that a request was sent to, on a UDP socket that is bound to all addresses of the host.

By default the kernel chooses the source address of an answer by its routes.  On a host with two addresses in one
network that is always the same address.  A client that sent its request to the other address ignores such an answer,
and so does its NAT.  By RFC 1122 section 4.1.3.5 the application has to choose the source: the kernel reports the
destination of each datagram, and accepts a source for each answer, as ancillary data (IP_PKTINFO, and IPV6_PKTINFO of
RFC 3542 section 6).  Unlike one socket per address, this also works when addresses come and go.  On systems without
these options, and for a socket that is bound to one address, the classes here use plain receive and send calls.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final, final
from weakref import WeakValueDictionary

import trio

from ..ports.datagrams import BATCH, BUFFER, NowaitSocket, nowait_socket
from ..sockaddr import TransportAddress, parse_ip, socket_address

__all__ = ["MAX_SINKS", "RECEIVE_BUFFER", "ReplySink", "ReplySocket", "ServerSocket"]

MAX_SINKS: Final = 4096
"""Local addresses of one socket whose sinks are kept.  An address counts once for each interface that datagrams to it
arrive by.  Beyond that only the sinks of TURN clients with an allocation are kept, since a sink is part of a client's
identity."""

_IP_PKTINFO: Final[int | None] = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else None)  # named in 3.12
_IPV6_RECVPKTINFO: Final[int | None] = getattr(socket, "IPV6_RECVPKTINFO", None)
_IPV6_PKTINFO: Final[int | None] = getattr(socket, "IPV6_PKTINFO", None)
_V4: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, our address, the header's destination
_V6: Final = struct.Struct("=16si")  # struct in6_pktinfo
_SPACE: Final = 64  # bytes for one of these structs and its cmsg header

RECEIVE_BUFFER: Final = 4 << 20
"""Receive buffer of a `ServerSocket` in bytes, as requested from the kernel.  All clients of a server share it.  At
40 MB/s it holds the data of a tenth of a second, for which a busy host may run other processes."""

Ancillary = list[tuple[int, int, bytes]]


@final
class ReplySocket:
    """Wraps a bound UDP socket; the caller still owns the socket and closes it."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._tells: bool = hasattr(sock, "recvmsg") and _ask_for_destinations(sock)

    async def receive(self, size: int) -> tuple[bytes, Any, Ancillary]:
        """Wait for a datagram; returns it, its source, and the ancillary data for `reply`.

        Raises:
          OSError: as a socket does.
        """
        if not self._tells:
            data, source = await self._sock.recvfrom(size)
            return data, source, []
        data, ancillary, _flags, source = await self._sock.recvmsg(size, _SPACE)
        return data, source, _answering(ancillary)

    async def reply(self, data: bytes, to: Any, ancillary: Ancillary) -> None:
        """Send an answer from the address that `ancillary` of `receive` names.

        Raises:
          OSError: as a socket does.
        """
        if ancillary:
            await self._sock.sendmsg([data], ancillary, 0, to)
        else:
            await self._sock.sendto(data, to)


@final
class ReplySink:
    """Sends from one local address of a `ServerSocket`; datagrams to that address come with the same sink.

    Attributes:
      is_stream: False; it tells this sink from one over a TCP connection.
    """

    __slots__ = ("__weakref__", "_ancillary", "_sock", "is_stream")

    def __init__(self, sock: NowaitSocket, ancillary: Ancillary) -> None:
        self._sock = sock
        self._ancillary = ancillary
        self.is_stream: bool = False

    def send(self, data: bytes, to: TransportAddress) -> None:
        """Send a datagram without waiting; if that is impossible, it is dropped."""
        try:
            if self._ancillary:
                self._sock.sendmsg_nowait([data], self._ancillary, 0, to)  # type: ignore[attr-defined]
            else:
                self._sock.sendto_nowait(data, to)
        except (OSError, ValueError, OverflowError):  # the latter two: an invalid address or port
            pass

    def close(self) -> None:
        """Close the whole socket, which all of its sinks share."""
        self._sock.close()


@final
class ServerSocket:
    """The same in batches, for servers that relay; it owns the socket.

    Datagrams are sent without waiting or dropped, so that no destination delays the others.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        tells = _ask_for_destinations(sock)
        self.address: Final[TransportAddress] = socket_address(sock.getsockname())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._sock: NowaitSocket = nowait_socket(sock)
        self._receive: Callable[..., Any] | None = getattr(self._sock, "recvmsg_nowait", None) if tells else None
        self.sink: Final[ReplySink] = ReplySink(self._sock, [])
        self._sinks: dict[bytes, ReplySink] = {}  # by what the kernel reports: an address and an interface
        self._living: WeakValueDictionary[bytes, ReplySink] = WeakValueDictionary()  # by address

    async def receive_batch(self, size: int) -> list[tuple[bytes, TransportAddress, ReplySink]]:
        """Wait for datagrams; returns the available ones, each with its source and the sink for an answer.

        Datagrams of more than `size` bytes are dropped.

        Raises:
          trio.ClosedResourceError: it was closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            if self._sock.fileno() < 0:
                raise trio.ClosedResourceError("this socket was closed")
            batch = self._drain(size) if self._receive is None else self._drain_told(size)
            if batch:
                break
            await self._sock.wait_readable()
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return batch

    def _drain(self, size: int) -> list[tuple[bytes, TransportAddress, ReplySink]]:
        receive, sink = self._sock.recvfrom_nowait, self.sink
        batch: list[tuple[bytes, TransportAddress, ReplySink]] = []
        for _ in range(BATCH):
            try:
                data, source = receive(size + 1)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error about an earlier answer
                continue
            if len(data) <= size:
                batch.append((data, source if len(source) == 2 else socket_address(source), sink))
        return batch

    def _drain_told(self, size: int) -> list[tuple[bytes, TransportAddress, ReplySink]]:
        assert self._receive is not None
        batch: list[tuple[bytes, TransportAddress, ReplySink]] = []
        for _ in range(BATCH):
            try:
                data, ancillary, _flags, source = self._receive(size + 1, _SPACE)
            except BlockingIOError:
                break
            except OSError:
                continue
            if len(data) <= size:
                batch.append((data, socket_address(source), self._sink(ancillary)))
        return batch

    def _sink(self, ancillary: Ancillary) -> ReplySink:
        told = ancillary[0][2] if ancillary else b""
        found = self._sinks.get(told)
        if found is None:
            answering = _answering(ancillary)
            # Datagrams to one address may arrive by several interfaces, and get the same sink.
            key = answering[0][2] if answering else b""
            found = self._living.get(key)
            if found is None:
                found = self._living[key] = ReplySink(self._sock, answering)
            if len(self._sinks) >= MAX_SINKS:
                self._sinks.clear()
            self._sinks[told] = found
        return found

    def close(self) -> None:
        """Close it now, and wake a task that waits in `receive_batch`.  Idempotent."""
        self._sock.close()


def _ask_for_destinations(sock: trio.socket.SocketType) -> bool:
    """Have the kernel report destinations; False if the socket has one address only, or the system cannot do it."""
    if not parse_ip(sock.getsockname()[0]).is_unspecified:
        return False
    v6 = sock.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO) if v6 else (socket.IPPROTO_IP, _IP_PKTINFO)
    if option is None:
        return False
    try:
        sock.setsockopt(level, option, 1)
    except OSError:  # a system that lacks it
        return False
    return True


def _answering(ancillary: Ancillary) -> Ancillary:
    """The ancillary data of an answer, by that of the datagram: the answer's source is the datagram's destination."""
    return [found for each in ancillary if (found := _source(*each)) is not None]


def _source(level: int, kind: int, data: bytes) -> tuple[int, int, bytes] | None:
    """One item of `_answering`; None if it names no usable source.  The routes still choose the interface."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _V4.size:
        _, ours, _ = _V4.unpack_from(data)
        return level, kind, _V4.pack(0, ours, bytes(4))
    if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO and len(data) >= _V6.size:
        destination, interface = _V6.unpack_from(data)
        ip = ip_address(destination)
        # A multicast address cannot be a source; a link-local one is complete only with its interface.
        return None if ip.is_multicast else (level, kind, _V6.pack(destination, interface if ip.is_link_local else 0))
    return None
