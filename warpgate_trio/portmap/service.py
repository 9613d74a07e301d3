"""`PortMaps`: has routers open the ports that a node listens on, in the background, for as long as it is open.

For each used interface with a gateway, there is a `Keeper` for a private IPv4 address, and one for a public IPv6
address, which keeps a pinhole in the gateway's firewall open.  When its address or its gateway is gone, a keeper
deletes its mappings and ends.  Interfaces that are not used (`Interface.is_used`) have no keepers, nor have tunnels,
which have no gateway.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Final, final

import trio

from ..address.endpoint import Transport
from ..address.interfaces import lasting_addresses
from ..address.scope import AddressScope, scope_of
from ..host import Host, Interface
from ..sockaddr import IpAddress, TransportAddress
from . import natpmp
from .announcements import listen
from .asking import NatPmpClient, PcpClient
from .client import Client, ProtocolName, Protocols
from .finding import find_gateway
from .keeper import Find, Keeper
from .lease import MIN_PORT, Lease
from .pcp import NONCE_LENGTH

__all__ = ["GatewayState", "MappedPort", "PortMaps"]

logger: logging.Logger = logging.getLogger(__name__)

PRIVATE: Final = (AddressScope.PRIVATE, AddressScope.SHARED)
_MAX_PORT: Final = 65535
MAX_KEEPERS: Final = 8
"""Addresses for which routers are asked: a host has two or three, while virtual interfaces may be many."""
CLOCK_JUMP: Final = 5.0
"""Seconds by which the wall clock gains on the monotonic clock when the host has slept: mappings may have expired, as
they were not renewed meanwhile."""


@final
@dataclass(frozen=True, slots=True)
class MappedPort:
    """A port that is open now.

    Attributes:
      interface: the index of the interface to which it leads.
      local: our address on that interface.
      ip: the gateway's external address, as the gateway reports it; None where it reports none.
      external: the external port.
      internal: our port.
      permanent: whether the gateway has mapped it for ever.
    """

    interface: int
    local: IpAddress
    transport: Transport
    ip: IpAddress | None
    external: int
    internal: int
    protocol: ProtocolName
    permanent: bool


@final
@dataclass(frozen=True, slots=True)
class GatewayState:
    """The present state of a gateway.

    Attributes:
      interface: the name of the interface from which it is asked.
      local: our address on that interface.
      gateway: the gateway's address.
      protocols: the protocols that it answers.
      mapped: the ports that it has opened.
      problems: what did not work, in sentences.
    """

    interface: str
    local: IpAddress
    gateway: IpAddress
    protocols: Protocols
    mapped: tuple[MappedPort, ...]
    problems: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class _Place:
    """A local address for which ports may be opened, and the gateway to ask."""

    interface: int
    name: str
    local: IpAddress
    prefix: int
    gateway: IpAddress


@final
class PortMaps:
    """The port mappings of a node; see the module's docstring.

    Args:
      ports: the TCP ports to open, by IP version.
      protocols: the protocols that may be used; with none, no gateway is asked.
      goodbye: seconds that deleting may take at the end.
      sign: makes the node's signature over bytes: secret, and the same after each start.  With None, PCP gateways do
        not recognize the owner of an earlier process's mappings.
    """

    def __init__(
        self,
        host: Host,
        ports: Mapping[int, int],
        *,
        protocols: Protocols,
        goodbye: float,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._host = host
        self._sign = sign
        self._ports = dict(ports)
        self._protocols = protocols
        self._goodbye = goodbye
        self._keepers: dict[_Place, tuple[Keeper, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self._clock: float | None = None
        self._looked = trio.Event()

    async def run(self) -> None:
        """Keep ports open until cancelled; then delete what was opened."""
        if not self._protocols:
            self._looked.set()
            return
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.look()
                self._looked.set()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def look(self) -> None:
        """Adapt to the host's present interfaces and gateways, and notice that it has slept; cheap without changes."""
        if self._nursery is None:
            return
        try:
            wanted = self._places()
        except Exception as error:  # no ports are opened where the system does not list its gateways
            logger.debug("the host's gateways cannot be determined: %s", error)
            return
        for place in [place for place in self._keepers if place not in wanted]:
            self._keepers.pop(place)[1].cancel()
        for place in wanted:
            if place not in self._keepers and len(self._keepers) < MAX_KEEPERS:
                keeper, scope = self._keeper(place), trio.CancelScope()
                self._keepers[place] = keeper, scope
                self._nursery.start_soon(self._run, place, keeper, scope)
        offset = self._host.wall_time() - trio.current_time()
        if self._clock is not None and offset - self._clock > CLOCK_JUMP:
            for keeper, _ in self._keepers.values():
                keeper.announced()
        self._clock = offset

    @property
    def mapped(self) -> tuple[MappedPort, ...]:
        """The ports that are open now."""
        return tuple(port for place, (keeper, _) in self._keepers.items() for port in _mapped(place, keeper))

    @property
    def gateways(self) -> tuple[GatewayState, ...]:
        """The state of each gateway, for each address for which it is asked."""
        return tuple(_state(place, keeper) for place, (keeper, _) in self._keepers.items())

    async def wait_settled(self) -> None:
        """Wait until each gateway has opened all ports, has refused, or has not answered.

        A silent gateway takes some seconds; the caller has to limit the time.
        """
        await trio.lowlevel.checkpoint()
        await self._looked.wait()
        for keeper, _ in list(self._keepers.values()):
            await keeper.settled.wait()

    def _places(self) -> dict[_Place, None]:
        """The addresses that need a keeper now, in the order of the interfaces."""
        gateways = self._host.gateways()
        if not gateways:
            return {}
        found: dict[_Place, None] = {}
        for interface in self._host.interfaces():
            for gateway in gateways:
                if gateway.interface == interface.index and interface.is_used:
                    found |= dict.fromkeys(self._on(interface, gateway.ip))
        return found

    def _on(self, interface: Interface, gateway: IpAddress) -> list[_Place]:
        version = gateway.version
        if version not in self._ports:
            return []
        wanted = PRIVATE if version == 4 else (AddressScope.PUBLIC,)
        ours = [own for own in lasting_addresses(interface, version) if scope_of(own.ip) in wanted]
        return [_Place(interface.index, interface.name, own.ip, own.prefix, gateway) for own in ours[:1]]

    def _keeper(self, place: _Place) -> Keeper:
        random = self._host.random
        lease = Lease(
            Transport.TCP,
            self._ports[place.local.version],
            nonce=self._nonce(place),
            choose=lambda: random.randint(MIN_PORT, _MAX_PORT),
        )
        search = partial(find_gateway, place.local, place.prefix, place.gateway, index=place.interface)
        find: dict[ProtocolName, Find] = {"pcp": partial(_find_pcp, place), "upnp": search}
        if isinstance(place.local, IPv4Address):  # NAT-PMP has no IPv6
            find["natpmp"] = partial(_find_natpmp, place)
        chosen = {name: each for name, each in find.items() if name in self._protocols}
        heard: Callable[[Callable[[], None]], Awaitable[None]] | None = None
        if isinstance(place.local, IPv4Address):
            heard = partial(listen, place.local, place.gateway)
        return Keeper(chosen, [lease], listen=heard, goodbye=self._goodbye)

    def _nonce(self, place: _Place) -> bytes:
        """The nonce by which PCP recognizes who may renew and delete a mapping (RFC 6887 §11.3).

        It is the same for the node's next process, which can take over mappings of a killed one.  Nobody else can guess
        it.
        """
        if self._sign is None:
            return self._host.entropy(NONCE_LENGTH)
        mapping = f"{place.gateway} {place.local} {self._ports[place.local.version]}"
        return hashlib.sha256(self._sign(mapping.encode())).digest()[:NONCE_LENGTH]

    async def _run(self, place: _Place, keeper: Keeper, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await keeper.run()
            except Exception:
                logger.exception("opening ports at gateway %s ended with an unexpected error", place.gateway)
            keeper.settled.set()


def _scoped(place: _Place) -> TransportAddress:
    """The gateway's address for PCP; a link-local one has the interface as its scope."""
    scope = f"%{place.interface}" if place.gateway.version == 6 and place.gateway.is_link_local else ""
    return f"{place.gateway}{scope}", natpmp.PORT


async def _find_pcp(place: _Place) -> Client:
    client = PcpClient(place.local, _scoped(place))
    await client.probe()
    return client


async def _find_natpmp(place: _Place) -> Client:
    client = NatPmpClient(place.local, place.gateway)
    await client.probe()
    return client


def _mapped(place: _Place, keeper: Keeper) -> list[MappedPort]:
    return [
        MappedPort(
            interface=place.interface,
            local=place.local,
            transport=grant.claim.transport,
            ip=grant.ip,
            external=grant.external,
            internal=grant.claim.internal,
            protocol=kept.protocol,
            permanent=grant.lifetime == 0,
        )
        for kept in keeper.kept
        if (grant := kept.lease.grant) is not None and kept.protocol is not None
    ]


def _state(place: _Place, keeper: Keeper) -> GatewayState:
    mapped = tuple(_mapped(place, keeper))
    return GatewayState(
        interface=place.name,
        local=place.local,
        gateway=place.gateway,
        protocols=tuple(name for name in keeper.clients),
        mapped=mapped,
        problems=(
            *(
                "it opens ports without a time limit: the ports of a killed program stay open"
                for each in mapped
                if each.permanent
            ),
            *(kept.problem for kept in keeper.kept if kept.problem is not None),
            *(f"{name}: {why}" for name, why in keeper.problems.items()),
        ),
    )
