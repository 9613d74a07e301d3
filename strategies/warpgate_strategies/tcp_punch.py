"""``tcp_punch``: TCP simultaneous open through both sides' NATs (docs/punching.md, laws 1, 2 and 7).

    initiator                                                                   responder
     │ a port that a STUN server has seen, and that listens                      │
     ├─ MeetByTcp(where I am, my time) ────── by signal ────────────────────────►│ a port of its own
     │◄─ MeetMeByTcp(where I am, instant) ─── by signal ─────────────────────────┤
     │ ───────────────────────────── the instant ─────────────────────────────── │
     ├─ SYN ─────────────────────────╲      ╱─────────────────────────────── SYN ┤
     │◄────────────────────────────── ╲────╱ ───────────────────────────────────►│
     ├─ TLS, on what was established ───────────────────────────────────────────►│

Crossing SYNs open both NATs, and become one connection (RFC 9293 §3.5).  The instant is on the responder's clock.  The
initiator knows that clock by the NTP servers that both sides have asked, or by the four timestamps of the two signals,
whichever is less uncertain.  Where a NAT answers an early SYN with a RST, both sides try again after about a round
trip, with jitter: measurements show that a fixed longer period can keep them apart for ever.

Where the answer comes late or not at all, both sides still know two more instants: the boundaries B and B + 1 of the
shared time.  For each boundary some ports follow from a secret in the request (`warpgate_trio.clock.rendezvous`).  The
sides meet there if both NATs preserve ports and the initiator knows the peer's external address from its record.

Where only one side's mapping is endpoint-dependent, that side also connects from a second port, which it does not
announce.  Its NAT may have endpoint-independent filtering at the first port, and would use another mapping for
connections from there.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Annotated, Final, final

import msgspec
import trio

from warpgate_trio.address.nat_profile import Allocation
from warpgate_trio.clock.peer_offset import combine, from_signal
from warpgate_trio.clock.rendezvous import Boundary, boundary_rendezvous, bucket_ports, can_meet
from warpgate_trio.errors import AttemptFailed, SignalError
from warpgate_trio.plugin import IP4, TCP, Aim, Likelihood, Message, PathRequest, Plugin, RouteType, register
from warpgate_trio.ports.tcp import TcpPort
from warpgate_trio.punch.candidates import Candidate, Candidates, to_candidates
from warpgate_trio.punch.outlook import punch_outlook

from .meeting import admitted, family_of, local_ip, own_candidates
from .stream_race import StreamRace, open_stream_race

if TYPE_CHECKING:
    from warpgate_trio.address import PeerAddress
    from warpgate_trio.address.nat_profile import NatProfile
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.sockaddr import TransportAddress

__all__ = ["MeetByTcp", "MeetMeByTcp", "TcpPunch"]

LEAD: Final = 0.01
"""Seconds from the signal's expected arrival to the instant: signals are late more often than early."""
UNKNOWN_ONE_WAY: Final = 0.1
"""Seconds that a signal is assumed to take where nothing was measured."""
MAX_WAIT: Final = 2.0
"""Seconds that a side waits for an instant at most, whatever the other side says: then the phase is over anyway."""
SURE: Final = 0.02
"""Seconds of uncertainty up to which two clocks are compared to measure how long a signal took."""
PERIOD: Final = 0.5
"""Seconds between boundaries: B and B + 1 both lie within a punch phase of 1.5 s, and clocks that are known to a
quarter of a second, as NTP's are, determine the same ones."""
BOUNDARY_LEAD: Final = 0.15
"""Seconds from the answer's expected arrival to B."""
BOUNDARY_PORTS: Final = 3
"""Ports of each boundary: another host behind either NAT may use one of them."""
PORT_RANGE: Final = (20000, 60000)
"""The range of the boundaries' ports, without those that systems and servers commonly use."""
SECRET_LENGTH: Final = 16

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Uncertainty = Annotated[float, msgspec.Meta(ge=0)]


@final
class MeetByTcp(PathRequest, frozen=True, kw_only=True):
    """The request.

    Attributes:
      candidates: the initiator's candidates.
      sent_at: the time of sending, on its clock.
      uncertainty: seconds by which that clock may be wrong; None where that is unknown.
      bucket: the first of the two boundaries at which it will connect if the answer does not arrive.
      secret: determines the ports of the boundaries.
    """

    candidates: Candidates
    sent_at: Seconds
    uncertainty: Uncertainty | None
    bucket: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_LENGTH, max_length=SECRET_LENGTH)]


@final
class MeetMeByTcp(Message, frozen=True, kw_only=True):
    """The answer: the responder's candidates, and the instant at which it will connect; times are on its clock."""

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
        outlook = punch_outlook(ours.tcp, peers.tcp, at_once=True)
        return outlook.likelihood, outlook.why

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        received_at = self.clock.now()
        async with self._open_port() as port, open_stream_race(self) as race:
            race.accept_on(port)
            across = self.route_type is RouteType.EXT_BIND
            predicted = await self.node.nat.predict_tcp(family_of(self), port) if across else []
            mine = to_candidates(own_candidates(self, port.local, port.mapped, predicted))
            if isinstance(reply, MeetByTcp):
                self._answer(race, port, mine, reply, received_at)
            else:
                race.start(self._ask, race, port, mine)
            return await race.first()

    @asynccontextmanager
    async def _open_port(self) -> AsyncGenerator[TcpPort]:
        ip = local_ip(self)
        port = await (self.node.nat.take_tcp(family_of(self)) if ip is None else TcpPort.open(ip))
        try:
            yield port
        finally:
            port.close()

    async def _listen_to_peer(self) -> None:
        """Receive the peer's refusal or failure, which ends the attempt."""
        while True:
            await self.receive_signal()

    # -- the two signals ---------------------------------------------------------------------------------------------

    async def _ask(self, race: StreamRace, port: TcpPort, mine: Candidates) -> None:
        """Send our candidates; receive the peer's, and the instant."""
        secret = self.node.host.entropy(SECRET_LENGTH)
        sent_at = self.clock.now()
        lead = 2 * self._expected_one_way() + BOUNDARY_LEAD
        boundaries = boundary_rendezvous(max(sent_at, 0.0), PERIOD, lead)
        await self.send_signal(
            MeetByTcp(
                af=family_of(self),
                route_type=self.route_type,
                candidates=mine,
                sent_at=sent_at,
                uncertainty=_finite(self.clock.uncertainty()),
                bucket=boundaries[0].bucket,
                secret=secret,
            )
        )
        unanswered = trio.CancelScope()
        race.start(self._keep_boundaries_in, unanswered, race, port, boundaries, secret)
        answer = await self.receive_signal()
        received_at = self.clock.now()
        unanswered.cancel(reason="the answer has come")
        if not isinstance(answer, MeetMeByTcp):
            raise AttemptFailed("the peer answered with an unexpected message")
        signal = None
        with suppress(ValueError):  # the timestamps are inconsistent: only NTP is left
            signal = from_signal(sent_at, answer.received_at, answer.sent_at, received_at)
        known = combine(_finite(self.clock.uncertainty()), answer.uncertainty, signal)
        wait = 0.0 if known is None else known.to_ours(answer.punch_at) - received_at
        self._punch(race, port, answer.candidates, wait, received_at - sent_at)
        await self._listen_to_peer()

    def _answer(
        self, race: StreamRace, port: TcpPort, mine: Candidates, request: MeetByTcp, received_at: float
    ) -> None:
        """Send our candidates and the instant, which is a moment after the answer's expected arrival.

        Nothing waits for a server to accept the answer: if it is lost, there are the boundaries.
        """
        sent_at = self.clock.now()
        took = self._one_way(request, received_at)
        wait = (self._expected_one_way() if took is None else took) + LEAD
        answer = MeetMeByTcp(
            candidates=mine,
            received_at=received_at,
            sent_at=sent_at,
            uncertainty=_finite(self.clock.uncertainty()),
            punch_at=sent_at + wait,
        )
        race.start(self._tell, answer)
        where = self._punch(race, port, request.candidates, wait, None if took is None else 2 * took)
        uncertainty = math.inf if request.uncertainty is None else request.uncertainty
        if can_meet(PERIOD, uncertainty + self.clock.uncertainty()):
            boundaries = [Boundary(bucket, bucket * PERIOD) for bucket in (request.bucket, request.bucket + 1)]
            race.start(self._keep_boundaries, race, boundaries, request.secret, where)

    async def _tell(self, answer: MeetMeByTcp) -> None:
        with suppress(SignalError):
            await self.send_signal(answer)
        await self._listen_to_peer()

    def _one_way(self, request: MeetByTcp, received_at: float) -> float | None:
        """Seconds that this signal took, if both clocks are accurate enough to measure that."""
        uncertainty = self.clock.uncertainty() + (math.inf if request.uncertainty is None else request.uncertainty)
        took = received_at - request.sent_at
        return took if uncertainty <= SURE and 0 < took < MAX_WAIT else None

    def _expected_one_way(self) -> float:
        return UNKNOWN_ONE_WAY if self.node.signal_rtt is None else self.node.signal_rtt / 2

    # -- meeting -----------------------------------------------------------------------------------------------------

    def _punch(
        self, race: StreamRace, port: TcpPort, candidates: Candidates, wait: float, round_trip: float | None
    ) -> str:
        """Connect to all candidates of the peer in `wait` seconds; returns the address of the first one."""
        theirs = admitted(self, candidates, port.mapped)
        if not theirs:
            raise AttemptFailed("none of the peer's candidates is allowed")
        at = trio.current_time() + min(max(wait, 0.0), MAX_WAIT)
        race.connect(port, theirs, at, round_trip=round_trip)
        if self._our_mapping_alone_varies():
            race.start(self._punch_from_another_port, race, theirs, at, round_trip)
        return theirs[0][0]

    def _our_mapping_alone_varies(self) -> bool:
        profiles = (side.nat_profiles.get(None, family_of(self)) for side in (self.node.address, _newest(self)))
        ours, peers = (profile.tcp.endpoint_independent for profile in profiles)
        return self.route_type is RouteType.EXT_BIND and ours is False and peers is True

    async def _punch_from_another_port(
        self, race: StreamRace, theirs: Sequence[TransportAddress], at: float, round_trip: float | None
    ) -> None:
        """Connect from a port that was not announced, which is as good where each destination has its own mapping.

        Connecting from the announced port made two connections between the same two ports, by two mappings, and each
        was answered with the other's sequence numbers: four of 1,500 such pairs did not meet.
        """
        try:
            port = await TcpPort.open(await self.node.nat.source(family_of(self)))
        except OSError:
            return
        with closing(port):
            race.connect(port, theirs, at, round_trip=round_trip)
            await trio.sleep_forever()

    async def _keep_boundaries_in(
        self, scope: trio.CancelScope, race: StreamRace, port: TcpPort, boundaries: Sequence[Boundary], secret: bytes
    ) -> None:
        """Connect at the boundaries to the external address in the peer's record, until `scope` is cancelled."""
        external = _newest(self).nat_profiles.get(None, 4).udp.external[:1]
        seen = admitted(self, [Candidate(ip.packed, 1) for ip in external], port.mapped)
        with scope:
            if seen and can_meet(PERIOD, 2 * self.clock.uncertainty()):
                await self._keep_boundaries(race, boundaries, secret, seen[0][0])

    async def _keep_boundaries(self, race: StreamRace, boundaries: Sequence[Boundary], secret: bytes, ip: str) -> None:
        """Accept on, and connect from, the boundaries' ports at their instants."""
        if self.route_type is not RouteType.EXT_BIND or self.af != IP4 or not self._both_preserve_ports():
            return
        try:
            local = await self.node.nat.source(4)
        except OSError:
            return  # the network is down
        async with AsyncExitStack() as stack:
            for boundary in boundaries:
                wait = boundary.instant - self.clock.now()
                if not 0 < wait <= MAX_WAIT:
                    continue
                at = trio.current_time() + wait
                for number in bucket_ports(secret, boundary.bucket, BOUNDARY_PORTS, *PORT_RANGE):
                    with suppress(OSError):  # another program uses that port
                        port = await TcpPort.open(local, number)
                        stack.callback(port.close)
                        race.accept_on(port)
                        race.connect(port, [(ip, number)], at)
            await trio.sleep_forever()

    def _both_preserve_ports(self) -> bool:
        sides = (self.node.address, _newest(self))
        return all(
            tcp.translated is False or (tcp.allocation is Allocation.PRESERVING and not tcp.delta)
            for tcp in (side.nat_profiles.get(None, 4).tcp for side in sides)
        )


def _newest(plugin: Plugin) -> PeerAddress:
    return plugin.node.known_address(plugin.peer.public_key) or plugin.peer


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
