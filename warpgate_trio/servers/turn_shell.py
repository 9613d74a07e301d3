"""The tasks of a TURN server: `warpgate_trio.servers.turn` starts them, `warpgate_trio.servers.turn_core` decides.

A task that has called the core settles before it waits again (`TurnShell._settle`): messages are sent, and the sockets
of ended relays closed.
"""

from __future__ import annotations

import errno
import logging
import math
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn, TypeAlias, final

import trio

from .. import host as machine
from ..errors import StunMalformed
from ..limits import Budget, Gate
from ..ports.accepting import accept_connections
from ..sockaddr import Family, TransportAddress, plain_address, socket_family
from ..turn.framing import TurnStreamReader
from ..unforeseen import Unforeseen
from .replies import ReplySink, ServerSocket
from .stun_core import StunCore
from .turn_allocations import Allocation
from .turn_core import MAX_MESSAGE, TurnCore
from .turn_limits import TurnLimits
from .turn_requests import CHANNEL_NUMBERS

__all__ = [
    "MAX_PAYLOAD",
    "PORT_TRIES",
    "QUEUED_OVERHEAD",
    "READ",
    "REPORT_INTERVAL",
    "RelayPlaces",
    "Sink",
    "TlsContext",
    "TurnConnection",
    "TurnShell",
]

logger: logging.Logger = logging.getLogger(__name__)

MAX_PAYLOAD: Final = MAX_MESSAGE - 4
"""Bytes of a datagram that is relayed to a client: `MAX_MESSAGE` without the header of ChannelData."""
READ: Final = 64 * 1024
"""Bytes of one read, and of one write, of a connection: fifty messages."""
SEND_BUFFER: Final = 256 * 1024
"""Send buffer of a TCP connection in bytes, as requested from the kernel."""
QUEUED_OVERHEAD: Final = 64
"""Bytes of overhead that are counted for a queued message: its object, and its place in the queue."""
REPORT_INTERVAL: Final = 60.0
"""Seconds at least between two log lines about relayed addresses that cannot be opened."""
RETRY: Final = 1.0
"""Seconds until the timers run again after an unexpected error in them, which may recur."""
PORT_TRIES: Final = 16
"""Ports of a range that are tried for a relayed address; if all are taken, the range is nearly full."""
_BINDING_REQUEST: Final = b"\0\1"

Place: TypeAlias = tuple[int, int]
TlsContext: TypeAlias = ssl.SSLContext | Callable[[], ssl.SSLContext]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPlaces:
    """Where relayed addresses are opened.

    Attributes:
      hosts: the local address that they are bound to, by family.
      external: the address that clients receive instead, by family, if a NAT in front forwards all ports unchanged.
      ports: the ports that may be used; None lets the system choose.
    """

    hosts: Mapping[Family, str]
    external: Mapping[Family, str] = field(default_factory=dict)
    ports: range | None = None

    async def open(self, family: Family, *, even: bool = False) -> tuple[ServerSocket, TransportAddress]:
        """Open a socket for a relayed address; returns it and the address.

        Args:
          even: the port has to be even.

        Raises:
          OSError: there is no port or no file descriptor left.
        """
        tries = self._ports(even)
        while True:
            relay: ServerSocket | None = None
            try:
                relay = await self._bind(family, tries.pop())
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not tries:
                    raise
            if relay is not None:
                host, port = relay.address
                if not even or port % 2 == 0:
                    return relay, (self.external.get(family, host), port)
                relay.close()
                if not tries:
                    raise OSError(errno.EADDRINUSE, "no even port is free")

    def _ports(self, even: bool) -> list[int]:
        """The ports to try; 0 lets the system choose."""
        if self.ports is None:
            return [0] * (PORT_TRIES if even else 1)
        # The first even port is the start of the range, or the one after it.
        usable = self.ports[self.ports.start % 2 :: 2] if even else self.ports
        return machine.current().random.sample(usable, min(len(usable), PORT_TRIES))

    async def _bind(self, family: Family, port: int) -> ServerSocket:
        sock = trio.socket.socket(socket_family(self.hosts[family]), trio.socket.SOCK_DGRAM)
        try:
            if family == 6:
                sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
            await sock.bind((self.hosts[family], port))
            return ServerSocket(sock)
        except BaseException:
            sock.close()
            raise


@final
class TurnConnection:
    """A client's connection with its bounded queue of messages to write; what does not fit is dropped.

    Args:
      stream: to the client.
      host: the client's IP address, for `budget`.
      budget: the bytes that may wait for all connections.
      limit: the bytes that may wait for this one.

    Attributes:
      is_stream: True.
      heard_at: when the last complete message arrived.
    """

    def __init__(self, stream: trio.abc.Stream, host: str, budget: Budget, limit: int) -> None:
        self.is_stream: Final = True
        self.heard_at: float = trio.current_time()
        self._stream = stream
        self._encrypted = isinstance(stream, trio.SSLStream)
        self._host = host
        self._budget = budget
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._more = trio.Event()

    def send(self, data: bytes, _: TransportAddress) -> None:
        """Queue a message, or drop it."""
        cost = len(data) + QUEUED_OVERHEAD
        if self._held + cost <= self._limit and self._budget.take(self._host, cost):
            self._waiting.append(data)
            self._held += cost
            self._more.set()

    async def write(self) -> NoReturn:
        """Write queued messages, until cancelled.

        Raises:
          trio.BrokenResourceError: the client is gone.
        """
        while True:
            while self._waiting:
                # One message per TLS record: some clients lose further messages in a record.
                messages = self._take(0 if self._encrypted else READ)
                await self._stream.send_all(b"".join(messages))
                self._let_go(sum(map(len, messages)) + QUEUED_OVERHEAD * len(messages))
            self._more = trio.Event()
            await self._more.wait()

    def _take(self, most: int) -> list[bytes]:
        """The next message, and following ones as long as all fit into `most` bytes."""
        messages = [self._waiting.popleft()]
        length = len(messages[0])
        while self._waiting and (length := length + len(self._waiting[0])) <= most:
            messages.append(self._waiting.popleft())
        return messages

    def forget(self) -> None:
        """Give the budget back for messages that will not be written any more."""
        self._let_go(self._held)

    def _let_go(self, amount: int) -> None:
        self._held -= amount
        self._budget.give_back(self._host, amount)

    def close(self) -> None:
        """Do nothing: the connection ends with its task."""


Sink: TypeAlias = ReplySink | TurnConnection


@final
class TurnShell:
    """All tasks of one server."""

    def __init__(
        self, core: TurnCore[Sink], stun: StunCore, relays: RelayPlaces, limits: TurnLimits, nursery: trio.Nursery
    ) -> None:
        self._core = core
        self._stun = stun
        self._relays = relays
        self._limits = limits
        self._nursery = nursery
        self._gate = Gate(total=limits.connections, per_address=limits.connections_per_address)
        self._budget = Budget(total=limits.queued, per_address=limits.queued_per_address)
        self._unforeseen = Unforeseen(logger)
        self._sleeps_until = math.inf
        self._earlier = trio.Event()
        self._reported_at = -math.inf
        self._all_ended: Final = trio.lowlevel.ParkingLot()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._core.draining

    async def drain(self) -> None:
        """Refuse new allocations, make clients refresh theirs, and return when the last allocation has ended."""
        self._core.drain(trio.current_time())
        self._settle()
        await trio.lowlevel.checkpoint()
        while not self._core.is_over:
            await self._all_ended.park()

    async def keep_time(self) -> NoReturn:
        """Run the core's timers."""
        while True:
            self._earlier = trio.Event()
            self._sleeps_until = self._core.deadline
            with trio.CancelScope(deadline=self._sleeps_until):
                await self._earlier.wait()
            try:
                self._core.handle_timer(trio.current_time())
            except BaseException as error:
                if not self._unforeseen.contains(error, "ending an allocation"):
                    raise
                await trio.sleep(RETRY)
            self._settle()

    def _settle(self) -> None:
        """Send the core's messages, and close the sockets of ended relays; no checkpoint."""
        for sink, data, to in self._core.transmit(trio.current_time()):
            try:
                sink.send(data, to)
            except BaseException as error:
                if not self._unforeseen.contains(error, "sending a message"):
                    raise
        for relay in self._core.take_ended():
            relay.close()
        if self._core.deadline < self._sleeps_until:
            self._earlier.set()
        if self._core.is_over:
            self._all_ended.unpark_all()

    # -- Datagrams -----------------------------------------------------------------------------------------------------

    async def serve_datagrams(
        self, sock: ServerSocket, place: Place, sockets: Mapping[Place, ServerSocket]
    ) -> NoReturn:
        """Serve the clients of one UDP socket."""
        receive, wanted = self._core.receive, self._core.wanted
        while True:
            batch = await sock.receive_batch(MAX_MESSAGE)
            now = trio.current_time()
            for data, source, sink in batch:
                try:
                    if data.startswith(_BINDING_REQUEST):
                        self._answer_binding(data, source, sink, place, sockets)
                        continue
                    receive(data, sink, source, now)
                    if wanted:
                        await self._open_relays()
                except BaseException as error:
                    if not self._unforeseen.contains(error, "a client's datagram"):
                        raise
            self._settle()

    def _answer_binding(
        self,
        data: bytes,
        source: TransportAddress,
        sink: ReplySink,
        place: Place,
        sockets: Mapping[Place, ServerSocket],
    ) -> None:
        answer = self._stun.receive(data, plain_address(source), trio.current_time(), place=place)
        if answer is not None:
            # The scope of a link-local address is lost on the way through the core.
            answering = sink if answer.place == place else sockets[answer.place].sink
            answering.send(answer.data, (source[0], answer.to[1]))

    async def _open_relays(self) -> None:
        for allocation in self._core.take_wanted():
            try:
                relay, relayed = await self._relays.open(allocation.family, even=allocation.even_port)
            except OSError as error:
                self._report(error)
                self._core.not_opened(allocation, trio.current_time())
                continue
            except BaseException as error:
                if not self._unforeseen.contains(error, "opening a relayed address"):
                    raise
                self._core.not_opened(allocation, trio.current_time())
                continue
            if self._core.opened(allocation, relay.sink, relayed, trio.current_time()):
                self._nursery.start_soon(self._serve_relay, allocation, relay)
            else:
                relay.close()

    def _report(self, error: OSError) -> None:
        """Log why a relayed address cannot be opened, at most once per `REPORT_INTERVAL`."""
        now = trio.current_time()
        if now - self._reported_at >= REPORT_INTERVAL:
            self._reported_at = now
            logger.warning("cannot open a relayed address for a client: %s", error.strerror or error)

    async def _serve_relay(self, allocation: Allocation[Sink], relay: ServerSocket) -> None:
        """Relay the datagrams that arrive at a relayed address, until its socket is closed."""
        receive = self._core.receive_from_peer
        with self._unforeseen.containing("a relayed address"):
            try:
                while True:
                    for data, peer, _ in await relay.receive_batch(MAX_PAYLOAD):
                        try:
                            receive(allocation, data, peer)
                        except BaseException as error:
                            if not self._unforeseen.contains(error, "a peer's datagram"):
                                raise
                    self._settle()
            except trio.ClosedResourceError:
                pass  # the usual end
            finally:
                relay.close()
                self._core.lost(allocation)

    # -- Connections ---------------------------------------------------------------------------------------------------

    async def accept(self, listener: trio.socket.SocketType, place: Place, tls: TlsContext | None) -> None:
        """Serve the clients of one TCP listener."""
        await accept_connections(
            listener, lambda connection, source: self._nursery.start_soon(self._serve, connection, source, place, tls)
        )

    async def _serve(
        self, connection: trio.socket.SocketType, address: TransportAddress, place: Place, tls: TlsContext | None
    ) -> None:
        source = plain_address(address)
        with self._unforeseen.containing("a client's connection"):
            try:
                with self._gate.admit(source[0]) as admitted:
                    if admitted is not None:
                        connection.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, SEND_BUFFER)
                        stream: trio.abc.Stream = trio.SocketStream(connection)
                        if tls is not None:
                            context = tls if isinstance(tls, ssl.SSLContext) else tls()
                            encrypted = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
                            with trio.fail_after(self._limits.handshake):
                                await encrypted.do_handshake()
                            stream = encrypted
                        await self._converse(stream, source, place)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                logger.debug("TCP from %s: %s", source[0], error)
            finally:
                connection.close()

    async def _converse(self, stream: trio.abc.Stream, source: TransportAddress, place: Place) -> None:
        sink = TurnConnection(stream, source[0], self._budget, self._limits.queue)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_broken, sink.write, nursery.cancel_scope)
                nursery.start_soon(self._watch, sink, source, nursery.cancel_scope)
                await _until_broken(partial(self._read, stream, sink, source, place), nursery.cancel_scope)
        finally:
            sink.forget()
            self._core.disconnect(sink, source)
            self._settle()

    async def _read(
        self, stream: trio.abc.Stream, sink: TurnConnection, source: TransportAddress, place: Place
    ) -> None:
        """Process a connection's messages until the client leaves, or sends something that is not STUN or TURN."""
        reader = TurnStreamReader(most=MAX_MESSAGE, channels=CHANNEL_NUMBERS)
        while data := await stream.receive_some(READ):
            now = trio.current_time()
            for message in reader.feed(bytes(data)):
                sink.heard_at = now
                if message[:2] == _BINDING_REQUEST:
                    self._answer_binding_on_stream(message, sink, source, place)
                else:
                    self._core.receive(message, sink, source, now)
                    if self._core.wanted:
                        await self._open_relays()
            self._settle()

    async def _watch(self, sink: TurnConnection, source: TransportAddress, scope: trio.CancelScope) -> None:
        """End a connection that is silent for too long, unless it has an allocation, which expires by itself."""
        while True:
            await trio.sleep_until(sink.heard_at + self._limits.silence)
            now = trio.current_time()
            if self._core.has_allocation(sink, source):
                sink.heard_at = now
            elif now >= sink.heard_at + self._limits.silence:
                scope.cancel()
                return

    def _answer_binding_on_stream(
        self, message: bytes, sink: TurnConnection, source: TransportAddress, place: Place
    ) -> None:
        if self._stun.admit(source, trio.current_time()):
            answer = self._stun.receive_message(message, source, place=place)
            if answer is not None:
                sink.send(answer, source)


async def _until_broken(serve: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    """Run one of a connection's tasks; when it ends, cancel the others.

    A broken connection, or input that is not STUN or TURN, is a normal end.
    """
    try:
        await serve()
    except (OSError, trio.BrokenResourceError, StunMalformed) as error:
        logger.debug("a connection ended: %s", error)
    scope.cancel()
