"""500 Pipes, each on a Link of its own, accepted by one node: time, memory per Pipe, cost while they idle.

The callers' node runs in another process, so the memory is the accepting side's alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import trio

from warpgate_trio import Identity, Node, NodeConfig, Pipe, anyone, open_node

AT_ONCE = 16


def resident() -> float:
    """KiB of this process in memory (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise OSError("no VmRSS in /proc/self/status")


async def serve(count: int) -> None:
    async with open_node(NodeConfig(), identity=Identity.generate(), authorize=anyone) as node:
        print(node.address, flush=True)
        held: list[Pipe] = [await node.listener.accept()]
        before = resident()  # after the first Pipe, which allocates what all Pipes share
        began, cpu = time.perf_counter(), time.process_time()
        while len(held) < count:
            held.append(await node.listener.accept())
            if len(held) in (count // 4, count // 2, count):
                per_pipe = (resident() - before) / (len(held) - 1)
                print(f"  {len(held):5d} Pipes accepted: {per_pipe:6.1f} KiB each", flush=True)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"  {count / elapsed:.0f} Pipes a second, {1000 * cpu / count:.1f} ms of CPU each on this side", flush=True
        )
        cpu = time.process_time()
        await trio.sleep(5)
        print(f"  idle with {count} Pipes: {100 * (time.process_time() - cpu) / 5:.2f} % of a core", flush=True)
        for pipe in held:
            assert await echo(pipe)
        print("  every one of them still carries bytes", flush=True)


async def echo(pipe: Pipe) -> bool:
    data = await pipe.receive_some()
    await pipe.send_all(data)
    return bool(data)


async def call(address: str, count: int) -> None:
    async with open_node(NodeConfig(), identity=Identity.generate()) as node, trio.open_nursery() as nursery:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one(node: Node) -> None:
            async with limit:
                pipe = await node.auto_connect(address, afs=[4])
            async with pipe:
                await pipe.send_all(b"x")
                await pipe.receive_some(1)

        for _ in range(count):
            nursery.start_soon(one, node)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.count)
        return
    command = [sys.executable, "-m", "benchmarks.many_pipes", "--serve", "--count", str(options.count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        print(f"{options.count} Links to one node")
        trio.run(call, address, options.count)
        print(server.stdout.read(), end="")


if __name__ == "__main__":
    main()
