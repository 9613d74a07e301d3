"""Hosts: programs, clocks, addresses, names; datagrams, their TTL and their size; multicast."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing

from tests.sim.programs import bound, receive, udp
from tests.sim.worlds import run
from warpgate_trio.sim import (
    Host,
    Link,
    Network,
    current_host,
    presets,
    simulate,
)


# Hosts
def test_code_runs_on_the_host_it_was_started_on() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        seen: list[str] = []

        async def note() -> None:
            await trio.lowlevel.checkpoint()
            seen.append(current_host().name)

        async with trio.open_nursery() as nursery:
            with a:
                nursery.start_soon(note)
                with b:
                    nursery.start_soon(note)
                assert current_host() is a
            await b.run(note)
        assert sorted(seen) == ["a", "b", "b"]
        with pytest.raises(RuntimeError, match="no simulated host"):
            current_host()
        with pytest.raises(RuntimeError, match="no simulated host"):
            trio.socket.socket()

    run(world)


def test_blocks_of_many_tasks_may_overlap() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")

        async def stay(host: Host, seconds: float) -> None:
            with b, host:
                await trio.sleep(seconds)
                assert current_host() is host
            with pytest.raises(RuntimeError):
                current_host()

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(stay, a, 5 - number)
                nursery.start_soon(stay, b, number)

    run(world)


def test_run_returns_and_raises_as_the_function_does() -> None:
    async def world(net: Network) -> None:
        a = net.host("a")

        async def double(x: int) -> int:
            if x < 0:
                raise ValueError("negative")
            return 2 * x

        assert await a.run(double, 4) == 8
        with pytest.raises(ValueError, match="negative"):
            await a.run(double, -1)

    run(world)


def test_clocks_and_entropy() -> None:
    async def world(net: Network) -> tuple[float, float, bytes]:
        right = net.host("right")
        wrong = net.host("wrong", clock_offset=-3.0, clock_drift=0.01)
        assert right.wall_time() == net.epoch > 1.7e9
        assert wrong.wall_time() == pytest.approx(net.epoch - 3)
        await trio.sleep(100)
        assert right.wall_time() == net.epoch + 100
        assert wrong.wall_time() == pytest.approx(net.epoch + 101 - 3)
        assert right.entropy(16) != right.entropy(16) != wrong.entropy(16)
        return net.epoch, right.random.random(), right.entropy(32)

    assert run(world, seed=1) == run(world, seed=1) != run(world, seed=2)


def test_what_a_host_draws_does_not_depend_on_who_else_is_there() -> None:
    async def world(net: Network) -> bytes:
        for name in ("x", "y")[: len(net.hosts) or net.seed]:
            net.host(name)
        return net.host("a").entropy(8)

    async def crowded(net: Network) -> bytes:
        for name in ("x", "y"):
            net.host(name).random.random()
        return net.host("a").entropy(8)

    assert run(world) == run(crowded)


# Datagrams, TTL, MTU
def test_latency_adds_up() -> None:
    async def world(net: Network) -> None:
        a = await bound(net.host("a", link=Link(latency=0.03)), 1)
        b = await bound(net.host("b", link=(Link(latency=1), Link(latency=0.05))), 1)
        await a.sendto(b"x", (b.host.ip, 1))  # type: ignore[attr-defined]
        assert await receive(b, 9) is not None
        assert trio.current_time() == pytest.approx(0.08)
        a.close()
        b.close()

    run(world)


def test_ttl_ends_where_it_should() -> None:
    """With two NATs and six routers between them: which hop answers, for each TTL."""

    async def world(net: Network) -> None:
        alice = net.lan("home", nat=presets.OPEN).host("alice")
        work = net.lan("work", nat=presets.OPEN)
        bob = await bound(work.host("bob"), 1000)
        server = await bound(net.host("server"), 9)
        await bob.sendto(b"?", (server.host.ip, 9))  # type: ignore[attr-defined]
        mapped = await receive(server, 1)
        assert mapped is not None
        for ttl in range(1, 11):
            with alice:
                sock = udp()
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            await sock.sendto(b"x", mapped[1])
            assert (await receive(bob, 1) is not None) == (ttl > 8), ttl
            sock.close()
        died = [e.node for e in net.trace.latest() if e.note == "TTL expired"]
        assert died == ["home", *["internet"] * 6, "work"]
        bob.close()
        server.close()

    run(world)


def test_a_packet_whose_ttl_ends_at_the_nat_makes_no_mapping() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        sock = await bound(lan.host("a"), 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        await sock.sendto(b"x", ("11.9.9.9", 1))
        await trio.sleep(1)
        assert net.netstat().mappings == ()
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
        await sock.sendto(b"x", ("11.9.9.9", 1))
        await trio.sleep(1)
        assert len(net.netstat().mappings) == 1
        sock.close()

    run(world)


def test_big_datagrams_are_cut_up_or_refused() -> None:
    async def world(net: Network) -> None:
        a, b = await bound(net.host("a"), 1), await bound(net.host("b", link=Link(mtu=1000)), 1)
        to = (b.host.ip, 1)  # type: ignore[attr-defined]
        await a.sendto(bytes(5000), to)
        found = await receive(b, 1)
        assert found is not None
        assert len(found[0]) == 5000
        do = 2
        a.setsockopt(socket.IPPROTO_IP, 10, do)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        with pytest.raises(OSError, match="Message too long"):
            await a.sendto(bytes(1473), to)
        await a.sendto(bytes(1200), to)  # fits the first link, but not the second
        assert await receive(b, 1) is None
        with pytest.raises(OSError, match="Message too long"):  # the path MTU is known by now
            await a.sendto(bytes(1200), to)
        await a.sendto(bytes(900), to)
        assert await receive(b, 1) is not None
        a.close()
        b.close()

    run(world)


def test_path_mtu_through_a_nat() -> None:
    async def world(net: Network) -> None:
        alice = net.lan("home", nat=presets.LINUX).host("alice")
        a, b = await bound(alice, 1), await bound(net.host("b", link=Link(mtu=1000)), 1)
        a.setsockopt(socket.IPPROTO_IP, 10, 2)
        await a.sendto(bytes(1200), (b.host.ip, 1))  # type: ignore[attr-defined]
        assert await receive(b, 1) is None
        assert alice.path_mtu == {b.host.ip: 1000}  # type: ignore[attr-defined]
        a.close()
        b.close()

    run(world)


def test_a_small_uplink_mtu_is_told_to_the_host_behind_the_nat() -> None:
    async def world(net: Network) -> None:
        alice = net.lan("home", nat=presets.LINUX, uplink=Link(mtu=1200)).host("alice")
        a, b = await bound(alice, 1), await bound(net.host("b"), 1)
        a.setsockopt(socket.IPPROTO_IP, 10, 2)
        await a.sendto(bytes(1300), (b.host.ip, 1))  # type: ignore[attr-defined]
        assert await receive(b, 1) is None
        assert alice.path_mtu == {b.host.ip: 1200}  # type: ignore[attr-defined]
        a.close()
        b.close()

    run(world)


def test_connected_udp_hears_of_refusals_through_nats() -> None:
    async def world(net: Network) -> None:
        alice = net.lan("isp", nat=presets.CGN).lan("home", nat=presets.LINUX).host("alice")
        server = net.host("server")
        with alice, udp() as sock:
            await sock.connect((server.ip, 77))
            await sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await sock.recv(1)

    run(world)


# Multicast and broadcast
def test_multicast_as_ssdp_uses_it() -> None:
    group = "239.255.255.250"

    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        device, phone, other = lan.host("device"), lan.host("phone"), lan.host("other")
        assert lan.router is not None
        members = [await bound(host, 1900) for host in (device, lan.router)]
        deaf = await bound(other, 1900)
        request = socket.inet_aton(group) + socket.inet_aton("0.0.0.0")
        for sock in members:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        asker = await bound(phone, 5000)
        asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(phone.ip))
        await asker.sendto(b"M-SEARCH", (group, 1900))
        inside = lan.router.inside.address(v6=False)
        found = await receive(members[0], 1)
        assert found == (b"M-SEARCH", (phone.ip, 5000))
        await members[0].sendto(b"OK", found[1])
        assert await receive(asker, 1) == (b"OK", (device.ip, 1900))
        assert inside is not None
        assert await receive(deaf, 1) is None
        members[0].setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, request)
        await asker.sendto(b"M-SEARCH", (group, 1900))
        assert await receive(members[0], 1) is None
        for sock in (*members, deaf, asker):
            sock.close()

    run(world)


def test_multicast_reaches_the_senders_own_host_too() -> None:
    async def world(net: Network) -> None:
        host = net.lan("home").host("a")
        sock = await bound(host, 1900)
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + socket.inet_aton(host.ip)
        )
        await sock.sendto(b"x", ("239.1.2.3", 1900))
        assert await receive(sock, 1) == (b"x", (host.ip, 1900))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        await sock.sendto(b"x", ("239.1.2.3", 1900))
        assert await receive(sock, 1) is None
        sock.close()

    run(world)


def test_ipv6_multicast() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home")
        a, b = lan.host("a"), lan.host("b")
        with a:
            listener = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        await listener.bind(("::", 1900))
        group = socket.inet_pton(socket.AF_INET6, "ff02::c") + struct.pack("=I", 0)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        with b, trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asker:
            await asker.sendto(b"x", ("ff02::c", 1900))
            data, source = await listener.recvfrom(10)
            assert (data, source[0]) == (b"x", b.ip6)
        listener.close()

    run(world, ipv6=True)


def test_broadcast_needs_permission() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home")
        a, b = await bound(lan.host("a"), 1), await bound(lan.host("b"), 1)
        with pytest.raises(PermissionError):
            await a.sendto(b"x", ("255.255.255.255", 1))
        a.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        await a.sendto(b"x", ("255.255.255.255", 1))
        assert await receive(b, 1) is not None
        a.close()
        b.close()

    run(world)


# Names
def test_names() -> None:
    async def world(net: Network) -> None:
        server = net.host("Server.Example")
        net.add_name("alias.example", server.ip)
        here = net.host("here", ipv6=False)

        async def ask(name: str, port: str | int = 80, **how: int) -> list[object]:
            return [entry[4] for entry in await trio.socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, **how)]

        assert await here.run(ask, "server.example") == [(server.ip, 80), (server.ip6, 80, 0, 0)]
        assert await server.run(ask, "server.example") == [(server.ip6, 80, 0, 0), (server.ip, 80)]
        assert await here.run(ask, "alias.example", "https") == [(server.ip, 443)]
        with pytest.raises(socket.gaierror) as caught:
            await here.run(ask, "nobody.example")
        assert caught.value.errno == socket.EAI_NONAME
        with pytest.raises(socket.gaierror):
            await here.run(ask, "alias.example", "no-such-service")
        with here:
            assert await trio.socket.getnameinfo((server.ip, 80), 0) == ("server.example", "http")
            assert await trio.socket.getnameinfo(("11.9.9.9", 80), 0) == ("11.9.9.9", "http")
            mapped = await trio.socket.getaddrinfo(
                "alias.example", 80, socket.AF_INET6, socket.SOCK_DGRAM, 0, socket.AI_V4MAPPED
            )
            assert mapped[0][4][0] == f"::ffff:{server.ip}"

    run(world, ipv6=True)


def test_names_take_their_time() -> None:
    async def main() -> None:
        async with Network(resolver_delay=0.3) as net:
            net.host("server")
            with net.host("client"):
                await trio.socket.getaddrinfo("server", 80)
            assert trio.current_time() == pytest.approx(0.3)

    simulate(main)


def test_names_with_a_trailing_dot_are_the_same_names() -> None:
    async def world(net: Network) -> None:
        server = net.host("server")
        net.add_name("alias.example.", server.ip)
        net.spoil_name("slow.", delay=5)
        with server:
            for name in ("server.", "alias.example", "ALIAS.example.", "localhost."):
                found = await trio.socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)
                assert found[0][4][0] in (server.ip, "127.0.0.1")
            before = trio.current_time()
            with pytest.raises(socket.gaierror):
                await trio.socket.getaddrinfo("slow", 80)
            assert trio.current_time() == before + 5

    run(world)


def test_lookups_that_look_at_the_host() -> None:
    """They use the simulated host, even when Trio asks the standard library for addresses to listen on."""

    async def world(net: Network) -> None:
        both, old = net.host("both"), net.host("old", ipv6=False)

        async def ask(name: str | None, flags: int, family: int = 0) -> list[str]:
            found = await trio.socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM, 0, flags)
            return [str(each[4][0]) for each in found]

        assert await both.run(ask, None, socket.AI_PASSIVE | socket.AI_ADDRCONFIG) == ["0.0.0.0", "::"]
        assert await old.run(ask, None, socket.AI_PASSIVE | socket.AI_ADDRCONFIG) == ["0.0.0.0"]
        assert await old.run(ask, "both", socket.AI_ADDRCONFIG) == [both.ip]
        assert await both.run(ask, "both", socket.AI_ADDRCONFIG) == [both.ip6, both.ip]
        mapped = f"::ffff:{both.ip}"
        assert await old.run(ask, "both", socket.AI_V4MAPPED, socket.AF_INET6) == [both.ip6]
        assert await old.run(ask, "both", socket.AI_V4MAPPED | socket.AI_ALL, socket.AF_INET6) == [both.ip6, mapped]
        assert await old.run(ask, "old", socket.AI_V4MAPPED, socket.AF_INET6) == [f"::ffff:{old.ip}"]
        with both:
            assert socket.getaddrinfo("old", 80, type=socket.SOCK_STREAM)[0][4] == (old.ip, 80)

    run(world, ipv6=True)
