"""From TCP ports and candidates to one proven carrier; the other half of `tcp_punch`.

A race has ports; on each it accepts, and from each it connects to what it is told.  Whatever is established is a
candidate: the initiator does TLS as the client on all of them and takes the first that holds the peer's key; the
responder takes the one on which the peer proves itself, which is the one that the initiator has chosen.

How a socket comes about is left to the systems: it connects, or, where the peer's SYN came first, the listener has it
and connecting fails with EADDRNOTAVAIL until the race is over.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVarTuple, final

import trio

from warpgate_trio.carrier import TlsCarrier
from warpgate_trio.errors import CarrierError, ProtocolError, panics_as_errors
from warpgate_trio.limits import Gate
from warpgate_trio.nurseries import open_background_nursery

from .winner import Winner

if TYPE_CHECKING:
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.plugin import Plugin
    from warpgate_trio.ports.tcp import TcpPort
    from warpgate_trio.sockaddr import TransportAddress

__all__ = ["MAX_CONNECTS", "MAX_HANDSHAKES", "StreamRace", "open_stream_race"]

logger: logging.Logger = logging.getLogger(__name__)

Args = TypeVarTuple("Args")

PATIENCE: Final = 0.5
"""Seconds for one SYN to be answered, where nobody knows how far the peer is; then it is taken for lost, since the
system itself would repeat it only after a second (RFC 6298 §2)."""
MIN_PATIENCE: Final = 0.2
"""Seconds for one SYN on a short path: as long as a busy system may need to answer."""
LATE: Final = 1.5
"""Round trips of a signal, whose way is the longer one as a rule, after which a SYN is taken for lost."""
REPEAT_MARGIN: Final = 0.1
"""Seconds before the system's next repeat at which a connect is given up, as no system wakes us on time."""
MIN_PAUSE: Final = 0.002
"""Seconds between a refusal and the next try at least, on a LAN where refusals take no time."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds before the next try when a connection cannot be accepted."""
UNSENT_PAUSE: Final = 0.1
"""Seconds before the next try when the system sends no SYN.  Mostly the listener has the peer's, half open
(EADDRNOTAVAIL), and that may come to nothing: 256 tries at `MIN_PAUSE` would be over before.  And when none may be
sent, as we have met others at that address often enough."""
REFUSALS: Final = (errno.ECONNREFUSED, errno.ECONNRESET)
"""How somebody on the way, or at its end, says no: a SYN was sent."""
MAX_CONNECTS: Final = 256
"""SYNs of one race, all ports and candidates together."""
MAX_OTHERS: Final = 3
"""Connections to one candidate that were made and led to no handshake: somebody else is there."""
MAX_HANDSHAKES: Final = 16
"""Connections that came to us, on which TLS is under way: strangers find the listener too, and give way to the peer."""


def before_a_repeat(patience: float) -> float:
    """Seconds after which a connect is given up that is to be waited for so long: shortly before a second is full.

    The system repeats the SYN then (after 1, 3, 7 … seconds by RFC 6298, each of the first five by newer Linux).
    Whoever gives up just after that kills the connection that the repeat makes: the peer takes it, and then hears
    another first SYN.  With a patience of 1.03 s, each connect met that of the one before, until the walk was over.
    """
    if patience <= 1 - REPEAT_MARGIN:
        return patience
    return math.ceil(patience + REPEAT_MARGIN) - REPEAT_MARGIN


def syns(patience: float) -> int:
    """How many SYNs a connect sends that is waited for, at most: the system repeats it at full seconds."""
    return 1 + int(patience)


@asynccontextmanager
async def open_stream_race(plugin: Plugin) -> AsyncGenerator[StreamRace]:
    """A race of one attempt; its tasks end with the block, and what they hold is closed.

    What `StreamRace.first` gave outlives the block, unless that is left by an exception.
    """
    with Winner() as winner:
        async with open_background_nursery() as nursery:
            yield StreamRace(plugin, nursery, winner)


@final
class StreamRace:
    """See the module's page; made by `open_stream_race`."""

    def __init__(self, plugin: Plugin, nursery: trio.Nursery, winner: Winner) -> None:
        self._plugin = plugin
        self._nursery = nursery
        self._winner = winner
        self._connects = 0
        self._gate = Gate(total=MAX_HANDSHAKES, per_address=MAX_HANDSHAKES, oldest_first=True)
        nat = plugin.node.nat
        self._dials = nat.dials_for_peers if plugin.inbound else nat.own_dials

    def start(self, task: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
        """Run a task until the race is over; what it raises ends the race."""
        self._nursery.start_soon(task, *args)

    def accept_on(self, port: TcpPort) -> None:
        """Take what comes to a port."""
        self._nursery.start_soon(self._accept, port)

    def connect(
        self, port: TcpPort, remotes: Sequence[TransportAddress], at: float, *, round_trip: float | None = None
    ) -> None:
        """From an instant on (`trio.current_time`), connect from a port to each candidate until one works.

        `round_trip` is that of a signal to the peer, in seconds, if it was measured.

        The first SYNs leave in the candidates' order.  Where both sides' ports were foretold, each SYN has a mapping of
        its own, the next one; they meet if the n-th SYN of each goes to where the other's n-th one comes from.
        """
        # At our own endpoints, TCP would meet itself.
        others = [each for each in remotes if each != port.local and each not in port.mapped.values()]
        patience = max(PATIENCE, 2 * (self._plugin.node.signal_rtt or 0.0))
        if round_trip is not None:
            patience = min(patience, max(MIN_PATIENCE, LATE * round_trip))
        self._nursery.start_soon(self._connect_in_order, port, others, at, before_a_repeat(patience))

    async def _connect_in_order(
        self, port: TcpPort, remotes: Sequence[TransportAddress], at: float, patience: float
    ) -> None:
        await trio.sleep_until(at)
        for remote in remotes:
            gone = trio.Event()
            self._nursery.start_soon(self._connect, port, remote, patience, gone)
            await gone.wait()

    async def first(self) -> Carrier | Link:
        """The winner, for as long as it takes: a carrier that we dialled, or a Link that the peer proved itself on."""
        return await self._winner.first()

    async def _accept(self, port: TcpPort) -> None:
        while not port.closed:
            try:
                sock, remote = await port.accept()
            except trio.ClosedResourceError:
                break  # the boundary that the port was for has passed
            except OSError as error:  # EMFILE and the like: it stays in the backlog, until something is closed
                logger.debug("cannot accept on %s: %s", port.local, error)
                await trio.sleep(ACCEPT_PAUSE)
                continue
            self._nursery.start_soon(self._admit, sock, remote)

    async def _admit(self, sock: trio.socket.SocketType, remote: TransportAddress) -> None:
        with self._gate.admit(remote[0]) as place:
            if place is not None:
                await self._handshake(sock, remote)
            else:
                sock.close()

    async def _connect(self, port: TcpPort, remote: TransportAddress, patience: float, gone: trio.Event) -> None:
        try:
            await self._connect_until_it_works(port, remote, patience, gone)
        finally:
            gone.set()

    async def _connect_until_it_works(
        self, port: TcpPort, remote: TransportAddress, patience: float, gone: trio.Event
    ) -> None:
        random = self._plugin.node.host.random
        others = 0
        while self._connects < MAX_CONNECTS and others < MAX_OTHERS and not port.closed:
            self._connects += 1
            began = trio.current_time()
            if not self._dials.take(remote[0], began):
                gone.set()
                await trio.sleep(UNSENT_PAUSE)
                continue
            sock = None
            unsent = somebody_else = False
            try:
                if not self._plugin.node.nat.allowance.take(remote[0], began, syns(patience)):
                    logger.debug("%s has been connected to often enough", remote)
                    return
                with trio.move_on_after(patience) as waiting:
                    try:
                        sock = await port.connect(remote, on_start=gone.set)
                    except (OSError, trio.ClosedResourceError) as error:
                        logger.debug("%s from %s: %s", remote, port.local, error)
                        refused = isinstance(error, OSError) and error.errno in REFUSALS
                        unsent = not refused and trio.current_time() < began + MIN_PAUSE
                if sock is not None:
                    others += 1
                    somebody_else = True  # until it is proven to be the peer
                    somebody_else = not await self._handshake(sock, remote)
            finally:
                if not somebody_else:
                    self._dials.give_back(remote[0])
            # After a refusal within a round trip, with jitter, since fixed periods would keep the two sides apart
            # (docs/punching.md, law 2); a SYN that was lost has been waited for.
            took = min(trio.current_time() - began, patience)
            pause = 0.0 if waiting.cancelled_caught else UNSENT_PAUSE if unsent else random.random() * took
            await trio.sleep(MIN_PAUSE + pause)

    async def _handshake(self, sock: trio.socket.SocketType, remote: TransportAddress) -> bool:
        """Whether the peer has proven itself on it."""
        plugin = self._plugin
        proven: Carrier | Link
        try:
            with panics_as_errors():
                if plugin.inbound:
                    proven = await plugin.receive_proof(await TlsCarrier.serve(sock, plugin.node.tls))
                else:
                    plugin.hold_phase()
                    proven = await TlsCarrier.dial(sock, plugin.node.tls, peer_key=plugin.peer.public_key)
        except (CarrierError, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%s is not the peer, or not the way it chose: %s", remote, error)
            return False
        except Exception:
            logger.warning("the handshake with %s failed; the race goes on", remote, exc_info=True)
            return False
        self._winner.offer(proven)
        return True
