"""Datagrams in batches: a UDP socket of ours, who supplies them to races, and the path that carriers have of those.

One task switch costs more than one datagram: reading one datagram a switch gives 6.6 MB/s of QUIC, up to 64 of them
more than ten times that.  So all interfaces here move batches, with one checkpoint each.

`DatagramSocket` is for the task that owns a UDP socket (docs/punching.md, law 6).  Trio's sockets have no call that
takes what is there without a checkpoint, so the descriptor is detached from the Trio socket that made it, and read and
written without blocking; waiting is `trio.lowlevel.wait_readable`.  Simulated sockets have such calls (`NowaitSocket`)
and stay as they are.  Either way the socket came from `trio.socket.socket`.

`DatagramPort` is where a race sends from and is heard: one address of ours, on a socket of ours or at a relay.
`DatagramPath` is what such a port hands to a carrier: datagrams from one peer to one peer.

A datagram that cannot be sent (no route, a firewall's EPERM, no buffer, too big for the link) is counted and dropped,
as the network would have done: whoever speaks UDP has to live with loss, and one bad destination must not end a socket
that serves many.
"""

from __future__ import annotations

import errno
import socket as stdlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, final, runtime_checkable

import trio

from ..sockaddr import TransportAddress, socket_address, socket_family

__all__ = [
    "BATCH",
    "Datagram",
    "DatagramHandler",
    "DatagramPath",
    "DatagramPort",
    "DatagramSocket",
    "NowaitSocket",
    "nowait_socket",
]

Datagram = tuple[bytes, TransportAddress]
"""A payload, and where it came from or goes to."""
DatagramHandler = Callable[[bytes, TransportAddress], Iterable[Datagram]]
"""Takes a datagram and its source; what it returns is sent."""

BATCH: Final = 64
"""Datagrams in one go: with more of them nothing gets faster, and other tasks wait longer (64 take about 1 ms)."""
MAX_DATAGRAM: Final = 2048
"""Bytes of a datagram: nobody whom we talk to sends more than fits an Ethernet frame; what is longer is dropped."""
BUFFER: Final = 1 << 20
"""Bytes that the kernel is asked to hold in either direction: it gives 208 KiB by itself, which one congestion window
of a fast path fills.  Linux caps it at net.core.rmem_max without a word."""
NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM})
"""What sending gives where this machine has no route any more, or a firewall on it lets nothing out."""
MAX_ERRORS: Final = BATCH
"""Errors of one `DatagramSocket.receive_batch` without a datagram in between, after which the socket is broken."""


class DatagramPath(Protocol):
    """Datagrams to and from one peer over a socket that somebody else owns.

    One task at a time may be in `receive`, and one in `send`.

    Attributes:
      local, remote: socket addresses of the path; they only describe it.
    """

    @property
    def local(self) -> TransportAddress: ...
    @property
    def remote(self) -> TransportAddress: ...

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Send a whole batch; a checkpoint always.  Datagrams that cannot be sent are dropped, in silence.

        Cancelled, it has sent none of them or some.

        Raises:
          trio.BrokenResourceError: the path ended.
          trio.ClosedResourceError: this side closed it.
        """

    async def receive(self) -> list[bytes]:
        """Wait for datagrams; return those that are there, between 1 and `BATCH`.  Cancelling it loses none.

        Raises as `send` does.
        """

    def send_nowait(self, datagrams: Sequence[bytes]) -> None:
        """Send a few last words without waiting, for who closes; what does not go at once is dropped.  Never raises."""

    def close_nowait(self) -> None:
        """Give the path back to its owner.  Idempotent; wakes whoever waits in `send` or `receive`."""


class DatagramPort(Protocol):
    """An address of ours at which peers are met, whoever supplies its datagrams: a UDP port, or a relay.

    It belongs to whoever has it until `release`.

    Attributes:
      local: its own address: a socket's, or the relayed one.
      mapped: where others have seen it, by the server that told.
      closed: nothing is sent or received any more.
    """

    @property
    def local(self) -> TransportAddress: ...
    @property
    def mapped(self) -> Mapping[TransportAddress, TransportAddress]: ...
    @property
    def closed(self) -> bool: ...

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """Send a batch; a checkpoint always.  Datagrams that cannot be sent are dropped, in silence.

        Args:
          hops: the TTL or hop limit of these alone, where the port has a say in it; else they may be dropped.

        Raises:
          trio.ClosedResourceError: the port was closed.
        """

    def listen_for_probes(self, handler: DatagramHandler | None, /) -> None:
        """Give STUN messages that answer nothing of the port's own to `handler`, until another one or None takes its
        place."""

    def open_path(self, remote: TransportAddress, /) -> DatagramPath:
        """A path to one remote address; ValueError when it has one.

        Raises:
          trio.ClosedResourceError: the port was closed.
        """

    def release(self) -> None:
        """Its owner needs it no more: it closes with its last path, or now."""


@runtime_checkable
class NowaitSocket(Protocol):
    """What a Trio socket without a file descriptor needs to have for `DatagramSocket`: the simulator's have it.

    The ``nowait`` calls raise `BlockingIOError` where they would have to wait.
    """

    @property
    def family(self) -> stdlib.AddressFamily: ...
    def recvfrom_nowait(self, size: int, /) -> tuple[bytes, Any]: ...
    def sendto_nowait(self, data: bytes, address: TransportAddress, /) -> int: ...
    async def wait_readable(self) -> None: ...
    async def wait_writable(self) -> None: ...
    def getsockname(self) -> Any: ...
    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...
    def getsockopt(self, level: int, optname: int, /) -> int: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


@final
class _KernelSocket:
    """The same on a descriptor."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.family: Final = sock.family
        self._sock = stdlib.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._sock.setblocking(False)
        self.recvfrom_nowait = self._sock.recvfrom
        self.sendto_nowait = self._sock.sendto
        self.getsockname = self._sock.getsockname
        self.fileno = self._sock.fileno
        if sys.platform != "win32":
            self.recvmsg_nowait = self._sock.recvmsg
            self.sendmsg_nowait = self._sock.sendmsg

    def setsockopt(self, level: int, optname: int, value: int) -> None:
        self._sock.setsockopt(level, optname, value)

    def getsockopt(self, level: int, optname: int) -> int:
        return self._sock.getsockopt(level, optname)

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._sock)

    def close(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


def nowait_socket(sock: trio.socket.SocketType) -> NowaitSocket:
    """A bound UDP socket as one that is read and written without checkpoints; `sock` is not to be used any more.

    A kernel's has ``recvmsg_nowait`` and ``sendmsg_nowait`` too, where the system has them.
    """
    return sock if isinstance(sock, NowaitSocket) else _KernelSocket(sock)


@final
class DatagramSocket:
    """Batches on a bound, unconnected UDP socket, which it owns from the call on.

    One task at a time may be in `receive_batch`, and any number in `send_batch`.

    Attributes:
      local: its own address, with the port that it got.
      errors: errno name -> datagrams that could not be sent, and errors of reading; ``"oversize"`` for datagrams that
        were longer than `MAX_DATAGRAM`.
      unreachable: how many of the datagrams sent last, one after the other, found no way out (`NO_WAY`).
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock: NowaitSocket = nowait_socket(sock)
        self._hops = (
            (stdlib.IPPROTO_IPV6, stdlib.IPV6_UNICAST_HOPS)
            if sock.family == stdlib.AF_INET6
            else (stdlib.IPPROTO_IP, stdlib.IP_TTL)
        )
        self._closed = False
        self._full: Final = trio.Lock()  # of who waits for room, as one task at a time may wait for a descriptor
        self.local: Final[TransportAddress] = socket_address(self._sock.getsockname())
        self.errors: Final[Counter[str]] = Counter()
        self.unreachable: int = 0

    @classmethod
    async def bind(cls, local: TransportAddress) -> DatagramSocket:
        """A new socket on an IP literal and a port; port 0 takes any.

        Raises:
          OSError: the address is not ours, the port is taken, or there are too many files.
        """
        sock = trio.socket.socket(socket_family(local[0]), stdlib.SOCK_DGRAM)
        try:
            if sock.family == stdlib.AF_INET6:
                sock.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY, 1)
            for option in (stdlib.SO_RCVBUF, stdlib.SO_SNDBUF):
                sock.setsockopt(stdlib.SOL_SOCKET, option, BUFFER)
            await sock.bind(local)
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    @property
    def family(self) -> int:
        """``AF_INET`` or ``AF_INET6``."""
        return self._sock.family

    def fileno(self) -> int:
        """-1 once it is closed."""
        return self._sock.fileno()

    def setsockopt(self, level: int, optname: int, value: int) -> None:
        """As a socket's.  For a TTL see `send_batch`."""
        self._sock.setsockopt(level, optname, value)

    def getsockopt(self, level: int, optname: int) -> int:
        """As a socket's."""
        return self._sock.getsockopt(level, optname)

    async def receive_batch(self, limit: int = BATCH) -> list[Datagram]:
        """Wait for datagrams; return those that are there, between 1 and `limit`.  Cancelling it loses none.

        Addresses are (ip, port) also of IPv6, with the scope in the ip (``fe80::1%2``) where there is one.

        Raises:
          trio.ClosedResourceError: this side closed the socket.
          trio.BrokenResourceError: reading gives nothing but errors.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        errors = 0
        while True:
            self._check_open()
            batch: list[Datagram] = []
            errors += self._drain(batch, limit)
            if batch or errors >= MAX_ERRORS:
                break
            await self._sock.wait_readable()
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if not batch:
            raise trio.BrokenResourceError(f"the socket gives nothing but errors: {dict(self.errors)}")
        return batch

    def _drain(self, batch: list[Datagram], limit: int) -> int:
        """Take what is there; how many errors came instead."""
        receive, append = self._sock.recvfrom_nowait, batch.append
        errors = 0
        for _ in range(limit):
            try:
                data, source = receive(MAX_DATAGRAM + 1)
            except BlockingIOError:
                break
            except OSError as error:  # Windows: an ICMP error for what was sent before, to anybody
                self._count(error)
                errors += 1
                continue
            if len(data) > MAX_DATAGRAM:
                self.errors["oversize"] += 1
            else:
                append((data, source if len(source) == 2 else socket_address(source)))
        return errors

    async def send_batch(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """Send all of them, in order; a checkpoint always.  What cannot be sent is counted and dropped.

        Cancelled, it has sent none of them or some.

        Args:
          hops: the TTL or hop limit of these datagrams alone; by default the socket's.

        Raises:
          trio.ClosedResourceError: this side closed the socket.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        left = list(datagrams)
        left.reverse()
        waited = False
        while left:
            # Others may send while we wait: the TTL is ours only from here to the next checkpoint.
            if hops is None:
                self._send(left)
            else:
                usual = self._sock.getsockopt(*self._hops)
                self._sock.setsockopt(*self._hops, hops)
                try:
                    self._send(left)
                finally:
                    self._sock.setsockopt(*self._hops, usual)
            if left:
                async with self._full:
                    self._check_open()
                    await self._sock.wait_writable()
                self._check_open()
                waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, datagrams: Iterable[Datagram]) -> None:
        """Send what goes without waiting, and drop the rest.  Never raises: a closed socket drops all."""
        left = list(datagrams)
        left.reverse()
        if not self._closed:
            self._send(left)
            self.errors["EAGAIN"] += len(left)

    def _send(self, left: list[Datagram]) -> None:
        """Send from the end of `left` what goes without waiting."""
        send = self._sock.sendto_nowait
        while left:
            try:
                send(*left[-1])
            except BlockingIOError:
                return
            except (OSError, ValueError, OverflowError) as error:  # the latter two: no address, no port
                self._count(error)
                if isinstance(error, OSError) and error.errno in NO_WAY:
                    self.unreachable += 1
            else:
                self.unreachable = 0
            left.pop()

    def _count(self, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) else None
        self.errors[type(error).__name__ if number is None else errno.errorcode.get(number, str(number))] += 1

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this socket was closed")

    def close(self) -> None:
        """Close it now.  Idempotent; wakes whoever waits in `receive_batch` or `send_batch`."""
        self._closed = True
        self._sock.close()
