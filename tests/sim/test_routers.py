"""Routers, NATs and firewalls in a network."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
import trio.testing

from tests.sim.programs import bound, reaches, receive
from tests.sim.worlds import run
from warpgate_trio.sim import (
    Behavior,
    Hairpin,
    Host,
    Mapping,
    NatConfig,
    Network,
    presets,
)
from warpgate_trio.sim.packet import TCP, UDP


# IPv6 and LANs with public addresses
def test_ipv6_end_to_end_and_firewalls() -> None:
    async def world(net: Network) -> None:
        open_lan, closed = net.lan("open"), net.lan("closed", nat=presets.LINUX, firewall6=presets.FIREWALL6)
        a, b, server = open_lan.host("a"), closed.host("b"), net.host("server")

        async def sock6(host: Host) -> trio.socket.SocketType:
            with host:
                sock = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                await sock.bind(("::", 1000))
                return sock

        sockets = [await sock6(host) for host in (a, b, server)]
        to_a, to_b = (a.ip6, 1000), (b.ip6, 1000)
        assert await reaches(sockets[2], sockets[0], to_a)
        assert not await reaches(sockets[0], sockets[1], to_b)
        assert await reaches(sockets[1], sockets[0], to_a)
        assert await reaches(sockets[0], sockets[1], to_b)  # b has sent first
        assert not await reaches(sockets[2], sockets[1], to_b)
        for sock in sockets:
            sock.close()

    run(world, ipv6=True)


def test_ipv6_behind_two_routers() -> None:
    async def world(net: Network) -> None:
        outer = net.lan("outer", nat=presets.CGN)
        inner = outer.lan("inner", nat=presets.LINUX, firewall6=presets.FIREWALL6)
        a, neighbour, server = inner.host("a"), outer.host("neighbour"), net.host("server")

        async def sock6(host: Host) -> trio.socket.SocketType:
            with host:
                sock = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                await sock.bind(("::", 1000))
                return sock

        sockets = [await sock6(host) for host in (a, neighbour, server)]
        for other, host in ((sockets[1], neighbour), (sockets[2], server)):
            assert not await reaches(other, sockets[0], (a.ip6, 1000))
            assert await reaches(sockets[0], other, (host.ip6, 1000))
            assert await reaches(other, sockets[0], (a.ip6, 1000))  # a has sent first
        for sock in sockets:
            sock.close()

    run(world, ipv6=True)


def test_a_host_on_two_networks() -> None:
    async def world(net: Network) -> None:
        one, two = net.lan("one", nat=presets.LINUX), net.lan("two", nat=presets.LINUX)
        both = one.host("both")
        two.attach(both)
        first, second = both.addresses
        a, b, c = await bound(one.host("a"), 1), await bound(two.host("b"), 1), await bound(both, 1)
        for sock, source in ((a, first), (b, second)):
            to = (sock.host.ip, 1)  # type: ignore[attr-defined]
            await c.sendto(b"?", to)
            assert await receive(sock, 1) == (b"?", (source, 1))
        for sock in (a, b, c):
            sock.close()

    run(world)


def test_a_lan_without_a_nat_has_public_addresses() -> None:
    async def world(net: Network) -> None:
        a, b = await bound(net.lan("campus").host("a"), 1), await bound(net.host("b"), 1)
        assert await reaches(b, a, (a.host.ip, 1))  # type: ignore[attr-defined]
        a.close()
        b.close()

    run(world)


# NATs in a network
def test_two_homes_with_the_same_addresses_behind_one_cgn() -> None:
    """Measured: without hairpinning, the private and the public address fail; the gateway's own address connects."""
    quiet = NatConfig(udp=Behavior(hairpin=Hairpin.NONE), tcp=Behavior(hairpin=Hairpin.NONE))

    async def world(net: Network) -> None:
        isp = net.lan("isp", nat=quiet, prefix4="100.64.0.0/16")
        homes = [isp.lan(f"home{n}", nat=presets.FULL_CONE, prefix4="192.168.1.0/24") for n in (1, 2)]
        a, b = [await bound(home.host(f"host{n}"), 1000) for n, home in enumerate(homes)]
        server = await bound(net.host("server"), 9)
        to = (server.host.ip, 9)  # type: ignore[attr-defined]
        await b.sendto(b"?", to)
        seen = await receive(server, 1)
        assert seen is not None
        assert not await reaches(a, b, seen[1])
        router = homes[1].router
        assert router is not None
        assert router.ip.startswith("100.64.")
        assert await reaches(a, b, (router.ip, 1000))
        for sock in (a, b, server):
            sock.close()

    run(world)


def test_hairpinning_between_hosts_of_one_lan() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.OPEN)
        a, b = await bound(lan.host("a"), 1000), await bound(lan.host("b"), 2000)
        server = await bound(net.host("server"), 9)
        for sock in (a, b):
            await sock.sendto(b"?", (server.host.ip, 9))  # type: ignore[attr-defined]
        assert lan.router is not None
        assert await reaches(a, b, (lan.router.ip, 2000))
        for sock in (a, b, server):
            sock.close()

    run(world)


def test_programs_on_a_router() -> None:
    """A port that a server on a router binds is reachable from both sides, and answers to its packets reach it."""

    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        router = lan.router
        assert router is not None
        service = await bound(router, 5351)
        a, b = await bound(lan.host("a"), 1), await bound(net.host("b"), 1)
        inside = router.inside.address(v6=False)
        assert inside is not None
        assert await reaches(a, service, (inside, 5351))
        assert await reaches(b, service, (router.ip, 5351))
        own = await bound(router, 6000)
        await own.sendto(b"?", (b.host.ip, 1))  # type: ignore[attr-defined]
        found = await receive(b, 1)
        assert found is not None
        assert found[1] == (router.ip, 6000)
        assert await reaches(b, own, found[1])
        for sock in (service, a, b, own):
            sock.close()

    run(world)


def test_forwarded_ports_in_a_network() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        router = lan.router
        assert router is not None
        assert router.nat is not None
        alice = lan.host("alice")
        router.nat.add_forward(TCP, 8080, (alice.ip, 80))
        router.nat.add_forward(UDP, 8080, (alice.ip, 80))
        with alice:
            listeners = await trio.open_tcp_listeners(80, host="0.0.0.0")
        with net.host("caller"):
            stream = await trio.open_tcp_stream(router.ip, 8080)
        await stream.aclose()
        (await listeners[0].accept()).socket.close()
        await listeners[0].aclose()
        assert [line for line in net.netstat().mappings if "8080 forwarded" in line]

    run(world)


def test_a_router_can_change_its_address_and_reboot() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        router = lan.router
        assert router is not None
        a, b = await bound(lan.host("a"), 1000), await bound(net.host("b"), 1)
        to = (b.host.ip, 1)  # type: ignore[attr-defined]
        await a.sendto(b"?", to)
        first = await receive(b, 1)
        assert first is not None
        router.reboot()
        assert not await reaches(b, a, first[1])
        await a.sendto(b"?", to)
        assert await receive(b, 1) == first
        new = router.change_address()
        assert new != first[1][0]
        assert not await reaches(b, a, first[1])
        await a.sendto(b"?", to)
        second = await receive(b, 1)
        assert second is not None
        assert second[1] == (new, 1000)
        assert await reaches(b, a, second[1])
        a.close()
        b.close()

    run(world)


def test_a_tcp_connection_survives_a_linux_router_that_reboots() -> None:
    """nf_conntrack picks up connections in mid-stream, with the same port."""

    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        server = net.host("server")
        with server:
            (listener,) = await trio.open_tcp_listeners(80, host="0.0.0.0")
        with lan.host("a"):
            a = await trio.open_tcp_stream(server.ip, 80)
        b = await listener.accept()
        assert lan.router is not None
        lan.router.reboot()
        await a.send_all(b"still there?")
        assert await b.receive_some() == b"still there?"
        await b.send_all(b"yes")
        assert await a.receive_some() == b"yes"
        for thing in (a, b, listener):
            await thing.aclose()

    run(world)


def test_a_refused_mapping_is_an_error_for_the_program() -> None:
    """RFC 5508, REQ-8."""
    config = NatConfig(quota=1, udp=Behavior(), tcp=Behavior(mapping=Mapping.APDM))

    async def world(net: Network) -> None:
        server = net.host("server")
        with server:
            (listener,) = await trio.open_tcp_listeners(80, host="0.0.0.0")
        with net.lan("home", nat=config).host("a"):
            first = await trio.open_tcp_stream(server.ip, 80)
            with trio.socket.socket() as second:
                with pytest.raises(OSError, match="No route to host"):
                    await second.connect((server.ip, 80))
        await first.aclose()
        await listener.aclose()

    run(world)


def test_ttl_and_strangers_at_ipv6_routers() -> None:
    async def world(net: Network) -> None:
        closed = net.lan("closed", firewall6=presets.SIMPLE_SECURITY6)
        assert closed.router is not None
        inside, outside = closed.host("inside"), net.host("outside")

        async def dial(host: Host, to: str, hops: int = 64) -> str:
            with host, trio.socket.socket(socket.AF_INET6) as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
                try:
                    await sock.connect((to, 80, 0, 0))
                except OSError as error:
                    return errno.errorcode[error.errno or 0]
            return "connected"

        started = trio.current_time()
        assert await dial(inside, outside.ip6, 1) == "EHOSTUNREACH"
        assert await dial(inside, outside.ip6) == "ECONNREFUSED"
        assert await dial(outside, closed.router.ip6) == "ECONNREFUSED"  # the router itself
        assert await dial(outside, "2a0a:0:0:77::1", 3) == "ETIMEDOUT"
        assert trio.current_time() - started == 131
        assert await dial(outside, inside.ip6) == "EHOSTUNREACH"
        assert trio.current_time() - started == 131 + 6  # RFC 6092, REC-34

    run(world, ipv6=True)


def test_private_addresses_are_not_reached_from_outside() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.FULL_CONE)
        a = await bound(lan.host("a"), 1000)
        b = await bound(net.host("b"), 1)
        assert not await reaches(b, a, (a.host.ip, 1000))  # type: ignore[attr-defined]
        a.close()
        b.close()

    run(world)


def test_one_to_one_gives_every_host_all_ports_of_an_address() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("cloud", nat=presets.ONE_TO_ONE)
        first, second, far = lan.host("first"), lan.host("second"), net.host("far")
        router = lan.router
        assert router is not None
        outside = [address for address, _ in router.outside.addresses]
        assert len(set(outside)) == 2
        far_sock = await bound(far, 9)
        for host, address in zip((first, second), outside, strict=True):
            sock = await bound(host, 5000)
            assert await reaches(far_sock, sock, (address, 5000))  # though it has sent nothing
            await sock.sendto(b"x", (far.ip, 9))
            assert await receive(far_sock, 1) == (b"x", (address, 5000))
            with host:
                (listener,) = await trio.open_tcp_listeners(80, host="0.0.0.0")
            with far:
                async with listener, await trio.open_tcp_stream(address, 80), await listener.accept():
                    pass
            sock.close()
        far_sock.close()
        await trio.sleep(1)
        assert router.change_address() not in outside
        with first:
            sock = trio.socket.socket(type=socket.SOCK_DGRAM)
        await sock.sendto(b"x", (second.ip, 9))
        sock.close()

    run(world)
