"""Plans for plugins that dial (plugin × address family × route × endpoint), and how likely each combo is.  No I/O.

A combo has one *target*: an endpoint that one side listens on.  For a plugin that dials (`Aim.PEER`) the targets are
the peer's endpoints.  For one that asks to be dialled (`Aim.OURS`) they are our own, and the same rules judge them with
the two sides exchanged.  The first rule of `RULES` that has an opinion decides.

Every valid combo is started as a task of its phase at once.  The task first waits for `Combo.delay`, so that two paths
of which one is better do not cost two TLS handshakes each time (the idea of RFC 8305 §5).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ..address import AddressScope, Endpoint, EndpointKind, is_public, scope_of
from ..limits import subscriber
from .combo import (
    SAME_HOST_DELAY,
    Aim,
    Combo,
    JudgedPath,
    Likelihood,
    Opinion,
    Pair,
    PathRefused,
    RequestedPath,
    Route,
    RouteType,
    Technique,
    find_source,
    first_opinion,
    unknown,
)

__all__ = ["RULES", "Facts", "judge", "judge_request", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The input of a rule."""

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
        """Whether the target is the host that the dialling side runs on."""
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
    hidden = scope is AddressScope.LOOPBACK and not f.target.ip.is_loopback  # IPv4 loopback inside an IPv6 address
    bad = scope in (AddressScope.NO_HOST, AddressScope.LINK_LOCAL) or hidden
    return (INVALID, "not an address that may be dialled") if bad else None


def _ourselves(f: Facts) -> Opinion:
    """Two nodes never listen on the same address and port, so the dialling side would connect to itself."""
    own = any(e.address == f.target.address and e.port == f.target.port for e in f.dialler.endpoints())
    return (INVALID, "that is the dialling side's own endpoint") if own else None


def _same_host(f: Facts) -> Opinion:
    """An address of the dialling side's own host cannot be a peer's on another host: that would aim at other programs
    here.

    Addresses that are not this host's are left to the other rules, also for a peer on the same host.
    """
    if not f.here:
        return None
    return (
        (Likelihood.LIKELY, "both are on one machine")
        if f.same_host
        else (INVALID, "an address of the dialling side's own host")
    )


def _no_route(f: Facts) -> Opinion:
    if f.dialler.reaches is not None:
        if f.target.address not in f.dialler.reaches:
            return (Likelihood.HOPELESS, "the routing table has no route there")
    elif all(endpoint.af != f.af for endpoint in f.dialler.endpoints()):
        return (Likelihood.HOPELESS, f"the dialling side has published no IPv{f.af} address")
    return None


def _same_network(f: Facts) -> Opinion:
    return (Likelihood.LIKELY, "both are in one network") if f.source is not None else None


def _public_nic(f: Facts) -> Opinion:
    """A public NIC address is in the record as EXT, too; it is dialled only as that."""
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
    """A port mapped at a private address is open to the router's neighbours in its provider's network."""
    if f.target.kind is not EndpointKind.MAPPED:
        return None
    if is_public(f.target.ip):
        return (Likelihood.LIKELY, "a mapped port")
    return (Likelihood.DOUBTFUL, "a mapped port in the network of the target's provider")


def _public(f: Facts) -> Opinion:
    own = any(e.kind is EndpointKind.NIC and e.address == f.target.address for e in f.target_side.endpoints())
    if own and is_public(f.target.ip):
        return (Likelihood.LIKELY, "a public address of the machine itself")
    return None


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


ASK_DELAY: Final = 0.02
"""Seconds that combos which ask to be dialled wait where a dialling combo is likely: less than the 30 ms that a
connection may take beyond its round trips (benchmarks/punch_times.py)."""
TWIN_DELAY: Final = 0.05
"""Seconds between dialling a public address in our own network by NIC_BIND and by EXT_BIND."""
MAX_COMBOS: Final = 32
"""Combos of one phase, likely ones first: a record with 256 endpoints must not make this node dial 256 times."""
MAX_COMBOS_PER_TARGET: Final = 8
"""Combos of one phase and plugin to one address (or IPv6 /64).  More would be further ports of a host that the record
names, which may be a third party.  A host with two interfaces in one network, two addresses on each, and a route type
for each, has eight."""


def plan(
    pair: Pair,
    techniques: Sequence[Technique],
    *,
    afs: Collection[int] | None = None,
    route_types: Collection[RouteType] | None = None,
) -> list[Combo]:
    """Every valid combo of the pair, likely ones first, restricted to `afs` and `route_types` where given.

    There are at most `MAX_COMBOS` of a phase, and `MAX_COMBOS_PER_TARGET` for an address.
    """
    combos: list[Combo] = []
    for technique in techniques:
        if technique.aim not in (Aim.PEER, Aim.OURS):
            continue
        target_side, dialler = (pair.peers, pair.ours) if technique.aim is Aim.PEER else (pair.ours, pair.peers)
        targets = [(target, find_source(target, dialler)) for target in target_side.endpoints()]
        for route_type in RouteType:
            if route_types is not None and route_type not in route_types:
                continue
            for af in (4, 6):
                if afs is not None and af not in afs:
                    continue
                for target, source in targets:
                    facts = Facts(
                        technique=technique,
                        af=af,
                        route_type=route_type,
                        target=target,
                        target_side=target_side,
                        dialler=dialler,
                        same_host=pair.same_host,
                        source=source,
                    )
                    likelihood, why = judge(facts)
                    if likelihood is not INVALID:
                        combos.append(_combo(facts, likelihood, why))
    combos = _with_delays(list(dict.fromkeys(combos)), {t.name for t in techniques if t.aim is Aim.OURS})
    order = (Likelihood.LIKELY, Likelihood.DOUBTFUL, Likelihood.HOPELESS)
    combos.sort(key=lambda combo: (order.index(combo.likelihood), combo.delay))
    return [each for phase in dict.fromkeys(c.phase for c in combos) for each in _bounded(combos, phase)]


def judge_request(
    pair: Pair,
    technique: Technique,
    wanted: RequestedPath,
    *,
    our_nats: Collection[IPv4Address | IPv6Address],
) -> JudgedPath:
    """The path that a peer asks us to dial, if we would dial it ourselves and it cannot lead to a third party.

    Some doubtful targets that we would try for ourselves are refused to a peer: by a private address outside our own
    networks it could probe a network that it cannot see.

    Args:
      our_nats: the external addresses of our NATs.

    Raises:
      PathRefused: the endpoint is not one of the peer's, or the rules forbid it.
    """
    why = "the endpoint is not in its sender's address"
    for endpoint in pair.peers.endpoints():
        if (endpoint.address, endpoint.port) != (wanted.address, wanted.port):
            continue
        source = find_source(endpoint, pair.ours)
        facts = Facts(
            technique=technique,
            af=wanted.af,
            route_type=wanted.route_type,
            target=endpoint,
            target_side=pair.peers,
            dialler=pair.ours,
            same_host=pair.same_host,
            source=source,
        )
        likelihood, why = judge(facts)
        # The kind is the peer's claim: a private address is private even where the peer calls it EXT or MAPPED.
        near = facts.here or source is not None
        # An address of our own NAT leads to its administration, and to ports that it forwards to our neighbours.
        inside = not is_public(endpoint.ip) or endpoint.ip in our_nats
        elsewhere = not near and (wanted.route_type is RouteType.NIC_BIND or inside)
        if likelihood not in (Likelihood.INVALID, Likelihood.HOPELESS) and not elsewhere:
            return JudgedPath(
                af=wanted.af,
                route_type=wanted.route_type,
                target=endpoint,
                source=None if facts.here else source,
            )
    raise PathRefused(f"the peer's request to dial is refused: {why}")


def _bounded(combos: Iterable[Combo], phase: str | None) -> list[Combo]:
    """The combos of a phase, within the bounds."""
    aims: Counter[tuple[str, str]] = Counter()
    kept: list[Combo] = []
    for combo in combos:
        assert combo.target is not None
        aim = (combo.plugin, subscriber(str(combo.target.ip)))
        if combo.phase == phase and aims[aim] < MAX_COMBOS_PER_TARGET:
            kept.append(combo)
            aims[aim] += 1
    return kept[:MAX_COMBOS]


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
        asks=facts.technique.aim is Aim.OURS,
    )


def _with_delays(combos: list[Combo], asking: set[str]) -> list[Combo]:
    """Set the delays of the combos; see `SAME_HOST_DELAY`, `ASK_DELAY` and `TWIN_DELAY`."""
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
