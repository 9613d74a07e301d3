"""What every planner works with: the two sides of a pair, what a plugin is to a planner, and what it plans.  Pure.

A combo is one thing to try: a plugin, an address family, a route.  A planner for each `Aim` lists those of a pair
(`plan`) and judges by the same rules what a peer asks of us (`judge_request`): `combos.dialling`, `combos.meeting`
and `combos.relaying`.
The first rule that has an opinion decides how likely a combo is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, Literal, Protocol, TypeVar

from ..address import AddressInterface, Endpoint, EndpointKind, Transport
from ..address.nat_profile import NatProfile, NatProfiles
from ..standing import Standing

__all__ = [
    "Aim",
    "Combo",
    "JudgedPath",
    "Likelihood",
    "Pair",
    "PathRefused",
    "RelayServer",
    "RequestedPath",
    "Route",
    "RouteType",
    "Technique",
    "find_source",
    "first_opinion",
    "pathless_combo",
    "unknown",
]


class RouteType(IntEnum):
    """How the two ends see each other; the original's names and numbers."""

    NIC_BIND = 1
    """By an interface's own address: one LAN, one VPN, one machine."""
    EXT_BIND = 2
    """By a public or port-mapped address."""
    LOOPBACK_BIND = 5
    """By 127.0.0.1 or ::1: one machine."""


class Likelihood(Enum):
    """What the rules think of a combo; it orders the work, and only INVALID forbids it."""

    INVALID = "invalid"
    """Does not exist for this pair."""
    HOPELESS = "hopeless"
    """Known to fail: tried once, in a last round."""
    DOUBTFUL = "doubtful"
    """Not known to work, nor to fail."""
    LIKELY = "likely"
    """There is evidence for it."""


class Aim(Enum):
    """Whose endpoints a technique aims at."""

    PEER = "peer"
    OURS = "ours"
    MEET = "meet"
    """Nobody's: both send at once, from ports and to ports that they tell each other (see `combos.meeting`)."""
    RELAY = "relay"
    """Nobody's: a server passes on what the two say (see `combos.relaying`)."""


Opinion = tuple[Likelihood, str] | None
FactsT = TypeVar("FactsT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """What the planner knows of a plugin.

    `outlook` says what it makes of our NAT, the peer's NAT, and an address family, where nobody is dialled.
    """

    name: str
    phase: str | None
    transport: Transport
    route_types: frozenset[RouteType]
    aim: Aim
    outlook: Callable[[NatProfile, NatProfile, int], Opinion] | None = None


LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One side of a pair as the planner sees it.

    Attributes:
      interfaces: its endpoints.
      reaches: those addresses of the other side (4 or 16 bytes) that its routing table knows a way to; None where that
        is unknown, as it is for the peer.
      own: the addresses of the machine that it runs on, as far as they are known (`warpgate_trio.address.own`).
    """

    interfaces: tuple[AddressInterface, ...]
    reaches: frozenset[bytes] | None = None
    own: Container[IPv4Address | IPv6Address] = frozenset()
    _endpoints: tuple[Endpoint, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_endpoints", tuple(self._find_endpoints()))

    def endpoints(self) -> Sequence[Endpoint]:
        """What the side published, and its loopback endpoints, which follow from the ports and are never published."""
        return self._endpoints

    def _find_endpoints(self) -> list[Endpoint]:
        published = [endpoint for interface in self.interfaces for endpoint in interface.endpoints]
        ports = {(e.transport, e.af): e.port for e in published if e.kind is EndpointKind.NIC}
        loopback = [
            Endpoint.make(transport=transport, kind=EndpointKind.NIC, ip=LOOPBACK[af], port=port)
            for (transport, af), port in ports.items()
        ]
        return list(dict.fromkeys([*published, *loopback]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayServer:
    """A rendezvous server of ours, as the planner sees it.

    Attributes:
      url: without a password.
      is_peers_too: whether the peer's address names it.
      relays: whether it relays at all; None: it has not said so.
      relays_for_us: whether it relays for this node, whoever the peer is.
      standing: whether it failed lately.
    """

    url: str
    is_peers_too: bool
    relays: bool | None = None
    relays_for_us: bool = False
    standing: Standing = Standing.GOOD


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two sides, as a planner sees them.

    Attributes:
      same_host: whether both run on one machine.
      our_nat, peer_nat: what each side has published of its NATs.
      our_capabilities, peer_capabilities: what each side has published that it can do.
      relays: our rendezvous servers.
      peer_has_servers: whether the peer's address names any.
    """

    ours: Route
    peers: Route
    same_host: bool
    our_nat: NatProfiles = dataclasses.field(default_factory=NatProfiles)
    peer_nat: NatProfiles = dataclasses.field(default_factory=NatProfiles)
    our_capabilities: Collection[str] = ()
    peer_capabilities: Collection[str] = ()
    relays: tuple[RelayServer, ...] = ()
    peer_has_servers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPath:
    """What a plugin's run is to work on: the path of a combo, or of a peer's request, that the rules have let pass.

    Attributes:
      af: 4 or 6.
      target: the endpoint to dial; ours, where the plugin asks to be dialled; None where both sides send at once.
      source: the address to bind before, or None for the routing table's choice.
      server: the server that relays, without a password; empty where none does.
    """

    af: int
    route_type: RouteType
    target: Endpoint | None
    source: IPv4Address | IPv6Address | None
    server: str = ""


class RequestedPath(Protocol):
    """The path that a peer's request names (`warpgate_trio.plugin.PathRequest`).

    Attributes:
      address, port: the endpoint that we are to dial; empty and 0 where nobody is dialled.
    """

    @property
    def af(self) -> Literal[4, 6]: ...
    @property
    def route_type(self) -> RouteType: ...
    @property
    def address(self) -> bytes: ...
    @property
    def port(self) -> int: ...


class PathRefused(OSError):
    """A path that a peer asks for must not, or cannot, be taken; the text says why, and is for our own log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combo:
    """One thing to try.

    Attributes:
      target: what is dialled: the peer's endpoint, or ours for a plugin that asks to be dialled; None where both sides
        send at once, and for a plugin that works on no particular path.
      source: the address to bind before dialling, where the target's network is one that the dialling side is in.
      delay: seconds that the combo's task holds back.
      why: the sentence behind its likelihood.
      server: the rendezvous server that relays, without a password; empty where the two have none in common, None for
        what goes by no such server.
      yields_to: a plugin, whose combos of the phase have a start of 300 ms, while they are under way.
      asks: the peer is asked to dial, by a signal.
    """

    phase: str | None
    plugin: str
    af: int
    route_type: RouteType
    target: Endpoint | None
    source: IPv4Address | IPv6Address | None
    likelihood: Likelihood
    delay: float
    why: str
    server: str | None = None
    yields_to: str = ""
    asks: bool = False

    @property
    def hopeless(self) -> bool:
        """Whether it is known to fail."""
        return self.likelihood is Likelihood.HOPELESS

    @property
    def likely(self) -> bool:
        """Whether there is evidence for it."""
        return self.likelihood is Likelihood.LIKELY

    @property
    def elsewhere(self) -> bool:
        """Whether it is towards a private address of a network that the dialling side is not in."""
        return self.route_type is RouteType.NIC_BIND and self.likelihood is Likelihood.DOUBTFUL

    @property
    def aim(self) -> tuple[object, ...]:
        """What makes two combos the same thing to try."""
        where = None if self.target is None else (self.target.address, self.target.port)
        return (self.plugin, self.af, self.route_type, where, self.server)

    @property
    def path(self) -> JudgedPath | None:
        """What its run works on; None for a plugin that works on no particular path."""
        if not self.af:
            return None
        return JudgedPath(
            af=self.af, route_type=self.route_type, target=self.target, source=self.source, server=self.server or ""
        )


SAME_HOST_DELAY: Final = 0.05
"""Seconds that combos on one machine wait for loopback, if they are not: ten times a loopback walk (4 ms)."""


def unknown(_f: object) -> Opinion:
    """The last rule of each table."""
    return (Likelihood.DOUBTFUL, "not known to work, nor to fail")


def first_opinion(rules: Sequence[Callable[[FactsT], Opinion]], facts: FactsT) -> tuple[Likelihood, str]:
    """What the first rule of a table says that has an opinion; the last one always has."""
    for rule in rules:
        opinion = rule(facts)
        if opinion is not None:
            return opinion
    raise AssertionError("the last rule always has an opinion")


def pathless_combo(plugin: str, phase: str | None) -> Combo:
    """The one combo of a plugin that works on no particular path."""
    return Combo(
        phase=phase,
        plugin=plugin,
        af=0,
        route_type=RouteType.EXT_BIND,
        target=None,
        source=None,
        likelihood=Likelihood.DOUBTFUL,
        delay=0.0,
        why="the plugin chooses its own paths",
    )


def find_source(target: Endpoint, dialler: Route) -> IPv4Address | IPv6Address | None:
    """The dialling side's own address in the target's network, if it has one there."""
    if target.ip.is_loopback:
        return None
    for endpoint in dialler.endpoints():
        if endpoint.kind is not EndpointKind.NIC or endpoint.af != target.af or endpoint.prefix is None:
            continue
        if target.ip in _network(endpoint.address, endpoint.prefix):
            return endpoint.ip
    return None


@functools.lru_cache(maxsize=64)  # of our interfaces, and of the peer's
def _network(address: bytes, prefix: int) -> IPv4Network | IPv6Network:
    return ip_network((address, prefix), strict=False)
