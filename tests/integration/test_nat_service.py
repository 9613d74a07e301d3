"""Ports that a node keeps warm, and what it knows about its NATs, over simulated minutes."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Literal

import pytest
import trio

from tests.cancel_sweep import cuts
from tests.sim.worlds import run
from warpgate_trio import host as machine
from warpgate_trio.address.nat_profile import (
    PROFILE_LIFETIME,
    Allocation,
    Mapping,
    NatProfile,
    NatProfiles,
    TransportProfile,
)
from warpgate_trio.config import ServerUrl
from warpgate_trio.names import FRESH, SETTLE, Names
from warpgate_trio.nat import servers, service
from warpgate_trio.nat.service import FIRST_LOOK, KEEPALIVE, RETRY_FIRST, RETRY_LAST, RTO, TRIES, NatService
from warpgate_trio.ports.tcp import TcpPort
from warpgate_trio.ports.udp import UdpPort, UdpPorts
from warpgate_trio.servers.stun import serve_stun
from warpgate_trio.sim import Host, Link, NatConfig, Network, presets
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.testing import simulated_hosts

PORT = 3478
RTT = 0.04
DEAD = "11.200.0.1"
GIVEN_UP = RTO * (2**TRIES - 1)
SEQUENTIAL = NatProfile(
    udp=TransportProfile(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.SEQUENTIAL, delta=1)
)

Body = Callable[["World"], Awaitable[None]]


@dataclass
class World:
    net: Network
    client: Host
    servers: list[Host]
    nat: NatService
    ports: UdpPorts
    running: list[trio.CancelScope]
    """A scope for each server, which ends it."""
    nursery: trio.Nursery

    def warm(self, kind: str) -> UdpPort | TcpPort | None:
        warm: dict[int, UdpPort] | dict[int, TcpPort] = self.nat._udp.warm if kind == "udp" else self.nat._tcp.warm  # type: ignore[assignment]
        return warm.get(4)

    async def take(self, kind: str) -> UdpPort | TcpPort:
        return await (self.nat.take_udp(4) if kind == "udp" else self.nat.take_tcp(4))

    async def start_server(self, number: int) -> None:
        scope = self.running[number] = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[object]) -> None:
            with scope:
                await serve_stun(host=self.servers[number].ip, port=PORT, task_status=task_status)

        with self.servers[number]:
            await self.nursery.start(serve)


def close(port: UdpPort | TcpPort) -> None:
    port.release() if isinstance(port, UdpPort) else port.close()


def address(host: Host) -> TransportAddress:
    return host.ip, PORT


def play(
    body: Body,
    *,
    nat: NatConfig = presets.LINUX,
    urls: Sequence[str] = ("stun:one:3478", "stun:two:3478"),
    start: bool = True,
    profiles: bool = False,
    slower: float = 0.0,
    pools: dict[str, tuple[int | None, ...]] | None = None,
    seed: int = 0,
) -> None:
    """Runs `body` on a host behind a NAT, with two servers and the service in the background; nothing may be left.

    `pools` maps names to the numbers of several servers; None stands for a dead server.
    """

    async def world(net: Network) -> None:
        servers = [
            net.host("one", link=Link(latency=RTT / 4 + slower)),
            net.host("two", link=Link(latency=RTT / 4)),
        ]
        for name, members in (pools or {}).items():
            net.names[name] = [DEAD if each is None else servers[each].ip for each in members]
        client = net.lan("home", nat=nat, uplink=Link(latency=RTT / 4)).host("client")
        async with simulated_hosts(), trio.open_nursery() as nursery:
            with client:
                ports, names = UdpPorts(), Names()
                made = NatService(
                    ports,
                    [ServerUrl.parse(url) for url in urls],
                    machine.current(),
                    names=names,
                    is_online=lambda: False,
                )
            this = World(net, client, servers, made, ports, [trio.CancelScope(), trio.CancelScope()], nursery)
            for number in (0, 1):
                if start:
                    await this.start_server(number)
            if not profiles:

                async def nothing(af: int) -> None:
                    await trio.sleep_forever()

                made._keep_measured = nothing  # type: ignore[method-assign, assignment]
            async with trio.open_nursery() as keepers, ports.running(keepers):
                async with names.running(), trio.open_nursery() as services:
                    with client:
                        services.start_soon(made.run)
                        await body(this)
                    services.cancel_scope.cancel()
                assert len(ports) == 0
            nursery.cancel_scope.cancel()

    run(world, seed=seed)


KINDS = pytest.mark.parametrize("kind", ["udp", "tcp"])


@KINDS
def test_a_warm_port_is_mapped_and_costs_nobody_a_round_trip(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        assert set(warm.mapped) == {address(each) for each in this.servers}
        assert len(set(warm.mapped.values())) == 1  # the NAT's mapping is endpoint-independent
        assert warm.mapped != dict.fromkeys(warm.mapped, warm.local)
        began = trio.current_time()
        assert await this.take(kind) is warm
        assert trio.current_time() == began
        close(warm)

    play(body)


@KINDS
def test_a_port_that_was_taken_is_replaced_and_left_alone(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        taken = await this.take(kind)
        at, mapped = taken.mapped_at, dict(taken.mapped)
        await trio.sleep(4 * RTT)
        other = this.warm(kind)
        assert other is not None
        assert other.local != taken.local
        await trio.sleep(4 * KEEPALIVE)
        assert (taken.mapped_at, taken.mapped, taken.closed) == (at, mapped, False)
        assert this.warm(kind) is other
        close(taken)
        assert not other.closed

    play(body)


@KINDS
def test_each_taker_has_a_port_of_its_own(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        taken: list[UdpPort | TcpPort] = []

        async def take() -> None:
            taken.append(await this.take(kind))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(take)
        assert len({port.local for port in taken}) == 5
        assert all(port.mapped for port in taken)
        assert trio.current_time() - began <= 2 * RTT + 0.001
        for port in taken:
            close(port)

    play(body)


@pytest.mark.slow("real time: a few periods")
@KINDS
def test_a_warm_port_is_kept_alive(kind: str) -> None:
    """The NAT drops a UDP mapping after 30 s."""

    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        mapped = dict(warm.mapped)
        for _ in range(40):
            await trio.sleep(KEEPALIVE)
            assert this.warm(kind) is warm
            assert warm.mapped == mapped
            assert warm.mapped_at is not None
            assert trio.current_time() - warm.mapped_at <= KEEPALIVE + RTT

    play(body)


@KINDS
def test_a_server_that_is_dead_from_the_start_costs_nothing(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(3 * RTT)
        warm = this.warm(kind)
        assert warm is not None
        assert set(warm.mapped) == {address(this.servers[0])}
        await trio.sleep(3 * KEEPALIVE)
        assert this.warm(kind) is warm
        assert set(warm.mapped) == {address(this.servers[0])}

    play(body, urls=(f"stun:{DEAD}:3478", "stun:one:3478", "stun:no-such-name:3478"))


@KINDS
def test_a_server_that_dies_is_believed_no_more(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        this.running[0].cancel()
        await trio.sleep(KEEPALIVE + 3)
        assert this.warm(kind) is warm
        assert set(warm.mapped) == {address(this.servers[1])}
        this.running[1].cancel()
        await trio.sleep(KEEPALIVE + 3)
        assert warm.closed
        assert this.warm(kind) is None
        with this.client:
            began = trio.current_time()
            port = await this.take(kind)  # has no mapping, which is enough without a NAT
        assert port.mapped == {}
        assert trio.current_time() - began <= 2 * GIVEN_UP
        close(port)

    play(body)


@KINDS
def test_servers_that_come_late(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(600)
        assert this.warm(kind) is None
        for number in (0, 1):
            await this.start_server(number)
        await trio.sleep(RETRY_LAST + 5)
        assert this.warm(kind) is not None

    play(body, start=False)


@KINDS
def test_a_server_that_came_back_is_asked_again(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        this.running[0].cancel()
        await trio.sleep(3 * KEEPALIVE)
        await this.start_server(0)
        await trio.sleep(2 * KEEPALIVE)
        warm = this.warm(kind)
        assert warm is not None
        assert set(warm.mapped) == {address(each) for each in this.servers}

    play(body)


@KINDS
def test_without_servers_a_port_is_made_at_once(kind: str) -> None:
    async def body(this: World) -> None:
        began = trio.current_time()
        port = await this.take(kind)
        assert port.local[0] == this.client.ip
        assert (port.mapped, trio.current_time()) == ({}, began)
        close(port)

    play(body, urls=())


@KINDS
def test_taking_is_cancelled_anywhere(kind: str) -> None:
    """Whether a warm port was there or not, no port is lost, and none stays open."""

    async def body(this: World) -> None:
        for settle in (1.0, 0.0):
            for cut in cuts():
                await trio.sleep(settle)
                with cut:
                    close(await this.take(kind))
                await trio.sleep(3)
                assert len(this.ports) == 1  # the warm one
                assert this.warm(kind) is not None
                standing = len([row for row in this.net.netstat().sockets if "client" in str(row)])
                assert standing <= 6

    play(body)


@KINDS
def test_a_warm_port_that_broke_is_nobodys(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        warm.close_nowait() if isinstance(warm, UdpPort) else warm.close()
        port = await this.take(kind)
        assert port.mapped
        assert port is not warm
        close(port)
        await trio.sleep(4 * RTT)
        assert this.warm(kind) is not None  # replaced at once, not at the next keepalive

    play(body)


@KINDS
def test_a_port_is_taken_and_closed_while_it_is_being_asked_about(kind: str) -> None:
    async def body(this: World) -> None:
        for wait in (0.0, 0.01, RTT, 0.5, 1.5):
            await trio.sleep(4 * RTT)  # the dead server is still being asked at this time
            warm = this.warm(kind)
            assert warm is not None
            await trio.sleep(wait)
            taken = await this.take(kind)
            close(taken)
            await trio.sleep(3)
            assert taken.closed
            if isinstance(taken, TcpPort):
                assert taken.servers() == ()
            assert this.warm(kind) not in (None, taken)

    play(body, urls=("stun:one:3478", f"stun:{DEAD}:3478"))


@KINDS
def test_the_machine_moves_to_another_network(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        interface = this.client.interfaces[0]
        old = this.client.ip
        interface.segment.give(interface, interface.segment.free_address())
        this.client.remove_address(old)
        doubted: list[int] = []
        this.nat.doubt = doubted.append  # type: ignore[method-assign, assignment]
        await trio.sleep(2 * KEEPALIVE + 3)
        assert warm.closed
        other = this.warm(kind)
        assert other is not None
        assert other.local[0] == this.client.ip != old
        assert 4 in doubted

    play(body)


@KINDS
def test_a_machine_that_has_moved_out_of_a_network_that_lets_nothing_through_tries_at_once(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(4 * RETRY_LAST)  # failed attempts are repeated ever more rarely
        for number in (0, 1):
            await this.start_server(number)
        await trio.sleep(1)
        assert this.warm(kind) is None
        this.nat.check()
        await trio.sleep(1)
        assert this.warm(kind) is not None

    play(body, start=False)


@KINDS
def test_in_a_network_that_lets_nothing_through_it_is_tried_afresh_after_a_hint(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(4 * RETRY_LAST)
        this.nat.check()
        await trio.sleep(GIVEN_UP + RETRY_FIRST)
        for number in (0, 1):
            await this.start_server(number)
        await trio.sleep(2 * (GIVEN_UP + RETRY_FIRST))
        assert this.warm(kind) is not None, "the network may have come a moment later"

    play(body, start=False)


@KINDS
def test_a_machine_on_two_networks_does_not_move_between_them(kind: str) -> None:
    """The servers are reached from different addresses.  A port's network does not depend on who answers first."""

    async def body(this: World) -> None:
        interface = this.client.interfaces[0]
        first, second = this.client.ip, interface.segment.give(interface, interface.segment.free_address())
        real = machine.current()

        class TwoHomes:
            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def source_address(self, dest: object) -> object:
                return ip_address(second if str(dest) == this.servers[1].ip else first)

        for supply in (this.nat._udp, this.nat._tcp):
            supply.servers._host = TwoHomes()  # type: ignore[assignment]
        doubted: list[int] = []
        this.nat.doubt = doubted.append  # type: ignore[method-assign, assignment]
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        assert warm.local[0] == first
        await trio.sleep(3 * KEEPALIVE)
        assert this.warm(kind) is warm
        assert doubted == []

    play(body, slower=0.01)


@KINDS
def test_a_machine_without_a_network(kind: str) -> None:
    """The missing network is no reason to doubt the NAT profile."""

    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm(kind)
        assert warm is not None
        doubted: list[int] = []
        this.nat.doubt = doubted.append  # type: ignore[method-assign, assignment]
        this.client.remove_address(this.client.ip)
        await trio.sleep(2 * KEEPALIVE)
        assert warm.closed
        assert this.warm(kind) is None
        with pytest.raises(OSError, match="no IPv4 address"):
            await this.take(kind)
        assert doubted == []

    play(body)


def test_names_that_lead_elsewhere_each_time_pile_nothing_up() -> None:
    """One name stands for a pool of servers, like the NTP pool.  A port keeps the servers that mapped it."""

    async def body(this: World) -> None:
        await trio.sleep(1)
        first = [this.warm(kind) for kind in ("udp", "tcp")]
        mapped = [dict(port.mapped) for port in first if port is not None]
        for turn in range(20):
            this.net.names["pool"] = [this.servers[turn % 2].ip]
            await trio.sleep(KEEPALIVE)
        for kind, port, known in zip(("udp", "tcp"), first, mapped, strict=True):
            assert this.warm(kind) is port
            assert port is not None
            assert port.mapped == known
            if isinstance(port, TcpPort):
                assert set(port.servers()) == set(known)

    play(body, urls=("stun:pool:3478",), pools={"pool": (1,)})


def test_no_names_for_a_while() -> None:
    """Mappings are kept alive, and new ports are mapped by the remembered addresses of the servers."""

    async def body(this: World) -> None:
        await trio.sleep(1)
        warm = this.warm("udp")
        assert warm is not None
        for name in ("one", "two"):
            this.net.spoil_name(name, error=socket.EAI_AGAIN)
        await trio.sleep(10 * KEEPALIVE)
        assert this.warm("udp") is warm
        assert warm.mapped_at is not None
        assert trio.current_time() - warm.mapped_at <= KEEPALIVE + RTT
        assert await this.take("udp") is warm
        await trio.sleep(1)
        close(warm)
        assert this.warm("udp") is not None
        assert set(this.nat.unresolved) == {"one", "two"}
        assert all(each.remembered for each in this.nat.unresolved.values())

    play(body)


# --- names ---


HANGS = pytest.mark.parametrize(
    "urls", [("stun:hangs", "stun:one", "stun:two"), ("stun:one", "stun:two", "stun:hangs")]
)


@KINDS
@HANGS
def test_a_name_that_hangs_costs_a_fresh_node_a_moment(kind: str, urls: tuple[str, ...]) -> None:
    async def body(this: World) -> None:
        this.net.spoil_name("hangs", delay=5.0)
        began = trio.current_time()
        port = await this.take(kind)
        assert set(port.mapped) <= {address(each) for each in this.servers}
        assert port.mapped
        assert trio.current_time() - began <= SETTLE + 4 * RTT
        close(port)

    play(body, urls=urls)


@KINDS
@HANGS
def test_a_name_that_hangs_for_ever_costs_a_node_that_knows_others_nothing(kind: str, urls: tuple[str, ...]) -> None:
    async def body(this: World) -> None:
        this.net.spoil_name("hangs", delay=math.inf)
        await trio.sleep(60)
        for _ in range(2):  # the warm port, and one that is opened on demand
            began = trio.current_time()
            port = await this.take(kind)
            assert port.mapped
            assert trio.current_time() - began <= 3 * RTT
            close(port)
        (why,) = this.nat.unresolved.values()
        assert "no answer" in why.why

    play(body, urls=urls)


@KINDS
def test_names_that_are_slow_are_there_when_they_come(kind: str) -> None:
    async def body(this: World) -> None:
        for name in ("one", "two"):
            this.net.spoil_name(name, delay=2.5)
        began = trio.current_time()
        port = await this.take(kind)
        assert not port.mapped  # that is enough on one LAN
        assert trio.current_time() - began == pytest.approx(servers.NAMES_WITHIN)
        close(port)
        await trio.sleep(5 - (trio.current_time() - began))
        assert this.warm(kind) is not None

    play(body)


@KINDS
@pytest.mark.parametrize("pools", [{"pool": (None, 1)}, {"pool": (None, None, None, None, None, 1)}])
def test_every_address_of_a_name_is_tried(kind: str, pools: dict[str, tuple[int | None, ...]]) -> None:
    async def body(this: World) -> None:
        await trio.sleep(10)
        warm = this.warm(kind)
        assert warm is not None
        assert set(warm.mapped) == {address(this.servers[1])}

    play(body, urls=("stun:pool:3478",), pools=pools)


@KINDS
def test_the_first_address_of_each_name_comes_before_the_second_of_any(kind: str) -> None:
    async def body(this: World) -> None:
        supply = this.nat._udp if kind == "udp" else this.nat._tcp
        assert await supply.servers.resolve(4) == [(DEAD, PORT), address(this.servers[0]), address(this.servers[1])]
        await trio.sleep(10)  # the dead server, once asked, comes last
        assert await supply.servers.resolve(4) == [*map(address, this.servers), (DEAD, PORT)]

    play(body, urls=("stun:pool:3478", "stun:one:3478"), pools={"pool": (None, 1)})


@KINDS
def test_a_server_that_moved_is_found(kind: str) -> None:
    async def body(this: World) -> None:
        await trio.sleep(1)
        this.net.names["pool"] = [this.servers[0].ip]
        this.running[1].cancel()
        await trio.sleep(FRESH + 2 * KEEPALIVE + 10)
        warm = this.warm(kind)
        assert warm is not None
        assert set(warm.mapped) == {address(this.servers[0])}

    play(body, urls=("stun:pool:3478",), pools={"pool": (1,)})


def test_a_sequence_of_ports_is_left_alone_after_a_port_was_taken() -> None:
    async def body(this: World) -> None:
        this.nat.profiles = NatProfiles({(None, 4): SEQUENTIAL})
        await trio.sleep(1)
        port = await this.nat.take_udp(4)
        await trio.sleep(service.QUIET - 0.1)
        assert this.warm("udp") is None
        await trio.sleep(0.1 + 4 * RTT)
        assert this.warm("udp") is not None
        port.release()

    play(body)


def test_a_dead_port_is_offered_to_nobody_in_the_meantime() -> None:
    async def body(this: World) -> None:
        this.nat.profiles = NatProfiles({(None, 4): SEQUENTIAL})
        await trio.sleep(1)
        warm = this.warm("udp")
        assert warm is not None
        for scope in this.running:
            scope.cancel()
        with trio.fail_after(2 * KEEPALIVE):
            while warm.mapped:  # noqa: ASYNC110
                await trio.sleep(0.05)
        await trio.sleep(0.05)
        assert warm.closed
        assert this.warm("udp") is None

    play(body)


@KINDS
def test_a_prediction_that_cannot_be_made_is_none(kind: str) -> None:
    async def body(this: World) -> None:
        profile = NatProfile(udp=SEQUENTIAL.udp, tcp=SEQUENTIAL.udp)
        this.nat.profiles = NatProfiles({(None, 4): profile})
        await trio.sleep(1)
        predict = this.nat.predict_udp if kind == "udp" else this.nat.predict_tcp
        assert await predict(4)
        this.client.remove_address(this.client.ip)
        assert await predict(4) == []

    play(body, nat=presets.NATS["linux-symmetric"])


# -- profiles ----------------------------------------------------------------------------------------------------------


async def waited(nat: NatService, *kinds: Literal["udp", "tcp"]) -> float:
    """Seconds until something is known about the ports of these kinds."""
    began = trio.current_time()
    for kind in kinds or ("udp", "tcp"):
        await nat.wait_looked(kind, 4)
    return trio.current_time() - began


def test_how_ports_are_given_out_is_known_long_before_the_filters_are() -> None:
    async def body(this: World) -> None:
        assert 2 * RTT < await waited(this.nat) < 12 * RTT
        first = this.nat.profiles.get(None, 4)
        for each in (first.udp, first.tcp):
            assert (each.mapping, each.allocation) == (Mapping.ENDPOINT_INDEPENDENT, Allocation.PRESERVING)
        assert first.udp.hairpin is None
        assert await waited(this.nat) == 0
        await trio.sleep(5)
        assert this.nat.profiles.get(None, 4).udp.hairpin is False
        this.nat.doubt(4)  # a complete profile stays until a new one is as complete
        await trio.sleep(12 * RTT)
        assert this.nat.profiles.get(None, 4).udp.hairpin is False

    play(body, profiles=True)


def test_one_transport_does_not_wait_for_the_other() -> None:
    async def body(this: World) -> None:
        assert await waited(this.nat, "tcp") < 12 * RTT
        assert this.nat.profiles.get(None, 4).tcp.mapping is Mapping.ENDPOINT_INDEPENDENT
        assert this.nat.profiles.get(None, 4).udp.mapping is Mapping.UNKNOWN

    play(body, profiles=True, nat=presets.UDP_BLOCKED)


@pytest.mark.parametrize(("urls", "seconds"), [((), 0.0), ((f"stun:{DEAD}:3478",), FIRST_LOOK)], ids=["none", "dead"])
def test_a_first_look_is_not_waited_for_without_end(urls: Sequence[str], seconds: float) -> None:
    async def body(this: World) -> None:
        assert await waited(this.nat, "udp") == pytest.approx(seconds)
        await trio.sleep(60)
        assert await waited(this.nat) == 0, "it was tried, and that is that"

    play(body, urls=urls, profiles=True)


def test_profiles_are_measured_and_again_when_something_contradicts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(this: World) -> None:
        measured: list[float] = []
        result: list[object] = [SEQUENTIAL]

        async def measure(
            local: str, servers: Sequence[TransportAddress], *, online: bool, on_ports: object
        ) -> NatProfile:
            assert (local, len(servers)) == (this.client.ip, 2)
            measured.append(trio.current_time())
            await trio.sleep(1)
            if isinstance(result[0], OSError):
                raise result[0]
            assert isinstance(result[0], NatProfile)
            return result[0]

        monkeypatch.setattr(service, "measure_nat", measure)
        monkeypatch.setattr(service, "contradicts", lambda *_: None)  # the ports contradict the made-up profile
        await trio.sleep(2)
        assert len(measured) == 1
        assert this.nat.profiles.get(None, 4) == SEQUENTIAL
        await trio.sleep(60)
        assert len(measured) == 1
        for _ in range(3):  # together these count as one contradiction
            this.nat.doubt(4)
        await trio.sleep(2)
        assert len(measured) == 2
        await trio.sleep(PROFILE_LIFETIME / 2 + 2)
        assert len(measured) == 3
        result[0] = OSError("no sockets")
        this.nat.doubt(4)
        await trio.sleep(2)
        assert (
            this.nat.profiles.get(None, 4) == NatProfile()
        )  # a profile that is known to be out of date is not returned
        result[0] = SEQUENTIAL
        await trio.sleep(5)
        assert this.nat.profiles.get(None, 4) == SEQUENTIAL

    play(body, profiles=True)


def test_a_real_measurement_is_found_in_the_profiles() -> None:
    async def body(this: World) -> None:
        await trio.sleep(20)
        assert this.nat.profiles.get(None, 4).udp.mapping is Mapping.ENDPOINT_INDEPENDENT

    play(body, profiles=True)


# -- sprays ------------------------------------------------------------------------------------------------------------


def test_one_spray_at_a_time_of_an_address_where_the_lower_session_goes_on_and_few_in_all() -> None:
    async def body(this: World) -> None:
        low, high = b"\1" * 16, b"\2" * 16
        spraying = partial(this.nat.sprays.hold, for_peer=True)
        with spraying("a", low) as one, spraying("b", high) as elsewhere:
            assert one
            assert elsewhere
            with spraying("c", low) as third:
                assert not third
            with this.nat.sprays.hold("c", low, for_peer=False) as ours:
                assert ours
        with spraying("a", low), spraying("a", high) as later:
            assert not later
        with spraying("a", high) as alone:
            assert alone
            with spraying("a", low) as lower:
                assert lower
        with suppress(ZeroDivisionError), spraying("a", low):
            raise ZeroDivisionError
        with spraying("a", high) as again:
            assert again
        assert this.nat.sprays._held == []
        await trio.lowlevel.checkpoint()

    play(body)
