"""How many round trips a connect takes to the first echoed byte, on the real kernel (root, Linux).

Three namespaces on a hub that delays every frame by half a round trip: a rendezvous server, a listener, a caller; so
a signal takes one round trip from peer to peer.  The targets are those of the design: direct 4, 3 with early data,
reverse 5.5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import trio

from benchmarks import delayed_hub
from warpgate_trio import Identity, NodeConfig, Servers, anyone, open_node
from warpgate_trio.servers.rendezvous import open_rendezvous

NAMES = ("server", "listener", "caller")
RUNS = 7
PORT = 8765
TARGETS = {("direct_connect", False): 4.0, ("direct_connect", True): 3.0, ("reverse_connect", False): 5.5}


async def serve(host: str) -> None:
    async with open_rendezvous(host=host, port=PORT):
        print("ready", flush=True)
        await trio.sleep_forever()


def config(server: str) -> NodeConfig:
    return NodeConfig(servers=Servers(websocket=[f"ws://{server}:{PORT}"]))


async def listen(server: str) -> None:
    async with open_node(config(server), identity=Identity.generate(), authorize=anyone) as node:
        await node.wait_signals()
        print(node.address, flush=True)
        async with trio.open_nursery() as nursery:
            while True:
                pipe = await node.listener.accept()

                async def echo(pipe: trio.abc.HalfCloseableStream = pipe) -> None:
                    async with pipe:
                        async for data in pipe:
                            await pipe.send_all(data)

                nursery.start_soon(echo)


async def call(server: str, address: str, rtt: float) -> None:
    async with open_node(config(server), identity=Identity.generate()) as node:
        await node.wait_signals()
        for plugin in ("direct_connect", "reverse_connect"):
            for early in (False, True):
                times = []
                for _ in range(RUNS):
                    began = time.perf_counter()
                    pipe = await node.connect(address, plugin=plugin, af=4, early_data=b"x" if early else b"")
                    async with pipe:
                        if not early:
                            await pipe.send_all(b"x")
                        await pipe.receive_some(1)
                        times.append(time.perf_counter() - began)
                median = statistics.median(times)
                print(
                    json.dumps(
                        {
                            "plugin": plugin,
                            "early_data": early,
                            "first_byte_ms": round(1000 * median, 1),
                            "round_trips": round(median / rtt, 2),
                            "target_round_trips": TARGETS.get((plugin, early)),
                            "over_target_ms": (
                                round(1000 * (median - TARGETS[plugin, early] * rtt), 1)
                                if (plugin, early) in TARGETS
                                else None
                            ),
                        }
                    ),
                    flush=True,
                )


async def lab(rtt: float) -> None:
    addresses = delayed_hub.wire_up(NAMES)

    def inside(name: str, *role: str) -> list[str]:
        return [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "benchmarks.round_trips",
            "--rtt",
            str(1000 * rtt),
            *role,
        ]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delayed_hub.forward, NAMES, rtt / 2)
        started = []
        line = ""
        try:
            for name, role in (("server", addresses["server"]), ("listener", addresses["server"])):
                process = await trio.lowlevel.open_process(inside(name, "--role", name, role), stdout=subprocess.PIPE)
                started.append(process)
                assert process.stdout is not None
                line = (await process.stdout.receive_some()).decode().strip()
            await trio.run_process(inside("caller", "--role", "caller", addresses["server"], line))
        finally:
            for process in started:
                process.kill()
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=100.0, help="milliseconds")
    parser.add_argument("--role", choices=["lab", *NAMES], help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rtt = options.rtt / 1000
    if options.role is None:
        if sys.platform != "linux" or os.geteuid() != 0:
            print("skipped: it needs root on Linux, for network namespaces of its own")
            return
        delayed_hub.reenter(["-m", "benchmarks.round_trips", "--role", "lab", "--rtt", str(options.rtt)])
    elif options.role == "lab":
        trio.run(lab, rtt)
    elif options.role == "server":
        trio.run(serve, *options.arguments)
    elif options.role == "listener":
        trio.run(listen, *options.arguments)
    else:
        server, address = options.arguments
        trio.run(call, server, address, rtt)


if __name__ == "__main__":
    main()
