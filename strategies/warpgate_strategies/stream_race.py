"""From TCP ports and candidates to one proven carrier; the other half of `tcp_punch`.

A race has ports.  On each it accepts connections, and from each it connects to given candidates.  The initiator runs
TLS as the client on every established connection, and takes the first whose other end has the peer's key.  The
responder takes the connection on which the peer sends its PROOF: that is the one which the initiator chose.

The operating systems decide how a connection is established.  It connects; or, where the peer's SYN came first, the
listener has it, and connecting fails with EADDRNOTAVAIL until the race is over.
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
"""Seconds for one SYN to be answered, where the distance to the peer is not known.  Then it counts as lost, since the
system itself would retransmit it only after a second (RFC 6298 §2)."""
MIN_PATIENCE: Final = 0.2
"""Seconds for one SYN on a short path: as long as a busy system may need to answer."""
LATE: Final = 1.5
"""Signal round trips after which a SYN counts as lost; signals mostly take the longer way."""
REPEAT_MARGIN: Final = 0.1
"""Seconds before the system's next retransmission at which a connect is given up, as timers may fire late."""
MIN_PAUSE: Final = 0.002
"""Seconds between a refusal and the next try at least, on a LAN where refusals take no time."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds before the next try when a connection cannot be accepted."""
UNSENT_PAUSE: Final = 0.1
"""Seconds before the next try when no SYN was sent.  Either the system sends none, mostly because the listener has the
peer's half-open connection (EADDRNOTAVAIL), which may still fail: 256 tries at `MIN_PAUSE` would be used up before.  Or
the dial budget of that address is used up."""
REFUSALS: Final = (errno.ECONNREFUSED, errno.ECONNRESET)
"""Errors of a SYN that was sent and refused, by the target or on the way."""
MAX_CONNECTS: Final = 256
"""Connects of one race, over all ports and candidates."""
MAX_OTHERS: Final = 3
"""Established connections to one candidate without a successful handshake: another host is there."""
MAX_HANDSHAKES: Final = 16
"""Inbound connections on which TLS is under way.  Strangers may find the listener too; the oldest ones give way."""


def before_a_repeat(patience: float) -> float:
    """The patience for a connect, in seconds, adjusted to end shortly before a full second.

    At full seconds the system retransmits the SYN (after 1, 3, 7 … seconds by RFC 6298, in each of the first five by
    newer Linux).  Giving up right after that kills the connection which the retransmission makes: the peer accepts it,
    and then receives another first SYN.  With a patience of 1.03 s, each connect collided with the previous one, until
    the walk was over.
    """
    if patience <= 1 - REPEAT_MARGIN:
        return patience
    return math.ceil(patience + REPEAT_MARGIN) - REPEAT_MARGIN


def syns(patience: float) -> int:
    """The largest number of SYNs that a connect of this patience sends: the system retransmits at full seconds."""
    return 1 + int(patience)


@asynccontextmanager
async def open_stream_race(plugin: Plugin) -> AsyncGenerator[StreamRace]:
    """The race of one attempt; its tasks end with the block, and their connections are closed.

    The result of `StreamRace.first` outlives the block, unless the block is left by an exception.
    """
    with Winner() as winner:
        async with open_background_nursery() as nursery:
            yield StreamRace(plugin, nursery, winner)


@final
class StreamRace:
    """See the module's docstring; made by `open_stream_race`."""

    def __init__(self, plugin: Plugin, nursery: trio.Nursery, winner: Winner) -> None:
        self._plugin = plugin
        self._nursery = nursery
        self._winner = winner
        self._connects = 0
        self._gate = Gate(total=MAX_HANDSHAKES, per_address=MAX_HANDSHAKES, oldest_first=True)
        nat = plugin.node.nat
        self._dials = nat.dials_for_peers if plugin.inbound else nat.own_dials

    def start(self, task: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
        """Run a task until the race is over; an exception in it ends the race."""
        self._nursery.start_soon(task, *args)

    def accept_on(self, port: TcpPort) -> None:
        """Accept connections on a port."""
        self._nursery.start_soon(self._accept, port)

    def connect(
        self, port: TcpPort, remotes: Sequence[TransportAddress], at: float, *, round_trip: float | None = None
    ) -> None:
        """From the instant `at` on, connect from a port to each candidate, again and again until one works.

        The first SYNs leave in the candidates' order.  Where both sides' ports were predicted, each SYN gets the next
        mapping; the sides meet if the n-th SYN of each goes to the mapping of the other's n-th SYN.

        Args:
          at: on the clock of `trio.current_time`.
          round_trip: seconds of a signal to the peer and back, if measured.
        """
        # A connection to one of our own endpoints would be one to ourselves.
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
        """Wait for the winner, without a time limit: a carrier that we dialled, or a Link whose peer is proven."""
        return await self._winner.first()

    async def _accept(self, port: TcpPort) -> None:
        while not port.closed:
            try:
                sock, remote = await port.accept()
            except trio.ClosedResourceError:
                break  # the port was closed by its owner
            except OSError as error:  # EMFILE and the like: the connection stays in the backlog
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
                    logger.debug("%s: packet limit of this address reached", remote)
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
            # After a refusal the pause is up to a round trip, at random, since fixed periods would keep the two sides
            # apart (docs/punching.md, law 2).  After a lost SYN there is none.
            took = min(trio.current_time() - began, patience)
            pause = 0.0 if waiting.cancelled_caught else UNSENT_PAUSE if unsent else random.random() * took
            await trio.sleep(MIN_PAUSE + pause)

    async def _handshake(self, sock: trio.socket.SocketType, remote: TransportAddress) -> bool:
        """Run the handshake on a connection; whether the other end is the peer."""
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
            logger.debug("%s is not the peer, or not the connection it chose: %s", remote, error)
            return False
        except Exception:
            logger.warning("the handshake with %s failed; the race goes on", remote, exc_info=True)
            return False
        self._winner.offer(proven)
        return True
