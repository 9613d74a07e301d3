"""Plans for plugins that use a relay (`Aim.RELAY`), and how likely each combo is.  No I/O.

No endpoint is dialled, so a combo has no target, NATs do not matter, and the rules only consider servers.  There are
two kinds of relay; the plugin's transport says which one it uses:

* TCP: a rendezvous server of both sides forwards a stream, on the connections that both have open to it anyway.  There
  is a combo for each such server.
* UDP: a TURN server of one side, or one of each side, forwards datagrams.  There is one combo, whichever servers are
  used in the end.

The first rule that has an opinion decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..address import Transport
from ..standing import Standing
from .combo import (
    Aim,
    Combo,
    JudgedPath,
    Likelihood,
    Opinion,
    Pair,
    PathRefused,
    RelayServer,
    RequestedPath,
    Route,
    RouteType,
    Technique,
    first_opinion,
    unknown,
)

__all__ = [
    "HAS_TURN",
    "RENDEZVOUS_RULES",
    "TAKES_CALLS",
    "TURN_RULES",
    "RendezvousFacts",
    "TurnFacts",
    "judge_request",
    "plan",
]

TAKES_CALLS: Final = "ws_relay"
"""The capability in the address of a node that takes calls by the rendezvous servers it names; the plugin's name."""
HAS_TURN: Final = "turn"
"""The capability in the address of a node that has TURN servers, and so can provide a relay to a peer without; the
plugin's name."""
STAGGER: Final = 0.25
"""Seconds between calls by two common servers; the first one mostly answers sooner.  There is no pause after a server
that does not relay or is on trial."""
MAX_SERVERS: Final = 4
"""Common servers that are tried for one pair: as many as an address names."""


# -- by a rendezvous server --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousFacts:
    """The input of a rule.

    Attributes:
      server: the common server; None where the two sides have none.
      peer_takes_calls: whether the peer's address says that it takes calls by a server.
    """

    server: RelayServer | None
    peer_takes_calls: bool


def _nothing_in_common(f: RendezvousFacts) -> Opinion:
    return (Likelihood.HOPELESS, "the two have no rendezvous server in common") if f.server is None else None


def _peer_cannot(f: RendezvousFacts) -> Opinion:
    return None if f.peer_takes_calls else (Likelihood.HOPELESS, "the peer's node accepts no calls through a server")


def _server_cannot(f: RendezvousFacts) -> Opinion:
    cannot = f.server is not None and f.server.relays is False
    return (Likelihood.HOPELESS, "that server does not relay") if cannot else None


def _relays_for_us(f: RendezvousFacts) -> Opinion:
    does = f.server is not None and f.server.relays_for_us
    return (Likelihood.LIKELY, "that server relays for this node") if does else None


RENDEZVOUS_RULES: Final[tuple[Callable[[RendezvousFacts], Opinion], ...]] = (
    _nothing_in_common,
    _peer_cannot,
    _server_cannot,
    _relays_for_us,
    unknown,
)
"""In order; the first that has an opinion decides.  The last always has one."""


# -- by TURN servers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFacts:
    """The input of a rule.

    Attributes:
      ours, peers: whether this side, and the peer, have TURN servers.
    """

    technique: Technique
    route_type: RouteType
    ours: bool
    peers: bool


def _unused_route(f: TurnFacts) -> Opinion:
    unused = f.route_type not in f.technique.route_types
    return (Likelihood.INVALID, "the plugin does not use this route type") if unused else None


def _ours(f: TurnFacts) -> Opinion:
    return (Likelihood.LIKELY, "a relay of our own servers") if f.ours else None


def _peers(f: TurnFacts) -> Opinion:
    return (Likelihood.LIKELY, "a relay of the peer's servers") if f.peers else None


def _nobodys(f: TurnFacts) -> Opinion:
    if not (f.ours or f.peers):
        return (Likelihood.HOPELESS, "neither side has a TURN server: servers.turn names one")
    return None


TURN_RULES: Final[tuple[Callable[[TurnFacts], Opinion], ...]] = (
    _unused_route,
    _ours,
    _peers,
    _nobodys,
    unknown,
)
"""In order; the first that has an opinion decides.  The last always has one."""


# -- both --------------------------------------------------------------------------------------------------------------


def plan(
    pair: Pair,
    techniques: Sequence[Technique],
    *,
    afs: Collection[int] | None = None,
    route_types: Collection[RouteType] | None = None,
) -> list[Combo]:
    """Every valid combo of the pair, restricted to `afs` and `route_types` where given.

    Combos by a rendezvous server yield to those by TURN, which load a server less, and whose datagrams do not wait for
    TCP's retransmissions.
    """
    relays = [technique for technique in techniques if technique.aim is Aim.RELAY]
    better = next((technique.name for technique in relays if technique.transport is Transport.UDP), "")
    combos: list[Combo] = []
    for technique in relays:
        if technique.transport is Transport.UDP:
            combos += _by_turn(pair, technique, afs, route_types)
        else:
            combos += _by_servers(pair, technique, afs, route_types, yields_to=better)
    return combos


def _by_servers(
    pair: Pair,
    technique: Technique,
    afs: Collection[int] | None,
    route_types: Collection[RouteType] | None,
    *,
    yields_to: str,
) -> list[Combo]:
    """A combo for each common server, or one hopeless combo where both sides have servers but none in common.

    Servers that failed lately, and those that do not relay, come last.

    Such a relay has no address family, since each side reaches the server by its own.  The combo has the first allowed
    one, IPv4 before IPv6.
    """
    if not pair.relays or not pair.peer_has_servers:
        return []
    af = next((each for each in _FAMILIES if afs is None or each in afs), None)
    if af is None or (route_types is not None and RouteType.EXT_BIND not in route_types):
        return []
    shared = [server for server in pair.relays if server.is_peers_too]
    shared.sort(key=lambda server: (server.relays is False, server.standing is Standing.FAILED))
    servers: Sequence[RelayServer | None] = shared[:MAX_SERVERS] or [None]
    combos: list[Combo] = []
    delay = 0.0
    for server in servers:
        facts = RendezvousFacts(server=server, peer_takes_calls=TAKES_CALLS in pair.peer_capabilities)
        likelihood, why = first_opinion(RENDEZVOUS_RULES, facts)
        combos.append(
            Combo(
                phase=technique.phase,
                plugin=technique.name,
                af=af,
                route_type=RouteType.EXT_BIND,
                target=None,
                source=None,
                likelihood=likelihood,
                delay=delay,
                why=why,
                server="" if server is None else server.url,
                yields_to=yields_to,
            )
        )
        if likelihood is not Likelihood.HOPELESS and server is not None and server.standing is not Standing.ON_TRIAL:
            delay += STAGGER
    return combos


def _by_turn(
    pair: Pair, technique: Technique, afs: Collection[int] | None, route_types: Collection[RouteType] | None
) -> list[Combo]:
    family = _family(pair, afs)
    if family is None:
        return []
    judged = [
        (each, *_judge_turn(pair, technique, each)) for each in (RouteType if route_types is None else route_types)
    ]
    return [
        Combo(
            phase=technique.phase,
            plugin=technique.name,
            af=family,
            route_type=route_type,
            target=None,
            source=None,
            likelihood=likelihood,
            delay=0.0,
            why=why,
        )
        for route_type, likelihood, why in judged
        if likelihood is not Likelihood.INVALID
    ]


def judge_request(pair: Pair, technique: Technique, wanted: RequestedPath, *, server: str | None) -> JudgedPath:
    """The path by a relay that a peer requests.

    Args:
      server: the rendezvous server that the peer called by; None where it sent a signal.

    Raises:
      PathRefused: there is no such path between the two, or the plugin needs a call and the peer sent a signal.
    """
    if technique.transport is Transport.UDP:
        likelihood, why = _judge_turn(pair, technique, wanted.route_type)
        if likelihood is Likelihood.INVALID:
            raise PathRefused(f"the peer's request is refused: {why}")
        return JudgedPath(af=wanted.af, route_type=wanted.route_type, target=None, source=None)
    if server is None:
        raise PathRefused("the peer's request is refused: it is a signal, not a call through a server")
    return JudgedPath(af=wanted.af, route_type=RouteType.EXT_BIND, target=None, source=None, server=server)


def _judge_turn(pair: Pair, technique: Technique, route_type: RouteType) -> tuple[Likelihood, str]:
    facts = TurnFacts(
        technique=technique,
        route_type=route_type,
        ours=HAS_TURN in pair.our_capabilities,
        peers=HAS_TURN in pair.peer_capabilities,
    )
    return first_opinion(TURN_RULES, facts)


def _family(pair: Pair, afs: Collection[int] | None) -> Literal[4, 6] | None:
    """IPv4 where both sides have it, else IPv6 where both have that, else the first allowed family."""
    allowed: list[Literal[4, 6]] = [family for family in _FAMILIES if afs is None or family in afs]
    both = [family for family in allowed if _has(pair.ours, family) and _has(pair.peers, family)]
    return next(iter([*both, *allowed]), None)


_FAMILIES: Final[tuple[Literal[4], Literal[6]]] = (4, 6)


def _has(side: Route, family: int) -> bool:
    return any(endpoint.af == family for endpoint in side.endpoints())
