"""What the simulator reaches: ``python -m tests.sim.measure``, in processor seconds, which others here bend less."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

from tests.sim.programs import bound
from warpgate_trio.sim import Link, Network, presets, simulate

DATAGRAMS = 40_000
BURST = 100
IDLE = 1000
BYTES = 5_000_000


async def datagrams() -> str:
    """Datagrams of 100 bytes through a Linux NAT, in bursts, 10 ms of latency."""
    async with Network(link=Link(latency=0.01)) as net:
        server = await bound(net.host("server"), 9)
        client = await bound(net.lan("home", nat=presets.LINUX).host("client"))
        to = ("11.0.0.1", 9)

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
    return f"{DATAGRAMS / took:,.0f} datagrams a second through a NAT"


async def idle() -> str:
    """Hosts behind NATs of their own that wake every 25 minutes, for an hour."""

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
    return f"{IDLE:,} idle hosts for one simulated hour: {time.process_time() - started:.2f} s"


async def stream() -> str:
    """A TCP transfer through a NAT."""
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
    return f"{BYTES / took / 1e6:.1f} MB/s of TCP through a NAT"


async def start() -> str:
    """A world with two LANs, made and left."""
    async with Network() as net:
        for name in ("a", "b"):
            net.lan(name, nat=presets.LINUX).host(f"{name}1")
    return ""


def main() -> None:
    measurements: list[Callable[[], Awaitable[str]]] = [datagrams, idle, stream]
    for measurement in measurements:
        print(simulate(measurement))
    started = time.process_time()
    for _ in range(100):
        simulate(start)
    print(f"{(time.process_time() - started) * 10:.2f} ms for a world with two LANs, Trio's run included")


if __name__ == "__main__":
    main()
