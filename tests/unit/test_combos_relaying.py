"""The rules for relayed paths, and their plans: through rendezvous servers, and through TURN servers."""

from __future__ import annotations

import dataclasses

import pytest

from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
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
from warpgate_trio.combos.relaying import MAX_SERVERS, RENDEZVOUS_RULES, TURN_RULES, judge_request, plan
from warpgate_trio.plugin import PathRequest
from warpgate_trio.standing import Standing

WS_RELAY = Technique(
    name="ws_relay",
    phase="relay",
    transport=Transport.TCP,
    route_types=frozenset({RouteType.EXT_BIND}),
    aim=Aim.RELAY,
)
TURN = dataclasses.replace(WS_RELAY, name="by_turn", transport=Transport.UDP)
HERE = Route(interfaces=())
WANTED = PathRequest(af=4, route_type=RouteType.EXT_BIND)


@pytest.mark.parametrize("rules", [RENDEZVOUS_RULES, TURN_RULES])
def test_the_last_rule_has_an_opinion(rules: tuple[object, ...]) -> None:
    assert rules[-1](object()) is not None  # type: ignore[operator]


# -- through a rendezvous server ---------------------------------------------------------------------------------------


def server(
    url: str = "ws://one", *, shared: bool = True, relays: bool | None = True, for_us: bool = False
) -> RelayServer:
    return RelayServer(url=url, is_peers_too=shared, relays=relays, relays_for_us=for_us)


def with_servers(*relays: RelayServer, peer_has_servers: bool = True, takes_calls: bool = True) -> Pair:
    return Pair(
        ours=HERE,
        peers=HERE,
        same_host=False,
        relays=relays,
        peer_has_servers=peer_has_servers,
        peer_capabilities=("other", "ws_relay") if takes_calls else ("other",),
    )


@pytest.mark.parametrize(
    ("made", "likelihood", "why"),
    [
        (with_servers(server(for_us=True)), Likelihood.LIKELY, "that server relays for this node"),
        (with_servers(server()), Likelihood.DOUBTFUL, "not known to work, nor to fail"),
        (with_servers(server(relays=None)), Likelihood.DOUBTFUL, "not known to work, nor to fail"),
        (with_servers(server(relays=False)), Likelihood.HOPELESS, "that server does not relay"),
        (
            with_servers(server(), takes_calls=False),
            Likelihood.HOPELESS,
            "the peer's node accepts no calls through a server",
        ),
        (with_servers(server(shared=False)), Likelihood.HOPELESS, "the two have no rendezvous server in common"),
    ],
)
def test_what_is_known_of_a_relay(made: Pair, likelihood: Likelihood, why: str) -> None:
    (combo,) = plan(made, [WS_RELAY])
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
    assert plan(with_servers(), [WS_RELAY]) == []
    assert plan(with_servers(server(), peer_has_servers=False), [WS_RELAY]) == []
    assert plan(with_servers(server()), [dataclasses.replace(WS_RELAY, aim=Aim.MEET)]) == []
    assert plan(with_servers(server()), [WS_RELAY], route_types=[RouteType.NIC_BIND]) == []
    assert dialling.plan(with_servers(server()), [WS_RELAY]) == meeting.plan(with_servers(server()), [WS_RELAY]) == []


def test_servers_are_called_one_after_the_other() -> None:
    servers = [server(f"ws://{number}") for number in range(6)]
    combos = plan(with_servers(server("ws://ours", shared=False), *servers), [WS_RELAY])
    assert [combo.server for combo in combos] == [f"ws://{number}" for number in range(MAX_SERVERS)]
    assert [combo.delay for combo in combos] == [0.0, 0.25, 0.5, 0.75]
    assert len({combo.aim for combo in combos}) == MAX_SERVERS


def test_servers_that_failed_lately_and_those_that_do_not_relay_are_called_last_and_hold_up_nobody() -> None:
    servers = [
        server("ws://no", relays=False),
        dataclasses.replace(server("ws://failed"), standing=Standing.FAILED),
        dataclasses.replace(server("ws://trial"), standing=Standing.ON_TRIAL),
        server("ws://good"),
    ]
    combos = plan(with_servers(*servers), [WS_RELAY])
    assert [(combo.server, combo.delay) for combo in combos] == [
        ("ws://trial", 0.0),
        ("ws://good", 0.0),
        ("ws://failed", 0.25),
        ("ws://no", 0.5),
    ]


def test_a_rendezvous_server_relays_for_any_address_family() -> None:
    assert [combo.af for combo in plan(with_servers(server()), [WS_RELAY])] == [4]
    assert [combo.af for combo in plan(with_servers(server()), [WS_RELAY], afs=[6])] == [6]


def test_it_yields_to_turn_where_that_is_there() -> None:
    assert [combo.yields_to for combo in plan(with_servers(server()), [WS_RELAY])] == [""]
    both = plan(with_servers(server()), [WS_RELAY, TURN])
    assert [(combo.plugin, combo.yields_to) for combo in both] == [("ws_relay", "by_turn"), ("by_turn", "")]


def test_a_request_has_to_be_a_call() -> None:
    assert judge_request(with_servers(), WS_RELAY, WANTED, server="ws://one").server == "ws://one"
    with pytest.raises(PathRefused, match="not a call through a server"):
        judge_request(with_servers(), WS_RELAY, WANTED, server=None)


# -- through TURN servers ----------------------------------------------------------------------------------------------


def route(*ips: str) -> Route:
    endpoints = [Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip=ip, port=7000) for ip in ips]
    return Route(interfaces=(AddressInterface(1, tuple(endpoints)),))


BOTH, V4, V6 = route("192.168.1.7", "2001:db8:1::7"), route("10.0.0.9"), route("2001:db8:9::9")


def with_turn(ours: Route = BOTH, peers: Route = V4, *, we: bool = False, they: bool = False) -> Pair:
    return Pair(
        ours=ours,
        peers=peers,
        same_host=False,
        our_capabilities=("turn",) if we else ("other",),
        peer_capabilities=("other", "turn") if they else (),
    )


@pytest.mark.parametrize(
    ("we", "they", "expected", "why"),
    [
        (True, False, Likelihood.LIKELY, "a relay of our own servers"),
        (True, True, Likelihood.LIKELY, "a relay of our own servers"),
        (False, True, Likelihood.LIKELY, "a relay of the peer's servers"),
        (False, False, Likelihood.HOPELESS, "neither side has a TURN server: servers.turn names one"),
    ],
)
def test_a_relay_is_likely_where_one_side_has_servers(we: bool, they: bool, expected: Likelihood, why: str) -> None:
    (combo,) = plan(with_turn(we=we, they=they), [TURN])
    assert (combo.likelihood, combo.why) == (expected, why)
    assert (combo.phase, combo.route_type, combo.target) == ("relay", RouteType.EXT_BIND, None)
    assert (combo.server, combo.yields_to) == (None, "")


@pytest.mark.parametrize(
    ("ours", "peers", "afs", "expected"),
    [
        (BOTH, V4, None, 4),
        (BOTH, V6, None, 6),
        (BOTH, BOTH, None, 4),
        (V4, V6, None, 4),  # by two relays if necessary: a node without IPv4 reaches a server that has it
        (BOTH, BOTH, (6,), 6),
    ],
)
def test_a_pair_has_one_combo_of_a_technique(
    ours: Route, peers: Route, afs: tuple[int, ...] | None, expected: int
) -> None:
    combos = plan(with_turn(ours, peers, we=True), [TURN], afs=afs)
    assert [combo.af for combo in combos] == [expected]


def test_other_techniques_and_routes_are_not_planned() -> None:
    assert plan(with_turn(we=True), [dataclasses.replace(TURN, aim=Aim.MEET)]) == []
    assert plan(with_turn(we=True), [TURN], route_types=[RouteType.NIC_BIND]) == []
    assert plan(with_turn(we=True), [TURN], afs=()) == []


def test_a_peers_request_is_judged() -> None:
    path = judge_request(with_turn(), TURN, WANTED, server=None)
    assert (path.af, path.route_type, path.target, path.source) == (4, RouteType.EXT_BIND, None, None)
    with pytest.raises(PathRefused, match="does not use this route type"):
        judge_request(with_turn(), TURN, PathRequest(af=4, route_type=RouteType.LOOPBACK_BIND), server=None)
