"""The STUN server over UDP and TCP: the Trio shell of `warpgate_trio.servers.stun_core`.

One task per UDP socket reads and answers, one per TCP listener accepts, and one per connection serves it.  With a
second address all four places are bound before the first answer, so that OTHER-ADDRESS is always reachable.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Final, NoReturn, final

import trio

from ..errors import StunMalformed
from ..limits import Gate
from ..nurseries import open_background_nursery
from ..ports.accepting import accept_connections
from ..sockaddr import TransportAddress, plain_address, show_address
from ..stun.codec import StreamReader
from ..unforeseen import Unforeseen
from .listening import bind_places, listening_hosts
from .replies import ReplySocket
from .stun_core import DEFAULT_LIMITS, MAX_REQUEST, StunCore, StunLimits, StunStatistics

__all__ = ["DEFAULT_PORT", "StunLimits", "StunServer", "StunStatistics", "open_stun_server", "serve_stun"]

logger: logging.Logger = logging.getLogger(__name__)

DEFAULT_PORT: Final = 3478
"""The port of STUN (RFC 8489 §18.6); a server with two addresses uses the next port too."""

_RECEIVE_SIZE: Final = MAX_REQUEST + 1
_Place = tuple[int, int]


@final
class StunServer:
    """A running STUN server, made by `open_stun_server` and `serve_stun`."""

    def __init__(self, core: StunCore, addresses: tuple[TransportAddress, ...]) -> None:
        self._core = core
        self.addresses = addresses
        """The addresses where it listens, over both UDP and TCP.  With a second address there are four: first the two
        addresses with the first port, then both with the second port."""

    def __repr__(self) -> str:
        return f"<StunServer {' '.join(self.urls)}>"

    @property
    def address(self) -> TransportAddress:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def urls(self) -> tuple[str, ...]:
        """``stun:host:port`` of each address, without the second port of RFC 5780."""
        return tuple(f"stun:{show_address(each)}" for each in self.addresses[:2])

    def statistics(self) -> StunStatistics:
        """Counts of what it has done so far."""
        return self._core.statistics()


async def serve_stun(
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    second_host: str | None = None,
    limits: StunLimits = DEFAULT_LIMITS,
    task_status: trio.TaskStatus[StunServer] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `nursery.start` returns the `StunServer` once it listens.

    Args:
      host: the address to listen on; None: all, IPv4 and IPv6.  Answers leave from the address that the request was
        sent to.
      port: for UDP and TCP; 0 lets the system choose.
      second_host: another address of this host, of the same family as `host`.  With it the server supports RFC 5780, on
        `port` and `port` + 1 of both addresses.
      limits: what strangers can make it do and hold.

    Raises:
      OSError: an address cannot be listened on.
      ValueError: `second_host` is given and `host` is None, or the two are equal or of different families.
    """
    hosts = listening_hosts(host, second_host)
    with ExitStack() as stack:
        if second_host is None:
            bound = await bind_places(stack, [(each, 0) for each in hosts], port, optional=host is None)
            keys: list[_Place] = [(0, 0)] * len(bound)
        else:
            keys = [(0, 0), (1, 0), (0, 1), (1, 1)]
            bound = await bind_places(stack, [(hosts[a], p) for a, p in keys], port)
        addresses = tuple(plain_address(udp.getsockname()) for udp, _ in bound)
        places = {} if second_host is None else dict(zip(keys, addresses, strict=True))
        core = StunCore(places, limits)
        sockets = {} if second_host is None else {key: udp for key, (udp, _) in zip(keys, bound, strict=True)}
        unforeseen = Unforeseen(logger)
        connections = _Connections(core, limits, unforeseen)
        async with trio.open_nursery() as nursery:
            for key, (udp, listener) in zip(keys, bound, strict=True):
                nursery.start_soon(_answer_datagrams, core, udp, key, sockets, unforeseen)
                nursery.start_soon(connections.accept, listener, key, nursery)
            task_status.started(StunServer(core, addresses))
            await trio.sleep_forever()
    raise AssertionError("unreachable")  # pragma: no cover


@asynccontextmanager
async def open_stun_server(
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    second_host: str | None = None,
    limits: StunLimits = DEFAULT_LIMITS,
) -> AsyncGenerator[StunServer]:
    """Run a STUN server during the body; arguments and errors as for `serve_stun`.

    An exception of the body is not wrapped in an ExceptionGroup.
    """
    async with open_background_nursery() as nursery:
        yield await nursery.start(partial(serve_stun, host=host, port=port, second_host=second_host, limits=limits))


# --- Serving ----------------------------------------------------------------------------------------------------------


async def _answer_datagrams(
    core: StunCore,
    sock: trio.socket.SocketType,
    place: _Place,
    sockets: dict[_Place, trio.socket.SocketType],
    unforeseen: Unforeseen,
) -> NoReturn:
    asked = ReplySocket(sock)
    while True:
        try:
            data, address, at = await asked.receive(_RECEIVE_SIZE)
        except OSError as error:
            if sock.fileno() < 0:
                raise
            logger.debug("UDP: %s", error)  # an ICMP error about an earlier answer
            continue
        try:
            answer = core.receive(data, plain_address(address), trio.current_time(), place=place)
            if answer is None:
                continue
            # The scope of a link-local address is lost on the way through the core.
            to = (answer.to[0], answer.to[1], *address[2:])
            if answer.place == place:
                await asked.reply(answer.data, to, at)
            else:
                await sockets[answer.place].sendto(answer.data, to)
        except OSError as error:
            logger.debug("an answer could not be sent: %s", error)
        except BaseException as error:
            if not unforeseen.contains(error, "a datagram"):
                raise


@final
class _Connections:
    """The TCP side."""

    def __init__(self, core: StunCore, limits: StunLimits, unforeseen: Unforeseen) -> None:
        self._core = core
        self._limits = limits
        self._unforeseen = unforeseen
        self._gate = Gate(total=limits.connections, per_address=limits.connections_per_address)

    async def accept(self, listener: trio.socket.SocketType, place: _Place, nursery: trio.Nursery) -> None:
        await accept_connections(
            listener, lambda connection, source: nursery.start_soon(self._serve, connection, source, place)
        )

    async def _serve(self, connection: trio.socket.SocketType, address: tuple[str, int], place: _Place) -> None:
        source = plain_address(address)
        with self._unforeseen.containing("a connection"):
            try:
                with self._gate.admit(source[0]) as admitted:
                    if admitted is not None:
                        await self._converse(trio.SocketStream(connection), source, place)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, StunMalformed) as error:
                logger.debug("TCP from %s: %s", source[0], error)
            finally:
                connection.close()

    async def _converse(self, stream: trio.SocketStream, source: TransportAddress, place: _Place) -> None:
        reader = StreamReader(most=MAX_REQUEST)
        silent_since = trio.current_time()
        while True:
            with trio.fail_at(silent_since + self._limits.silence):
                data = await stream.receive_some(_RECEIVE_SIZE)
            if not data:
                return
            for message in reader.feed(bytes(data)):
                if not self._core.admit(source, trio.current_time()):
                    return
                answer = self._core.receive_message(message, source, place=place)
                if answer is None:
                    return  # over TCP nothing is lost or forged, so the client does not speak STUN
                silent_since = trio.current_time()
                with trio.fail_after(self._limits.write):
                    await stream.send_all(answer)
