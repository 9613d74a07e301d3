"""What a node knows about the NATs that it is behind, and the ports that it keeps open through them.

To make a mapping and learn its endpoint takes a round trip to a STUN server.  A walk should not have to wait for that.
So for each address family one UDP port and one TCP port are kept *warm*: mapped, and refreshed before a NAT forgets
them.  An attempt takes a warm port for itself (`NatService.take_udp`, `take_tcp`), since the NATs' tables remember what
a port was used for.  A new one takes its place.  If no port is warm, one is made on demand.

The profile of the NATs (`warpgate_trio.nat.measure`) is measured in the background: when the node opens, when the host
has moved to another network, when an attempt has seen something that contradicts it, and before it is too old.

Everything here works with any number of servers.  A dead server does no harm.  Without any, ports are not mapped, which
is enough between two hosts that no NAT separates.  The same holds for the servers' names, which `names` resolves and
remembers: a name that hangs or fails does not hold up the others.  The first address of every name is asked before the
second of any, and addresses that were silent when last asked come last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, TypeVar, final

import trio

from ..address.nat_profile import (
    PROFILE_LIFETIME,
    UNKNOWN,
    Allocation,
    NatProfile,
    NatProfiles,
    TransportProfile,
    describe,
)
from ..errors import StunError
from ..host import Host
from ..limits import BoundedMap
from ..names import NameFailure, Names
from ..ports.tcp import TcpPort
from ..ports.udp import UdpPort, UdpPorts
from ..punch.allowance import TARGET_DIALS, TARGET_DIALS_REFILL, Allowance, DialBudget, Sprays
from ..sockaddr import FAMILIES, Family, TransportAddress
from .classify import Binding, Evidence, contradicts
from .measure import measure_nat
from .prediction import predict_ports
from .servers import MAX_SERVERS, Asks, StunServers

if TYPE_CHECKING:
    from ..config import ServerUrl

__all__ = ["KEEPALIVE", "NatService"]

logger: logging.Logger = logging.getLogger(__name__)

Kind = Literal["udp", "tcp"]
KINDS: Final[tuple[Kind, Kind]] = ("udp", "tcp")

KEEPALIVE: Final = 15.0
"""Seconds between two STUN requests for a warm port: Tr of RFC 8445 §11, half of the 30 s after which the least patient
NATs forget a UDP mapping (RFC 4787 asks for two minutes)."""
RTO: Final = 0.2
"""Seconds before the first retransmission of a request about a UDP port: RFC 8489's 0.5 s would be a third of the punch
phase, which a server farther away than that cannot help."""
TRIES: Final = 3
"""Requests about a UDP port in all: 1.4 s."""
PATIENCE: Final = RTO * 2**TRIES
"""Seconds for which an answer about a TCP port is waited for."""
FIRST_LOOK: Final = 1.0
"""Seconds for which an attempt in a new network waits to learn how the NATs allocate ports: over TCP the measurement
takes four round trips, of 0.2 s each, and the gaps between its sockets."""
MAX_PREDICTED: Final = 8
"""Predicted ports that are sent to a peer: twice what a busy home allocates between a STUN request and a punch."""
MAX_NAMES: Final = 8
"""Servers whose names are resolved: twice as many as are asked, as some names may not resolve."""
QUIET: Final = 2.0
"""Seconds after a port was taken in which no new warm port is made behind a NAT with sequential ports: the attempt has
told its peer which ports come next, and no longer needs them after that time."""
MAX_NETWORKS: Final = 16
"""Networks whose profiles are remembered, by our address in them; each profile is used for `PROFILE_LIFETIME` at most,
while the network is measured anew."""
DOUBT_INTERVAL: Final = 60.0
"""Seconds at least between two measurements that attempts cause."""
RETRY_FIRST: Final = 1.0
"""Seconds before the next try when no server answers; doubles up to `RETRY_LAST`."""
RETRY_LAST: Final = 60.0
"""Seconds of the longest pause between two tries."""

PortT = TypeVar("PortT", UdpPort, TcpPort)


@final
@dataclass(slots=True)
class _Supply(Generic[PortT]):
    """The ports of one kind: how they are made and closed, and the warm ones.

    Attributes:
      servers: the STUN servers that are asked about them.
      warm: by address family, the port that waits to be taken.
      taken: by address family, an event that is set when the warm port is taken.
    """

    kind: Kind
    open: Callable[[str], Awaitable[PortT]]
    close: Callable[[PortT], None]
    servers: StunServers
    warm: dict[Family, PortT] = field(default_factory=dict)
    taken: dict[Family, trio.Event] = field(default_factory=dict)

    async def make(self, af: Family, only: TransportAddress | None = None, *, twice: bool = False) -> PortT:
        """Open a port and ask servers about it: all of them, or `only` one, which makes fewer mappings.

        Returns after the first answer.  With `twice`, a second one is waited for, for as long as the first one took.
        """
        servers = await self.servers.resolve(af) if only is None else [only]
        port = await self.open(self.servers.source(af, servers))
        try:
            answered = await self.servers.ask_all(af, _asking(port), servers, enough=2 if twice else 1)
        except BaseException:
            self.close(port)
            raise
        self.servers.nearest.update((af, server) for server in answered)
        return port


@final
class _Rests:
    """Pauses that several tasks take, and that `end` cuts short all at once."""

    def __init__(self) -> None:
        self._scopes: Final[set[trio.CancelScope]] = set()

    async def take(self, seconds: float, over: trio.Event) -> bool:
        """Pause for `seconds`, or until `over` is set; returns whether `end` cut the pause short."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                with trio.move_on_after(seconds):
                    await over.wait()
            finally:
                self._scopes.discard(scope)
        return scope.cancelled_caught

    def end(self) -> None:
        """Cut short all pauses that are being taken."""
        for scope in list(self._scopes):
            scope.cancel()


@final
class NatService:
    """A node's NAT profiles and warm ports; see the module's docstring.

    Args:
      ports: the node's UDP ports.
      servers: STUN servers, in order of preference.
      names: resolves the servers' names; has to be running while the service is used.
      is_online: whether something beyond the NATs answers, so that silence of the servers means a blocked transport.

    Attributes:
      servers: the STUN servers that are used, `MAX_NAMES` at most.
      profiles: the measured profiles, by address family.
      allowance: limits the packets that are sent unasked, by target address.
      dials_for_peers: limits the connections that are opened because peers ask for them.
      own_dials: limits the connections of the application's own calls, by address only: there, too, it is the peer that
        names the addresses.
      sprays: the sprays that are under way.
      measuring: by address family, a lock that is held while measuring: two measurements at a time would disturb the
        order of each other's mappings.
    """

    def __init__(
        self,
        ports: UdpPorts,
        servers: Sequence[ServerUrl],
        host: Host,
        *,
        names: Names,
        is_online: Callable[[], bool],
    ) -> None:
        self._host = host
        self._names = names
        self._is_online = is_online
        self.servers: Final = [url for url in servers if url.scheme == "stun"][:MAX_NAMES]
        self._udp = _Supply[UdpPort]("udp", ports.open, UdpPort.release, StunServers(self.servers, host, names))
        self._tcp = _Supply[TcpPort]("tcp", TcpPort.open, TcpPort.close, StunServers(self.servers, host, names))
        self._doubted: dict[Family, trio.Event] = {af: trio.Event() for af in FAMILIES}
        self._looked: dict[tuple[Kind, Family], trio.Event] = {
            (kind, af): trio.Event() for kind in KINDS for af in FAMILIES
        }
        self._measured: dict[Family, trio.Event] = {af: trio.Event() for af in FAMILIES}
        self._unheard: set[Family] = set()  # no server answered, and the node was offline: the reason is not known
        self._measured_from: dict[Family, str] = {}
        self._observed_at: dict[Family, float] = {}
        self._rests: Final = _Rests()  # of the tasks that tend warm ports or wait before they try for one
        self.allowance: Final = Allowance()
        self.dials_for_peers: Final = DialBudget()
        self.own_dials: Final = Allowance(burst=TARGET_DIALS, refill=TARGET_DIALS_REFILL)
        self.sprays: Final = Sprays()
        self.measuring: Final[dict[Family, trio.Lock]] = {af: trio.Lock() for af in FAMILIES}
        self.profiles: NatProfiles = NatProfiles()

    # -- for attempts ------------------------------------------------------------------------------------------------

    def observe_udp(self, af: Family, evidence: Evidence) -> None:
        """Compare what an attempt has learned about our NAT with the profile, and measure anew if they contradict.

        Part of the evidence is a peer's claim, so it takes effect once in `DOUBT_INTERVAL` at most: a lie costs 40
        packets to our own servers.
        """
        now = trio.current_time()
        if now - self._observed_at.get(af, -math.inf) < DOUBT_INTERVAL:
            return
        why = contradicts(self.profiles.get(None, af).udp, evidence)
        if why is not None:
            logger.info("IPv%d: the NAT is measured again: %s", af, why)
            self._observed_at[af] = now
            self.doubt(af)

    async def take_udp(self, af: Family) -> UdpPort:
        """A UDP port that leads to the internet; the caller has to release it.

        `UdpPort.mapped` has the answers of the servers so far; it is empty where none has answered.

        Raises:
          OSError: there is no address of this family, or no socket can be opened.
        """
        return await self._take(self._udp, af)

    async def take_tcp(self, af: Family) -> TcpPort:
        """The same for TCP; the caller has to close the port."""
        return await self._take(self._tcp, af)

    async def source(self, af: Family) -> str:
        """The local address on the way to the internet.

        Raises:
          OSError: there is no address of this family.
        """
        return self._udp.servers.source(af, await self._udp.servers.resolve(af))

    async def wait_looked(self, kind: Kind, af: Family) -> None:
        """Wait until `profiles` say how our NATs allocate ports for UDP or TCP, for `FIRST_LOOK` seconds at most.

        Returns at once except while the node is new, or the host is new in this network.
        """
        await trio.lowlevel.checkpoint()
        if self.servers:
            with trio.move_on_after(FIRST_LOOK):
                await self._looked[kind, af].wait()

    async def wait_measured(self) -> None:
        """Wait until each address family has been measured, with or without answers.

        Silence of the servers is evidence only while the node is online.  So a family that was silent while the node
        was offline is measured once more when the node is online.  The caller has to limit the time: when all servers
        are dead, this takes some seconds.
        """
        await trio.lowlevel.checkpoint()
        for af in FAMILIES if self.servers else ():
            await self._measured[af].wait()
            while af in self._unheard and self._is_online():
                if self._measured[af].is_set():
                    self._measured[af] = trio.Event()
                    self.doubt(af)
                await self._measured[af].wait()

    async def predict_udp(self, af: Family, port: UdpPort | None = None) -> list[TransportAddress]:
        """The external endpoints that our next new UDP mapping may have, the likeliest first.

        Empty unless the mapping is endpoint-dependent and the ports are sequential.  In that case a server is asked for
        the current position in the sequence, from a new socket, which takes a round trip.

        Args:
          port: the port that will be used.  If two servers have seen it at the same endpoint, a peer will see it there
            too, and the result is empty at once.
        """
        return await self._predict(self._udp, af, port)

    async def predict_tcp(self, af: Family, port: TcpPort | None = None) -> list[TransportAddress]:
        """The same for TCP, which takes two round trips."""
        return await self._predict(self._tcp, af, port)

    @property
    def unresolved(self) -> dict[str, NameFailure]:
        """The names of servers that cannot be resolved now, and why."""
        return self._names.failures(url.host for url in self.servers)

    # -- the service -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a port of each kind warm and the profiles up to date, until cancelled."""
        if not self.servers:
            return
        async with trio.open_nursery() as nursery:
            for af in FAMILIES:
                nursery.start_soon(self._keep, self._udp, af)
                nursery.start_soon(self._keep, self._tcp, af)
                nursery.start_soon(self._keep_measured, af)

    def check(self) -> None:
        """Check the warm ports now, and try again for missing ones: the host may have moved, or a mapping expired."""
        self._rests.end()

    def doubt(self, af: Family) -> None:
        """Measure an address family anew, since something contradicts its profile."""
        self._doubted[af].set()

    async def _keep_measured(self, af: Family) -> NoReturn:
        """Measure one address family again and again, so that there is a profile whenever servers answer."""
        pause = RETRY_FIRST
        # A laptop returns to networks that it has been in.
        by_source: BoundedMap[str, NatProfile] = BoundedMap(MAX_NETWORKS)
        while True:
            self._doubted[af] = trio.Event()
            servers = await self._udp.servers.resolve(af)
            profile: NatProfile | None = None
            source: str | None = None
            with suppress(OSError):
                source = self._udp.servers.source(af, servers)
            if source is not None and source != self._measured_from.get(af):
                self._measured[af] = trio.Event() if self._measured[af].is_set() else self._measured[af]
                before = by_source.get(source)
                fresh = before is not None and before.is_fresh(self._host.wall_time())
                self._publish(af, before if fresh else None)
            async with self.measuring[af]:
                online = self._is_online()
                if source is not None and servers:
                    looks = partial(self._look, af, (None, af) not in dict(self.profiles))
                    with suppress(OSError):
                        profile = await measure_nat(source, servers, online=online, on_ports=looks)
                if source is not None and profile is not None:
                    logger.info("IPv%d: UDP %s; TCP %s", af, describe(profile.udp), describe(profile.tcp))
                    self._measured_from[af] = source
                self._publish(af, profile)
            for kind in KINDS:
                self._looked[kind, af].set()
            found = profile is not None and profile.udp != UNKNOWN
            (self._unheard.discard if found or online or source is None else self._unheard.add)(af)
            self._measured[af].set()
            if source is not None and profile is not None and found:
                by_source.put(source, profile)
            pause = RETRY_FIRST if found else min(2 * pause, RETRY_LAST)
            with trio.move_on_after(PROFILE_LIFETIME / 2 if found else pause):
                await self._doubted[af].wait()

    def _look(self, af: Family, is_first: bool, kind: Kind, profile: TransportProfile) -> None:
        """Publish a preliminary profile, but only where none is known: an earlier full measurement is worth more."""
        if is_first:
            seen = self.profiles.get(None, af)
            udp, tcp = (profile, seen.tcp) if kind == "udp" else (seen.udp, profile)
            known = dict(self.profiles)
            known[None, af] = NatProfile(udp=udp, tcp=tcp, measured_at=self._host.wall_time())
            self.profiles = NatProfiles(known)
        self._looked[kind, af].set()

    def _publish(self, af: Family, profile: NatProfile | None) -> None:
        known = {key: value for key, value in self.profiles if key[1] != af}
        if profile is not None:
            known[None, af] = profile
        for kind in KINDS:
            if profile is not None:
                self._looked[kind, af].set()
            elif self._looked[kind, af].is_set():
                self._looked[kind, af] = trio.Event()
        self.profiles = NatProfiles(known)

    # -- ports -------------------------------------------------------------------------------------------------------

    async def _take(self, supply: _Supply[PortT], af: Family) -> PortT:
        await trio.lowlevel.checkpoint()
        port = supply.warm.pop(af, None)
        if port is not None:
            supply.taken[af].set()
            if not port.closed:
                return port
        return await supply.make(af, twice=not self._looked[supply.kind, af].is_set())

    async def _predict(self, supply: _Supply[PortT], af: Family, taken: PortT | None) -> list[TransportAddress]:
        if taken is not None and _is_seen_alike(taken):
            await trio.lowlevel.checkpoint()
            return []
        await self.wait_looked(supply.kind, af)
        profile = self._profile(supply.kind, af)
        if not _follows_a_sequence(profile):
            return []
        try:
            port = await supply.make(af, supply.servers.nearest.get(af))
        except OSError as error:
            logger.debug("no port can be predicted: %s", error)
            return []
        try:
            return _next_mappings(profile, port)
        finally:
            supply.close(port)

    async def _keep(self, supply: _Supply[PortT], af: Family) -> NoReturn:
        """Keep a port of one kind and family warm."""
        pause = RETRY_FIRST
        while True:
            port: PortT | None = None
            try:
                port = await supply.make(af)
                if not port.mapped:
                    raise StunError("no STUN server answers")
            except (OSError, StunError) as error:
                logger.debug("no warm %s port over IPv%d: %s", supply.kind, af, error)
                if port is not None:
                    supply.close(port)
                pause = RETRY_FIRST if await self._rests.take(pause, trio.Event()) else min(2 * pause, RETRY_LAST)
                continue
            pause = RETRY_FIRST
            supply.warm[af] = port
            taken = supply.taken[af] = trio.Event()
            try:
                await self._tend(port, af, taken)
            finally:
                if supply.warm.get(af) is port:  # not taken: the node closes, or the mapping or the address is gone
                    del supply.warm[af]
                    supply.close(port)
            if taken.is_set() and _follows_a_sequence(self._profile(supply.kind, af)):
                await trio.sleep(QUIET)  # a new mapping now would shift the ports that the taker has told its peer

    async def _tend(self, port: UdpPort | TcpPort, af: Family, taken: trio.Event) -> None:
        """Refresh a warm port every `KEEPALIVE` seconds; returns when it was taken, or is no longer of use."""
        # The same servers for as long as the port lives: names may fail later, or resolve differently each time.
        supply: _Supply[Any] = self._udp if isinstance(port, UdpPort) else self._tcp
        servers = list(dict.fromkeys([*port.mapped, *await supply.servers.resolve(af)]))[:MAX_SERVERS]
        asked = [server for server in servers if server not in port.mapped]  # `make` waited for the first answer only
        while True:
            answered = await supply.servers.ask_all(af, _asking(port), asked)
            for silent in set(asked) - answered:
                port.mapped.pop(silent, None)
            if taken.is_set() or port.closed or not port.mapped:
                return
            if isinstance(port, UdpPort):
                self.observe_udp(af, Evidence(bindings=_bindings(port)))
            await self._rests.take(KEEPALIVE, taken)
            if taken.is_set():
                return
            asked = servers
            sources = supply.servers.sources(servers)
            if ip_address(port.local[0]) not in sources:
                if sources:
                    self.doubt(af)  # the host has moved to another network
                return

    def _profile(self, kind: Kind, af: Family) -> TransportProfile:
        profile = self.profiles.get(None, af)
        return profile.udp if kind == "udp" else profile.tcp


def _asking(port: UdpPort | TcpPort) -> Asks:
    if isinstance(port, UdpPort):
        return partial(port.query, rto=RTO, tries=TRIES)
    return partial(port.query, timeout=PATIENCE)


def _is_seen_alike(port: UdpPort | TcpPort) -> bool:
    """Whether servers at two addresses have seen a port at the same endpoint.

    The mapping is endpoint-independent (RFC 4787 §4.1), or the NAT preserves ports, which serves as well.
    """
    return len({host for host, _ in port.mapped}) > 1 and len(set(port.mapped.values())) == 1


def _follows_a_sequence(profile: TransportProfile) -> bool:
    return profile.endpoint_independent is False and profile.allocation is Allocation.SEQUENTIAL


def _bindings(port: UdpPort | TcpPort) -> tuple[Binding, ...]:
    return tuple(Binding(local=port.local, server=server, mapped=mapped) for server, mapped in port.mapped.items())


def _next_mappings(profile: TransportProfile, port: UdpPort | TcpPort) -> list[TransportAddress]:
    """The predicted endpoints of the next mappings, from what servers have just seen of a fresh port."""
    samples = _bindings(port)
    if not samples:
        return []
    ip = samples[-1].mapped[0]
    return [(ip, each.port) for each in predict_ports(profile, samples, count=MAX_PREDICTED)]
