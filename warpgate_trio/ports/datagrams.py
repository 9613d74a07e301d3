"""Datagrams in batches: UDP sockets, the ports that races use, and the paths that carriers use.

A task switch costs more than a datagram: with one datagram for each switch, QUIC reaches 6.6 MB/s; with up to 64, more
than ten times that.  So all interfaces here move batches, with one checkpoint for each.

`DatagramSocket` is for the task that owns a UDP socket (docs/punching.md, law 6).  Trio's sockets have no call that
receives without a checkpoint.  So the descriptor is detached from the Trio socket that made it, and read and written
without blocking; `trio.lowlevel.wait_readable` waits.  Simulated sockets have such calls (`NowaitSocket`) and are used
as they are.  In both cases the socket was made by `trio.socket.socket`.

`DatagramPort` is one local address from which a race sends and at which it receives, on a UDP socket or at a relay.
`DatagramPath` is what such a port gives to a carrier: the datagrams to and from one peer.

A datagram that cannot be sent (no route, a firewall's EPERM, no buffer, too big for the link) is counted and dropped,
as if the network had lost it.  Protocols over UDP have to cope with loss, and one bad destination must not end a socket
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
"""A payload, and its source or destination."""
DatagramHandler = Callable[[bytes, TransportAddress], Iterable[Datagram]]
"""Takes a datagram and its source; the datagrams that it returns are sent."""

BATCH: Final = 64
"""Datagrams in one batch: larger batches are no faster, and keep other tasks waiting (64 take about 1 ms)."""
MAX_DATAGRAM: Final = 2048
"""Bytes of a received datagram: no peer or server sends more than an Ethernet frame holds; longer ones are dropped."""
BUFFER: Final = 1 << 20
"""Bytes of each kernel buffer that are asked for: the default of 208 KiB is filled by one congestion window of a fast
path.  Linux silently caps it at net.core.rmem_max."""
NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM})
"""Errors of sending where the host no longer has a route, or its firewall blocks outgoing packets."""
MAX_ERRORS: Final = BATCH
"""Errors of one `DatagramSocket.receive_batch` without a datagram, after which the socket counts as broken."""


class DatagramPath(Protocol):
    """Datagrams to and from one peer over a socket with another owner.

    One task at a time may be in `receive`, and one in `send`.

    Attributes:
      local, remote: the socket addresses of the path, for information only.
    """

    @property
    def local(self) -> TransportAddress: ...
    @property
    def remote(self) -> TransportAddress: ...

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Send a whole batch; always a checkpoint.  Datagrams that cannot be sent are dropped silently.

        When cancelled, it has sent none or some of them.

        Raises:
          trio.BrokenResourceError: the path ended.
          trio.ClosedResourceError: this side closed it.
        """

    async def receive(self) -> list[bytes]:
        """Wait for datagrams; return those that have arrived, between 1 and `BATCH`.  Cancelling it loses none.

        Raises as `send` does.
        """

    def send_nowait(self, datagrams: Sequence[bytes]) -> None:
        """Send a few final datagrams without waiting, before closing; drops those that would block.  Never raises."""

    def close_nowait(self) -> None:
        """Give the path back to its owner.  Idempotent; wakes tasks that wait in `send` or `receive`."""


class DatagramPort(Protocol):
    """A local address at which peers can be met: a UDP port, or an address at a relay.

    It belongs to its user until `release`.

    Attributes:
      local: its own address: a socket's, or the relayed one.
      mapped: by server, the endpoint at which the server has seen it.
      closed: whether it is closed: nothing is sent or received any more.
    """

    @property
    def local(self) -> TransportAddress: ...
    @property
    def mapped(self) -> Mapping[TransportAddress, TransportAddress]: ...
    @property
    def closed(self) -> bool: ...

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """Send a batch; always a checkpoint.  Datagrams that cannot be sent are dropped silently.

        Args:
          hops: the TTL or hop limit of these datagrams.  A port that cannot set it may drop them.

        Raises:
          trio.ClosedResourceError: the port was closed.
        """

    def listen_for_probes(self, handler: DatagramHandler | None, /) -> None:
        """Give STUN messages that answer none of the port's own requests to `handler`.

        It replaces the previous handler; None removes it.
        """

    def open_path(self, remote: TransportAddress, /) -> DatagramPath:
        """Open a path to one remote address.

        Raises:
          ValueError: there is a path to it already.
          trio.ClosedResourceError: the port was closed.
        """

    def release(self) -> None:
        """Give the port up: it closes with its last path, or now if it has none."""


@runtime_checkable
class NowaitSocket(Protocol):
    """The calls that `DatagramSocket` needs of a Trio socket without a file descriptor, such as the simulator's.

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
    """A `NowaitSocket` on a file descriptor."""

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
    """Convert a bound UDP socket to one with calls that do not block; `sock` must not be used any more.

    A kernel socket also has ``recvmsg_nowait`` and ``sendmsg_nowait``, where the system has these calls.
    """
    return sock if isinstance(sock, NowaitSocket) else _KernelSocket(sock)


@final
class DatagramSocket:
    """Batches on a bound, unconnected UDP socket, which it owns from the call on.

    One task at a time may be in `receive_batch`, and any number in `send_batch`.

    Attributes:
      local: its own address, with the port that it was given.
      errors: by errno name, how many datagrams could not be sent and how many reads failed; ``"oversize"`` counts
        received datagrams longer than `MAX_DATAGRAM`.
      unreachable: how many of the latest datagrams in a row failed with `NO_WAY`.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock: NowaitSocket = nowait_socket(sock)
        self._hops = (
            (stdlib.IPPROTO_IPV6, stdlib.IPV6_UNICAST_HOPS)
            if sock.family == stdlib.AF_INET6
            else (stdlib.IPPROTO_IP, stdlib.IP_TTL)
        )
        self._closed = False
        self._full: Final = trio.Lock()  # held while waiting for room: one task at a time may wait for a descriptor
        self.local: Final[TransportAddress] = socket_address(self._sock.getsockname())
        self.errors: Final[Counter[str]] = Counter()
        self.unreachable: int = 0

    @classmethod
    async def bind(cls, local: TransportAddress) -> DatagramSocket:
        """Make a socket on an IP literal and a port; with port 0 the system chooses one.

        Raises:
          OSError: the address is not ours, the port is taken, or no file descriptor is left.
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
        """The file descriptor; -1 once it is closed."""
        return self._sock.fileno()

    def setsockopt(self, level: int, optname: int, value: int) -> None:
        """As `socket.socket.setsockopt`.  For a TTL see `send_batch`."""
        self._sock.setsockopt(level, optname, value)

    def getsockopt(self, level: int, optname: int) -> int:
        """As `socket.socket.getsockopt`."""
        return self._sock.getsockopt(level, optname)

    async def receive_batch(self, limit: int = BATCH) -> list[Datagram]:
        """Wait for datagrams; return those that have arrived, between 1 and `limit`.  Cancelling it loses none.

        Addresses are (ip, port), also for IPv6; a scope is part of the ip (``fe80::1%2``).

        Raises:
          trio.ClosedResourceError: this side closed the socket.
          trio.BrokenResourceError: `MAX_ERRORS` reads in a row failed.
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
            raise trio.BrokenResourceError(f"every read of the socket fails: {dict(self.errors)}")
        return batch

    def _drain(self, batch: list[Datagram], limit: int) -> int:
        """Append the datagrams that have arrived to `batch`; returns the number of errors."""
        receive, append = self._sock.recvfrom_nowait, batch.append
        errors = 0
        for _ in range(limit):
            try:
                data, source = receive(MAX_DATAGRAM + 1)
            except BlockingIOError:
                break
            except OSError as error:  # Windows: an ICMP error for an earlier datagram to any destination
                self._count(error)
                errors += 1
                continue
            if len(data) > MAX_DATAGRAM:
                self.errors["oversize"] += 1
            else:
                append((data, source if len(source) == 2 else socket_address(source)))
        return errors

    async def send_batch(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """Send all datagrams, in order; always a checkpoint.  Those that cannot be sent are counted and dropped.

        When cancelled, it has sent none or some of them.

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
            # Other tasks may send while this one waits, so the TTL is set only between two checkpoints.
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
        """Send without waiting, and drop the datagrams that would block.  Never raises: a closed socket drops all."""
        left = list(datagrams)
        left.reverse()
        if not self._closed:
            self._send(left)
            self.errors["EAGAIN"] += len(left)

    def _send(self, left: list[Datagram]) -> None:
        """Send datagrams from the end of `left` until one would block."""
        send = self._sock.sendto_nowait
        while left:
            try:
                send(*left[-1])
            except BlockingIOError:
                return
            except (OSError, ValueError, OverflowError) as error:  # the latter two: an invalid address or port
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
        """Close it now.  Idempotent; wakes tasks that wait in `receive_batch` or `send_batch`."""
        self._closed = True
        self._sock.close()
