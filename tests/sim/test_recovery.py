"""TCP's loss recovery in the simulator and in the kernel, compared by the times at which bytes arrive.

The kernel may delay an acknowledgement by 40 ms, and the simulator never does; none of these tests depends on that.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

import pytest
import trio

from tests.kernel.lab import RTT, open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.wire import Wire
from tests.sim.programs import Place
from tests.sim.worlds import run
from warpgate_trio.sim import Fault, Kind, Link, Network

TOLERANCE: Final = 0.08  # seconds by which the kernel's coarse timers may be late; up to 0.06 were measured
TRIES: Final = 8  # because a busy machine delays now one side and now the other
PORT: Final = 7000
WARM: Final = 6  # round trips of a byte, after which the round-trip time is measured


@final
@dataclass(frozen=True)
class Loss:
    """The writes (time, size), and the span in which all packets from the writer are lost; times in seconds."""

    writes: tuple[tuple[float, int], ...]
    lost: tuple[float, float]


LOSSES: Final = {
    "the only segment": Loss(((0.01, 500),), (0.0, 0.05)),
    "the first of two": Loss(((0.01, 500), (0.11, 500)), (0.0, 0.05)),
    "the first of four": Loss(((0.01, 500), (0.05, 500), (0.06, 500), (0.07, 500)), (0.0, 0.03)),
    "a probe as well": Loss(((0.01, 500),), (0.0, 0.4)),
}


async def transfer(a: Place, b: Place, loss: Loss, lose: Callable[[float, float], None]) -> list[float]:
    """When each write has arrived completely, in seconds after `lose` is called."""
    total = sum(size for _, size in loss.writes)
    edges = [sum(size for _, size in loss.writes[: index + 1]) for index in range(len(loss.writes))]
    arrivals: list[float] = []

    async def read(sock: trio.socket.SocketType) -> None:
        count = 0
        while count < total:
            count += len(await sock.recv(65536))
            while len(arrivals) < len(edges) and edges[len(arrivals)] <= count:
                arrivals.append(trio.current_time() - began)

    with b, trio.socket.socket() as listener:
        await listener.bind((b.ip, PORT))
        listener.listen()
        with a, trio.socket.socket() as writer:
            writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await writer.connect((b.ip, PORT))
            reader, _ = await listener.accept()
            with reader:
                for _ in range(WARM):
                    await writer.send(b"?")
                    await reader.send(await reader.recv(1))
                    await writer.recv(1)
                await trio.sleep(RTT)  # for the last acknowledgement
                lose(*loss.lost)
                began = trio.current_time()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, reader)
                    for at, size in loss.writes:
                        await trio.sleep_until(began + at)
                        await writer.send(bytes(size))
                await trio.sleep(loss.lost[1])  # so that the FIN is not lost
    return arrivals


def simulated(loss: Loss) -> list[float]:
    async def world(net: Network) -> list[float]:
        line = Link(latency=RTT / 4)
        a, b = net.host("a", link=line), net.host("b", link=line)

        def lose(begin: float, end: float) -> None:
            net.schedule([Fault(at=begin, until=end, target="a:up", kind=Kind.BLACKHOLE)])

        return await transfer(a, b, loss, lose)

    return run(world)


async def in_the_kernel(losses: Sequence[Loss]) -> list[list[float]]:
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    answers: list[list[float]] = [[] for _ in losses]

    async def one(index: int, wire: Wire) -> None:
        async with open_lab(wire, "open", "open") as lab:
            a, b = (home.host for home in lab.homes)
            spans: list[tuple[float, float]] = []

            def lose(begin: float, end: float) -> None:
                now = time.monotonic()
                spans.append((now + begin, now + end))

            def is_lost(packet: bytes) -> bool:
                now, source = time.monotonic(), socket.inet_ntoa(packet[12:16])
                return source == a.ip and any(begin <= now < end for begin, end in spans)

            lab.internet.drop = is_lost
            answers[index] = await transfer(a, b, losses[index], lose)

    with Wire() as wire:
        async with trio.open_nursery() as nursery:
            for index in range(len(losses)):
                nursery.start_soon(one, index, wire)
    return answers


@pytest.mark.slow("real time: losses are waited for")
@pytest.mark.needs("network_namespaces", "nft", "tun")
async def test_losses_are_found_when_the_kernel_finds_them() -> None:
    expected = {name: await trio.to_thread.run_sync(simulated, loss) for name, loss in LOSSES.items()}
    apart: list[str] = []
    for _ in range(TRIES):
        found = await in_the_kernel([LOSSES[name] for name in expected])
        for (name, ours), its in zip(list(expected.items()), found, strict=True):
            if its == pytest.approx(ours, abs=TOLERANCE):
                del expected[name]
            else:
                apart.append(f"{name}: {ours}, and {its} in the kernel")  # late, or written after the loss
        if not expected:
            break
    assert not expected, apart
