"""Walks of whole nodes whose servers' names hang, fail, or lead to dead servers."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.errors import ConnectError
from warpgate_trio.report import ConnectReport, Verdict
from warpgate_trio.sim import Host, NatConfig, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts, walks
from warpgate_trio.testing.worlds import PeerPair

Spoil = Callable[[Network], object]
Trouble = Callable[..., object]
"""Breaks the resolution of names; its arguments are the network and the names."""

pytestmark = pytest.mark.slow("two whole nodes, some of them for virtual minutes")

OLD = 120.0
"""Seconds after which every cached name has been looked up again."""


@asynccontextmanager
async def _nothing(_: Host) -> AsyncGenerator[None]:
    yield


def named(name: str) -> walks.WorldServer:
    """A STUN server of the nodes' configuration that this world does not run."""
    return walks.WorldServer(key="stun", url=f"stun:{name}:3478", machine="server", open=_nothing)


def named_signals() -> walks.WorldServer:
    """The rendezvous server, which the test runs itself."""
    return walks.WorldServer(key="websocket", url="ws://server:443", machine="server", open=_nothing)


SIGNALS, STUN, STUN2 = walks.RENDEZVOUS, walks.STUN, walks.STUN2


def connect(
    servers: Sequence[walks.WorldServer] = (SIGNALS, STUN, STUN2),
    *,
    before: Spoil = lambda _: None,
    after: Spoil = lambda _: None,
    age: float = 0.0,
    nat: NatConfig = presets.LINUX,
) -> ConnectReport:
    """The report of a walk between two nodes that have been open for `age` seconds.

    `before` changes the names before the nodes open, `after` when they have been open for `age`.  With no age, they
    call as soon as they have signals.
    """

    async def scene() -> ConnectReport:
        pair = PeerPair.between(nat, nat, rtt=0.1, server_rtt=(0.05, 0.06), seed=3)
        async with pair.build(time_limit=3600) as net, simulated_hosts():
            before(net)
            async with walks.open_nodes(net, servers=servers) as nodes:
                await trio.sleep(age)
                after(net)
                try:
                    async with await nodes.alice.auto_connect(nodes.bob.address) as pipe:
                        assert pipe.report is not None
                        return pipe.report
                except ConnectError as error:
                    return error.report
        raise AssertionError("unreachable")

    with pytest.MonkeyPatch.context() as patch:
        if not age:
            patch.setattr(walks, "SETTLE", 0.0)
        return simulate(scene, seed=3)


@cache
def undisturbed(age: float) -> ConnectReport:
    return connect(age=age)


def spoil(net: Network, *names: str, delay: float = 0.0, error: int | None = None) -> None:
    for name in names:
        net.spoil_name(name, delay=delay, error=error)


HANG = partial(spoil, delay=math.inf)


@pytest.mark.parametrize("age", [0.0, OLD], ids=["fresh", "old"])
@pytest.mark.parametrize(
    "servers",
    [(SIGNALS, named("hangs"), STUN, STUN2), (SIGNALS, STUN, STUN2, named("hangs"))],
    ids=["first", "last"],
)
@pytest.mark.parametrize("delay", [5.0, math.inf])
def test_one_name_that_hangs_costs_nothing(servers: Sequence[walks.WorldServer], age: float, delay: float) -> None:
    well = undisturbed(age)
    report = connect(servers, before=lambda net: net.spoil_name("hangs", delay=delay), age=age)
    assert report.winner is not None
    assert well.winner is not None
    assert report.winner.plugin == well.winner.plugin
    assert report.elapsed_ms < well.elapsed_ms + 500


def test_many_names_that_hang_before_one_that_does_not() -> None:
    hanging = [f"hangs{number}" for number in range(6)]
    report = connect((SIGNALS, *map(named, hanging), STUN), before=lambda net: HANG(net, *hanging))
    assert report.verdict is Verdict.CONNECTED


@pytest.mark.parametrize("age", [0.0, OLD], ids=["fresh", "old"])
@pytest.mark.parametrize("trouble", [HANG, partial(spoil, error=socket.EAI_AGAIN)], ids=["hangs", "fails"])
def test_dns_that_goes_away_takes_nothing_from_a_node_that_knows_its_servers(age: float, trouble: Trouble) -> None:
    report = connect(age=age, after=lambda net: trouble(net, "stun", "stun2", "server"))
    assert report.verdict is Verdict.CONNECTED


@pytest.mark.parametrize("order", [("dead", "stun2"), ("stun2", "dead"), (*5 * ["dead"], "stun2")])
@pytest.mark.parametrize("age", [0.0, OLD], ids=["fresh", "old"])
def test_every_address_of_a_name_is_tried(order: Sequence[str], age: float) -> None:
    def before(net: Network) -> None:
        net.names["pool"] = [net.hosts[each].ip if each != "dead" else f"11.99.0.{at}" for at, each in enumerate(order)]

    pool = walks.WorldServer(key="stun", url="stun:pool:3478", machine="stun2", open=walks.STUN2.open)
    report = connect((SIGNALS, pool), before=before, age=age + 5)
    assert report.verdict is Verdict.CONNECTED


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (HANG, r"no answer within \d+ s"),
        (partial(spoil, error=socket.EAI_AGAIN), "Temporary failure in name resolution"),
        (lambda net, *names: [net.names.pop(name) for name in names], "Name or service not known"),
    ],
    ids=["hangs", "fails", "none"],
)
def test_the_report_says_dns_and_which_names(trouble: Trouble, why: str) -> None:
    report = connect(before=lambda net: trouble(net, "stun", "stun2"))
    assert report.verdict is Verdict.NO_DNS
    (note,) = report.notes
    assert re.fullmatch(rf"DNS does not resolve stun, stun2: {why}", note)
    assert "DNS" in report.advice


def test_the_report_says_dns_of_signal_servers_too() -> None:
    report = connect(before=lambda net: spoil(net, "server", error=socket.EAI_AGAIN))
    assert report.verdict is Verdict.NO_DNS
    assert report.notes == ("DNS does not resolve server: Temporary failure in name resolution",)


def test_the_report_says_dns_when_it_says_nothing_at_all() -> None:
    report = connect(before=lambda net: HANG(net, "server", "stun", "stun2"))
    assert report.verdict is Verdict.NO_DNS
    (note,) = report.notes
    assert note.startswith("DNS does not resolve server, stun, stun2: no answer within ")


def test_a_signal_server_is_found_again_while_dns_is_away() -> None:
    """The node uses the last known address of the server."""

    async def scene() -> None:
        pair = PeerPair.between(presets.LINUX, presets.LINUX, seed=3)
        async with pair.build(time_limit=3600) as net, simulated_hosts():
            async with walks.open_nodes(net, servers=(STUN, STUN2, named_signals())) as nodes:
                for _ in range(2):
                    with net.hosts["server"]:
                        async with walks.RENDEZVOUS.open(net.hosts["server"]):
                            with trio.fail_after(60):
                                await nodes.alice.wait_signals()
                    while any(each.rtt is not None for each in nodes.alice.signal_servers):  # noqa: ASYNC110
                        await trio.sleep(1)
                    HANG(net, "server")
                    await trio.sleep(OLD)

    simulate(scene, seed=3)


def test_a_name_that_fails_beside_others_is_a_note_and_no_verdict() -> None:
    """The walk fails because of the NATs, as it does if all names resolve."""
    options = {"nat": presets.LINUX_SYMMETRIC, "servers": (SIGNALS, STUN, STUN2)}
    assert connect(**options).verdict is Verdict.NO_RELAY_CONFIGURED  # type: ignore[arg-type]
    report = connect((SIGNALS, STUN, STUN2, named("nobody.example")), nat=presets.LINUX_SYMMETRIC)
    assert report.verdict is Verdict.NO_RELAY_CONFIGURED
    assert "DNS does not resolve nobody.example: Name or service not known" in report.notes


TROUBLES = ("hangs", "fails", "unknown", "slow", "dead", "dead first", "well")


@settings(max_examples=25)
@given(st.lists(st.sampled_from(TROUBLES), max_size=6), st.integers(0, 6), st.sampled_from([0.0, 15.0]))
def test_one_name_that_is_well_is_enough_whatever_the_others_are(troubles: list[str], at: int, age: float) -> None:
    """Up to `MAX_NAMES` servers, in any order; one works, and is among the first addresses that are asked."""
    names = {f"name{number}": trouble for number, trouble in enumerate(troubles)}
    order = [*names]
    order.insert(min(at, 3 if not age else 6), "works")

    def before(net: Network) -> None:
        alive = net.hosts["stun2"].ip
        net.names["works"] = [alive]
        for number, (name, trouble) in enumerate(names.items()):
            dead = f"11.99.0.{number}"
            net.names[name] = {"dead": [dead], "dead first": [dead, alive], "unknown": []}.get(trouble, [alive])
            net.spoil_name(
                name,
                delay={"hangs": math.inf, "slow": 0.7 * number}.get(trouble, 0.0),
                error=socket.EAI_AGAIN if trouble == "fails" else None,
            )

    here = walks.WorldServer(key="stun", url="stun:works:3478", machine="stun2", open=walks.STUN2.open)
    servers = [here if name == "works" else named(name) for name in order]
    assert connect((SIGNALS, *servers), before=before, age=age).verdict is Verdict.CONNECTED
