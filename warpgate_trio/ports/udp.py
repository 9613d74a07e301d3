"""One UDP port of ours and everything that goes through it (docs/punching.md, laws 1 and 6).

The port that asked a STUN server is the port that punches, and the port that carries QUIC afterwards: what a NAT lets
in is tied to it.  So several conversations share a socket.  One owner task reads it and sorts what comes; the first of
these that applies has it:

    the answer to a request of ours      to its transaction
    from a source that has a handler     to that handler (a TURN server's, say)
    0 to 3, with STUN's cookie           to the checks that listen for probes (RFC 9443 tells by the first byte)
    anything else                        to the path that was opened to the source; without one it is dropped

A port outlives the attempt that used it exactly when a path of it was kept: `release` closes it now, or with its last
path.  `UdpPorts` is the node's: it runs the owner tasks, and closes every port when the node has ended.
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
Beyond that they are dropped, as a full socket buffer does it."""
UNREACHABLE: Final = 3
"""Datagrams in a row that found no way out of this machine, after which who has paths on the port is told: one may be
a route that is just being replaced."""
MAX_PORTS: Final = 1024
"""UDP ports open in one node: two sprays of 256 sockets and some hundred Links; a process's usual limit of files."""


class PathOwner(Protocol):
    """What a `UdpPath` is a path of."""

    @property
    def local(self) -> TransportAddress: ...
    async def send(self, datagrams: Iterable[Datagram], /) -> None: ...
    def send_nowait(self, datagrams: Iterable[Datagram], /) -> None: ...
    def forget(self, path: UdpPath, /) -> None:
        """The path was closed."""


@final
class UdpPath:
    """The `DatagramPath` of one remote address through a `UdpPort`, or through whatever else supplies datagrams."""

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
        """A datagram has come in from there."""
        if len(self._waiting) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._waiting.append(data)
        self._arrived.set()

    def break_off(self, why: str) -> None:
        """Its port is no more; who sends or receives hears `why`."""
        self._broken = why
        self._arrived.set()


@final
class UdpPort:
    """One socket; made by `UdpPorts.open`, which runs its owner task.

    Args:
      on_unreachable: told its address when `UNREACHABLE` datagrams in a row found no way out of this machine.

    Attributes:
      local: its own address.
      dropped: datagrams that belonged to nobody.
      mapped: where STUN servers saw it last, by server.
      mapped_at: when that was (`trio.current_time`).
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
        """What could not be sent, and why; see `DatagramSocket.errors`."""
        return dict(self._sock.errors)

    async def serve(self) -> None:
        """The owner task: read and sort until the port is closed.

        Shielded: when the node is cancelled, the goodbyes of its Links still need their sockets.  `UdpPorts` closes it.
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
        """A datagram on which somebody's code fails is dropped: the next one may be the peer's."""
        try:
            with panics_as_errors():
                return list(self._sort(data, source))
        except Exception:
            log = logger.debug if self.dropped else logger.warning  # anybody can send the same a thousand times
            log("UDP port %s: a datagram from %s was not understood", self.local, source, exc_info=True)
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
            return ()  # it names a request of ours, and is no answer to it
        if is_stun:
            if self._probes is not None:
                return self._probes(data, source)
        elif (path := self._paths.get(source)) is not None:
            path.take(data)
            return ()
        self.dropped += 1
        return ()

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        """Send a batch; a checkpoint always.  What cannot be sent is dropped.

        Raises:
          trio.ClosedResourceError: the port was closed.
        """
        await self._sock.send_batch(datagrams, hops=hops)
        if self._sock.unreachable >= UNREACHABLE:
            self._sock.unreachable = 0
            self._on_unreachable(self.local)

    def send_nowait(self, datagrams: Iterable[Datagram]) -> None:
        """Send what goes without waiting; the rest is dropped.  Never raises."""
        self._sock.send_nowait(datagrams)

    async def query(self, server: TransportAddress, *, rto: float, tries: int) -> StunAnswer:
        """Ask a STUN server where it sees this port; the answer is kept in `mapped`.

        Args:
          rto, tries: RFC 8489 §6.2.1; the wait doubles after the last request too, so it is over after
            ``rto * (2 ** tries - 1)`` seconds.

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
        """Send a request and wait until the transaction is done, whatever its method; then its owner reads the answer.

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
        """Give what comes from `source` to `handler`, within the block; answers to requests of ours come before."""
        self._handlers[source] = handler
        try:
            yield
        finally:
            del self._handlers[source]

    def listen_for_probes(self, handler: DatagramHandler | None) -> None:
        """Give STUN packets that answer nothing of ours to `handler`, until another one or None takes its place."""
        self._probes = handler

    def open_path(self, remote: TransportAddress) -> UdpPath:
        """A path to one remote address; ValueError when it has one."""
        if remote in self._paths:
            raise ValueError(f"there is a path to {remote} already")
        if self._closed:
            raise trio.ClosedResourceError("the port was closed")
        path = self._paths[remote] = UdpPath(self, remote)
        return path

    def forget(self, path: UdpPath) -> None:
        """A path was closed."""
        if self._paths.get(path.remote) is path:
            del self._paths[path.remote]
        if self._released and not self._paths:
            self.close_nowait()

    def release(self) -> None:
        """Whoever opened the port needs it no more: it closes with its last path, or now."""
        self._released = True
        if not self._paths:
            self.close_nowait()

    def close_nowait(self) -> None:
        """Close it; what stands on it breaks.  Idempotent."""
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
        """Ports can be opened within the block; their owner tasks run in `nursery`, and end with the block."""
        self._nursery = nursery
        try:
            yield
        finally:
            self._nursery = None
            for port in list(self._ports):
                port.close_nowait()

    async def open(self, ip: str, port: int = 0) -> UdpPort:
        """A port on one of our addresses; it is the caller's to `release`.

        Raises:
          OSError: the address is not ours, the port is taken, or there are too many open already; EMFILE where the
            process has no file descriptor to spare (`Host.spare_descriptors`).
          trio.ClosedResourceError: the node was closed.
        """
        self._check_room()
        if machine.current().spare_descriptors() <= 0:
            raise OSError(errno.EMFILE, "the last file descriptors are not for UDP ports")
        sock = await DatagramSocket.bind((ip, port))
        try:
            nursery = self._check_room()  # others may have been here, and the node may have closed
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
