"""``turn``: relay by TURN servers where no direct path was found (RFC 8656), independent of both sides' NATs.

    initiator                          its TURN server                       responder
     ├─ MeetByRelay(secret) ──────────────────────────── by signal ────────────►│ a UDP port of its own
     ├─ Allocate, CreatePermission ─────────►│  (asked before: one round trip)  │
     │◄─ MeetMeByRelay(where I am) ───────────────────── by signal ─────────────┤
     ├─ MeetMeByRelay(the relayed address) ───────────── by signal ────────────►│
     │◄──────────────────────────────────────│◄──────────────────────── probes ─┤
     ├─ CreatePermission, ChannelBind ──────►│                                  │
     ├─ QUIC ═══════════════════════════════►│═════════════════════════════════►│

The first signal is sent before there is an address to announce, so that both sides obtain their ports at the same time.

One allocation is enough where the other side can send UDP and has one external address.  Permissions are for addresses,
so the port of its mapping is learned from its probes.  Otherwise, or where no probe arrived for two round trips, the
responder gets an allocation too.  Then the two sides send from relay to relay, which depends on no NAT.  A side without
TURN servers sends to the other's relay from a UDP port.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, final

import msgspec
import trio

from warpgate_trio.address import EndpointKind
from warpgate_trio.combos.relaying import HAS_TURN
from warpgate_trio.errors import AttemptFailed, RelayForbidden, StunError, StunRefused
from warpgate_trio.plugin import UDP, Aim, Message, PathRequest, Plugin, RouteType, register
from warpgate_trio.punch.candidates import Candidates, to_candidates
from warpgate_trio.punch.probe import SECRET_LENGTH
from warpgate_trio.turn.messages import Code

from .datagram_race import open_datagram_race
from .meeting import admitted, family_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link
    from warpgate_trio.ports.udp import UdpPort
    from warpgate_trio.sockaddr import TransportAddress
    from warpgate_trio.turn.grants import Grant
    from warpgate_trio.turn.relay_port import RelayPort

    from .datagram_race import DatagramRace

__all__ = ["MeetByRelay", "MeetMeByRelay", "Turn"]

SILENCE: Final = 0.2
"""Seconds beyond two round trips without a probe, after which the responder gets an allocation of its own.  That allows
for one or two lost probes, which are sent every 50 ms.  It also waits that long for a UDP port that STUN servers have
seen, before it goes on without."""
SILENCE_UNKNOWN: Final = 1.0
"""Seconds without a probe, in place of two round trips and `SILENCE`, where no round trip was measured."""

Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_LENGTH, max_length=SECRET_LENGTH)]


@final
class MeetByRelay(PathRequest, frozen=True, kw_only=True):
    """The request.

    Attributes:
      secret: the key of the probes.
      relaying: the initiator gets an allocation, and announces it in a `MeetMeByRelay`; otherwise it sends from a UDP
        port.
      seen: the server-reflexive addresses of that UDP port.
    """

    secret: Secret
    relaying: bool
    seen: Candidates


@final
class MeetMeByRelay(Message, frozen=True):
    """A side's relayed addresses, and the server-reflexive ones of its UDP port, if it sends from one.  A later message
    has what was added since."""

    relayed: Candidates
    seen: Candidates


@final
@register(phase="relay")
class Turn(Plugin):
    name = "turn"
    transport = UDP
    route_types = frozenset({RouteType.EXT_BIND})
    timeout = 60.0
    proto_messages = (MeetByRelay, MeetMeByRelay)
    aim = Aim.RELAY

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        if isinstance(reply, MeetByRelay):
            async with open_datagram_race(self, reply.secret) as race:
                return await _Meeting(self, race).answer(reply)
        secret = self.node.host.entropy(SECRET_LENGTH)
        async with open_datagram_race(self, secret) as race:
            return await _Meeting(self, race).call(secret)


@final
class _Meeting:
    """One run: our ports, and the addresses that they send to."""

    def __init__(self, plugin: Turn, race: DatagramRace) -> None:
        self._plugin = plugin
        self._race = race
        self._relay: RelayPort | None = None
        self._direct: UdpPort | None = None
        self._numbers: dict[RelayPort | UdpPort, int] = {}
        self._invited = trio.Event()  # the request was sent
        self._told = trio.Event()  # our addresses were sent
        self._permitted = trio.Event()  # our server has granted permissions, or we send without it

    # -- the two halves ----------------------------------------------------------------------------------------------

    async def call(self, secret: bytes) -> Carrier | Link:
        plugin = self._plugin
        peer_has = HAS_TURN in plugin.peer.capabilities
        if not plugin.node.relays.servers and not peer_has:
            raise AttemptFailed("neither side has a TURN server: servers.turn names one")
        relaying = bool(plugin.node.relays.servers)
        if not relaying:
            await self._get_direct()
        plugin.nursery.start_soon(self._invite, secret, relaying)
        if relaying:
            try:
                await self._get_relay(self._known_ips())
            except StunError as error:
                if not peer_has:
                    raise AttemptFailed(str(error)) from error
                await self._get_direct()
            await self._invited.wait()  # signals may be reordered
            await self._tell()
        self._told.set()
        theirs = await self._hear()
        if not relaying and not theirs.relayed:
            raise AttemptFailed("neither side has a relay")
        self._aim(theirs)
        plugin.nursery.start_soon(self._listen)
        return await self._race.first()

    async def _invite(self, secret: bytes, relaying: bool) -> None:
        af, route_type = family_of(self._plugin), self._plugin.route_type
        await self._plugin.send_signal(
            MeetByRelay(af=af, route_type=route_type, secret=secret, relaying=relaying, seen=self._seen())
        )
        self._invited.set()

    async def answer(self, request: MeetByRelay) -> Carrier | Link:
        plugin = self._plugin
        servers = plugin.node.relays.servers
        ours = plugin.node.address.nat_profiles.get(None, family_of(plugin)).udp
        if request.relaying and not ours.blocked:
            if servers:  # an allocation of our own may be needed later
                plugin.nursery.start_soon(plugin.node.relays.prime, family_of(plugin))
            # Where TURN is possible, a network that blocks UDP must not delay it until that is certain.
            with suppress(AttemptFailed), trio.move_on_after(SILENCE if servers else math.inf):
                await self._get_direct()
        # A port that no STUN server has seen mostly cannot send to the relay either.
        if self._direct is None or not self._direct.mapped or len(ours.external) > 1:
            try:
                await self._get_relay(self._let_in(request.seen))
            except StunError as error:
                if self._direct is None:
                    raise AttemptFailed(str(error)) from error
        await self._tell()
        self._told.set()
        theirs = await self._hear() if request.relaying else MeetMeByRelay(relayed=(), seen=request.seen)
        if self._relay is None and not theirs.relayed:  # the initiator has no allocation
            try:
                await self._get_relay(self._let_in(theirs.seen))
            except StunError as error:
                raise AttemptFailed(str(error)) from error
            await self._tell()
        self._aim(theirs)
        if self._relay is None and servers:
            plugin.nursery.start_soon(self._fall_back, theirs)
        plugin.nursery.start_soon(self._listen)
        return await self._race.first()

    async def _tell(self) -> None:
        await self._plugin.send_signal(MeetMeByRelay(relayed=self._relayed(), seen=self._seen()))

    async def _hear(self) -> MeetMeByRelay:
        theirs = await self._plugin.receive_signal()
        if not isinstance(theirs, MeetMeByRelay):
            raise AttemptFailed("the peer answered with an unexpected message")
        return theirs

    async def _fall_back(self, theirs: MeetMeByRelay) -> None:
        """Get an allocation of our own where no probe arrives by way of the peer's relay."""
        rtt = self._plugin.node.signal_rtt
        await trio.sleep(SILENCE_UNKNOWN if rtt is None else 2 * rtt + SILENCE)  # the measure of silence
        if self._race.heard:
            return
        with suppress(StunError):
            await self._get_relay(self._let_in((*theirs.relayed, *theirs.seen)))
            self._aim(theirs)
            await self._tell()

    async def _listen(self) -> None:
        """Receive further addresses of the peer, and its failure; an error of our own server is to be raised before."""
        await self._permitted.wait()
        while True:
            message = await self._plugin.receive_signal()
            if isinstance(message, MeetMeByRelay):
                self._aim(message)

    # -- our ports ---------------------------------------------------------------------------------------------------

    async def _get_relay(self, permit: Sequence[str]) -> None:
        self._relay = await self._plugin.node.relays.open(family_of(self._plugin), permit=permit)
        self._numbers[self._relay] = self._race.use(self._relay)

    async def _get_direct(self) -> None:
        try:
            self._direct = await self._plugin.node.nat.take_udp(family_of(self._plugin))
        except OSError as error:
            raise AttemptFailed(f"no UDP port could be opened to send to the peer's relay: {error}") from error
        self._numbers[self._direct] = self._race.use(self._direct)

    def _relayed(self) -> Candidates:
        return () if self._relay is None else to_candidates([self._relay.local])

    def _seen(self) -> Candidates:
        return () if self._direct is None else to_candidates(list(self._direct.mapped.values()))

    # -- where the peer is -------------------------------------------------------------------------------------------

    def _known_ips(self) -> list[str]:
        """The addresses that the peer's packets may come from, by its published address."""
        peer = self._plugin.node.known_address(self._plugin.peer.public_key) or self._plugin.peer
        family = family_of(self._plugin)
        found = [each.ip for _, each in peer.endpoints() if each.kind is not EndpointKind.NIC and each.af == family]
        found += [ip for ip in peer.nat_profiles.get(None, family).udp.external if ip.version == family]
        return self._let_in(to_candidates([(str(ip), 1) for ip in found]))

    def _let_in(self, candidates: Candidates) -> list[str]:
        return list(dict.fromkeys(ip for ip, _ in self._admitted(candidates)))

    def _admitted(self, candidates: Candidates) -> list[TransportAddress]:
        mapped = {key: value for port in self._numbers for key, value in port.mapped.items()}
        return admitted(self._plugin, candidates, mapped)

    def _aim(self, theirs: MeetMeByRelay) -> None:
        """Probe the peer's addresses: its relay from any port of ours, its own port only from our relay."""
        relayed, seen = self._admitted(theirs.relayed), self._admitted(theirs.seen)
        if self._direct is not None:
            self._permitted.set()
            self._probe(self._direct, relayed)
        if self._relay is not None:
            grants = self._relay.permit_nowait(ip for ip, _ in (*relayed, *seen))
            self._plugin.nursery.start_soon(self._probe_when_permitted, self._relay, grants, [*relayed, *seen])
        elif theirs.relayed and not relayed:  # with an allocation, arriving probes would still tell the peer's address
            raise AttemptFailed("none of the peer's candidates is allowed")

    async def _probe_when_permitted(
        self, relay: RelayPort, grants: Sequence[Grant], remotes: Sequence[TransportAddress]
    ) -> None:
        try:
            await relay.wait_settled(grants)
        except StunError as error:
            raise AttemptFailed(str(error)) from error
        refused = {grant.peer[0]: grant.error for grant in grants if grant.error is not None}
        allowed = [remote for remote in remotes if remote[0] not in refused]
        if refused and not allowed and self._direct is None:
            await self._told.wait()  # so that the peer has our addresses, and its own server may tell it the reason
            raise _refusal(relay, refused)
        self._permitted.set()
        self._probe(relay, allowed)

    def _probe(self, port: RelayPort | UdpPort, remotes: Sequence[TransportAddress]) -> None:
        now = trio.current_time()
        self._race.checks.add([(self._numbers[port], remote) for remote in remotes], now, opening=False)
        self._race.checks.probe(now)
        self._race.changed()


def _refusal(relay: RelayPort, refused: dict[str, StunError]) -> AttemptFailed:
    ip, error = next(iter(refused.items()))
    if isinstance(error, StunRefused) and error.code == Code.FORBIDDEN:
        return RelayForbidden(f"the TURN server {relay.name} forbids its relays to send to {ip}, where the peer is")
    return AttemptFailed(f"the TURN server {relay.name} grants no permission for {ip}: {error}")
