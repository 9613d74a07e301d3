"""The types of all planners: the two sides of a pair, a plugin as planners see it, and the combos.  No I/O.

A combo is one thing to try: a plugin, an address family, a route type and a target.  There is a planner for each kind
of `Aim`: `combos.dialling`, `combos.meeting` and `combos.relaying`.  It lists the combos of a pair (`plan`) and judges
a peer's request by the same rules (`judge_request`).  The first rule with an opinion decides how likely a combo is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, Literal, Protocol, TypeVar

from ..address import AddressInterface, Endpoint, EndpointKind, Transport, is_public
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
    """By which kind of address the two sides connect; names and numbers are those of the original."""

    NIC_BIND = 1
    """By an interface's own address: one LAN, one VPN, one host."""
    EXT_BIND = 2
    """By a public or port-mapped address."""
    LOOPBACK_BIND = 5
    """By 127.0.0.1 or ::1: one host."""


class Likelihood(Enum):
    """How likely the rules expect a combo to work.  Only INVALID combos are never tried."""

    INVALID = "invalid"
    """Does not exist for this pair."""
    HOPELESS = "hopeless"
    """Expected to fail: tried once, in a last round."""
    DOUBTFUL = "doubtful"
    """Neither known to work nor to fail."""
    LIKELY = "likely"
    """There is evidence that it works."""


class Aim(Enum):
    """Whose endpoints a technique dials."""

    PEER = "peer"
    OURS = "ours"
    MEET = "meet"
    """None: both sides send at once, between ports that they tell each other (see `combos.meeting`)."""
    RELAY = "relay"
    """None: a server forwards the data of both sides (see `combos.relaying`)."""


Opinion = tuple[Likelihood, str] | None
FactsT = TypeVar("FactsT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """What a planner knows of a plugin.

    Attributes:
      outlook: for `Aim.MEET`: the plugin's opinion on our NAT, the peer's NAT and an address family.
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
      interfaces: the side's published interfaces.
      reaches: the other side's addresses (4 or 16 bytes) to which this side's routing table has a route; None where
        that is unknown, as for the peer.
      own: the addresses of the side's host, as far as they are known (`warpgate_trio.address.own`).
    """

    interfaces: tuple[AddressInterface, ...]
    reaches: frozenset[bytes] | None = None
    own: Container[IPv4Address | IPv6Address] = frozenset()
    _endpoints: tuple[Endpoint, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_endpoints", tuple(self._find_endpoints()))

    def endpoints(self) -> Sequence[Endpoint]:
        """The published endpoints, and the loopback endpoints, which follow from the ports and are never published."""
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
    """One of our rendezvous servers, as the planner sees it.

    Attributes:
      url: the server's URL, without a password.
      is_peers_too: whether the peer's address names it.
      relays: whether it relays at all; None where it has not said.
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
      same_host: whether both run on one host.
      our_nat, peer_nat: each side's published NAT profiles.
      our_capabilities, peer_capabilities: each side's published capabilities.
      relays: our rendezvous servers.
      peer_has_servers: whether the peer's address names any rendezvous server.
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
    """The path that a plugin's run works on: that of a combo, or that of a peer's request which the rules allow.

    Attributes:
      af: 4 or 6.
      target: the endpoint to dial (one of ours where the plugin asks to be dialled); None where nothing is dialled.
      source: the address to bind before dialling; None for the routing table's choice.
      server: the URL of the rendezvous server that relays, without a password; empty where there is none.
    """

    af: int
    route_type: RouteType
    target: Endpoint | None
    source: IPv4Address | IPv6Address | None
    server: str = ""


class RequestedPath(Protocol):
    """The path that a peer's request names (`warpgate_trio.plugin.PathRequest`).

    Attributes:
      address, port: the endpoint that this side is to dial; empty and 0 where nothing is dialled.
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
    """A path that a peer requests is not allowed or not possible; the message says why, and is only logged here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combo:
    """One thing to try.

    Attributes:
      target: the endpoint to dial: the peer's, or ours where the plugin asks to be dialled; None where nothing is
        dialled, or the plugin works on no particular path.
      source: the address to bind before dialling, where the dialling side is in the target's network.
      delay: seconds that the combo waits before it starts.
      why: the reason for its likelihood, in one sentence.
      server: the URL of the rendezvous server that relays, without a password; empty where the two sides have none in
        common; None for a combo without such a server.
      yields_to: a plugin whose combos have a head start of 300 ms at most, while they are under way.
      asks: whether the peer is asked to dial, by a signal.
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
        """Whether it is expected to fail."""
        return self.likelihood is Likelihood.HOPELESS

    @property
    def likely(self) -> bool:
        """Whether there is evidence that it works."""
        return self.likelihood is Likelihood.LIKELY

    @property
    def elsewhere(self) -> bool:
        """Whether its target is a private address in a network that the dialling side is not in, however named."""
        private = self.target is not None and not is_public(self.target.ip)
        return self.likelihood is Likelihood.DOUBTFUL and (private or self.route_type is RouteType.NIC_BIND)

    @property
    def aim(self) -> tuple[object, ...]:
        """The identity of a combo: combos of equal aims try the same thing."""
        where = None if self.target is None else (self.target.address, self.target.port)
        return (self.plugin, self.af, self.route_type, where, self.server)

    @property
    def path(self) -> JudgedPath | None:
        """The path that its run works on; None for a plugin that works on no particular path."""
        if not self.af:
            return None
        return JudgedPath(
            af=self.af, route_type=self.route_type, target=self.target, source=self.source, server=self.server or ""
        )


SAME_HOST_DELAY: Final = 0.05
"""Seconds that combos between two nodes on one host wait for those by loopback: ten times a loopback walk (4 ms)."""


def unknown(_f: object) -> Opinion:
    """The last rule of each table."""
    return (Likelihood.DOUBTFUL, "not known to work, nor to fail")


def first_opinion(rules: Sequence[Callable[[FactsT], Opinion]], facts: FactsT) -> tuple[Likelihood, str]:
    """The opinion of the first rule that has one; the last rule of a table always has."""
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


@functools.lru_cache(maxsize=64)  # the networks of our interfaces and of the peer's
def _network(address: bytes, prefix: int) -> IPv4Network | IPv6Network:
    return ip_network((address, prefix), strict=False)
