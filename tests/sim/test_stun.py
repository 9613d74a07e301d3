"""The STUN client and server, as users run them, behind simulated NATs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from tests.sim.worlds import run
from warpgate_trio.errors import StunError, StunTimeout
from warpgate_trio.servers.stun import StunServer, serve_stun
from warpgate_trio.sim import Behavior, Filtering, Host, Link, Mapping, NatConfig, Network, Uniform, presets
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.client import (
    open_stun_stream,
    query_all_udp,
    query_stream,
    query_udp,
    race_tcp,
    race_udp,
    resolve,
    share_port,
)
from warpgate_trio.stun.codec import ChangeRequest
from warpgate_trio.stun.transaction import StunAnswer
from warpgate_trio.testing import simulated_hosts

PORT = 3478
HOSTS = ("11.9.0.1", "11.9.0.2")
RTT = 0.06
Talk = Callable[[StunServer, Host], Awaitable[None]]


def behind(nat: NatConfig | None, talk: Talk, *, loss: float = 0.0, seed: int = 0) -> None:
    """Run `talk` on a host behind a NAT, with a server of two addresses outside."""

    async def world(net: Network) -> None:
        server = net.host("server", address=HOSTS, link=Link(latency=0.02, loss=loss))
        uplink = Link(latency=0.01)
        client = net.host("client", link=uplink) if nat is None else net.lan("home", nat=nat, uplink=uplink).host("c")
        async with simulated_hosts():
            async with trio.open_nursery() as nursery:
                with server:
                    running = await nursery.start(partial(serve_stun, host=HOSTS[0], port=PORT, second_host=HOSTS[1]))
                with client:
                    await talk(running, client)
                nursery.cancel_scope.cancel()

    run(world, seed=seed)


def udp() -> trio.socket.SocketType:
    return trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)


@pytest.mark.parametrize("mapping", Mapping)
@pytest.mark.parametrize("filtering", Filtering)
def test_rfc5780_makes_out_what_the_nat_is(mapping: Mapping, filtering: Filtering) -> None:
    """With the tests of RFC 5780, sections 4.3 and 4.4."""

    async def talk(server: StunServer, _: Host) -> None:
        primary = server.address
        with udp() as sock, udp() as fresh:
            for each in (sock, fresh):
                await each.bind(("0.0.0.0", 0))
            first = await query_udp(sock, primary)
            assert first.other_address == (HOSTS[1], PORT + 1)
            second = await query_udp(sock, (HOSTS[1], PORT))
            third = await query_udp(sock, first.other_address)
            mapped = [each.mapped for each in (first, second, third)]
            found = Mapping.EIM if mapped[1] == mapped[0] else Mapping.ADM if mapped[2] == mapped[1] else Mapping.APDM
            assert found is mapping
            assert (await query_udp(fresh, primary)).rtt == pytest.approx(RTT)
            seen = Filtering.APDF
            for change, there, kind in (
                (ChangeRequest(ip=True, port=True), (HOSTS[1], PORT + 1), Filtering.EIF),
                (ChangeRequest(port=True), (HOSTS[0], PORT + 1), Filtering.ADF),
            ):
                try:
                    await query_udp(fresh, primary, change=change, source=there, tries=2, last_wait=1)
                except StunTimeout:
                    continue
                seen = kind
                break
            assert seen is filtering

    behavior = Behavior(mapping=mapping, filtering=filtering, allocation=Uniform())
    behind(NatConfig(udp=behavior), talk)


@pytest.mark.parametrize("nat", [None, presets.LINUX, presets.NATS["linux-symmetric"]])
def test_over_tcp_from_a_held_port(nat: NatConfig | None) -> None:
    async def talk(server: StunServer, client: Host) -> None:
        local = (client.ip, 4000)
        with trio.socket.socket() as listener:
            share_port(listener)
            await listener.bind(local)
            listener.listen()
            started = trio.current_time()
            async with open_stun_stream(server.address, local=local) as stream:
                first = await query_stream(stream)
                assert trio.current_time() - started == pytest.approx(2 * RTT)
                await trio.sleep(60)
                assert (await query_stream(stream)).mapped == first.mapped  # the connection holds the mapping
                async with open_stun_stream((HOSTS[1], PORT), local=local) as other:
                    second = await query_stream(other)
                assert (second.mapped == first.mapped) is (nat is None or nat.tcp.mapping is Mapping.EIM)
                assert (first.mapped == local) is (nat is None)

    behind(nat, talk)


def test_a_race_costs_one_round_trip_whoever_is_dead() -> None:
    async def talk(server: StunServer, client: Host) -> None:
        dead = ("11.9.9.9", PORT)
        with udp() as sock:
            await sock.bind(("0.0.0.0", 0))
            started = trio.current_time()
            answer = await race_udp(sock, [dead, *server.addresses])
            assert trio.current_time() - started == pytest.approx(RTT)
            found = await query_all_udp(sock, [server.address, (HOSTS[1], PORT)])
            assert {each.mapped for each in found if isinstance(each, StunAnswer)} == {answer.mapped}
        started = trio.current_time()
        async with race_tcp([dead, *server.addresses], local=(client.ip, 4001)) as (answer, stream):
            assert trio.current_time() - started == pytest.approx(2 * RTT)
            assert answer.mapped == (await query_stream(stream)).mapped

    behind(presets.LINUX, talk)


@pytest.mark.parametrize("seed", range(3))
def test_loss_costs_repetitions_only(seed: int) -> None:
    async def talk(server: StunServer, _: Host) -> None:
        with udp() as sock:
            await sock.bind(("0.0.0.0", 0))
            answers = [await query_udp(sock, server.address) for _ in range(20)]
            assert len({each.mapped for each in answers}) == 1
            assert any(each.retransmitted for each in answers)

    behind(presets.LINUX, talk, loss=0.2, seed=seed)


def test_a_dead_server_costs_what_the_rfc_says() -> None:
    async def talk(_: StunServer, __: Host) -> None:
        with udp() as sock:
            started = trio.current_time()
            with pytest.raises(StunTimeout):
                await query_udp(sock, ("11.9.9.9", PORT))
            assert trio.current_time() - started == pytest.approx(39.5)

    behind(presets.LINUX, talk)


def test_names() -> None:
    async def talk(_: StunServer, __: Host) -> None:
        found: TransportAddress = await resolve("server", PORT, family=trio.socket.AF_INET)
        assert found == (HOSTS[0], PORT)
        with pytest.raises(StunError, match="nobody cannot be found"):
            await resolve("nobody", PORT)

    behind(None, talk)


def test_a_server_forgets_a_silent_connection() -> None:
    async def talk(server: StunServer, _: Host) -> None:
        async with open_stun_stream(server.address) as stream:
            await query_stream(stream)
            started = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - started == pytest.approx(300, abs=1)

    behind(None, talk)
