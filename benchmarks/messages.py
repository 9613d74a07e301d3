"""`pipe.messages` beside the bare Pipe: messages a second between two processes, on loopback.

"bare" sends the same bytes in the same pieces by `Pipe.send_all`, without framing, and counts bytes: what the framing
costs is the ratio.  "cut" is how fast a `MessageReader` alone cuts a megabyte of such messages.  Each ratio is made of
two runs that follow each other, and the median of them counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import suppress

import trio

from warpgate_trio import Identity, NodeConfig, Pipe, anyone, open_node
from warpgate_trio.messages import HEADER_SIZE, MessageReader, encode_header

SIZES = (16, 256, 4096, 65_536, 1 << 20)
KEY = Identity.from_seed(bytes(32))


async def drain(pipe: Pipe) -> None:
    """Receive until the end, in the way that the label names, and confirm it."""
    if pipe.label == "messages":
        async with pipe.messages() as messages:
            async for _ in messages:
                pass
            await messages.send(b"")
    else:
        async for _ in pipe:
            pass
        with suppress(trio.BrokenResourceError):  # the Pipe of the call is already closed
            await pipe.send_all(b"k")


async def serve() -> None:
    async with open_node(NodeConfig(), identity=KEY, authorize=anyone) as node, trio.open_nursery() as nursery:
        print(node.address, flush=True)
        while True:
            nursery.start_soon(drain, await node.listener.accept())


async def one(main: Pipe, kind: str, size: int, count: int) -> float:
    """Messages per second."""
    async with await main.open_pipe(kind) as pipe:
        message = bytes(size if kind == "messages" else size + HEADER_SIZE)
        began = time.perf_counter()
        if kind == "messages":
            messages = pipe.messages()
            for _ in range(count):
                await messages.send(message)
            await messages.send_eof()
            await messages.receive()
        else:
            for _ in range(count):
                await pipe.send_all(message)
            await pipe.send_eof()
            await pipe.receive_some()
        return count / (time.perf_counter() - began)


def cut(size: int) -> float:
    """Messages per second that a reader extracts from received data."""
    count = max((1 << 20) // (size + HEADER_SIZE), 1)
    data = (encode_header(size) + bytes(size)) * count
    reader = MessageReader(size)
    began = time.perf_counter()
    reader.feed(data)
    while reader.next_message() is not None:
        pass
    return count / (time.perf_counter() - began)


async def measure(runs: int, seconds: float, address: str) -> None:
    async with open_node(NodeConfig(), identity=Identity.generate()) as node:
        async with await node.auto_connect(address) as main:
            print(f"{'bytes':>8s} {'messages/s':>11s} {'MB/s':>7s} {'to bare':>8s} {'cut/s':>11s}")
            for size in SIZES:
                count = max(int(seconds * await one(main, "bare", size, 50)), 50)
                rates: dict[str, list[float]] = {"messages": [], "bare": []}
                for _ in range(runs):
                    for kind, found in rates.items():
                        found.append(await one(main, kind, size, count))
                rate = statistics.median(rates["messages"])
                ratio = statistics.median(a / b for a, b in zip(rates["messages"], rates["bare"], strict=True))
                fast = statistics.median(cut(size) for _ in range(5))
                print(f"{size:>8d} {rate:>11,.0f} {rate * size / 1e6:>7.1f} {ratio:>8.2f} {fast:>11,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run, about")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve)
        return
    command = [sys.executable, "-m", "benchmarks.messages", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            trio.run(measure, options.runs, options.seconds, server.stdout.readline().strip())
        finally:
            server.kill()


if __name__ == "__main__":
    main()
