"""``tcp_punch``: TCP simultaneous open through both sides' NATs (the seed's plugin; DESIGN §9.1, 9.2 and 9.7).

    initiator                                                                   responder
     │ a port that a STUN server has seen, and that listens                      │
     ├─ MeetByTcp(where I am, my time) ────── by signal ────────────────────────►│ a port of its own
     │◄─ MeetMeByTcp(where I am, instant) ─── by signal ─────────────────────────┤
     │ ───────────────────────────── the instant ─────────────────────────────── │
     ├─ SYN ─────────────────────────╲      ╱─────────────────────────────── SYN ┤
     │◄────────────────────────────── ╲────╱ ───────────────────────────────────►│
     ├─ TLS, on what was established ───────────────────────────────────────────►│

Crossing SYNs open both NATs, and become one connection (RFC 9293 §3.5).  The instant is on the responder's clock; the
initiator knows that clock by the time servers that both have asked, or by the four times of the two signals, whichever
is less uncertain.  Where a NAT answers a SYN that comes too early with a RST, both sides try again after about a round
trip, with jitter: a fixed longer period would keep them apart for ever, as it was measured.

Which socket it becomes is left to the systems: one that connects, or the listener, where the peer's SYN came first.
Whatever is established is a candidate; on each the initiator is the TLS client, and the first handshake wins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Final, final

import msgspec
import trio

from warpgate_trio.carrier import TlsCarrier
from warpgate_trio.clock.peer_offset import combine, from_signal
from warpgate_trio.errors import AttemptFailed, CarrierError, ProtocolError
from warpgate_trio.nat.candidates import Candidates, to_candidates
from warpgate_trio.nat.outlook import punch_outlook
from warpgate_trio.nat.tcp_port import TcpPort
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.plugin import TCP, Aim, Likelihood, Message, PathRequest, Plugin, RouteType, register

from .meeting import admitted, family_of, local_ip, own_candidates

if TYPE_CHECKING:
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.nat.profile import NatProfile
    from warpgate_trio.nat.stun import TransportAddress

__all__ = ["MeetByTcp", "MeetMeByTcp", "TcpPunch"]

logger: logging.Logger = logging.getLogger(__name__)

LEAD: Final = 0.01
"""Seconds that the instant is put after the signal's expected arrival: signals are late more often than early."""
UNKNOWN_ONE_WAY: Final = 0.1
"""Seconds that a signal is taken to need when nothing is known."""
MAX_WAIT: Final = 2.0
"""Seconds that either side waits for an instant, whatever the other one says: then the phase is over anyway."""
SURE: Final = 0.02
"""Seconds of uncertainty up to which two clocks are compared to tell how long a signal took."""
PATIENCE: Final = 0.5
"""Seconds for one SYN to be answered; then it is taken for lost, since the system itself would repeat it only after a
second (RFC 6298 §2)."""
MIN_PAUSE: Final = 0.002
"""Seconds between a refusal and the next try at least, on a LAN where refusals take no time."""
MAX_CONNECTS: Final = 256
"""SYNs of one attempt, all candidates together."""
MAX_OTHERS: Final = 3
"""Connections to one candidate that were made and led to no handshake: somebody else is there."""
MAX_HANDSHAKES: Final = 16
"""Connections on which TLS is under way: strangers may find the listener too."""

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Uncertainty = Annotated[float, msgspec.Meta(ge=0)]


@final
class MeetByTcp(PathRequest, frozen=True, kw_only=True):
    """Let us meet.

    Attributes:
      candidates: where the initiator is.
      sent_at: when it said so, on its clock.
      uncertainty: seconds by which that clock may be wrong; -1 or less cannot be, None: nobody knows.
    """

    candidates: Candidates
    sent_at: Seconds
    uncertainty: Uncertainty | None


@final
class MeetMeByTcp(Message, frozen=True, kw_only=True):
    """Where the responder is, and when it will knock; times are of its clock."""

    candidates: Candidates
    received_at: Seconds
    sent_at: Seconds
    uncertainty: Uncertainty | None
    punch_at: Seconds


@final
@register(phase="punch")
class TcpPunch(Plugin):
    name = "tcp_punch"
    transport = TCP
    route_types = frozenset(RouteType)
    timeout = 180.0
    proto_messages = (MeetByTcp, MeetMeByTcp)
    aim = Aim.MEET

    @classmethod
    def outlook(cls, ours: NatProfile, peers: NatProfile, af: int) -> tuple[Likelihood, str]:
        outlook = punch_outlook(ours.tcp, peers.tcp)
        return Likelihood(outlook.chance.value), outlook.why

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        received_at = self.clock.now()
        async with self._open_port() as port:
            across = self.route_type is RouteType.EXT_BIND
            predicted = await self.node.nat.predict_tcp(family_of(self)) if across else []
            mine = to_candidates(own_candidates(self, port.local, port.mapped, predicted))
            if isinstance(reply, MeetByTcp):
                theirs, wait = await self._answer(port, mine, reply, received_at)
            else:
                theirs, wait = await self._ask(port, mine)
            if not theirs:
                raise AttemptFailed("the peer named no place that may be sent to")
            self.nursery.start_soon(self._listen_to_peer)
            return await self._meet(port, theirs, wait)

    @asynccontextmanager
    async def _open_port(self) -> AsyncGenerator[TcpPort]:
        ip = local_ip(self)
        port = await (self.node.nat.take_tcp(family_of(self)) if ip is None else TcpPort.open(ip))
        try:
            yield port
        finally:
            port.close()

    async def _listen_to_peer(self) -> None:
        """Hear of it if the peer gives up."""
        while True:
            await self.receive_signal()

    # -- the two signals ---------------------------------------------------------------------------------------------

    async def _ask(self, port: TcpPort, mine: Candidates) -> tuple[list[TransportAddress], float]:
        """Say where we are; where the peer is, and in how many seconds we meet."""
        sent_at = self.clock.now()
        await self.send_signal(
            MeetByTcp(
                af=family_of(self),
                route_type=self.route_type,
                candidates=mine,
                sent_at=sent_at,
                uncertainty=_finite(self.clock.uncertainty()),
            )
        )
        answer = await self.receive_signal()
        received_at = self.clock.now()
        if not isinstance(answer, MeetMeByTcp):
            raise AttemptFailed("the peer answered with something else")
        signal = None
        with suppress(ValueError):  # its times are none: then there is only NTP to go by
            signal = from_signal(sent_at, answer.received_at, answer.sent_at, received_at)
        known = combine(_finite(self.clock.uncertainty()), answer.uncertainty, signal)
        wait = 0.0 if known is None else known.to_ours(answer.punch_at) - received_at
        return admitted(self, answer.candidates, port.mapped), _bounded(wait)

    async def _answer(
        self, port: TcpPort, mine: Candidates, request: MeetByTcp, received_at: float
    ) -> tuple[list[TransportAddress], float]:
        """Say where we are, and name the instant: when our answer has arrived, a moment later."""
        theirs = admitted(self, request.candidates, port.mapped)
        sent_at = self.clock.now()
        wait = self._one_way(request, received_at) + LEAD
        await self.send_signal(
            MeetMeByTcp(
                candidates=mine,
                received_at=received_at,
                sent_at=sent_at,
                uncertainty=_finite(self.clock.uncertainty()),
                punch_at=sent_at + wait,
            )
        )
        return theirs, _bounded(sent_at + wait - self.clock.now())

    def _one_way(self, request: MeetByTcp, received_at: float) -> float:
        """Seconds that a signal takes between the two."""
        uncertainty = self.clock.uncertainty() + (math.inf if request.uncertainty is None else request.uncertainty)
        if uncertainty <= SURE and 0 < received_at - request.sent_at < MAX_WAIT:
            return received_at - request.sent_at
        return UNKNOWN_ONE_WAY if self.node.signal_rtt is None else self.node.signal_rtt / 2

    # -- meeting -----------------------------------------------------------------------------------------------------

    async def _meet(self, port: TcpPort, theirs: Sequence[TransportAddress], wait: float) -> Carrier | Link:
        starts_at = trio.current_time() + wait
        wins, won = trio.open_memory_channel["Carrier | Link"](1)
        race = _Race(self, port, wins)
        with won:
            try:
                async with open_background_nursery() as nursery:
                    race.nursery = nursery
                    nursery.start_soon(race.accept)
                    for remote in theirs:
                        if remote != port.local and remote not in port.mapped.values():  # TCP would meet itself there
                            nursery.start_soon(race.knock, remote, starts_at)
                    winner = await won.receive()
            finally:
                wins.close()
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    won.receive_nowait().close_nowait()
        return winner


@final
class _Race:
    """What is established from one port, up to the first handshake."""

    def __init__(self, plugin: Plugin, port: TcpPort, wins: trio.MemorySendChannel[Carrier | Link]) -> None:
        self.nursery: trio.Nursery | None = None
        self._plugin = plugin
        self._port = port
        self._wins = wins
        self._connects = 0
        self._handshakes = 0

    async def accept(self) -> None:
        """Take what comes to the port."""
        assert self.nursery is not None
        while True:
            sock, remote = await self._port.accept()
            if self._handshakes < MAX_HANDSHAKES:
                self.nursery.start_soon(self._handshake, sock, remote)
            else:
                sock.close()

    async def knock(self, remote: TransportAddress, at: float) -> None:
        """From an instant on, connect to one candidate until that works."""
        await trio.sleep_until(at)
        random = self._plugin.node.host.random
        others = 0
        while self._connects < MAX_CONNECTS and others < MAX_OTHERS:
            self._connects += 1
            began = trio.current_time()
            with trio.move_on_after(self._patience()) as scope:
                try:
                    sock = await self._port.connect(remote)
                except OSError as error:
                    logger.debug("%s from %s: %s", remote, self._port.local, error)
                else:
                    scope.deadline = math.inf
                    await self._handshake(sock, remote)
                    others += 1
            took = trio.current_time() - began
            await trio.sleep(MIN_PAUSE + random.random() * min(took, PATIENCE))  # DESIGN §9.2: within a round trip

    def _patience(self) -> float:
        rtt = self._plugin.node.signal_rtt
        return PATIENCE if rtt is None else max(PATIENCE, 2 * rtt)

    async def _handshake(self, sock: trio.socket.SocketType, remote: TransportAddress) -> None:
        plugin = self._plugin
        winner: Carrier | Link
        self._handshakes += 1
        try:
            if plugin.inbound:
                winner = await plugin.hear_proof(await TlsCarrier.serve(sock, plugin.node.tls))
            else:
                winner = await TlsCarrier.dial(sock, plugin.node.tls, peer_key=plugin.peer.public_key)
        except (CarrierError, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%s is not the peer, or not the way it chose: %s", remote, error)
            return
        finally:
            self._handshakes -= 1
        try:
            self._wins.send_nowait(winner)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            winner.close_nowait()


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_WAIT)
