"""One rendezvous server as a relay: its throughput, its cost for many circuits and idle nodes, and the memory that it
holds for circuits whose receiver does not read.

The server is alone in its process, nodes and channels in others, on loopback.  CPU and memory are the server process's,
as Linux counts them.

* *stream*: channels with a circuit each, whose sender writes 64 KiB at a time, without TLS inside.  MB/s is the
  throughput; *a core* is what the server could relay with one core of its own, by its CPU per MB.  The clients take
  about as much CPU.  On a machine with other work, CPU is to be trusted.
* *many*: idle nodes, and Pipes over `ws_relay` of nodes that know only this server, each with 1 KiB a second each way.
  The cost of a Pipe is what the server takes beyond the cost of the idle nodes.
* *stop*: circuits, each between two connections of its own, whose receiver reads nothing while its sender writes
  until it is stopped.  *Held* is what the server counts, *in memory* the growth of its process.

    python -m benchmarks.relay_server                       all three
    python -m benchmarks.relay_server stream --rounds 5
    python -m benchmarks.relay_server many --idle 500 --pipes 50 --seconds 10
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from benchmarks._nodes import spread
from warpgate_trio import Identity, Node, NodeConfig, Pipe, Servers, anyone, open_node
from warpgate_trio.config import ServerUrl
from warpgate_trio.servers.relay_core import RelayLimits, RelayRules
from warpgate_trio.servers.rendezvous import RendezvousLimits, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import ANY_INSTANCE
from warpgate_trio.signal.channel import SignalChannel
from warpgate_trio.signal.circuits import Circuit, Ringing
from warpgate_trio.signal.transport import open_channel

CHUNK = 64 * 1024
SCENES = ("stream", "many", "stop")
PER_NODE = 50
"""Pipes of one pair of nodes; a connection to a server can have 64 circuits."""
IDLE_PROCESSES = 2
AT_ONCE = 8
STUCK = 1.0
"""Seconds without progress after which a sender counts as stuck."""
PATIENCE = 60.0
"""Timeout in seconds for the last exchange of the Pipes."""


# --- roles: each prints its result, and continues when it reads a line ---


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


async def told() -> bool:
    """Wait for a line; False at the end of stdin."""
    await trio.lowlevel.wait_readable(sys.stdin)
    return bool(os.read(sys.stdin.fileno(), 100))


async def serve() -> None:
    limits = RendezvousLimits(connections=16_000, connections_per_address=16_000)
    rules = RelayRules(open_to_all=True, limits=RelayLimits(circuits=8192, circuits_per_address=4096))
    async with open_rendezvous(limits=limits, relay=rules) as server:
        say(server.url)
        while await told():
            now = server.statistics()
            say({"mailboxes": now.mailboxes, "circuits": now.relay.circuits, "held": now.relay.held})


async def take(url: str, count: int, *, read: bool) -> None:
    """Called channels; prints their keys, then the bytes received and the seconds taken."""
    identities = [Identity.generate() for _ in range(count)]
    total, first, last = 0, 0.0, 0.0

    async def one(channel: SignalChannel) -> None:
        nonlocal total, first, last
        ringing = await channel.receive()
        assert isinstance(ringing, Ringing)
        await ringing.circuit.answer(b"yes")
        if not read:
            await trio.sleep_forever()
        with suppress(OSError):
            while data := await ringing.circuit.recv(CHUNK):
                last = time.monotonic()
                first = first or last
                total += len(data)

    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(ServerUrl.parse(url), each)) for each in identities]
        say([each.public_key.hex() for each in identities])
        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(one, channel)
        say([total, last - first])


async def give(url: str, keys: Sequence[str], seconds: float) -> None:
    """Calling channels, which write for a time; for 0 seconds, until they are stuck."""
    async with AsyncExitStack() as stack:
        circuits: list[Circuit] = []
        for key in keys:
            channel = await stack.enter_async_context(open_channel(ServerUrl.parse(url), Identity.generate()))
            circuits.append(channel.circuit())
            await circuits[-1].call(bytes.fromhex(key), ANY_INSTANCE, b"hello")
            await circuits[-1].wait_answered()
        say("ready")
        await told()
        block = memoryview(bytes(CHUNK))
        with trio.CancelScope(deadline=trio.current_time() + (seconds or STUCK)) as patience:
            async with trio.open_nursery() as nursery:

                async def write(circuit: Circuit) -> None:
                    while True:
                        await circuit.send(block)
                        if not seconds:
                            patience.deadline = trio.current_time() + STUCK

                for circuit in circuits:
                    nursery.start_soon(write, circuit)
        if not seconds:
            say("stuck")
            await told()


async def attend(url: str, count: int) -> None:
    """Registered channels that do nothing."""
    limit = trio.CapacityLimiter(AT_ONCE)
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            async with AsyncExitStack() as stack:
                async with limit:
                    await stack.enter_async_context(open_channel(ServerUrl.parse(url), Identity.generate()))
                await trio.sleep_forever()

        for _ in range(count):
            nursery.start_soon(one)


@asynccontextmanager
async def open_nodes(url: str, count: int) -> AsyncGenerator[list[Node]]:
    """Nodes that are configured with this server only, and connected to it."""
    config = NodeConfig(servers=Servers(websocket=[url]))
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for _ in range(count):
            node = open_node(config, identity=Identity.generate(), authorize=anyone, plugins=["ws_relay"])
            nodes.append(await stack.enter_async_context(node))
        for each in nodes:
            await each.wait_signals()
        yield nodes


async def listen(url: str, count: int) -> None:
    """Nodes that accept Pipes and echo everything; prints their addresses."""
    async with open_nodes(url, count) as nodes, trio.open_nursery() as nursery:

        async def accept(node: Node) -> None:
            while True:
                nursery.start_soon(echo, await node.listener.accept())

        for node in nodes:
            nursery.start_soon(accept, node)
        say([str(node.address) for node in nodes])


async def echo(pipe: Pipe) -> None:
    while data := await pipe.receive_some():
        await pipe.send_all(data)


async def call(url: str, addresses: Sequence[str], count: int) -> None:
    """Nodes that open Pipes by relay and use each once a second; prints how many opened, and how many answer last."""
    pipes: list[Pipe] = []
    limit = trio.CapacityLimiter(AT_ONCE)
    over = trio.Event()
    answered = 0

    async def connect(node: Node, address: str) -> None:
        async with limit:
            pipes.append(await node.auto_connect(address))

    async def trickle(pipe: Pipe, start: float) -> None:
        nonlocal answered
        await trio.sleep(start)
        while not over.is_set():
            await exchange(pipe)
            with trio.move_on_after(1):
                await over.wait()
        good = await exchange(pipe)
        answered += good

    async with open_nodes(url, len(addresses)) as nodes:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(connect, nodes[number % len(nodes)], addresses[number % len(nodes)])
        say(len(pipes))
        await told()
        with trio.CancelScope() as patience:
            async with trio.open_nursery() as nursery:
                for number, pipe in enumerate(pipes):
                    nursery.start_soon(trickle, pipe, number / count)
                await told()
                over.set()
                patience.deadline = trio.current_time() + PATIENCE
        say(answered)
        await told()


async def exchange(pipe: Pipe) -> bool:
    """Whether data that is sent comes back."""
    sent, came = os.urandom(1024), b""
    await pipe.send_all(sent)
    while len(came) < len(sent) and (data := await pipe.receive_some()):
        came += data
    return came == sent


# --- scenes ---


class Process:
    """A running role, seen from the benchmark."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def hear(self) -> Any:
        assert self._child.stdout is not None
        return json.loads(self._child.stdout.readline())

    def tell(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()

    def statistics(self) -> dict[str, int]:
        self.tell()
        found: dict[str, int] = self.hear()
        return found

    @property
    def cpu(self) -> float:
        """Its CPU time in seconds."""
        return int(Path(f"/proc/{self._child.pid}/schedstat").read_text().split()[0]) / 1e9

    @property
    def resident(self) -> float:
        """Its memory in KiB."""
        pages = int(Path(f"/proc/{self._child.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024


@contextmanager
def run(role: str, *arguments: object) -> Iterator[Process]:
    command = [sys.executable, "-m", "benchmarks.relay_server", "--role", role, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Process(child)
    finally:
        child.kill()
        child.communicate()


def tell(*figures: str) -> None:
    print(f"  {'; '.join(figures)}", flush=True)


def stream(circuits: int, seconds: float, rounds: int) -> None:
    print(f"stream, circuits: {circuits}")
    speeds, costs = [], []
    with run("serve") as server:
        url = server.hear()
        for _ in range(rounds):
            with run("take", "--url", url, "--count", circuits, "--read") as receiver:
                keys = json.dumps(receiver.hear())
                with run("give", "--url", url, "--peers", keys, "--seconds", seconds) as sender:
                    sender.hear()
                    before = server.cpu
                    sender.tell()
                    total, span = receiver.hear()
                speeds.append(total / 1e6 / span)
                costs.append((server.cpu - before) * 1e9 / total)
    tell(spread(speeds, "MB/s"))
    tell(spread(costs, "ms of CPU a MB"), f"a core: {1000 / statistics.median(costs):.0f} MB/s")


def many(idle: int, pipes: int, seconds: float) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(run("serve"))
        url = server.hear()

        def load() -> float:
            """CPU seconds for each second."""
            before, start = server.cpu, time.monotonic()
            time.sleep(seconds)
            return (server.cpu - before) / (time.monotonic() - start)

        print(f"many, idle nodes: {idle}")
        before = server.resident
        for _ in range(IDLE_PROCESSES):
            stack.enter_context(run("attend", "--url", url, "--count", -(-idle // IDLE_PROCESSES)))
        while server.statistics()["mailboxes"] < idle:
            time.sleep(0.2)
        opened, resting, base = server.resident, load(), server.resident
        tell(
            f"{(opened - before) / idle:.1f} KiB each, {(base - before) / idle:.1f} after pings",
            f"{100 * resting:.1f} % of a core, {1e6 * resting / idle:.0f} µs a second each",
        )

        print(f"many, Pipes beside them: {pipes}")
        listeners = stack.enter_context(run("listen", "--url", url, "--count", -(-pipes // PER_NODE)))
        addresses = json.dumps(listeners.hear())
        callers = stack.enter_context(run("call", "--url", url, "--peers", addresses, "--count", pipes))
        start = server.cpu
        callers.hear()
        spent = server.cpu - start
        tell(f"{(server.resident - base) / pipes:.1f} KiB each", f"{1000 * spent / pipes:.1f} ms of CPU to connect one")
        waiting = load() - resting
        tell(f"idle: {1e6 * waiting / pipes:.0f} µs a second each")
        callers.tell()
        time.sleep(2)
        busy = load() - resting
        tell(
            f"1 KiB a second there and back: {1e6 * busy / pipes:.0f} µs a second each",
            f"{100 * (resting + busy):.1f} % of a core in all",
            f"{(server.resident - base) / pipes:.1f} KiB each",
        )
        callers.tell()
        answered, now = callers.hear(), server.statistics()
        tell(f"answer at the end: {answered}", f"circuits: {now['circuits']}", f"nodes: {now['mailboxes']}")


def stop(circuits: int) -> None:
    print(f"stop, circuits that nobody reads: {circuits}")
    with run("serve") as server:
        url = server.hear()
        with run("take", "--url", url, "--count", circuits) as receiver:
            keys = json.dumps(receiver.hear())
            with run("give", "--url", url, "--peers", keys, "--seconds", 0) as sender:
                sender.hear()
                before = server.resident
                sender.tell()
                sender.hear()
                held, grown = server.statistics()["held"] / 1024, server.resident - before
                tell(f"{held / circuits:.0f} KiB held each", f"{grown / circuits:.0f} KiB in memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="scene", help=f"which: {', '.join(SCENES)}")
    parser.add_argument("--circuits", type=int, nargs="+", default=[1, 4], help="of a stream; each is measured")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement of many: a ping of each node")
    parser.add_argument("--rounds", type=int, default=5, help="of stream")
    parser.add_argument("--length", type=float, default=2.0, help="seconds of one round")
    parser.add_argument("--idle", type=int, default=5000, help="nodes")
    parser.add_argument("--pipes", type=int, default=500)
    parser.add_argument("--stopped", type=int, default=50, help="circuits that nobody reads")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--peers", type=json.loads, default=[], help=argparse.SUPPRESS)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.role:
        case "serve":
            trio.run(serve)
        case "take":
            trio.run(lambda: take(options.url, options.count, read=options.read))
        case "give":
            trio.run(give, options.url, options.peers, options.seconds)
        case "attend":
            trio.run(attend, options.url, options.count)
        case "listen":
            trio.run(listen, options.url, options.count)
        case "call":
            trio.run(call, options.url, options.peers, options.count)
        case _:
            scenes = options.scenes or SCENES
            if "stream" in scenes:
                for circuits in options.circuits:
                    stream(circuits, options.length, options.rounds)
            if "many" in scenes:
                many(options.idle, options.pipes, options.seconds)
            if "stop" in scenes:
                stop(options.stopped)


if __name__ == "__main__":
    main()
