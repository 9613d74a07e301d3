"""Which combos (plugin × address family × route) a pair of peers has, and how likely each is.  Pure.

A combo aims at one *target*: an endpoint that somebody listens on.  A plugin that dials out (`Aim.PEER`) takes the
peer's endpoints as targets; one that asks to be dialled (`Aim.OURS`) takes our own, and the same rules judge them
with the two sides exchanged.  (Where both sides send at once, `Aim.MEET`, there is no target:
`warpgate_trio.combos.meeting`.)  `RULES` is the whole of the knowledge: the first rule that has an opinion decides.

* INVALID combos do not exist for the pair.
* HOPELESS ones are known to fail; they cost nothing and are tried once, in a last round before giving up (DESIGN §8).
* DOUBTFUL ones may work: an unknown is planned as possible.
* LIKELY ones have evidence for them.

Every valid combo is launched as a task of its phase at once; `Combo.delay` is how long that task holds back, so that a
path with a better one beside it does not cost two TLS handshakes each time (the idea of RFC 8305 §5).
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeVar

from ..address import (
    AddressInterface,
    AddressScope,
    Endpoint,
    EndpointKind,
    Transport,
    is_public,
    scope_of,
)
from ..address.nat_profile import NatProfile
from ..limits import subscriber

__all__ = [
    "RULES",
    "Aim",
    "Combo",
    "Facts",
    "Likelihood",
    "Route",
    "RouteType",
    "Technique",
    "find_source",
    "first_opinion",
    "judge",
    "pathless_combo",
    "plan_combos",
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
class Combo:
    """One thing to try.

    Attributes:
      target: what is dialled: the peer's endpoint, or ours for a plugin that asks to be dialled; None where both sides
        send at once, and for a plugin that works on no particular path.
      source: the address to bind before dialling, where the target's network is one that the dialling side is in.
      delay: seconds that the combo's task holds back.
      why: the sentence behind its likelihood.
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

    @property
    def elsewhere(self) -> bool:
        """Whether it is towards a private address of a network that the dialling side is not in."""
        return self.route_type is RouteType.NIC_BIND and self.likelihood is Likelihood.DOUBTFUL

    @property
    def aim(self) -> tuple[object, ...]:
        """What makes two combos the same thing to try."""
        where = None if self.target is None else (self.target.address, self.target.port)
        return (self.plugin, self.af, self.route_type, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a rule may look at."""

    technique: Technique
    af: int
    route_type: RouteType
    target: Endpoint
    target_side: Route
    dialler: Route
    same_host: bool
    source: IPv4Address | IPv6Address | None

    @property
    def here(self) -> bool:
        """Whether the target is the very machine that the dialling side runs on."""
        return self.target.ip.is_loopback or self.target.ip in self.dialler.own


INVALID: Final = Likelihood.INVALID


def _wrong_family(f: Facts) -> Opinion:
    return (INVALID, "another address family") if f.target.af != f.af else None


def _wrong_transport(f: Facts) -> Opinion:
    return (INVALID, "another transport") if f.target.transport is not f.technique.transport else None


def _unused_route(f: Facts) -> Opinion:
    unused = f.route_type not in f.technique.route_types
    return (INVALID, "the plugin does not use this route type") if unused else None


def _wrong_kind(f: Facts) -> Opinion:
    """Each endpoint belongs to exactly one route type, so that no address is dialled twice."""
    if f.target.ip.is_loopback:
        fits = f.route_type is RouteType.LOOPBACK_BIND
    elif f.target.kind is EndpointKind.NIC:
        fits = f.route_type is RouteType.NIC_BIND
    else:
        fits = f.route_type is RouteType.EXT_BIND
    return None if fits else (INVALID, "the endpoint belongs to another route type")


def _undialable(f: Facts) -> Opinion:
    scope = scope_of(f.target.ip)
    hidden = scope is AddressScope.LOOPBACK and not f.target.ip.is_loopback  # an IPv4 one inside an IPv6 one
    bad = scope in (AddressScope.NO_HOST, AddressScope.LINK_LOCAL) or hidden
    return (INVALID, "not an address that may be dialled (DESIGN §9.9)") if bad else None


def _ourselves(f: Facts) -> Opinion:
    """Two nodes never listen on one address and port: who finds its own one there would talk to itself."""
    own = any(e.address == f.target.address and e.port == f.target.port for e in f.dialler.endpoints())
    return (INVALID, "that is the dialling side's own endpoint") if own else None


def _same_host(f: Facts) -> Opinion:
    """An address of one's own machine is where somebody else's peer is not: whoever names it aims at what runs here.

    For who does run here, all other addresses are as they are for anybody.
    """
    if not f.here:
        return None
    return (Likelihood.LIKELY, "both are on one machine") if f.same_host else (INVALID, "only the dialler is there")


def _no_route(f: Facts) -> Opinion:
    if f.dialler.reaches is not None:
        if f.target.address not in f.dialler.reaches:
            return (Likelihood.HOPELESS, "the routing table has no way there")
    elif all(endpoint.af != f.af for endpoint in f.dialler.endpoints()):
        return (Likelihood.HOPELESS, f"the dialling side has published no IPv{f.af} address")
    return None


def _same_network(f: Facts) -> Opinion:
    return (Likelihood.LIKELY, "both are in one network") if f.source is not None else None


def _public_nic(f: Facts) -> Opinion:
    """A public NIC address stands in the record as EXT too; one of them is enough."""
    twin = f.target.kind is EndpointKind.NIC and any(
        e.kind is EndpointKind.EXT and e.address == f.target.address and e.port == f.target.port
        for e in f.target_side.endpoints()
    )
    return (INVALID, "dialled as EXT_BIND") if twin else None


def _private_elsewhere(f: Facts) -> Opinion:
    if f.route_type is RouteType.NIC_BIND:
        return (Likelihood.DOUBTFUL, "a private address in another network: reachable only through routing or a VPN")
    return None


def _mapped(f: Facts) -> Opinion:
    return (Likelihood.LIKELY, "a mapped port") if f.target.kind is EndpointKind.MAPPED else None


def _public(f: Facts) -> Opinion:
    own = any(e.kind is EndpointKind.NIC and e.address == f.target.address for e in f.target_side.endpoints())
    if own and is_public(f.target.ip):
        return (Likelihood.LIKELY, "a public address of the machine itself")
    return None


def unknown(_f: object) -> Opinion:
    """The last rule of each table."""
    return (Likelihood.DOUBTFUL, "not known to work, nor to fail")


RULES: Final[tuple[Callable[[Facts], Opinion], ...]] = (
    _wrong_family,
    _wrong_transport,
    _unused_route,
    _wrong_kind,
    _undialable,
    _ourselves,
    _same_host,
    _no_route,
    _same_network,
    _public_nic,
    _private_elsewhere,
    _mapped,
    _public,
    unknown,
)
"""In order; the first that has an opinion decides.  The last always has one."""


def judge(facts: Facts) -> tuple[Likelihood, str]:
    """A combo's likelihood and the sentence behind it."""
    return first_opinion(RULES, facts)


def first_opinion(rules: Sequence[Callable[[FactsT], Opinion]], facts: FactsT) -> tuple[Likelihood, str]:
    """What the first rule of a table says that has an opinion; the last one always has."""
    for rule in rules:
        opinion = rule(facts)
        if opinion is not None:
            return opinion
    raise AssertionError("the last rule always has an opinion")


SAME_HOST_DELAY: Final = 0.05
"""Non-loopback combos on one machine wait for loopback: ten times what a loopback walk takes here (4 ms)."""
ASK_DELAY: Final = 0.02
"""Asking to be dialled waits for dialling where that is likely: under the 30 ms that DESIGN §8 allows over the RTTs."""
TWIN_DELAY: Final = 0.05
"""A public address of a machine in our own network is reached by NIC_BIND and by EXT_BIND: the same dialling twice."""
MAX_COMBOS: Final = 32
"""Of one phase: a peer's record with 256 endpoints must not make us dial 256 times.  The likely ones come first."""
MAX_COMBOS_PER_TARGET: Final = 8
"""Of one phase and plugin, to one address, an IPv6 /64 being one: the rest are ports of somebody whom the record names.
A machine with two interfaces in one network, two addresses on each, and a route type for each of them, has eight."""


def plan_combos(
    techniques: Sequence[Technique],
    *,
    ours: Route,
    peers: Route,
    same_host: bool,
    afs: Collection[int] | None = None,
    route_types: Collection[RouteType] | None = None,
) -> list[Combo]:
    """Every valid combo of the pair, likely ones first; at most `MAX_COMBOS` a phase, `MAX_COMBOS_PER_TARGET` of each.

    `afs` and `route_types` leave only those.
    """
    combos: list[Combo] = []
    for technique in techniques:
        if technique.aim is Aim.MEET:
            continue
        target_side, dialler = (peers, ours) if technique.aim is Aim.PEER else (ours, peers)
        for route_type in RouteType:
            if route_types is not None and route_type not in route_types:
                continue
            for af in (4, 6):
                if afs is not None and af not in afs:
                    continue
                for target in target_side.endpoints():
                    source = find_source(target, dialler)
                    facts = Facts(
                        technique=technique,
                        af=af,
                        route_type=route_type,
                        target=target,
                        target_side=target_side,
                        dialler=dialler,
                        same_host=same_host,
                        source=source,
                    )
                    likelihood, why = judge(facts)
                    if likelihood is not INVALID:
                        combos.append(_combo(facts, likelihood, why))
    combos = _with_delays(list(dict.fromkeys(combos)), {t.name for t in techniques if t.aim is Aim.OURS})
    order = (Likelihood.LIKELY, Likelihood.DOUBTFUL, Likelihood.HOPELESS)
    combos.sort(key=lambda combo: (order.index(combo.likelihood), combo.delay))
    return [each for phase in dict.fromkeys(c.phase for c in combos) for each in _bounded(combos, phase)]


def _bounded(combos: Iterable[Combo], phase: str | None) -> list[Combo]:
    """Those of a phase, as far as its bounds go."""
    aims: Counter[tuple[str, str]] = Counter()
    kept: list[Combo] = []
    for combo in combos:
        assert combo.target is not None
        aim = (combo.plugin, subscriber(str(combo.target.ip)))
        if combo.phase == phase and aims[aim] < MAX_COMBOS_PER_TARGET:
            kept.append(combo)
            aims[aim] += 1
    return kept[:MAX_COMBOS]


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


def _combo(facts: Facts, likelihood: Likelihood, why: str) -> Combo:
    return Combo(
        phase=facts.technique.phase,
        plugin=facts.technique.name,
        af=facts.af,
        route_type=facts.route_type,
        target=facts.target,
        source=None if facts.here else facts.source,
        likelihood=likelihood,
        delay=0.0,
        why=why,
    )


def _with_delays(combos: list[Combo], asking: set[str]) -> list[Combo]:
    """Who holds back for whom; see the three constants."""
    loopback = any(combo.route_type is RouteType.LOOPBACK_BIND for combo in combos)
    likely = {c.phase for c in combos if c.plugin not in asking and c.likelihood is Likelihood.LIKELY}
    aimed_at: set[tuple[str, bytes, int]] = set()
    delayed = []
    for combo in combos:  # NIC_BIND comes before EXT_BIND in `RouteType`
        delay = SAME_HOST_DELAY if loopback and combo.route_type is not RouteType.LOOPBACK_BIND else 0.0
        if combo.plugin in asking and combo.phase in likely:
            delay += ASK_DELAY
        assert combo.target is not None
        aim = (combo.plugin, combo.target.address, combo.target.port)
        if aim in aimed_at:
            delay += TWIN_DELAY
        aimed_at.add(aim)
        delayed.append(dataclasses.replace(combo, delay=delay))
    return delayed


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
