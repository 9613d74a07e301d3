"""How long punching takes on the real kernel, from a warm node's call to the first echoed byte (root, Linux).

Two nodes behind NATs in the kernel lab (`tests/kernel/`), with servers as far from either as they are from each other,
so that a signal takes one round trip.  The same two connect again and again, each time when both are warm: profile
measured, a port of each kind mapped, the clock known.  Runs of all plugins and round trips are interleaved.

A spray uses up what one address gets unasked (`warpgate_trio.nat.allowance`), so its nodes are new in each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import SECOND, SERVER, Host, open_lab
from tests.kernel.run import configuration, program_on
from tests.kernel.wire import Wire
from tests.requirements import unmet
from warpgate_trio import EXT_BIND, ConnectError, Identity, Node, Pipe, anyone, load_config, open_node

RUNS = 15
ROUND_TRIPS = (0.05, 0.1)
PATIENCE = 20.0
"""Seconds for a node to get warm, and for one run."""
SLACK = 0.03
"""Seconds beyond the round trips of a target (DESIGN §8)."""
SPRAY = 3.0
"""Seconds of a spray, whatever the round trip."""


@final
@dataclass(frozen=True, slots=True)
class Course:
    """What is measured.

    Attributes:
      homes: the kinds of the two NATs.
      caller: which of the two calls.
      round_trips: of the target, which has `SLACK` more; None stands for `SPRAY`.
    """

    plugin: str
    homes: tuple[str, str]
    caller: int
    round_trips: float | None

    def target(self, rtt: float) -> float:
        return SPRAY if self.round_trips is None else self.round_trips * rtt + SLACK


CONES = ("port-restricted", "port-restricted")
HARD = ("port-restricted", "symmetric")
COURSES = (
    Course("udp_punch", CONES, 0, 6.5),
    Course("tcp_punch", CONES, 0, 7.0),
    Course("random_probe", HARD, 0, None),
    Course("random_probe", HARD, 1, None),
)


# -- a node, as a program of its own: commands come in by stdin, one a line, and each is answered by one line ----------


async def be_node(config: str) -> None:
    """``warm`` is answered by the address, ``call PLUGIN ADDRESS`` by seconds, ``renew`` takes another node."""
    commands = aiter(trio.wrap_file(sys.stdin))
    while True:
        async with (
            open_node(load_config(file=config), identity=Identity.generate(), authorize=anyone) as node,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.serve_listeners, echo, [node.listener])
            again = await obey(node, commands)
            nursery.cancel_scope.cancel()
        if not again:
            return
        print("renewed", flush=True)


async def obey(node: Node, commands: AsyncIterator[str]) -> bool:
    async for command in commands:
        match command.split():
            case ["warm"]:
                await warm(node)
                print(node.address, flush=True)
            case ["call", plugin, address]:
                try:
                    print(json.dumps(await call(node, plugin, address)), flush=True)
                except ConnectError as error:
                    print(json.dumps(f"{error.verdict.value}: {error}"), flush=True)
            case ["renew"]:
                return True
    return False


async def echo(pipe: Pipe) -> None:
    async with pipe:
        async for data in pipe:
            await pipe.send_all(data)


async def warm(node: Node) -> None:
    """Wait until a node has all that it keeps ready."""
    await node.wait_signals()
    nat = node._runtime.nat
    clock = node._runtime.view.clock
    while not (  # noqa: ASYNC110 - it does not tell anybody
        nat._udp.warm.get(4)
        and nat._tcp.warm.get(4)
        and nat.profiles.get(None, 4).udp.endpoint_independent is not None
        and not nat.measuring[4].locked()
        and clock.uncertainty() < 1
    ):
        await trio.sleep(0.02)


async def call(node: Node, plugin: str, address: str) -> float:
    """Seconds to the first echoed byte."""
    began = time.perf_counter()
    pipe = await node.connect(address, plugin=plugin, af=4, route_type=EXT_BIND, timeout=PATIENCE / 2)
    async with pipe:
        await pipe.send_all(b"x")
        await pipe.receive_some(1)
        return time.perf_counter() - began


# -- the lab -----------------------------------------------------------------------------------------------------------


@final
class RemoteNode:
    """A node on one of the lab's machines."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._answers = bytearray()

    async def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE):
            await self._process.stdin.send_all(f"{command}\n".encode())
            while b"\n" not in self._answers:
                more = await self._process.stdout.receive_some()
                if not more:
                    raise RuntimeError(f"the node ended at {command!r}")
                self._answers += more
        answer, _, rest = bytes(self._answers).partition(b"\n")
        self._answers[:] = rest
        return answer.decode()


@asynccontextmanager
async def node_on(host: Host, config: Path) -> AsyncGenerator[RemoteNode]:
    words = [sys.executable, "-m", "benchmarks.punch_times", "--node", str(config)]
    process = await trio.lowlevel.open_process(
        host.machine.command(words), pass_fds=[host.machine.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield RemoteNode(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def pair_of_nodes(
    stack: AsyncExitStack, wire: Wire, homes: tuple[str, str], rtt: float
) -> tuple[RemoteNode, RemoteNode]:
    """Two nodes behind their NATs, and a server, until the stack ends."""
    lab = await stack.enter_async_context(open_lab(wire, *homes, rtt=rtt))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warpgate-lab-")))
    words = ("serve", "--host", SERVER, "--second-host", SECOND, "--json")
    server = await stack.enter_async_context(program_on(lab.server, *words, home=folder, logs=None))
    config = folder / "config.toml"
    config.write_text(configuration((await server.event())["servers"]), encoding="utf-8")
    a, b = [await stack.enter_async_context(node_on(home.host, config)) for home in lab.homes]
    return a, b


async def measure(runs: int, round_trips: Sequence[float]) -> None:
    times: dict[tuple[float, Course], list[float]] = {(rtt, course): [] for rtt in round_trips for course in COURSES}
    with Wire() as wire:
        async with AsyncExitStack() as stack:
            nodes = {
                (rtt, homes): await pair_of_nodes(stack, wire, homes, rtt)
                for rtt in round_trips
                for homes in dict.fromkeys(course.homes for course in COURSES)
            }
            for each in range(runs):
                for (rtt, course), taken in times.items():
                    pair = nodes[rtt, course.homes]
                    caller, listener = pair[course.caller], pair[1 - course.caller]
                    address = await listener.ask("warm")
                    await caller.ask("warm")
                    found = json.loads(await caller.ask(f"call {course.plugin} {address}"))
                    if isinstance(found, float):
                        taken.append(found)
                    else:
                        print(f"{course.plugin}, run {each}: {found}", file=sys.stderr)
                for (_, homes), pair in nodes.items():
                    if homes == HARD:
                        for node in pair:
                            await node.ask("renew")
    print(f"warm, from the call to the first echoed byte, {runs} interleaved runs; RTT between all: peers and servers")
    print(f"{'':14} {'caller behind':16} {'RTT':>6} {'min':>7} {'median':>7} {'max':>7} {'':>9} {'target':>8}")
    for (rtt, course), taken in times.items():
        print(line(rtt, course, taken, runs))


def line(rtt: float, course: Course, taken: Sequence[float], runs: int) -> str:
    start = f"{course.plugin:14} {course.homes[course.caller]:16} {1000 * rtt:3.0f} ms"
    if not taken:
        return f"{start}  never connected"
    median = statistics.median(taken)
    figures = " ".join(f"{1000 * each:7.0f}" for each in (min(taken), median, max(taken)))
    verdict = "" if median <= course.target(rtt) else "  MISSED"
    missing = "" if len(taken) == runs else f"  {len(taken)} of {runs} connected"
    return f"{start} {figures} {median / rtt:5.1f} RTT {1000 * course.target(rtt):5.0f} ms{verdict}{missing}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rtt", type=float, nargs="+", default=[1000 * each for each in ROUND_TRIPS], help="ms")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.node is not None:
        trio.run(be_node, options.node)
    else:
        trio.run(measure, options.runs, [each / 1000 for each in options.rtt])
    return 0


if __name__ == "__main__":
    if "--node" in sys.argv:
        sys.exit(main(sys.argv[1:]))
    if reason := next(filter(None, map(unmet, ("network_namespaces", "nft", "tun"))), None):
        print(f"punch_times: skipped: {reason}")
        sys.exit(0)
    run_enclosed("benchmarks.punch_times", main)
