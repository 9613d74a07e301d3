"""The planner of relays: one combo for each server that both sides use, and what is known of it."""

from __future__ import annotations

import dataclasses

import pytest

from warpgate_trio.address import Transport
from warpgate_trio.combos import (
    Aim,
    Likelihood,
    Pair,
    PathRefused,
    RelayServer,
    Route,
    RouteType,
    Technique,
    dialling,
    meeting,
)
from warpgate_trio.combos.relaying import MAX_SERVERS, RELAY_RULES, judge_request, plan
from warpgate_trio.plugin import PathRequest

RELAY = Technique(
    name="ws_relay",
    phase="relay",
    transport=Transport.TCP,
    route_types=frozenset({RouteType.EXT_BIND}),
    aim=Aim.RELAY,
)
HERE = Route(interfaces=())


def server(
    url: str = "ws://one", *, shared: bool = True, relays: bool | None = True, for_us: bool = False
) -> RelayServer:
    return RelayServer(url=url, is_peers_too=shared, relays=relays, relays_for_us=for_us)


def pair(*relays: RelayServer, peer_has_servers: bool = True, peer_relays: bool = True) -> Pair:
    return Pair(
        ours=HERE,
        peers=HERE,
        same_host=False,
        relays=relays,
        peer_has_servers=peer_has_servers,
        peer_relays=peer_relays,
    )


@pytest.mark.parametrize(
    ("made", "likelihood", "why"),
    [
        (pair(server(for_us=True)), Likelihood.LIKELY, "that server relays for this node"),
        (pair(server()), Likelihood.DOUBTFUL, "not known to work, nor to fail"),
        (pair(server(relays=None)), Likelihood.DOUBTFUL, "not known to work, nor to fail"),
        (pair(server(relays=False)), Likelihood.HOPELESS, "that server does not relay"),
        (pair(server(), peer_relays=False), Likelihood.HOPELESS, "the peer's node takes no calls by a server"),
        (pair(server(shared=False)), Likelihood.HOPELESS, "the two have no rendezvous server in common"),
    ],
)
def test_what_is_known_of_a_relay(made: Pair, likelihood: Likelihood, why: str) -> None:
    (combo,) = plan(made, [RELAY])
    assert (combo.plugin, combo.phase, combo.target, combo.likelihood, combo.why) == (
        "ws_relay",
        "relay",
        None,
        likelihood,
        why,
    )
    assert combo.server == ("" if "common" in why else "ws://one")
    assert combo.path is not None
    assert combo.path.server == combo.server


def test_where_there_is_nothing_to_plan() -> None:
    assert plan(pair(), [RELAY]) == []
    assert plan(pair(server(), peer_has_servers=False), [RELAY]) == []
    assert plan(pair(server()), [dataclasses.replace(RELAY, aim=Aim.MEET)]) == []
    assert plan(pair(server()), [RELAY], route_types=[RouteType.NIC_BIND]) == []
    assert dialling.plan(pair(server()), [RELAY]) == meeting.plan(pair(server()), [RELAY]) == []


def test_servers_are_called_one_after_the_other() -> None:
    servers = [server(f"ws://{number}") for number in range(6)]
    combos = plan(pair(server("ws://ours", shared=False), *servers), [RELAY])
    assert [combo.server for combo in combos] == [f"ws://{number}" for number in range(MAX_SERVERS)]
    assert [combo.delay for combo in combos] == [0.0, 0.25, 0.5, 0.75]
    assert len({combo.aim for combo in combos}) == MAX_SERVERS


def test_a_relay_is_of_any_address_family() -> None:
    assert [combo.af for combo in plan(pair(server()), [RELAY])] == [4]
    assert [combo.af for combo in plan(pair(server()), [RELAY], afs=[6])] == [6]


def test_it_yields_to_turn_where_that_is_there() -> None:
    turn = dataclasses.replace(RELAY, name="turn", aim=Aim.MEET)
    assert [combo.yields_to for combo in plan(pair(server()), [RELAY])] == [""]
    assert [combo.yields_to for combo in plan(pair(server()), [RELAY, turn])] == ["turn"]


def test_a_request_has_to_be_a_call() -> None:
    wanted = PathRequest(af=4, route_type=RouteType.EXT_BIND)
    assert judge_request(wanted, "ws://one").server == "ws://one"
    with pytest.raises(PathRefused, match="it did not call by a server"):
        judge_request(wanted, None)


def test_the_last_rule_has_an_opinion() -> None:
    assert RELAY_RULES[-1](object()) is not None  # type: ignore[arg-type]
