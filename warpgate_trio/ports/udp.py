"""One local UDP port and everything that goes through it (docs/punching.md, laws 1 and 6).

The port that asked a STUN server is the port that punches, and the port that carries QUIC afterwards: a NAT's mapping
belongs to it.  So several conversations share a socket.  One owner task reads it and dispatches each datagram by the
first rule that applies:

    the answer to a request of ours      to its transaction
    from a source that has a handler     to that handler (a TURN server's, for example)
    first byte 0 to 3, STUN's cookie     to the handler for probes (RFC 9443: the first byte shows the protocol)
    anything else                        to the path that was opened to the source; without one it is dropped

A port outlives the attempt that used it only if one of its paths was kept: `release` closes it now, or with its last
path.  `UdpPorts` belongs to the node: it runs the owner tasks, and closes all ports when the node ends.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from .. import host as machine
from ..errors import panics_as_errors
from ..sockaddr import TransportAddress
from ..stun.codec import TRANSACTION_ID_LENGTH, looks_like_stun
from ..stun.transaction import StunAnswer, StunTransaction, binding_request, read_binding_answer
from .datagrams import BATCH, Datagram, DatagramHandler, DatagramSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

logger: logging.Logger = logging.getLogger(__name__)

__all__ = ["MAX_PORTS", "MAX_QUEUED", "PathOwner", "UdpPath", "UdpPort", "UdpPorts"]

MAX_QUEUED: Final = 2048
"""Datagrams that wait for the reader of a path: 3 MB, what a fast path delivers while its reader is busy for 30 ms.
Further ones are dropped, as by a full socket buffer."""
UNREACHABLE: Final = 3
"""Datagrams in a row that could not leave this host, after which `on_unreachable` is called: a single failure may be a
route that is just being replaced."""
MAX_PORTS: Final = 1024
"""UDP ports open in one node: two sprays of 256 sockets and some hundred Links; also the usual limit of open files."""


class PathOwner(Protocol):
    """The port, or other supplier of datagrams, to which a `UdpPath` belongs."""

    @property
    def local(self) -> TransportAddress: ...
    async def send(self, datagrams: Iterable[Datagram], /) -> None: ...
    def send_nowait(self, datagrams: Iterable[Datagram], /) -> None: ...
    def forget(self, path: UdpPath, /) -> None:
        """The path was closed."""


@final
class UdpPath:
    """The `DatagramPath` to one remote address through a `UdpPort` or another `PathOwner`."""

    def __init__(self, port: PathOwner, remote: TransportAddress) -> None:
        self._port = port
        self._waiting: deque[bytes] = deque()
        self._arrived = trio.Event()
        self._closed = False
        self._broken = ""
        self.local: Final = port.local
        self.remote: Final = remote
        self.dropped: int = 0

    async def send(self, datagrams: Sequence[bytes]) -> None:
        self._check()
        await self._port.send([(data, self.remote) for data in datagrams])

    async def receive(self) -> list[bytes]:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._waiting:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not self._waiting:
            self._check()
            self._arrived = trio.Event()
            await self._arrived.wait()
        return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def send_nowait(self, datagrams: Sequence[bytes]) -> None:
        if not self._closed and not self._broken:
            self._port.send_nowait([(data, self.remote) for data in datagrams])

    def close_nowait(self) -> None:
        if not self._closed:
            self._closed = True
            self._port.forget(self)
            self._arrived.set()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this path was closed")
        if self._broken:
            raise trio.BrokenResourceError(self._broken)

    def take(self, data: bytes) -> None:
        """Take a datagram that has arrived from the remote address."""
        if len(self._waiting) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._waiting.append(data)
        self._arrived.set()

    def break_off(self, why: str) -> None:
        """Break the path, since its port was closed; sending and receiving raise an error that says `why`."""
        self._broken = why
        self._arrived.set()


@final
class UdpPort:
    """One UDP port, a `DatagramPort`; made by `UdpPorts.open`, which runs its owner task.

    Args:
      on_close: called when the port was closed.
      on_unreachable: called with `local` when `UNREACHABLE` datagrams in a row could not leave this host.

    Attributes:
      local: its own address.
      dropped: how many datagrams no rule applied to, or failed in a handler.
      mapped: by STUN server, the endpoint at which the server last saw the port.
      mapped_at: when the last server answered (`trio.current_time`); None before the first.
    """

    def __init__(
        self,
        sock: DatagramSocket,
        *,
        on_close: Callable[[UdpPort], None],
        on_unreachable: Callable[[TransportAddress], None],
    ) -> None:
        self._sock = sock
        self._on_close = on_close
        self._on_unreachable = on_unreachable
        self._paths: dict[TransportAddress, UdpPath] = {}
        self._handlers: dict[TransportAddress, DatagramHandler] = {}
        self._probes: DatagramHandler | None = None
        self._transactions: dict[bytes, tuple[StunTransaction, trio.Event]] = {}
        self._released = False
        self._closed = False
        self.local: Final = sock.local
        self.dropped: int = 0
        self.mapped: dict[TransportAddress, TransportAddress] = {}
        self.mapped_at: float | None = None

    def __repr__(self) -> str:
        return f"<UdpPort {self.local}, {len(self._paths)} paths{', closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def errors(self) -> dict[str, int]:
        """How many datagrams could not be sent or read, by errno name; see `DatagramSocket.errors`."""
        return dict(self._sock.errors)

    async def serve(self) -> None:
        """The owner task: read and dispatch datagrams until the port is closed.

        It is shielded: when the node is cancelled, its Links still need the sockets for their last messages.
        `UdpPorts` closes the port.
        """
        with trio.CancelScope(shield=True):
            try:
                while not self._closed:
                    answers: list[Datagram] = []
                    for data, source in await self._sock.receive_batch():
                        answers += self._sort_safely(data, source)
                    if answers:
                        await self._sock.send_batch(answers)
            except (trio.ClosedResourceError, trio.BrokenResourceError, OSError) as error:
                if not self._closed:
                    logger.info("UDP port %s broke: %s", self.local, error)
            finally:
                self.close_nowait()

    def _sort_safely(self, data: bytes, source: TransportAddress) -> Iterable[Datagram]:
        """Dispatch a datagram; one on which a handler fails is dropped, since the next one may be the peer's."""
        try:
            with panics_as_errors():
                return list(self._sort(data, source))
        except Exception:
            log = logger.debug if self.dropped else logger.warning  # anybody can send such datagrams by the thousand
            log("UDP port %s: handling a datagram from %s failed", self.local, source, exc_info=True)
            self.dropped += 1
            return ()

    def _sort(self, data: bytes, source: TransportAddress) -> Iterable[Datagram]:
        is_stun = looks_like_stun(data)
        found = self._transactions.get(data[8 : 8 + TRANSACTION_ID_LENGTH]) if is_stun else None
        if found is not None:
            transaction, done = found
            if transaction.receive(data, source, trio.current_time()):
                done.set()
                return ()
        if (handler := self._handlers.get(source)) is not None:
            return handler(data, source)
        if found is not None:
            return ()  # it has the id of a request of ours, but is no valid answer
        if is_stun:
            if self._probes is not None:
                return self._probes(data, source)
        elif (path := self._paths.get(source)) is not None:
            path.take(data)
            return ()
        self.dropped += 1
        return ()

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """Send a batch; always a checkpoint.  Datagrams that cannot be sent are dropped.

        Raises:
          trio.ClosedResourceError: the port was closed.
        """
        await self._sock.send_batch(datagrams, hops=hops)
        if self._sock.unreachable >= UNREACHABLE:
            self._sock.unreachable = 0
            self._on_unreachable(self.local)

    def send_nowait(self, datagrams: Iterable[Datagram]) -> None:
        """Send without waiting; datagrams that would block are dropped.  Never raises."""
        self._sock.send_nowait(datagrams)

    async def query(self, server: TransportAddress, *, rto: float, tries: int) -> StunAnswer:
        """Ask a STUN server at which endpoint it sees this port; the answer is kept in `mapped`.

        Args:
          rto, tries: the first retransmission timeout in seconds, and the number of requests (RFC 8489 §6.2.1).  The
            wait doubles after the last request too, so all ends after ``rto * (2 ** tries - 1)`` seconds.

        Raises:
          StunError: as `warpgate_trio.stun.client.query_udp`.
          trio.ClosedResourceError: the port was closed meanwhile.
        """
        transaction = StunTransaction(
            binding_request(machine.current().entropy(TRANSACTION_ID_LENGTH)),
            server,
            rto=rto,
            tries=tries,
            last_wait=2 ** (tries - 1),
        )
        await self.transact(transaction)
        answer = read_binding_answer(transaction)
        self.mapped[server] = answer.mapped
        self.mapped_at = trio.current_time()
        return answer

    async def transact(self, transaction: StunTransaction) -> None:
        """Send a request of any STUN method, and wait until the transaction is done; the caller reads its answer.

        Raises:
          trio.ClosedResourceError: the port was closed meanwhile.
        """
        done = trio.Event()
        self._transactions[transaction.transaction_id] = (transaction, done)
        try:
            transaction.start(trio.current_time())
            while not transaction.done:
                transaction.handle_timer(trio.current_time())
                request = transaction.transmit(trio.current_time())
                if request is not None:
                    await self._sock.send_batch([(request, transaction.server)])
                if not transaction.done:
                    with trio.move_on_at(transaction.deadline):
                        await done.wait()
                if self._closed:
                    raise trio.ClosedResourceError("the port was closed")
        finally:
            del self._transactions[transaction.transaction_id]

    @contextmanager
    def handler(self, source: TransportAddress, handler: DatagramHandler) -> Iterator[None]:
        """Within the block, give datagrams from `source` to `handler`, except answers to requests of ours."""
        self._handlers[source] = handler
        try:
            yield
        finally:
            del self._handlers[source]

    def listen_for_probes(self, handler: DatagramHandler | None) -> None:
        """Give STUN messages that answer no request of ours to `handler`; replaces the last one, None removes it."""
        self._probes = handler

    def open_path(self, remote: TransportAddress) -> UdpPath:
        """Open a path to one remote address.

        Raises:
          ValueError: there is a path to it already.
          trio.ClosedResourceError: the port was closed.
        """
        if remote in self._paths:
            raise ValueError(f"there is a path to {remote} already")
        if self._closed:
            raise trio.ClosedResourceError("the port was closed")
        path = self._paths[remote] = UdpPath(self, remote)
        return path

    def forget(self, path: UdpPath) -> None:
        """Remove a path that was closed; a released port closes with its last one."""
        if self._paths.get(path.remote) is path:
            del self._paths[path.remote]
        if self._released and not self._paths:
            self.close_nowait()

    def release(self) -> None:
        """Give the port up: it closes with its last path, or now if it has none."""
        self._released = True
        if not self._paths:
            self.close_nowait()

    def close_nowait(self) -> None:
        """Close the port; its paths and transactions break.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._probes = None
        self._sock.close()
        for path in list(self._paths.values()):
            path.break_off("the port of this path was closed")
        for _, done in self._transactions.values():
            done.set()
        self._on_close(self)


@final
class UdpPorts:
    """The UDP ports of one node.

    Args:
      on_unreachable: see `UdpPort`.
    """

    def __init__(self, *, on_unreachable: Callable[[TransportAddress], None] = lambda _: None) -> None:
        self._on_unreachable = on_unreachable
        self._nursery: trio.Nursery | None = None
        self._ports: dict[UdpPort, None] = {}

    def __len__(self) -> int:
        return len(self._ports)

    @asynccontextmanager
    async def running(self, nursery: trio.Nursery) -> AsyncGenerator[None]:
        """Allow ports to be opened within the block; their owner tasks run in `nursery`, and end with the block."""
        self._nursery = nursery
        try:
            yield
        finally:
            self._nursery = None
            for port in list(self._ports):
                port.close_nowait()

    async def open(self, ip: str, port: int = 0) -> UdpPort:
        """Open a port on one of our addresses; the caller has to `release` it.

        Raises:
          OSError: the address is not ours, the port is taken, or `MAX_PORTS` are open; EMFILE where the process has no
            file descriptor to spare (`Host.spare_descriptors`).
          trio.ClosedResourceError: the node was closed.
        """
        self._check_room()
        if machine.current().spare_descriptors() <= 0:
            raise OSError(errno.EMFILE, "too few file descriptors are left for another UDP port")
        sock = await DatagramSocket.bind((ip, port))
        try:
            nursery = self._check_room()  # again: other tasks may have opened ports, and the node may have closed
            made = UdpPort(sock, on_close=self._forget, on_unreachable=self._on_unreachable)
            nursery.start_soon(made.serve, name=f"UDP port {made.local}")
        except BaseException:
            sock.close()
            raise
        self._ports[made] = None
        return made

    def _check_room(self) -> trio.Nursery:
        if self._nursery is None:
            raise trio.ClosedResourceError("this node was closed")
        if len(self._ports) >= MAX_PORTS:
            raise OSError(f"{MAX_PORTS} UDP ports are open already")
        return self._nursery

    def _forget(self, port: UdpPort) -> None:
        self._ports.pop(port, None)
