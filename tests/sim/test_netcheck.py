"""`Node.netcheck` in simulated worlds: its report on each kind of NAT, and the effect of bad servers."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from warpgate_trio import Node, NodeConfig, Servers, open_node
from warpgate_trio.config import IdentityConfig
from warpgate_trio.netcheck import NetcheckReport, ServerCheck
from warpgate_trio.servers.ntp import serve_ntp
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.stun import serve_stun
from warpgate_trio.sim import Fault, Kind, Network, current_host, presets, simulate
from warpgate_trio.sim import NatConfig as Nat
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.worlds import PeerPair

RTT = 0.04
SIGNALS = "ws://server:443"
STUN = ("stun:stun", "stun:stun2")
NTP = "ntp://ntp"

Check = Callable[[Node], Awaitable[NetcheckReport]]
Alter = Callable[[Network, trio.Nursery], Awaitable[None]]


def servers(
    *, websocket: Sequence[str] = (SIGNALS,), stun: Sequence[str] = STUN, ntp: Sequence[str] = (NTP,)
) -> Servers:
    return Servers(websocket=websocket, stun=stun, ntp=ntp)


async def check(
    nat: Nat | None,
    config: Servers | None = None,
    *,
    call: Check = Node.netcheck,
    alter: Alter | None = None,
    faults: Sequence[Fault] = (),
    clock: float = 0.0,
    ipv6: bool = False,
    seed: int = 0,
) -> tuple[NetcheckReport, float]:
    pair = PeerPair.between(nat, rtt=RTT, clock_offsets=(clock, 0.0), seed=seed)
    if ipv6:
        pair = replace(pair, ipv6=True)
    async with pair.build(time_limit=600) as net, simulated_hosts():
        async with trio.open_nursery() as nursery:
            with net.hosts["server"]:
                rendezvous = open_rendezvous(host=None, port=443, public_urls=[SIGNALS])
                await rendezvous.__aenter__()
            with net.hosts["stun"] as stun:
                first, second = [address for address, _ in stun.interfaces[0].addresses if ":" not in address]
                await nursery.start(partial(serve_stun, host=first, port=3478, second_host=second))
            with net.hosts["stun2"]:
                await nursery.start(partial(serve_stun, host=None, port=3478))
            with net.hosts["ntp"]:
                await nursery.start(partial(serve_ntp, host=None, port=123))
            if alter is not None:
                await alter(net, nursery)
            net.schedule(tuple(faults))
            with net.hosts["alice"]:
                node_config = NodeConfig(servers=config or servers(), identity=IdentityConfig(ephemeral=True))
                async with open_node(node_config) as node:
                    began = trio.current_time()
                    report = await call(node)
                    took = trio.current_time() - began
            with net.hosts["server"]:
                await rendezvous.__aexit__(None, None, None)
            nursery.cancel_scope.cancel()
        left = net.netstat()
        assert not left, str(left)
    return report, took


def run(nat: Nat | None, config: Servers | None = None, **options: object) -> tuple[NetcheckReport, float]:
    return simulate(lambda: check(nat, config, **options), seed=1)  # type: ignore[arg-type]  # as of `check`


def row(report: NetcheckReport, url: str, transport: str = "udp") -> ServerCheck:
    (found,) = [each for each in report.servers if (each.url, each.transport) == (url, transport)]
    return found


ANY = "connects over UDP to peers behind any NAT"
ANY_BUT = f"{ANY} but symmetric ones with random ports"
SPRAY = "reaches peers behind symmetric NATs with random ports by a spray of packets over UDP, in "
CONES = "connects over UDP to peers behind cone NATs, as most homes have them"
LENIENT = "connects over UDP to peers in the open and behind NATs that do not filter by port"
TO_CONES = "reaches peers behind cone NATs by a spray of packets over UDP"
RELAY = "needs a relay with peers behind symmetric NATs"
TCP_ANY_BUT = "punches TCP with peers behind any NAT but symmetric ones with random ports"
NO_TCP = "does not punch TCP with peers whose NAT filters by port"

CAN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("open", "rfc", "full-cone", "restricted", "cgn", "one-to-one"), (ANY, TCP_ANY_BUT)),
    **dict.fromkeys(("linux", "linux-local", "openwrt", "rst", "icmp", "degrading"), (ANY_BUT, SPRAY, TCP_ANY_BUT)),
    **dict.fromkeys(("linux-symmetric", "symmetric-local", "cgn-symmetric", "cloud", "pf"), (LENIENT, TO_CONES)),
    "address-dependent": (LENIENT, SPRAY, TO_CONES),
    "symmetric-sequential": (CONES, "punches TCP with peers behind cone NATs"),
    "udp-blocked": (TCP_ANY_BUT,),
    "web-only": (),
}
CANNOT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("linux-symmetric", "symmetric-local", "cgn-symmetric", "cloud", "pf"),
        (NO_TCP, RELAY),
    ),
    "address-dependent": (NO_TCP,),
    "symmetric-sequential": (f"{RELAY} with random ports",),
    "udp-blocked": ("UDP is blocked",),
    "web-only": ("UDP is blocked", "TCP is blocked except for some ports", "needs a relay with every peer outside"),
}


@pytest.mark.parametrize("name", presets.NATS)
def test_every_preset_gets_the_right_words(name: str) -> None:
    report, took = run(presets.NATS[name])
    assert report.complete
    assert report.online
    assert took < 8
    (path,) = report.paths
    assert (path.af, path.main) == (4, True)

    def said(sentences: Sequence[str], starts: Sequence[str]) -> None:
        assert len(sentences) == len(starts), sentences
        assert all(each.startswith(start) for each, start in zip(sentences, starts, strict=True)), sentences

    said(path.can, CAN[name])
    hairpin = "does not hairpin"
    said([each for each in path.cannot if not each.startswith(hairpin)], CANNOT.get(name, ()))
    assert set(path.can) < set(report.can)
    assert set(path.cannot) < set(report.cannot)  # IPv6 is missing too
    blocked = name in ("udp-blocked", "web-only")
    assert bool(report.external) is (name != "web-only")
    assert row(report, SIGNALS, "tcp").reachable
    assert row(report, "stun:stun").reachable is not blocked
    assert row(report, NTP).reachable is not blocked
    if not blocked:
        assert row(report, "stun:stun2").latency_ms == pytest.approx(1000 * RTT, abs=1)


def test_in_the_open() -> None:
    report, _ = run(None)
    (path,) = report.paths
    assert path.can[0].startswith("is open: any peer can reach")
    assert path.udp.nat_type == "open_internet"
    assert report.external == (path.address,)


def test_the_clock() -> None:
    report, _ = run(presets.FULL_CONE, clock=7.5)
    assert report.clock.offset_s == pytest.approx(-7.5, abs=report.clock.uncertainty_s)
    assert report.clock.agreeing == (NTP,)


def test_both_families() -> None:
    report, _ = run(presets.LINUX, ipv6=True)
    assert [(path.af, path.main) for path in report.paths] == [(4, True), (6, True)]
    assert any(each.startswith("IPv6 by ") for each in report.can)
    assert not any("IPv6" in each and "no NAT" in each for each in report.cannot)


def test_a_machine_on_two_networks() -> None:
    """The interface with the route to the servers is the main one; packets from the other's address may be lost."""

    async def alter(net: Network, _: trio.Nursery) -> None:
        net.lan("other", nat=presets.LINUX_SYMMETRIC).attach(net.hosts["alice"])
        await trio.lowlevel.checkpoint()

    report, took = run(presets.LINUX, alter=alter)
    main, other = report.paths
    assert (main.main, other.main) == (True, False)
    assert main.interface != other.interface
    assert main.can[0] == ANY_BUT
    assert f"IPv4 by {main.interface}: {ANY_BUT}" in report.can
    assert any(each.startswith(f"IPv4 by {other.interface}: ") for each in (*report.can, *report.unknown))
    assert took < 10


def test_without_any_server() -> None:
    report, took = run(presets.LINUX, servers(websocket=(), stun=(), ntp=()))
    assert not report.online
    assert report.complete
    assert took < 0.01
    assert report.servers == ()
    (path,) = report.paths
    assert path.udp.words == path.tcp.words == "unknown"
    assert report.can == ()
    assert report.cannot[0].startswith("no signal server is configured")
    assert report.unknown[0].startswith("no STUN server is configured")


@pytest.mark.parametrize("everything", [False, True])
def test_dead_servers_cost_their_rows(everything: bool) -> None:
    """There is no host, no listener, or no such name; only the rows of these servers say so."""

    async def alter(net: Network, _: trio.Nursery) -> None:
        net.host("dead", address="11.77.0.1")
        await trio.lowlevel.checkpoint()

    config = servers(
        websocket=("ws://dead:443", SIGNALS, "ws://11.99.0.1:443"),
        stun=("stun:dead", *STUN, "stun:11.99.0.1", "stun:nobody.example"),
        ntp=("ntp://dead", NTP, "ntp://11.99.0.1"),
    )
    report, took = run(presets.LINUX, config, alter=alter, call=partial(Node.netcheck, servers=everything))
    assert report.complete
    assert took < 8
    (path,) = report.paths
    assert path.can[0] == ANY_BUT
    reached = {(each.url, each.transport) for each in report.servers if each.reachable}
    more = {(url, "tcp") for url in STUN} if everything else set()
    assert reached == {(SIGNALS, "tcp"), *((url, "udp") for url in STUN), (NTP, "udp")} | more
    for each in report.servers:
        assert (each.error is None) is (each.reachable is True), each
        assert (each.latency_ms is not None) is (each.reachable is True), each
    assert "cannot be resolved" in (row(report, "stun:nobody.example").error or "")


# --- names ---


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("trouble", [{"error": socket.EAI_AGAIN}, {"delay": math.inf}])
def test_names_that_do_not_resolve_are_named_and_dns_is_said(everything: bool, trouble: dict[str, Any]) -> None:
    async def alter(net: Network, _: trio.Nursery) -> None:
        for name in ("stun", "stun2", "ntp"):
            net.spoil_name(name, **trouble)
        await trio.lowlevel.checkpoint()

    report, took = run(presets.LINUX, alter=alter, call=partial(Node.netcheck, servers=everything))
    assert report.complete
    assert took < 8
    assert report.online
    why = "no answer within " if "delay" in trouble else "Temporary failure in name resolution"
    assert report.cannot[0].startswith(f"DNS does not resolve stun, stun2, ntp: {why}")
    for url in STUN:
        assert (row(report, url).error or "").startswith(f"the name cannot be resolved: {why}")
    assert "was not measured: no STUN server's name can be resolved" in report.unknown
    assert not any("no STUN server" in each for each in report.cannot)


@pytest.mark.parametrize("everything", [False, True])
def test_a_signal_servers_name_that_does_not_resolve(everything: bool) -> None:
    report, _ = run(
        presets.LINUX, servers(websocket=("ws://nobody.example",)), call=partial(Node.netcheck, servers=everything)
    )
    assert report.cannot[:2] == (
        "DNS does not resolve nobody.example: Name or service not known",
        "no signal server answers: only direct dialling works; punching and relays need signals",
    )
    assert "cannot be resolved" in (row(report, "ws://nobody.example", "tcp").error or "")


@pytest.mark.parametrize("stun", [("stun:hangs", *STUN), (*STUN, "stun:hangs")])
def test_a_name_that_hangs_spoils_no_measurement(stun: Sequence[str]) -> None:
    async def alter(net: Network, _: trio.Nursery) -> None:
        net.spoil_name("hangs", delay=5.0)
        await trio.lowlevel.checkpoint()

    report, took = run(presets.LINUX, servers(stun=stun), alter=alter)
    assert took < 8
    assert report.paths[0].can[0] == ANY_BUT
    assert all(row(report, url).reachable for url in STUN)
    assert row(report, "stun:hangs").reachable is False


def test_dns_that_has_gone_is_said_though_what_it_said_before_still_works() -> None:
    async def call(node: Node) -> NetcheckReport:
        await trio.sleep(60)
        net = current_host().net
        for name in ("stun", "stun2"):
            net.spoil_name(name, error=socket.EAI_AGAIN)
        return await node.netcheck()

    report, _ = run(presets.LINUX, call=call)
    assert report.paths[0].can[0] == ANY_BUT
    assert all(row(report, url).reachable for url in STUN)
    assert report.cannot[0] == (
        "DNS does not resolve stun, stun2: Temporary failure in name resolution; "
        "the addresses that they had before are used"
    )


@pytest.mark.parametrize("everything", [False, True])
def test_a_name_whose_first_address_is_dead(everything: bool) -> None:
    async def alter(net: Network, _: trio.Nursery) -> None:
        for name in ("stun2", "ntp"):
            net.names[f"{name}.pool"] = ["11.99.0.1", *net.names[name]]
        await trio.lowlevel.checkpoint()

    config = servers(stun=("stun:stun2.pool",), ntp=("ntp://ntp.pool",))
    report, _ = run(presets.LINUX, config, alter=alter, call=partial(Node.netcheck, servers=everything))
    assert all(each.reachable for each in report.servers), report.servers
    assert report.external
    assert report.clock.agreeing == ("ntp://ntp.pool",)


# --- the clock ---


def test_a_time_server_that_has_no_time_is_said_to_have_none() -> None:
    async def alter(net: Network, nursery: trio.Nursery) -> None:
        host = net.host("lost")
        with host:
            sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
            await sock.bind(("0.0.0.0", 123))

            async def serve() -> None:
                with sock:
                    while True:
                        data, source = await sock.recvfrom(100)
                        await sock.sendto(b"\xe4" + bytes(23) + data[40:48] + bytes(16), source)

            nursery.start_soon(serve)

    report, _ = run(presets.LINUX, servers(ntp=("ntp://lost",)), alter=alter)
    assert (row(report, "ntp://lost").error or "").startswith("the server's clock is not synchronised")
    assert (
        "no NTP server that answers is synchronised: the clock's error can be measured only against peers"
    ) in report.unknown
    both, _ = run(presets.LINUX, servers(ntp=("ntp://lost", NTP)), alter=alter)
    assert both.clock.agreeing == (NTP,)


def test_all_dead() -> None:
    config = servers(websocket=("ws://11.99.0.1:443",), stun=("stun:11.99.0.1", "stun:11.99.0.2"), ntp=())
    report, took = run(presets.LINUX, config, call=partial(Node.netcheck, servers=True))
    assert not report.online
    assert took < 15
    assert report.can == ()
    assert "no STUN server answers: nothing is known" in report.unknown
    assert report.cannot[0].startswith("no signal server answers")


def test_stun_servers_that_are_down_are_no_blocked_udp() -> None:
    """An NTP server answers over UDP, so UDP is not blocked."""
    config = servers(stun=("stun:11.99.0.1", "stun:11.99.0.2"))
    report, _ = run(presets.LINUX, config)
    (path,) = report.paths
    assert path.udp.blocked is None
    assert not any("UDP is blocked" in each for each in report.cannot)
    assert "no STUN server answers over UDP: nothing is known of UDP" in report.unknown or (
        "no STUN server answers: nothing is known" in report.unknown
    )


def test_lying_servers_are_rows_too() -> None:
    """A server that answers with noise counts as unreachable, and does not affect the others' results."""

    async def noise(port: int) -> None:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("0.0.0.0", port))
            while True:
                _, sender = await sock.recvfrom(2000)
                await sock.sendto(bytes(range(48)), sender)

    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(100)
            await stream.send_all(b"HTTP/1.1 400 \x1b[2J\r\n\r\n\x00\xff")
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n\x00\xff")

    async def alter(net: Network, nursery: trio.Nursery) -> None:
        with net.host("liar", address="11.77.0.1"):
            nursery.start_soon(noise, 3478)
            nursery.start_soon(noise, 123)
            for port in (443, 3478):
                await nursery.start(partial(trio.serve_tcp, hang_up, port, host="0.0.0.0"))

    config = servers(
        websocket=("ws://liar:443", SIGNALS), stun=("stun:liar", *STUN), ntp=("ntp://liar", NTP, "ntp://stun:1234")
    )
    report, _ = run(presets.LINUX, config, alter=alter, call=partial(Node.netcheck, servers=True))
    (path,) = report.paths
    assert path.can[0] == ANY_BUT
    for url, transport in (
        ("ws://liar:443", "tcp"),
        ("stun:liar", "udp"),
        ("stun:liar", "tcp"),
        ("ntp://liar", "udp"),
    ):
        assert row(report, url, transport).reachable is False, url
    assert report.clock.agreeing == (NTP,)
    assert all(each.error is None or each.error.isprintable() for each in report.servers)


def test_a_network_that_goes_away_in_the_middle() -> None:
    hole = Fault(at=0.1, until=500.0, target="alice-nat0", kind=Kind.BLACKHOLE)
    report, took = run(presets.LINUX, faults=(hole,), call=partial(Node.netcheck, servers=True))
    assert took <= 15
    assert report.paths


@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.3])
def test_what_is_known_when_the_time_is_up(seconds: float) -> None:
    report, took = run(presets.LINUX, call=partial(Node.netcheck, servers=True, timeout=seconds))
    assert took == pytest.approx(seconds)
    assert not report.complete
    assert {each.reachable for each in report.servers} <= {True, None}
    (path,) = report.paths or [None]
    assert path is None or path.unknown == ("was not measured: the time was up",)


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.081, 0.121, 0.2, 0.5])
def test_cancelled_it_leaves_nothing(seconds: float) -> None:
    async def call(node: Node) -> NetcheckReport:
        with trio.move_on_after(seconds) as scope:
            await node.netcheck(servers=True)
        assert scope.cancelled_caught
        return await node.netcheck(timeout=1)

    report, _ = run(presets.LINUX, call=call)
    assert report.online


def test_two_at_a_time_do_not_disturb_each_other() -> None:
    async def call(node: Node) -> NetcheckReport:
        reports: list[NetcheckReport] = []

        async def one() -> None:
            reports.append(await node.netcheck())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        first, second = reports
        assert first.paths == second.paths
        return first

    # Not seed 0: there the second socket draws a port of the first one, whose mapping still exists.
    report, _ = run(presets.SYMMETRIC_SEQUENTIAL, call=call, seed=1)
    (path,) = report.paths
    assert (path.udp.allocation, path.udp.delta) == ("sequential", 1)


def test_a_timeout_that_is_none() -> None:
    async def call(node: Node) -> NetcheckReport:
        with pytest.raises(ValueError, match="more than 0"):
            await node.netcheck(timeout=0)
        return await node.netcheck(timeout=0.1)

    run(None, call=call)
