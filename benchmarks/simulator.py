"""The speed of the simulator on one core: datagrams through a NAT, whole connects, idle hosts, TCP.

Times are processor seconds, which other programs on the machine affect less than elapsed time.  The program only
computes, so on an idle machine both are equal.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from benchmarks._nodes import spread
from warpgate_trio.sim import Host, Link, NatConfig, Network, presets, simulate
from warpgate_trio.testing.walks import simulate_walk
from warpgate_trio.testing.worlds import PeerPair

ROUNDS = 5
DATAGRAMS = 40_000
BURST = 100
IDLE = 1000
BYTES = 5_000_000
WALKS = 40


async def bound(host: Host, port: int = 0) -> trio.socket.SocketType:
    with host:
        sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await sock.bind(("0.0.0.0", port))
    return sock


async def datagrams() -> float:
    """Datagrams a second, of 100 bytes through a Linux NAT, in bursts, 10 ms of latency."""
    async with Network(link=Link(latency=0.01)) as net:
        server = await bound(net.host("server"), 9)
        client = await bound(net.lan("home", nat=presets.LINUX).host("client"))
        to = (net.hosts["server"].ip, 9)

        async def send() -> None:
            for _ in range(DATAGRAMS // BURST):
                for _ in range(BURST):
                    await client.sendto(bytes(100), to)
                await trio.sleep(0.01)

        started = time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in range(DATAGRAMS):
                await server.recvfrom(200)
        took = time.process_time() - started
        client.close()
        server.close()
    return DATAGRAMS / took


async def idle() -> float:
    """Seconds for a simulated hour of hosts, each behind a NAT of its own, that wake every 25 minutes."""

    async def wait() -> None:
        with trio.move_on_after(3600), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("0.0.0.0", 0))
            while True:
                with trio.move_on_after(1500):
                    await sock.recvfrom(100)

    started = time.process_time()
    async with Network() as net, trio.open_nursery() as nursery:
        for number in range(IDLE):
            with net.lan(f"lan{number}", nat=presets.LINUX).host(f"host{number}"):
                nursery.start_soon(wait)
    return time.process_time() - started


async def stream() -> float:
    """MB/s of TCP through a NAT."""
    async with Network(link=Link(latency=0.01)) as net:
        server = net.host("server")
        client = net.lan("home", nat=presets.LINUX).host("client")
        with server:
            (listener,) = await trio.open_tcp_listeners(80, host="0.0.0.0")
        with client:
            sender = await trio.open_tcp_stream(server.ip, 80)
        receiver = await listener.accept()
        started = time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, bytes(BYTES))
            got = 0
            while got < BYTES:
                got += len(await receiver.receive_some())
        took = time.process_time() - started
        for one in (sender, receiver, listener):
            await one.aclose()
    return BYTES / took / 1e6


async def build() -> None:
    """Build, enter and leave a world with two LANs."""
    async with Network() as net:
        for name in ("a", "b"):
            net.lan(name, nat=presets.LINUX).host(f"{name}1")


def walk(alice: NatConfig | None, bob: NatConfig | None, seed: int) -> float:
    """Milliseconds for a world with its servers and two nodes: building, a connect, an echo of 10 KiB, and closing."""
    pair = PeerPair.between(alice, bob, seed=seed)
    gc.collect()
    started = time.process_time()
    done = simulate_walk(pair)
    took = 1000 * (time.process_time() - started)
    assert done.connected
    return took


def show(measure: Callable[[], Awaitable[float]], what: str, unit: str) -> None:
    values = [simulate(measure) for _ in range(ROUNDS)]
    print(f"{what}: {spread(values, unit)}")


def main() -> None:
    show(datagrams, "datagrams through a NAT (wanted: 20,000 a second)", "a second")
    show(idle, f"{IDLE:,} idle hosts for one simulated hour (wanted: under 10 s)", "s")
    show(stream, "TCP through a NAT", "MB/s")
    walk(None, None, 0)  # imports
    for name, alice, bob in (
        ("direct", None, None),
        ("direct, from behind a NAT", presets.LINUX, None),
        ("reverse", None, presets.LINUX),
    ):
        values = list(map(partial(walk, alice, bob), range(WALKS)))
        print(f"two nodes and their servers, {name} (wanted: under 150 ms): {spread(values, 'ms')}")
    started = time.process_time()
    for _ in range(100):
        simulate(build)
    print(f"a world with two LANs, Trio's run included: {(time.process_time() - started) * 10:.2f} ms")


if __name__ == "__main__":
    main()
