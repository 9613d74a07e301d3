"""Plans for plugins that go by a server that both sides use (`Aim.RELAY`), and how likely each is.  Pure.

Nobody is dialled and nothing is opened: the server passes on what the two say on the connections that both have open to
it.  So a combo has no target but a server, and its rules ask who uses that, and for whom it relays.  The first rule
that has an opinion decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

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
    RouteType,
    Technique,
    first_opinion,
    unknown,
)

__all__ = ["RELAY_RULES", "RelayFacts", "judge_relay", "judge_request", "plan"]

STAGGER: Final = 0.25
"""Seconds between the calls by two servers that both sides use: the first one mostly answers in less."""
TURN: Final = "turn"
"""The plugin that a rendezvous server leaves the way to: it takes less of a server, and loses no datagram to TCP."""
MAX_SERVERS: Final = 4
"""Servers by which one pair is tried, as many as an address names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """What a rule may look at.

    Attributes:
      server: None where the two have none in common.
      peer_relays: whether the peer's address says that it takes calls by a server.
    """

    server: RelayServer | None
    peer_relays: bool


def _nothing_in_common(f: RelayFacts) -> Opinion:
    return (Likelihood.HOPELESS, "the two have no rendezvous server in common") if f.server is None else None


def _peer_cannot(f: RelayFacts) -> Opinion:
    return None if f.peer_relays else (Likelihood.HOPELESS, "the peer's node takes no calls by a server")


def _server_cannot(f: RelayFacts) -> Opinion:
    cannot = f.server is not None and f.server.relays is False
    return (Likelihood.HOPELESS, "that server does not relay") if cannot else None


def _relays_for_us(f: RelayFacts) -> Opinion:
    does = f.server is not None and f.server.relays_for_us
    return (Likelihood.LIKELY, "that server relays for this node") if does else None


RELAY_RULES: Final[tuple[Callable[[RelayFacts], Opinion], ...]] = (
    _nothing_in_common,
    _peer_cannot,
    _server_cannot,
    _relays_for_us,
    unknown,
)
"""In order; the first that has an opinion decides.  The last always has one."""


def judge_relay(facts: RelayFacts) -> tuple[Likelihood, str]:
    """A combo's likelihood and the sentence behind it."""
    return first_opinion(RELAY_RULES, facts)


def plan(
    pair: Pair,
    techniques: Sequence[Technique],
    *,
    afs: Collection[int] | None = None,
    route_types: Collection[RouteType] | None = None,
) -> list[Combo]:
    """A combo for each server that both sides use, or a hopeless one where each side has some and none is both's.

    A relay has no address family, since each side reaches the server by its own; the combo has the first of `afs`.
    """
    if not pair.relays or not pair.peer_has_servers or (route_types is not None and not _EXTERNAL & set(route_types)):
        return []
    af = next((each for each in (4, 6) if afs is None or each in afs), None)
    shared = [server for server in pair.relays if server.is_peers_too][:MAX_SERVERS]
    combos: list[Combo] = []
    yields_to = TURN if any(technique.name == TURN for technique in techniques) else ""
    for technique in techniques:
        if technique.aim is not Aim.RELAY or af is None:
            continue
        for number, server in enumerate(shared or [None]):
            likelihood, why = judge_relay(RelayFacts(server=server, peer_relays=pair.peer_relays))
            combos.append(
                Combo(
                    phase=technique.phase,
                    plugin=technique.name,
                    af=af,
                    route_type=RouteType.EXT_BIND,
                    target=None,
                    source=None,
                    likelihood=likelihood,
                    delay=STAGGER * number,
                    why=why,
                    server="" if server is None else server.url,
                    yields_to=yields_to,
                )
            )
    return combos


_EXTERNAL: Final = {RouteType.EXT_BIND}


def judge_request(wanted: RequestedPath, server: str | None) -> JudgedPath:
    """The path of a peer that has called us.

    Args:
      server: by which it called; None: it sent a signal.

    Raises:
      PathRefused: it has not called.
    """
    if server is None:
        raise PathRefused("not done for a peer: it did not call by a server")
    return JudgedPath(af=wanted.af, route_type=RouteType.EXT_BIND, target=None, source=None, server=server)
