"""``udp_punch``: punch over UDP through the NATs of both sides (docs/punching.md, laws 3 to 5).

    initiator                                                                   responder
     │ a port that a STUN server has seen                                        │
     ├─ MeetByUdp(secret, where I am) ─────── by signal ────────────────────────►│ a port of its own
     │◄ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ openers: die on the way, open my NAT for yours ─ ─ ┤
     │◄─ MeetMeByUdp(where I am) ──────────── by signal ─────────────────────────┤
     ├─ probes: open our NAT, and pass the other one ───────────────────────────►│
     ├─ Go ────────────────────────────────── by signal ────────────────────────►│ probes too
     │◄───────────────────────────────────────────────────────────────── answers ┤
     ├─ QUIC, on the pair that answered ────────────────────────────────────────►│

No clock is needed, since each side sends probes only after the other has said that its NAT is open.  Within one
network, and on one host, the same exchange opens the firewalls of the hosts.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, final

import msgspec
import trio

from warpgate_trio.address.nat_profile import Filtering
from warpgate_trio.errors import AttemptFailed, SignalError
from warpgate_trio.plugin import UDP, Aim, Likelihood, Message, PathRequest, Plugin, RouteType, register
from warpgate_trio.punch.candidates import Candidates, to_candidates
from warpgate_trio.punch.outlook import punch_outlook
from warpgate_trio.punch.probe import SECRET_LENGTH

from .datagram_race import open_datagram_race
from .meeting import admitted, family_of, local_ip, own_candidates

if TYPE_CHECKING:
    from warpgate_trio.address.nat_profile import NatProfile, TransportProfile
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.ports.udp import UdpPort
    from warpgate_trio.sockaddr import TransportAddress

    from .datagram_race import DatagramRace

__all__ = ["Go", "MeetByUdp", "MeetMeByUdp", "UdpPunch"]

Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_LENGTH, max_length=SECRET_LENGTH)]


@final
class MeetByUdp(PathRequest, frozen=True, kw_only=True):
    """The request: `secret` is the key of the probes, `candidates` are the initiator's."""

    secret: Secret
    candidates: Candidates


@final
class MeetMeByUdp(Message, frozen=True):
    """The answer: the responder's candidates; its NATs are open for the initiator."""

    candidates: Candidates


@final
class Go(Message, frozen=True):
    """The initiator's NATs are open for the responder."""


@final
@register(phase="spray")
class UdpPunch(Plugin):
    name = "udp_punch"
    transport = UDP
    route_types = frozenset(RouteType)
    timeout = 150.0
    proto_messages = (MeetByUdp, MeetMeByUdp, Go)
    aim = Aim.MEET

    @classmethod
    def outlook(cls, ours: NatProfile, peers: NatProfile, af: int) -> tuple[Likelihood, str]:
        outlook = punch_outlook(ours.udp, peers.udp)
        return outlook.likelihood, outlook.why

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        if isinstance(reply, MeetByUdp):
            return await self._answer(reply)
        secret = self.node.host.entropy(SECRET_LENGTH)
        async with open_datagram_race(self, secret) as race:
            port, predicted = await self._port()
            number = race.use(port)
            await self.send_signal(
                MeetByUdp(
                    af=family_of(self),
                    route_type=self.route_type,
                    secret=secret,
                    candidates=to_candidates(own_candidates(self, port.local, port.mapped, predicted)),
                )
            )
            theirs = await self.receive_signal()
            if not isinstance(theirs, MeetMeByUdp):
                raise AttemptFailed("the peer answered with an unexpected message")
            self._aim(race, number, theirs.candidates)
            race.checks.probe(trio.current_time())
            await race.send_now()
            self.nursery.start_soon(self._go)
            return await race.first()

    async def _go(self) -> None:
        """Tell the peer that it may probe; then receive its refusal or failure, which ends the attempt."""
        with suppress(SignalError, AttemptFailed):  # without it the pair may still work, by our probes alone
            await self.send_signal(Go())
        while True:
            await self.receive_signal()

    async def _answer(self, request: MeetByUdp) -> Carrier | Link:
        async with open_datagram_race(self, request.secret) as race:
            port, predicted = await self._port()
            number = race.use(port)
            self._aim(race, number, request.candidates)
            await race.send_now()
            await self.send_signal(
                MeetMeByUdp(candidates=to_candidates(own_candidates(self, port.local, port.mapped, predicted)))
            )
            self.nursery.start_soon(self._wait_go, race)
            return await race.first()

    async def _wait_go(self, race: DatagramRace) -> None:
        while not isinstance(await self.receive_signal(), Go):
            pass
        race.checks.probe(trio.current_time())
        race.changed()

    async def _port(self) -> tuple[UdpPort, list[TransportAddress]]:
        """A port, and its predicted external addresses, if these differ from what servers saw."""
        ip = local_ip(self)
        if ip is not None:
            return await self.node.udp_ports.open(ip), []
        family = family_of(self)
        port = await self.node.nat.take_udp(family)
        try:
            return port, await self.node.nat.predict_udp(family, port)
        except BaseException:
            port.release()
            raise

    def _aim(self, race: DatagramRace, number: int, candidates: Candidates) -> None:
        remotes = admitted(self, candidates, race.ports[number].mapped)
        if not remotes:
            raise AttemptFailed("none of the peer's candidates is allowed")
        pairs = [(number, remote) for remote in remotes]
        waits = self._waits_to_be_heard()
        race.checks.add(pairs, trio.current_time(), silent=waits, opening=not waits)
        race.changed()

    def _waits_to_be_heard(self) -> bool:
        """Whether we must not send first.

        That is where our filtering is endpoint-independent and our mapping endpoint-dependent.  The peer can then send
        to the port that a server saw.  Our answer leaves by the same port if it is our first packet to the peer.  If we
        have sent before, it leaves by another port, which the peer's NAT does not know.
        """
        if self.route_type is not RouteType.EXT_BIND:
            return False
        peer = self.node.known_address(self.peer.public_key) or self.peer
        ours, theirs = (
            _moves_and_lets_in(each.nat_profiles.get(None, family_of(self)).udp) for each in (self.node.address, peer)
        )
        return ours and not (theirs and not self.inbound)  # of two such sides the initiator sends


def _moves_and_lets_in(profile: TransportProfile) -> bool:
    return profile.endpoint_independent is False and profile.filtering is Filtering.ENDPOINT_INDEPENDENT
