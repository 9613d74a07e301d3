"""`ping --explain` between homes: which step fails on which side, with one piece of advice for each cause."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import pytest
import trio

from tests.end_to_end.processes import checked_event
from tests.sim.test_ws_relay import OPEN, RTT, URL, server
from warpgate_trio import Node, NodeConfig, Servers, anyone
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.ping import PathKind, _ping
from warpgate_trio.config import IdentityConfig
from warpgate_trio.errors import ConnectError
from warpgate_trio.node.admission import Authorize
from warpgate_trio.report import ADVICE, REMEDIES, Known, Verdict
from warpgate_trio.servers.rendezvous import RelayRules
from warpgate_trio.sim import Fault, Kind, NatConfig, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import NTP, STUN, STUN2, open_nodes
from warpgate_trio.testing.worlds import PeerPair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

SERVERS: Final = Servers(websocket=[URL], stun=[STUN.url, STUN2.url], ntp=[NTP.url])
HOME: Final = presets.LINUX
SYMMETRIC: Final = presets.LINUX_SYMMETRIC
NO_UDP: Final = replace(SYMMETRIC, name="symmetric, no UDP", udp=replace(SYMMETRIC.udp, ports=()))
Told = dict[str, Any]


async def nobody(_peer_id: str) -> bool:
    return False


async def explain(
    *nats: NatConfig | None,
    relay: RelayRules = OPEN,
    servers: Servers = SERVERS,
    authorize: Authorize = anyone,
    faults: tuple[Fault, ...] = (),
    settle: float = 0.0,
    settings: Settings | None = None,
    count: int = 1,
) -> PathKind:
    """Run `ping --explain` from one home to another."""
    async with PeerPair.between(*nats, rtt=RTT).build(time_limit=1e6) as net, simulated_hosts():
        async with open_nodes(net, servers=(server(relay), STUN, STUN2, NTP), authorize=authorize) as nodes:
            await trio.sleep(settle)
            net.schedule(faults)
            await trio.sleep(0.1)
            config = NodeConfig(identity=IdentityConfig(ephemeral=True), servers=servers)
            settings = settings or Settings(json=True, quiet=True)
            try:
                return await _ping(settings, config, str(nodes.bob.address), count, 1.0, None, explaining=True)
            except ConnectError:
                return PathKind.NONE
    raise AssertionError("unreachable")  # for mypy: `async with` might swallow exceptions


def told(stdout: bytearray, *nats: NatConfig | None, **options: Any) -> Told:
    """Run `ping --explain --json` from one home to another; returns the last line of JSON."""
    kind = simulate(lambda: explain(*nats, **options), seed=0)
    event = checked_event(bytes(stdout).splitlines()[-1])
    assert (event["event"], event["kind"]) == ("explained", kind.name.lower())
    return event


def step(event: Told, side: str, name: str) -> Told:
    (found,) = (each for each in event["steps"] if (each["side"], each["step"]) == (side, name))
    assert isinstance(found, dict)
    return found


def advised(event: Told) -> dict[tuple[str, str], str]:
    """The advice by side and step; only failed steps have advice, and none occurs twice."""
    given = [each for each in event["steps"] if each["advice"] is not None]
    assert {each["outcome"] for each in given} <= {"failed"}
    assert len({each["advice"] for each in given}) == len(given)
    return {(each["side"], each["step"]): each["advice"] for each in given}


def test_a_direct_path_needs_no_advice(stdout: bytearray) -> None:
    event = told(stdout, HOME, HOME)
    assert (event["kind"], event["verdict"], event["advice"]) == ("direct", "connected", ADVICE[Verdict.CONNECTED])
    assert advised(event) == {}
    for side, name in (("here", "signal server"), ("here", "NAT"), ("there", "NAT"), ("there", "signals")):
        assert step(event, side, name)["outcome"] == "ok"
    assert "port-restricted cone" in step(event, "here", "NAT")["detail"]
    assert "port-restricted cone" in step(event, "there", "NAT")["detail"]
    assert step(event, "both", "punch") == {
        "side": "both", "step": "punch", "outcome": "ok", "detail": "tcp_punch: 1 path won", "advice": None
    }  # fmt: skip
    assert {step(event, *each)["outcome"] for each in (("both", "spray"), ("server", "relay"))} == {"skipped"}
    assert event["steps"][-1]["detail"] == "the peer has accepted"


def test_a_pipe_that_has_left_its_relay_is_direct(stdout: bytearray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `ping --count 100`; here the call takes the relay first."""
    call = Node.auto_connect
    monkeypatch.setattr(Node, "auto_connect", lambda *words, **options: call(*words, **options | {"relay_first": True}))
    event = told(stdout, HOME, HOME, count=3)
    plugins = [json.loads(line)["plugin"] for line in stdout.splitlines()[:-1]]
    assert (plugins[0], plugins[-1]) == ("ws_relay", "tcp_punch")
    assert (event["kind"], advised(event)) == ("direct", {})
    assert step(event, "both", "punch")["detail"] == "tcp_punch: 1 path won"


def test_two_symmetric_nats_that_let_no_udp_through_are_relayed_and_told_why(stdout: bytearray) -> None:
    """The NATs are measured before the call: each side's NAT is a cause with its own advice."""
    event = told(stdout, NO_UDP, NO_UDP, settle=30.0)
    assert (event["kind"], event["verdict"]) == ("relayed", "connected")
    assert advised(event) == {
        ("here", "NAT"): REMEDIES[Known.UDP_BLOCKED_HERE],
        ("there", "NAT"): REMEDIES[Known.UDP_BLOCKED_THERE],
    }
    assert event["advice"] == REMEDIES[Known.UDP_BLOCKED_HERE]
    assert {step(event, *each)["outcome"] for each in (("here", "direct"), ("there", "direct"), ("both", "punch"))} == {
        "failed"
    }
    assert step(event, "server", "relay")["outcome"] == "ok"


def test_what_this_side_finds_out_after_the_call_counts_too(stdout: bytearray) -> None:
    event = told(stdout, presets.WEB_ONLY, presets.WEB_ONLY)
    assert event["kind"] == "relayed"
    assert event["report"]["known"] == [str(Known.NO_STUN_THERE)]
    assert advised(event) == {
        ("here", "NAT"): REMEDIES[Known.UDP_BLOCKED_HERE],
        ("there", "NAT"): REMEDIES[Known.NO_STUN_THERE],
    }


def test_two_symmetric_nats_are_the_cause_of_both_sides(stdout: bytearray) -> None:
    event = told(stdout, SYMMETRIC, SYMMETRIC)
    assert event["kind"] == "relayed"
    assert advised(event) == {("both", "punch"): REMEDIES[Known.BOTH_SYMMETRIC]}
    assert event["advice"] == REMEDIES[Known.BOTH_SYMMETRIC]


def test_where_no_cause_is_known_of_a_relayed_path_the_direct_phase_has_the_advice(stdout: bytearray) -> None:
    event = told(stdout, replace(HOME, name="TCP alone", tcp=SYMMETRIC.tcp, udp=replace(HOME.udp, ports=(3478,))), HOME)
    assert event["kind"] == "relayed"
    assert advised(event) == {("here", "direct"): ADVICE[Verdict.NO_BETTER_PATH]}


@pytest.mark.parametrize(
    ("relay", "advice"),
    [
        (RelayRules(), ADVICE[Verdict.NO_RELAY_CONFIGURED]),
        (RelayRules(token="x" * 32), REMEDIES[Known.NO_RELAY_TOKEN]),
    ],
    ids=["nobody", "who has the token"],
)
def test_where_no_relay_is_allowed_there_are_two_causes(stdout: bytearray, relay: RelayRules, advice: str) -> None:
    event = told(stdout, SYMMETRIC, SYMMETRIC, relay=relay)
    assert (event["kind"], event["verdict"], event["advice"]) == ("none", "no_relay_configured", advice)
    assert advised(event) == {
        ("both", "punch"): REMEDIES[Known.BOTH_SYMMETRIC],
        ("server", "relay"): advice,
    }
    assert step(event, "there", "signals")["outcome"] == "ok"


def test_a_peer_that_refuses(stdout: bytearray) -> None:
    event = told(stdout, HOME, None, authorize=nobody)
    assert (event["kind"], event["verdict"]) == ("none", "refused")
    assert advised(event) == {("there", "acceptance"): ADVICE[Verdict.REFUSED]}
    assert step(event, "here", "direct")["outcome"] == "ok", "by which the peer was reached"


def test_a_server_that_is_gone(stdout: bytearray) -> None:
    """Neither side has signals, and the peer is behind a NAT."""
    event = told(stdout, HOME, HOME, faults=(Fault(at=0.0, until=1e5, target="server", kind=Kind.BLACKHOLE),))
    assert (event["kind"], event["verdict"]) == ("none", "no_signal")
    assert advised(event) == {("here", "signal server"): ADVICE[Verdict.NO_SIGNAL]}
    assert step(event, "there", "signals")["outcome"] == "failed"


def test_a_server_of_ones_own_that_is_dead_is_no_cause_where_the_peers_is_there(stdout: bytearray) -> None:
    dead = Servers(websocket=["ws://server:444"], stun=[STUN.url, STUN2.url])
    event = told(stdout, HOME, HOME, servers=dead)
    assert event["kind"] == "direct"
    assert advised(event) == {("here", "signal server"): ADVICE[Verdict.NO_SIGNAL]}
    assert step(event, "there", "signals")["outcome"] == "ok"


def test_who_has_no_server_at_all(stdout: bytearray) -> None:
    event = told(stdout, HOME, HOME, servers=Servers())
    assert event["kind"] == "none"
    given = advised(event)
    assert given["here", "signal server"] == REMEDIES[Known.NO_SIGNAL_HERE]
    assert given["here", "NAT"] == REMEDIES[Known.NO_STUN_HERE]


def test_the_screen_has_a_line_for_each_step(stdout: bytearray, capsys: pytest.CaptureFixture[str]) -> None:
    kind = simulate(lambda: explain(SYMMETRIC, SYMMETRIC, settings=Settings()), seed=0)
    assert kind is PathKind.RELAYED
    lines = capsys.readouterr().err.splitlines()
    assert stdout == b""
    assert " by ws_relay, IPv4 EXT_BIND, at 11.0.0.1 port 443: " in lines[0]
    at = next(i for i, line in enumerate(lines) if " punch: " in line)
    assert lines[at].startswith(
        "failed   both    punch: both NATs are symmetric, and their ports cannot be predicted; "
    )
    assert lines[at + 1].strip() == f"→ {REMEDIES[Known.BOTH_SYMMETRIC]}"
    assert sum("→" in line for line in lines) == 1


def test_with_v_the_table_stands_before_it(stdout: bytearray, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(lambda: explain(SYMMETRIC, SYMMETRIC, settings=Settings(verbose=1)), seed=0)
    lines = capsys.readouterr().err.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("phase "))
    assert table < next(i for i, line in enumerate(lines) if "signal server: " in line)
    assert stdout == b""
