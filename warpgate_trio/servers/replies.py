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
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final, final

import trio

from ..ports.datagrams import BATCH, BUFFER, NowaitSocket, nowait_socket
from ..sockaddr import TransportAddress, parse_ip, socket_address

__all__ = ["MAX_SINKS", "RECEIVE_BUFFER", "ReplySink", "ReplySocket", "ServerSocket"]

MAX_SINKS: Final = 4096
"""Addresses of this machine that clients ask one socket at; of more, who was there before has to begin anew."""

_IP_PKTINFO: Final[int | None] = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else None)  # named in 3.12
_IPV6_RECVPKTINFO: Final[int | None] = getattr(socket, "IPV6_RECVPKTINFO", None)
_IPV6_PKTINFO: Final[int | None] = getattr(socket, "IPV6_PKTINFO", None)
_V4: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, our address, the header's destination
_V6: Final = struct.Struct("=16si")  # struct in6_pktinfo
_SPACE: Final = 64  # for one of them and its header

RECEIVE_BUFFER: Final = 4 << 20
"""Bytes that the kernel is asked to hold for a `ServerSocket`: all clients of a server share one, and at 40 MB/s these
are what comes in the tenth of a second in which a busy machine lets others run."""

Ancillary = list[tuple[int, int, bytes]]


@final
class ReplySocket:
    """A bound UDP socket, whose owner stays who made it."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._tells: bool = hasattr(sock, "recvmsg") and _ask_for_destinations(sock)

    async def receive(self, size: int) -> tuple[bytes, Any, Ancillary]:
        """A datagram, its source, and what to `reply` with.  Raises `OSError` as a socket does."""
        if not self._tells:
            data, source = await self._sock.recvfrom(size)
            return data, source, []
        data, ancillary, _flags, source = await self._sock.recvmsg(size, _SPACE)
        return data, source, _answering(ancillary)

    async def reply(self, data: bytes, to: Any, ancillary: Ancillary) -> None:
        """Answer a datagram that came with `ancillary`.  Raises `OSError` as a socket does."""
        if ancillary:
            await self._sock.sendmsg([data], ancillary, 0, to)
        else:
            await self._sock.sendto(data, to)


@final
class ReplySink:
    """Answers from one address of a `ServerSocket`; the same one for as long as that address is asked.

    Attributes:
      is_stream: False, for who has other ways to answer too.
    """

    __slots__ = ("_ancillary", "_sock", "is_stream")

    def __init__(self, sock: NowaitSocket, ancillary: Ancillary) -> None:
        self._sock = sock
        self._ancillary = ancillary
        self.is_stream: bool = False

    def send(self, data: bytes, to: TransportAddress) -> None:
        """Send a datagram if it goes without waiting; what cannot be sent is dropped, as a network would."""
        try:
            if self._ancillary:
                self._sock.sendmsg_nowait([data], self._ancillary, 0, to)  # type: ignore[attr-defined]
            else:
                self._sock.sendto_nowait(data, to)
        except (OSError, ValueError, OverflowError):  # the latter two: no address, no port
            pass

    def close(self) -> None:
        """Close the socket, from whichever of its addresses."""
        self._sock.close()


@final
class ServerSocket:
    """The same in batches, for servers that relay: it owns the socket from the call on, and closes it.

    What is to be sent goes without waiting, or is dropped: one destination's way must not hold up the others'.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        tells = _ask_for_destinations(sock)
        self.address: Final[TransportAddress] = socket_address(sock.getsockname())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._sock: NowaitSocket = nowait_socket(sock)
        self._receive: Callable[..., Any] | None = getattr(self._sock, "recvmsg_nowait", None) if tells else None
        self.sink: Final[ReplySink] = ReplySink(self._sock, [])
        self._sinks: dict[bytes, ReplySink] = {}

    async def receive_batch(self, size: int) -> list[tuple[bytes, TransportAddress, ReplySink]]:
        """Wait for datagrams; those that are there, with their sources and what to answer each with.

        Longer ones than `size` are dropped.

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
            if len(self._sinks) >= MAX_SINKS:
                self._sinks.clear()
            answering = _answering(ancillary)
            # The same address may have been asked through another interface.
            key = answering[0][2] if answering else b""
            found = self._sinks[told] = self._sinks.setdefault(key, ReplySink(self._sock, answering))
        return found

    def close(self) -> None:
        """Close it now.  Idempotent; wakes who waits in `receive_batch`."""
        self._sock.close()


def _ask_for_destinations(sock: trio.socket.SocketType) -> bool:
    """Have the kernel tell where each datagram was sent to; False where that is known, or the system does not tell."""
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
    """What has an answer leave from where a datagram came in, by what came with it."""
    return [found for each in ancillary if (found := _source(*each)) is not None]


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
