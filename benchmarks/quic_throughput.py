"""A Pipe over QUIC on loopback, two processes: megabytes a second, and what a receiver that stops reading holds.

The path is a socket of its own at each end, as after a punch.  The rate is of a whole Pipe: Link, credit, QUIC,
datagrams.  The receiver that stalls has read so much before that its credit has grown; its memory is read before the
first byte and when its sender has been blocked for a second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import psutil
import trio

from tests.paths import SocketPath
from warpgate_trio import Identity
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.link import Link, PathInfo, Pipe
from warpgate_trio.link.openings import refuse_all
from warpgate_trio.ports.datagrams import DatagramSocket

SIZES = (1200, 16 * 1024, 64 * 1024, 256 * 1024)
KEY = Identity.from_seed(bytes(32))
CLIENT = Identity.from_seed(bytes(31) + b"\1")
PATH = PathInfo(
    phase="punch", plugin="-", af=4, route_type="LOOPBACK_BIND", carrier="quic", local=("::", 0), remote=("::", 0)
)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


async def serve(peer_port: int, total: int, stall: bool) -> None:
    """The receiver: reads `total` bytes and confirms it, or stops reading and prints its memory when stdin asks."""
    sock = await DatagramSocket.bind(("127.0.0.1", 0))
    print(sock.local[1], flush=True)
    path = SocketPath(sock, ("127.0.0.1", peer_port))
    link = await Link.receive_proof(await QuicCarrier.serve(path, KEY))
    link.set_role(initiator=False)
    await link.receive_commit()
    pipe = link.accept()
    link.path = PATH
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def drive() -> None:
            await link.drive(on_open=refuse_all, goodbye=1.0)

        before = resident()
        got = 0
        while got < total:
            got += len(await pipe.receive_some())
        if stall:
            await trio.to_thread.run_sync(sys.stdin.readline)
            print(resident() - before, flush=True)
            link.close_nowait()
            return
        await pipe.send_all(b"k")
        await pipe.aclose()


async def dial(sock: DatagramSocket, port: int) -> tuple[Link, Pipe]:
    path = SocketPath(sock, ("127.0.0.1", port))
    carrier = await QuicCarrier.dial(path, peer_key=KEY.public_key)
    link = await Link.prove(
        carrier, CLIENT, peer_key=KEY.public_key, session_id=bytes(16), attempt_id=bytes(16), initiator=True
    )
    pipe = await link.commit(epoch=1, link_id=bytes(16), patience=5.0)
    link.path = PATH
    return link, pipe


def receiver(sock: DatagramSocket, total: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.quic_throughput", "--serve", str(sock.local[1]), *options]
    return subprocess.Popen(
        [*command, "--mebibytes", str(total >> 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def one(size: int, total: int) -> float:
    """Bytes per second of one transfer."""
    sock = await DatagramSocket.bind(("127.0.0.1", 0))
    with receiver(sock, total) as process:
        assert process.stdout is not None
        link, pipe = await dial(sock, int(process.stdout.readline()))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def drive() -> None:
                await link.drive(on_open=refuse_all, goodbye=1.0)

            chunk = bytes(size)
            began = time.perf_counter()
            for _ in range(total // size):
                await pipe.send_all(chunk)
            await pipe.send_all(bytes(total % size))
            await pipe.receive_some(1)
            elapsed = time.perf_counter() - began
            await pipe.aclose()
    return total / elapsed


async def stalled(total: int) -> None:
    """Send to a receiver that stops reading after `total` bytes, until sending blocks."""
    sock = await DatagramSocket.bind(("127.0.0.1", 0))
    with receiver(sock, total, "--stall") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        link, pipe = await dial(sock, int(process.stdout.readline()))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def drive() -> None:
                await link.drive(on_open=refuse_all, goodbye=1.0)

            sent = 0
            chunk = bytes(65536)
            while True:
                with trio.move_on_after(1.0) as scope:
                    await pipe.send_all(chunk)
                    sent += len(chunk)
                if scope.cancelled_caught:
                    break
            process.stdin.write("\n")
            process.stdin.flush()
            held = int(process.stdout.readline())
            link.close_nowait()
    beyond = (sent - total) / 2**20
    print(
        f"stalled receiver: its sender blocked {beyond:.1f} MiB on; the process grew by {held / 2**20:.1f} MiB in all"
    )


async def measure(total: int, runs: int) -> None:
    print(f"{total >> 20} MiB a run, median of {runs} runs, MB/s")
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(runs):
        for size in SIZES:
            rates[size].append(await one(size, total))
    for size, each in rates.items():
        print(f"{size / 1024:>6.1f} Ki {statistics.median(each) / 1e6:>7.0f}", flush=True)
    await stalled(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stall", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    total = options.mebibytes << 20
    if options.serve:
        trio.run(serve, options.serve, total, options.stall)
    else:
        trio.run(measure, total, options.runs)


if __name__ == "__main__":
    main()
