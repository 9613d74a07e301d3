"""From ports and candidates to one proven carrier over UDP: the common part of `udp_punch`, `random_probe` and `turn`.

`DatagramRace` drives the connectivity checks of `warpgate_trio.punch.checks` and races the pairs that they find.  The
initiator dials QUIC on the first pair that carries packets both ways, and on further pairs a moment later if that
handshake does not succeed at once.  The responder serves QUIC on every pair on which a probe of the peer arrived, and
takes the pair on which the peer sends its PROOF: that is the one which the initiator chose.

Ports belong to the race.  Those that the winner does not need are closed at its end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, final

import trio

from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.errors import CarrierError, ProtocolError, panics_as_errors
from warpgate_trio.nat.classify import Evidence, Sighting
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.plugin import RouteType
from warpgate_trio.ports.udp import UdpPort
from warpgate_trio.punch.checks import MAX_PACKETS, MAX_PROBES, Outgoing, Pair, PathChecks
from warpgate_trio.punch.probe import ProbeCodec

from .meeting import family_of
from .winner import Winner

if TYPE_CHECKING:
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.plugin import Plugin
    from warpgate_trio.ports.datagrams import DatagramPath, DatagramPort
    from warpgate_trio.sockaddr import TransportAddress

logger: logging.Logger = logging.getLogger(__name__)

__all__ = ["LINGER", "DatagramRace", "open_datagram_race"]

LINGER: Final = 5.0
"""Seconds for which the winner's port goes on answering probes: the peer may not have received ours yet."""
STAGGER: Final = 0.2
"""Seconds between two handshakes: one takes a round trip, and nearly always the first one wins."""
MAX_DIALS: Final = 4
"""Pairs dialled in one race because they answered a probe, and as many that only sent one, which proves less."""


@asynccontextmanager
async def open_datagram_race(
    plugin: Plugin, secret: bytes, *, burst: int = MAX_PACKETS, pause: float = 0.0, max_probes: int = MAX_PROBES
) -> AsyncGenerator[DatagramRace]:
    """The race of one attempt; see the module's docstring.  The arguments are those of `PathChecks`.

    The result of `DatagramRace.first` outlives the block, unless the block is left by an exception.
    """
    race = DatagramRace(plugin, secret, burst=burst, pause=pause, max_probes=max_probes)
    try:
        with race._winner:
            async with open_background_nursery() as nursery:
                race._nursery = nursery
                nursery.start_soon(race._send_due)
                try:
                    yield race
                finally:
                    race._nursery = None  # its tasks end, but packets still arrive
    finally:
        race._end()


@final
class DatagramRace:
    """See the module's docstring; made by `open_datagram_race`.

    Attributes:
      checks: the connectivity checks; call `changed` after changing them.
      ports: the ports; the index is the number in `Pair`s.
    """

    def __init__(self, plugin: Plugin, secret: bytes, *, burst: int, pause: float, max_probes: int) -> None:
        self._plugin = plugin
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._sent = trio.Event()
        self._winner = Winner()
        self._used: set[Pair] = set()
        self._dials = {False: 0, True: 0}  # by whether the pair had answered
        self._next_dial = {False: -1.0, True: -1.0}
        self._ends_at: float | None = None
        self.ports: Final[list[DatagramPort]] = []
        self.checks: Final = PathChecks(
            ProbeCodec(secret, initiator=not plugin.inbound),
            entropy=plugin.node.host.entropy,
            burst=burst,
            pause=pause,
            max_probes=max_probes,
            allow=lambda ip: plugin.node.nat.allowance.take(ip, trio.current_time()),
            on_heard=self._heard,
            on_confirmed=self._confirmed,
        )

    def use(self, port: DatagramPort) -> int:
        """Add a port, which the race owns from now on; returns its number in `Pair`s."""
        number = len(self.ports)
        self.ports.append(port)
        port.listen_for_probes(partial(self._receive, number))
        return number

    @property
    def heard(self) -> bool:
        """Whether an authentic packet of the peer has arrived."""
        return bool(self._used)

    def changed(self) -> None:
        """Tell the race that the checks have something new to send."""
        self._wake.set()

    async def send_now(self) -> None:
        """Send what is due in the calling task, since openers have to leave before the signal that announces them."""
        self.checks.handle_timer(trio.current_time())
        await self._send(self.checks.transmit(trio.current_time()))

    async def wait_opened(self) -> None:
        """Wait until an opener was sent on every pair, at the pace of the race."""
        self.changed()
        while self.checks.unopened:
            self._sent = trio.Event()
            await self._sent.wait()

    async def first(self) -> Carrier | Link:
        """Wait for the winner, without a time limit: a carrier that we dialled, or a Link whose peer is proven."""
        return await self._winner.first()

    # -- packets -----------------------------------------------------------------------------------------------------

    def _receive(self, number: int, data: bytes, source: TransportAddress) -> list[tuple[bytes, TransportAddress]]:
        now = trio.current_time()
        if self._ends_at is not None and now > self._ends_at:
            return []
        self.checks.receive(number, data, source, now)
        self._wake.set()
        return [(each.data, each.remote) for each in self.checks.transmit(now)]

    async def _send_due(self) -> None:
        while True:
            self._wake = trio.Event()
            await self.send_now()
            self._sent.set()
            with trio.move_on_at(self.checks.deadline):
                await self._wake.wait()

    async def _send(self, packets: Iterable[Outgoing]) -> None:
        for (number, hops), group in groupby(packets, key=lambda each: (each.socket, each.hops)):
            with suppress(trio.ClosedResourceError):  # this port broke; there may be others
                await self.ports[number].send([(each.data, each.remote) for each in group], hops=hops)

    # -- what the checks find ----------------------------------------------------------------------------------------

    def _heard(self, pair: Pair) -> None:
        """Try a pair on which a probe of the peer arrived: by sending it, the peer has opened its NAT for us."""
        self._try(pair, None)

    def _confirmed(self, pair: Pair, rtt: float) -> None:
        self._try(pair, rtt)

    def _try(self, pair: Pair, rtt: float | None) -> None:
        if self._nursery is None or pair in self._used or self.ports[pair[0]].closed:
            return
        if self._plugin.inbound:
            # The path is opened before the next packet of the batch is processed, which may begin the handshake.
            self._nursery.start_soon(self._serve, self.ports[pair[0]].open_path(pair[1]))
        elif self._dials[rtt is not None] < MAX_DIALS:
            self._dials[rtt is not None] += 1
            self._nursery.start_soon(self._dial, pair, rtt)
        else:
            return
        self._used.add(pair)

    async def _dial(self, pair: Pair, rtt: float | None) -> None:
        answered = rtt is not None
        at = self._next_dial[answered] = max(self._next_dial[answered] + STAGGER, trio.current_time())
        await trio.sleep_until(at)  # pacing, as with the Happy Eyeballs of RFC 8305
        await self.send_now()  # our probe has to arrive before the handshake, which the peer else does not accept
        try:
            path = self.ports[pair[0]].open_path(pair[1])
            if answered:
                self._plugin.hold_phase()
            with panics_as_errors():
                carrier = await QuicCarrier.dial(path, peer_key=self._plugin.peer.public_key, initial_rtt=rtt)
        except (CarrierError, trio.ClosedResourceError) as error:  # also with another node's key: another pair may work
            logger.debug("no QUIC over %s: %s", pair[1], error)
            return
        except Exception:
            logger.warning("dialling %s failed; the race goes on", pair[1], exc_info=True)
            return
        self._winner.offer(carrier)

    async def _serve(self, path: DatagramPath) -> None:
        try:
            with panics_as_errors():
                carrier = await self._plugin.node.serve_quic(path)
                link = await self._plugin.receive_proof(carrier)
        except (CarrierError, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("the peer chose another path than %s: %s", path.remote, error)
            return
        except Exception:
            logger.warning("serving %s failed; the race goes on", path.remote, exc_info=True)
            return
        self._winner.offer(link)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _tell_what_was_seen(self) -> None:
        """Report the mappings that the peer saw, beside those that servers saw: the NAT may have changed."""
        sightings = tuple(
            Sighting(announced=announced, observed=observed)
            for number, observed in self.checks.mapped.items()
            for announced in list(self.ports[number].mapped.values())[:1]
            if isinstance(self.ports[number], UdpPort)  # a relayed address is not our NAT's
        )
        if sightings and self._plugin.route_type is RouteType.EXT_BIND:
            self._plugin.node.nat.observe_udp(family_of(self._plugin), Evidence(sightings=sightings, received=True))

    def _end(self) -> None:
        """End the checks, and close all ports that the winner does not need."""
        self.checks.end()
        self._ends_at = trio.current_time() + LINGER
        self._tell_what_was_seen()
        logger.info(
            "%s: %d unsolicited packets sent from %d sockets, %d pairs tried",
            self._plugin.name,
            self.checks.packets,
            len(self.ports),
            len(self._used),
        )
        for port in self.ports:
            port.release()
        self.ports.clear()  # the port that the winner keeps refers to this race
