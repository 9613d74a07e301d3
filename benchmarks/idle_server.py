"""Thousands of idle nodes on one rendezvous server: memory and CPU per node, and whether they grow with the number.

The nodes are channels as a node holds them (registered, pinging), many to a process; the server is alone in its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import trio

from warpgate_trio import Identity
from warpgate_trio.config import ServerUrl
from warpgate_trio.servers.rendezvous import RendezvousLimits, open_rendezvous
from warpgate_trio.signal import SignalHub

STEPS = (0.2, 0.4, 0.6, 0.8, 1.0)
CLIENT_PROCESSES = 2
AT_ONCE = 64


def resident() -> float:
    """KiB of this process in memory (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise OSError("no VmRSS in /proc/self/status")


async def serve(count: int, idle: float) -> None:
    limits = RendezvousLimits(connections=count + 16, connections_per_address=count + 16)
    async with open_rendezvous(limits=limits) as server:
        print(server.url, flush=True)
        base = resident()
        for step in STEPS:
            wanted = int(count * step)
            while server.statistics().mailboxes < wanted:  # noqa: ASYNC110 - the server tells nobody who comes
                await trio.sleep(0.05)
            each = (resident() - base) / wanted
            print(f"  {wanted:6d} nodes: {each:6.1f} KiB each", flush=True)
        cpu = time.process_time()
        await trio.sleep(idle)
        share = 100 * (time.process_time() - cpu) / idle
        print(
            f"  idle for {idle:g} s: {share:.2f} % of a core, {1e4 * share / count:.1f} µs a second and node",
            flush=True,
        )


async def attend(url: str, count: int) -> None:
    async with trio.open_nursery() as nursery:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one() -> None:
            hub = SignalHub(Identity.generate(), [ServerUrl.parse(url)])
            async with limit:
                await nursery.start(hub.run)
                await hub.wait_connected()

        async with trio.open_nursery() as starting:
            for _ in range(count):
                starting.start_soon(one)
        await trio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--idle", type=float, default=40.0, help="seconds; nodes ping every 30")
    parser.add_argument("--role", choices=["serve", "attend"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "serve":
        trio.run(serve, options.count, options.idle)
        return
    if options.role == "attend":
        trio.run(attend, options.url, options.count)
        return
    me = [sys.executable, "-m", "benchmarks.idle_server"]
    arguments = ["--count", str(options.count), "--idle", str(options.idle)]
    print(f"{options.count} idle nodes on one rendezvous server")
    with subprocess.Popen([*me, "--role", "serve", *arguments], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        share = str(-(-options.count // CLIENT_PROCESSES))
        clients = [
            subprocess.Popen([*me, "--role", "attend", "--url", url, "--count", share]) for _ in range(CLIENT_PROCESSES)
        ]
        try:
            for line in server.stdout:
                print(line, end="", flush=True)
        finally:
            for client in clients:
                client.kill()
                client.wait()


if __name__ == "__main__":
    main()
