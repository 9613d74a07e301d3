"""Plans for plugins with which both sides send at once (`Aim.MEET`), and how likely each combo is.  No I/O.

No listening endpoint is dialled: each side learns the external addresses of its own ports, tells them to the other, and
both send.  So a combo is a plugin, an address family and a route type, without a target.  The rules consider what the
*two* sides have in common.  The first rule that has an opinion decides, and the responder judges a peer's request by
the same table.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from ..address import EndpointKind, is_public
from ..address.nat_profile import NatProfile
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

FAMILIES: Final[tuple[Literal[4, 6], ...]] = (4, 6)

logger: logging.Logger = logging.getLogger(__name__)

__all__ = ["MEETING_RULES", "MeetingFacts", "judge_meeting", "judge_request", "meeting_source", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingFacts:
    """The input of a rule.

    Attributes:
      ours, peers: the two sides; every rule treats them alike.
      our_nat, peer_nat: what each side knows of its own NAT.
      source: our own address in a network that both sides are in.
    """

    technique: Technique
    af: int
    route_type: RouteType
    ours: Route
    peers: Route
    same_host: bool
    our_nat: NatProfile
    peer_nat: NatProfile
    source: IPv4Address | IPv6Address | None


def _unused_route(f: MeetingFacts) -> Opinion:
    unused = f.route_type not in f.technique.route_types
    return (Likelihood.INVALID, "the plugin does not use this route type") if unused else None


def _no_common_family(f: MeetingFacts) -> Opinion:
    common = _has_family(f.ours, f.af) and _has_family(f.peers, f.af)
    return None if common else (Likelihood.INVALID, f"not both have an IPv{f.af} address")


def _other_machines_loopback(f: MeetingFacts) -> Opinion:
    other = f.route_type is RouteType.LOOPBACK_BIND and not f.same_host
    return (Likelihood.INVALID, "loopback of another machine") if other else None


def _no_common_network(f: MeetingFacts) -> Opinion:
    apart = f.route_type is RouteType.NIC_BIND and f.source is None
    return (Likelihood.INVALID, "the two have no network in common") if apart else None


def _private_v6(f: MeetingFacts) -> Opinion:
    """IPv6 is hardly ever translated: a host that reaches the internet by it has a public address."""
    if f.route_type is RouteType.EXT_BIND and f.af == 6 and not (_is_public_v6(f.ours) and _is_public_v6(f.peers)):
        return (Likelihood.INVALID, "not both have a public IPv6 address")
    return None


def _same_host(f: MeetingFacts) -> Opinion:
    near = f.same_host and f.route_type is not RouteType.EXT_BIND
    return (Likelihood.LIKELY, "both are on one machine") if near else None


def _same_network(f: MeetingFacts) -> Opinion:
    return (Likelihood.LIKELY, "both are in one network") if f.route_type is RouteType.NIC_BIND else None


def _outlook(f: MeetingFacts) -> Opinion:
    """The plugin's own opinion on the two NATs; an exception counts as no opinion and affects no other combo."""
    if f.technique.outlook is None:
        return None
    try:
        return f.technique.outlook(f.our_nat, f.peer_nat, f.af)
    except Exception:
        logger.warning("the outlook of plugin %s failed", f.technique.name, exc_info=True)
        return None


MEETING_RULES: Final[tuple[Callable[[MeetingFacts], Opinion], ...]] = (
    _unused_route,
    _no_common_family,
    _other_machines_loopback,
    _no_common_network,
    _private_v6,
    _same_host,
    _same_network,
    _outlook,
    unknown,
)
"""In order; the first that has an opinion decides.  The last always has one."""


def judge_meeting(facts: MeetingFacts) -> tuple[Likelihood, str]:
    """A combo's likelihood and the sentence behind it."""
    return first_opinion(MEETING_RULES, facts)


def plan(
    pair: Pair,
    techniques: Sequence[Technique],
    *,
    afs: Collection[int] | None = None,
    route_types: Collection[RouteType] | None = None,
) -> list[Combo]:
    """Every valid combo of the pair, restricted to `afs` and `route_types` where given.

    A technique has at most one combo for each family and route type, so their number needs no bound.
    """
    combos: list[Combo] = []
    for technique in techniques:
        if technique.aim is not Aim.MEET:
            continue
        for route_type in RouteType if route_types is None else route_types:
            for af in FAMILIES:
                if afs is not None and af not in afs:
                    continue
                facts = _facts(pair, technique, af, route_type)
                likelihood, why = judge_meeting(facts)
                if likelihood is Likelihood.INVALID:
                    continue
                combos.append(
                    Combo(
                        phase=technique.phase,
                        plugin=technique.name,
                        af=af,
                        route_type=route_type,
                        target=None,
                        source=facts.source,
                        likelihood=likelihood,
                        delay=0.0,
                        why=why,
                    )
                )
    loopback = {combo.phase for combo in combos if combo.route_type is RouteType.LOOPBACK_BIND}
    return [
        dataclasses.replace(combo, delay=SAME_HOST_DELAY)
        if combo.phase in loopback and combo.route_type is not RouteType.LOOPBACK_BIND
        else combo
        for combo in combos
    ]


def judge_request(pair: Pair, technique: Technique, wanted: RequestedPath) -> JudgedPath:
    """The path on which a peer wants to meet us.  A hopeless one is allowed, since it costs little.

    Raises:
      PathRefused: there is no such path between the two sides.
    """
    facts = _facts(pair, technique, wanted.af, wanted.route_type)
    likelihood, why = judge_meeting(facts)
    if likelihood is Likelihood.INVALID:
        raise PathRefused(f"the peer's request is refused: {why}")
    return JudgedPath(af=wanted.af, route_type=wanted.route_type, target=None, source=facts.source)


def _facts(pair: Pair, technique: Technique, af: Literal[4, 6], route_type: RouteType) -> MeetingFacts:
    return MeetingFacts(
        technique=technique,
        af=af,
        route_type=route_type,
        ours=pair.ours,
        peers=pair.peers,
        same_host=pair.same_host,
        our_nat=pair.our_nat.get(None, af),
        peer_nat=pair.peer_nat.get(None, af),
        source=meeting_source(route_type, af, pair.ours, pair.peers),
    )


def meeting_source(route_type: RouteType, af: int, ours: Route, peers: Route) -> IPv4Address | IPv6Address | None:
    """Our own address in a network that one of the peer's interfaces is in, for NIC_BIND."""
    if route_type is not RouteType.NIC_BIND:
        return None
    for endpoint in peers.endpoints():
        if endpoint.kind is EndpointKind.NIC and endpoint.af == af:
            source = find_source(endpoint, ours)
            if source is not None:
                return source
    return None


def _has_family(side: Route, af: int) -> bool:
    return any(endpoint.af == af for endpoint in side.endpoints())


def _is_public_v6(side: Route) -> bool:
    return any(endpoint.af == 6 and is_public(endpoint.ip) for endpoint in side.endpoints())
