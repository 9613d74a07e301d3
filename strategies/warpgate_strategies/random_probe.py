"""``random_probe``: a spray, for pairs where one side's NAT assigns unpredictable ports (docs/punching.md).

One side is *easy*: its socket has one mapping towards all destinations.  The other is *hard*: each socket has another
mapping for each destination.  The easy side opens its NAT for K ports of the hard side's range, with packets that
expire on the way.  Then the hard side sends from N sockets to the easy side's one mapping.  They meet if one of the N
ports is one of the K, which is a birthday problem (`warpgate_trio.punch.spray`).

    initiator                                                        responder
     ├─ SprayForMe(secret, where I am) ─── by signal ───────────────►│ decides who is easy, by both sides' profiles
     │                                                               │
     │  easy: opens K ports                                          │  easy: opens K ports
     │◄───────────────────────── SprayAgreed(role, where I am) ──────┤
     ├─ Opened ───────────────── only if the initiator is easy ─────►│
     │  hard: probes from N sockets                                  │  hard: probes from N sockets
     │◄──────────────────── answers, and QUIC as in udp_punch ──────►│

Whichever side initiates, both roles follow from the profiles that the two sides have measured.  A profile is a claim:
it can order and reduce the work, but not exceed the caps of `warpgate_trio.punch.spray`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, final

import msgspec
import trio

from warpgate_trio.address.nat_profile import Allocation
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.plugin import UDP, Aim, Likelihood, Message, PathRequest, Plugin, RouteType, register
from warpgate_trio.punch.candidates import Candidates, to_candidates
from warpgate_trio.punch.outlook import spray_outlook
from warpgate_trio.punch.probe import SECRET_LENGTH
from warpgate_trio.punch.spray import (
    BURST,
    BURST_INTERVAL,
    Role,
    draw_ports,
    plan_both_hard,
    plan_spray,
    spray_roles,
)

from .datagram_race import open_datagram_race
from .meeting import admitted, own_candidates

if TYPE_CHECKING:
    from warpgate_trio.address.nat_profile import NatProfile, TransportProfile
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.sockaddr import TransportAddress

    from .datagram_race import DatagramRace

__all__ = ["Opened", "RandomProbe", "SprayAgreed", "SprayBusy", "SprayForMe"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_PROBES: Final = 4
"""Probes of each of the N sockets: one that arrives is enough, and 40 from each of 256 sockets would be a flood."""
RETRY_AFTER: Final = 2.0
"""Seconds after which another spray is expected to be over."""
MIN_RETRY: Final = 0.5
"""Seconds that this side waits at least before it asks again, whatever the peer says."""
MAX_ASKS: Final = 8
"""Requests that one peer may send in one attempt: with the required waits it needs five in the time that it has."""
FORETELLING: Final = 1.0
"""Seconds that a side with predictable ports leaves to `udp_punch`, whose prediction other mappings would upset."""
MAX_ADDRESSES: Final = 2
"""External addresses of a peer that are sprayed at: a pool may have more, but one socket is behind one of them."""

Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_LENGTH, max_length=SECRET_LENGTH)]


@final
class SprayForMe(PathRequest, frozen=True, kw_only=True):
    """The request: `secret` is the key of the probes, `candidates` are the initiator's server-reflexive addresses."""

    secret: Secret
    candidates: Candidates


@final
class SprayAgreed(Message, frozen=True, kw_only=True):
    """The answer: the responder's role and candidates; if it is easy, it has opened its NAT."""

    role: Role
    candidates: Candidates


@final
class SprayBusy(Message, frozen=True, kw_only=True):
    """Another spray to the initiator's address, or for other peers, is under way; ask again after so many seconds."""

    retry_after: Annotated[float, msgspec.Meta(gt=0, le=60)]


@final
class Opened(Message, frozen=True):
    """The initiator has opened its NAT; sent if it is easy, or if both sides are hard."""


@final
@register(phase="spray")
class RandomProbe(Plugin):
    name = "random_probe"
    transport = UDP
    route_types = frozenset({RouteType.EXT_BIND})
    timeout = 150.0
    proto_messages = (SprayForMe, SprayAgreed, SprayBusy, Opened)
    aim = Aim.MEET

    @classmethod
    def outlook(cls, ours: NatProfile, peers: NatProfile, af: int) -> tuple[Likelihood, str]:
        if af != 4:
            return Likelihood.INVALID, "IPv6 firewalls translate no ports"
        outlook = spray_outlook(ours.udp, peers.udp)
        return outlook.likelihood, outlook.why

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        secret = reply.secret if isinstance(reply, SprayForMe) else self.node.host.entropy(SECRET_LENGTH)
        await self.node.nat.wait_looked("udp", 4)  # the roles depend on it, and a spray would upset the measurement
        if reply is None and self._ours().allocation is Allocation.SEQUENTIAL:
            await trio.sleep(FORETELLING)  # pacing: a mapping in between would change the port predicted to the peer
        async with open_datagram_race(self, secret, burst=BURST, pause=BURST_INTERVAL, max_probes=MAX_PROBES) as race:
            port = await self.node.nat.take_udp(4)
            number = race.use(port)
            mine = to_candidates(own_candidates(self, port.local, port.mapped))
            if isinstance(reply, SprayForMe):
                return await self._answer(race, number, reply, mine)
            return await self._ask(race, number, secret, mine)

    # -- the initiator -----------------------------------------------------------------------------------------------

    async def _ask(self, race: DatagramRace, number: int, secret: bytes, mine: Candidates) -> Carrier | Link:
        if not self.node.nat.sprays.has_ports(self._ports_taken(self._role()), self._ours(), trio.current_time()):
            raise AttemptFailed(_NO_PORTS)  # before the peer uses its own ports in vain
        request = SprayForMe(af=4, route_type=self.route_type, secret=secret, candidates=mine)
        await self.send_signal(request)
        answer = await self.receive_signal()
        while isinstance(answer, SprayBusy):
            await trio.sleep(max(answer.retry_after, MIN_RETRY))  # pacing, at the peer's word
            await self.send_signal(request)
            answer = await self.receive_signal()
        if not isinstance(answer, SprayAgreed):
            raise AttemptFailed("the peer answered with an unexpected message")
        role = _COUNTERPART[answer.role]
        target = self._admitted(race, number, answer.candidates)[0][0]
        while True:
            with self.node.nat.sprays.hold(target, self.session_id, for_peer=False) as free:
                if free:
                    await self._prepare(race, number, role, answer.candidates)
                    if role is not Role.HARD:
                        await self.send_signal(Opened())
                    if role is not Role.EASY:
                        race.checks.probe(trio.current_time())
                        race.changed()
                    self.nursery.start_soon(self._listen_to_peer)
                    return await race.first()
            await trio.sleep(RETRY_AFTER)  # pacing: the peer's own call has the lower session, and goes first

    async def _listen_to_peer(self) -> None:
        """Receive the peer's refusal or failure, which ends the attempt."""
        while True:
            await self.receive_signal()

    # -- the responder -----------------------------------------------------------------------------------------------

    async def _answer(self, race: DatagramRace, number: int, request: SprayForMe, mine: Candidates) -> Carrier | Link:
        role = self._role()
        if role is None:
            raise AttemptFailed("both mappings are endpoint-independent: no spray is needed")
        for _ in range(MAX_ASKS):
            theirs = self._admitted(race, number, request.candidates)
            with self.node.nat.sprays.hold(theirs[0][0], self.session_id, for_peer=True) as free:
                if free:
                    await self._prepare(race, number, role, request.candidates)
                    await self.send_signal(SprayAgreed(role=role, candidates=mine))
                    self.nursery.start_soon(self._wait_opened, race, role)
                    return await race.first()
            await self.send_signal(SprayBusy(retry_after=RETRY_AFTER))
            again = await self.receive_signal()
            if not isinstance(again, SprayForMe):
                raise AttemptFailed("the peer answered with an unexpected message")
            request = again
        raise AttemptFailed("the peer did not wait for this side's other sprays")

    async def _wait_opened(self, race: DatagramRace, role: Role) -> None:
        while True:
            if isinstance(await self.receive_signal(), Opened) and role is not Role.EASY:
                race.checks.probe(trio.current_time())
                race.changed()

    # -- both --------------------------------------------------------------------------------------------------------

    def _ours(self) -> TransportProfile:
        return self.node.address.nat_profiles.get(None, 4).udp

    def _theirs(self) -> TransportProfile:
        newest = self.node.known_address(self.peer.public_key) or self.peer
        return newest.nat_profiles.get(None, 4).udp

    def _role(self) -> Role | None:
        return spray_roles(self._ours(), self._theirs(), we_are_lower=self.node.peer_id < self.peer.peer_id)

    def _ports_taken(self, role: Role | None) -> int:
        """The largest number of our own NAT's ports that a spray takes."""
        if role is Role.HARD:
            return plan_spray(self._ours()).sockets
        plan = plan_both_hard(self._ours(), self._theirs())
        return plan.openers if role is Role.BOTH and plan.worth_it else 0

    def _admitted(self, race: DatagramRace, number: int, candidates: Candidates) -> list[TransportAddress]:
        theirs = admitted(self, candidates, race.ports[number].mapped)
        if not theirs:
            raise AttemptFailed("none of the peer's candidates is allowed")
        return theirs

    async def _prepare(self, race: DatagramRace, number: int, role: Role, candidates: Candidates) -> None:
        """Prepare before the peer is told: send the openers of an easy side, open the sockets of a hard one."""
        theirs = self._admitted(race, number, candidates)
        now = trio.current_time()
        if not self.node.nat.sprays.take_ports(self._ports_taken(role), self._ours(), now):
            raise AttemptFailed(_NO_PORTS)
        if role is Role.EASY:
            plan = plan_spray(self._theirs())
            addresses = list(dict.fromkeys(ip for ip, _ in theirs))[:MAX_ADDRESSES]
            ports = draw_ports(self.node.host.random, plan.openers, low=plan.low, high=plan.high)
            logger.info("spray: %d openers to %s, ports %d to %d", len(ports), addresses, plan.low, plan.high)
            # The announced candidates too: a NAT that counts as hard may not be.  Two addresses share the openers.
            pairs = [*theirs, *[(ip, port) for port in ports for ip in addresses][: plan.openers]]
            race.checks.add([(number, remote) for remote in pairs], now, silent=True)
            await race.wait_opened()
        elif role is Role.HARD:
            plan = plan_spray(self._ours())
            numbers = await self._open_sockets(race, plan.sockets)
            logger.info("spray: %d sockets to %s", len(numbers), theirs[0])
            race.checks.add([(each, theirs[0]) for each in numbers], now, opening=False)
        else:
            plan = plan_both_hard(self._ours(), self._theirs())
            if not plan.worth_it:
                raise AttemptFailed(
                    "both NATs are symmetric, and a spray is too unlikely to meet: large port ranges, or one shared NAT"
                )
            numbers = await self._open_sockets(race, plan.sockets)
            ports = draw_ports(self.node.host.random, plan.openers, low=plan.low, high=plan.high)
            ip = theirs[0][0]
            pairs_ = [(numbers[index % len(numbers)], (ip, port)) for index, port in enumerate(ports)]
            race.checks.add(pairs_, now)
            await race.wait_opened()

    async def _open_sockets(self, race: DatagramRace, count: int) -> Sequence[int]:
        """Open up to `count` sockets, as many as the process can spare and the system allows; at least one."""
        ip = race.ports[0].local[0]
        numbers: list[int] = []
        with suppress(OSError):  # EMFILE, ENOBUFS: fewer sockets are worth less, but not nothing
            for _ in range(min(count, self.node.host.spare_descriptors())):
                numbers.append(race.use(await self.node.udp_ports.open(ip)))
        if not numbers:
            raise AttemptFailed("no socket could be opened")
        return numbers


_NO_PORTS: Final = "recent sprays used up our share of the NAT's ports"
_COUNTERPART: Final = {Role.EASY: Role.HARD, Role.HARD: Role.EASY, Role.BOTH: Role.BOTH}
