"""TCP over links that lose, duplicate, reorder, limit and cut, as programs see it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings

from tests.sim.worlds import run
from warpgate_trio.sim import Fault, Host, Kind, Link, Network
from warpgate_trio.sim.packet import SYN


async def transfer(net: Network, a: Host, b: Host, size: int, *, pause: float = 0.0) -> float:
    """Send bytes from a to b; returns the seconds until b had all of them."""
    data = bytes(i * 7 % 251 for i in range(size))
    took = 0.0

    async def receiver(listener: trio.socket.SocketType) -> None:
        nonlocal took
        started = trio.current_time()
        with listener:
            sock, _ = await listener.accept()
        got = bytearray()
        with sock:
            while chunk := await sock.recv(10_000):
                got += chunk
                if pause:
                    await trio.sleep(pause)
        took = trio.current_time() - started
        assert got == data

    with b:
        listener = trio.socket.socket()
        await listener.bind(("", 80))
        listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver, listener)
        with a:
            stream = await trio.open_tcp_stream(b.ip, 80)
        await stream.send_all(data)
        await stream.aclose()
    return took


bad_links = st.builds(
    Link,
    latency=st.sampled_from([0.0, 0.01, 0.1]),
    jitter=st.sampled_from([0.0, 0.02]),
    loss=st.sampled_from([0.0, 0.01, 0.2]),
    duplicate=st.sampled_from([0.0, 0.2]),
    reorder=st.sampled_from([0.0, 0.3]),
    reorder_by=st.sampled_from([0.001, 0.05]),
    bandwidth=st.sampled_from([float("inf"), 1e6]),
    mtu=st.sampled_from([1500, 576]),
)


@pytest.mark.slow("fifty transfers over bad links")
@given(bad_links, bad_links, st.integers(0, 200_000), st.integers(0, 3), st.sampled_from([0.0, 0.05]))
@settings(max_examples=50)
def test_tcp_is_intact_over_any_link(up: Link, down: Link, size: int, seed: int, pause: float) -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a", link=(up, down)), net.host("b")
        await transfer(net, a, b, size, pause=pause)
        await trio.sleep(2000)
        assert not net.netstat().lingering

    run(world, seed=seed)


def test_bandwidth_bounds_a_transfer() -> None:
    async def world(net: Network) -> float:
        a, b = net.host("a", link=Link(latency=0.01, bandwidth=8e6, queue=10**6)), net.host("b")
        return await transfer(net, a, b, 1_000_000)

    assert run(world) == pytest.approx(1.0, rel=0.1)


def test_a_closed_window_opens_again_though_the_news_is_lost() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a", link=Link(latency=0.01)), net.host("b")
        with b:
            listener = trio.socket.socket()
            await listener.bind(("", 80))
            listener.listen()
        with a:
            stream = await trio.open_tcp_stream(b.ip, 80)
        sock, _ = await listener.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(1_000_000))
            await trio.sleep(3600)  # the sender blocks for an hour, with window probes
            got = 0
            while got < 1_000_000:
                got += len(await sock.recv(50_000))
        await stream.aclose()
        sock.close()
        listener.close()

    async def lossy(net: Network) -> None:
        net.wire.at(3500, lambda: net.hosts["a"].interfaces[0].rx.configure(Link(latency=0.01, loss=0.3)))
        await world(net)

    for one in (world, lossy):
        run(one)


def test_path_mtu_is_discovered() -> None:
    async def world(net: Network) -> None:
        a = net.host("a", link=Link(latency=0.01))
        b = net.host("b", link=(Link(), Link(mtu=800)))
        await transfer(net, a, b, 50_000)
        assert a.path_mtu[b.ip] == 800

    run(world)


async def listening(host: Host, port: int = 80, backlog: int = 10) -> trio.socket.SocketType:
    with host:
        sock = trio.socket.socket()
        await sock.bind(("", port))
        sock.listen(backlog)
        return sock


async def dial(host: Host, to: str, port: int = 80, *, bind: int = 0, ttl: int = 64) -> trio.socket.SocketType:
    with host:
        sock = trio.socket.socket()
    try:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_TTL, ttl)
        await sock.bind(("", bind))
        await sock.connect((to, port))
    except BaseException:
        sock.close()
        raise
    return sock


def test_an_mtu_black_hole_is_a_timeout() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        net.schedule([Fault(at=0, target="b:down", kind=Kind.MTU_BLACKHOLE, value=1000)])
        listener = await listening(b)
        sock = await dial(a, b.ip)
        await sock.send(bytes(10_000))
        with pytest.raises(TimeoutError):
            await sock.recv(1)
        assert 900 < trio.current_time() < 1100  # tcp_retries2: 924 s with the smallest round trip
        sock.close()
        listener.close()

    run(world)


def syn_times(net: Network, node: str) -> list[float]:
    return [e.time for e in net.trace.latest() if e.node == node and e.event == "send" and e.packet.flags == SYN]


def test_syns_to_a_black_hole() -> None:
    """The schedule of Linux 6.5 and later."""

    async def world(net: Network) -> None:
        a = net.host("a")
        with pytest.raises(TimeoutError):
            await dial(a, "11.9.9.9")
        assert trio.current_time() == 131
        assert syn_times(net, "a") == [0, 1, 2, 3, 4, 5, 7, 11, 19, 35, 67]

    run(world)


def test_nobody_on_the_lan_is_host_unreachable() -> None:
    async def world(net: Network) -> None:
        a = net.lan("home").host("a")
        with pytest.raises(OSError, match="No route to host"):
            await dial(a, str(a.interfaces[0].addresses[0][1][77]))
        assert trio.current_time() == 3

    run(world)


def test_a_syn_whose_ttl_runs_out_is_host_unreachable() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a", link=Link(latency=0.01)), net.host("b")
        listener = await listening(b)
        with pytest.raises(OSError, match="No route to host"):
            await dial(a, b.ip, ttl=net.internet.hops)
        assert trio.current_time() == pytest.approx(0.02)
        (await dial(a, b.ip, ttl=net.internet.hops + 1)).close()
        listener.close()

    run(world)


def test_no_route() -> None:
    async def world(net: Network) -> None:
        a = net.host("a")
        with a, trio.socket.socket(trio.socket.AF_INET6) as sock:
            with pytest.raises(OSError, match="Network is unreachable"):
                await sock.connect(("2a0a::1", 80))

    run(world)


def test_a_connecting_socket_comes_before_a_listener() -> None:
    """Measured on Linux 6.18: both connects succeed after one round trip, the listener sees nothing."""

    async def world(net: Network) -> None:
        a, b = net.host("a", link=Link(latency=0.01)), net.host("b", link=Link(latency=0.01))
        listeners = []
        for host in (a, b):
            with host:
                listener = trio.socket.socket()
                listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
                await listener.bind(("", 1000))
                listener.listen()
                listeners.append(listener)

        async def connect(host: Host, peer: Host) -> None:
            with host, trio.socket.socket() as sock:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
                await sock.bind(("", 1000))
                await sock.connect((peer.ip, 1000))
                assert trio.current_time() == pytest.approx(0.04)
                await sock.send(b"hi")
                assert await sock.recv(2) == b"hi"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, a, b)
            nursery.start_soon(connect, b, a)
        for listener in listeners:
            assert not listener.is_readable()
            listener.close()

    run(world)


def test_after_the_listener_took_the_peers_syn_a_connect_finds_no_address() -> None:
    """Measured: EADDRNOTAVAIL, and the connection is at the listener."""

    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        with b:
            listener, late = trio.socket.socket(), trio.socket.socket()
        for sock in (listener, late):
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
            await sock.bind(("", 1000))
        listener.listen()
        early = await dial(a, b.ip, 1000, bind=1000)
        with pytest.raises(OSError, match="Cannot assign requested address"):
            await late.connect((a.ip, 1000))
        accepted, _ = await listener.accept()
        for sock in (early, listener, late, accepted):
            sock.close()

    run(world)


def test_reuseport_listeners_share() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        listeners = []
        for _ in range(2):
            with b:
                sock = trio.socket.socket()
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
                await sock.bind(("", 80))
                sock.listen()
                listeners.append(sock)
        calls = [await dial(a, b.ip) for _ in range(20)]
        counts = []
        for listener in listeners:
            count = 0
            while listener.is_readable():
                (await listener.accept())[0].close()
                count += 1
            counts.append(count)
            listener.close()
        assert sum(counts) == 20
        assert min(counts) > 2
        for sock in calls:
            sock.close()

    run(world)


def test_a_full_backlog_makes_callers_wait() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        listener = await listening(b, backlog=1)
        first = [await dial(a, b.ip) for _ in range(2)]
        with trio.move_on_after(0.5) as scope:
            await dial(a, b.ip)
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def third() -> None:
                (await dial(a, b.ip)).close()

            nursery.start_soon(third)
            await trio.sleep(0.1)
            (await listener.accept())[0].close()
        assert trio.current_time() == pytest.approx(1.5)  # the SYN's retransmission
        for sock in (*first, listener):
            sock.close()

    run(world)


def test_time_wait_holds_the_port_for_a_minute() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        listener = await listening(b)
        sock = await dial(a, b.ip, bind=1000)
        accepted, _ = await listener.accept()
        sock.close()
        await trio.sleep(0.1)
        accepted.close()
        await trio.sleep(0.1)
        assert [line for line in net.netstat().lingering if "TIME-WAIT" in line]
        with a, trio.socket.socket() as plain:
            with pytest.raises(OSError, match="Address already in use"):
                await plain.bind(("", 1000))
        with pytest.raises(OSError, match="Cannot assign requested address"):
            await dial(a, b.ip, bind=1000)
        await trio.sleep(60)
        assert not net.netstat().lingering
        (await dial(a, b.ip, bind=1000)).close()
        listener.close()

    run(world)


def test_a_new_syn_takes_the_place_of_a_connection_in_time_wait() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        listener = await listening(b)
        sock = await dial(a, b.ip, bind=1000)
        accepted, _ = await listener.accept()
        accepted.close()  # b is in TIME-WAIT, a is free
        await trio.sleep(0.1)
        sock.close()
        await trio.sleep(0.1)
        again = await dial(a, b.ip, bind=1000)
        accepted, _ = await listener.accept()
        for one in (again, accepted, listener):
            one.close()

    run(world)


def test_an_abandoned_connect_leaves_nothing() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a", link=Link(latency=1)), net.host("b")
        listener = await listening(b)
        with trio.move_on_after(1.5):
            await dial(a, b.ip)
        listener.close()
        await trio.sleep(100)
        assert not net.netstat().lingering

    run(world)


def test_a_vanished_peer_is_found_out_by_writing() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        listener = await listening(b)
        sock = await dial(a, b.ip)
        net.schedule([Fault(at=0, target="b", kind=Kind.BLACKHOLE)])
        await sock.send(b"x")
        with pytest.raises(TimeoutError):
            await sock.recv(1)
        sock.close()
        listener.close()

    run(world)


def test_a_short_outage_is_survived() -> None:
    async def world(net: Network) -> None:
        a, b = net.host("a", link=Link(latency=0.01)), net.host("b")
        net.schedule([Fault(at=0.1, until=20, target="b", kind=Kind.BLACKHOLE)])
        await trio.sleep(0.09)
        assert 20 < await transfer(net, a, b, 500_000) < 60

    run(world)
