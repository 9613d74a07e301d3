"""How long punching takes on the real kernel, from a warm node's call to the first echoed byte (root, Linux).

Two nodes behind NATs in the kernel lab (`tests/kernel/`), with servers as far from either as they are from each other,
so that a signal takes one round trip.  The same two connect again and again, each time when both are warm: profile
measured, a port of each kind mapped, the clock known.  Runs of all plugins and round trips are interleaved.

A spray uses up what one address gets unasked (`warpgate_trio.punch.allowance`), so its nodes are new in each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

import trio

from benchmarks._lab_nodes import RemoteNode, node_on
from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import SECOND, SERVER, open_lab
from tests.kernel.run import configuration, program_on
from tests.kernel.wire import Wire
from tests.requirements import unmet

RUNS = 15
ROUND_TRIPS = (0.05, 0.1)
SLACK = 0.03
"""Seconds of a target beyond its round trips, for the processor time of both sides."""
SPRAY = 3.0
"""Target time of a spray in seconds, independent of the round-trip time."""


@final
@dataclass(frozen=True, slots=True)
class Course:
    """One measurement.

    Attributes:
      homes: the kinds of the two NATs.
      caller: which of the two calls.
      round_trips: round trips of the target time, to which `SLACK` is added; None: the target is `SPRAY`.
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


async def pair_of_nodes(
    stack: AsyncExitStack, wire: Wire, homes: tuple[str, str], rtt: float
) -> tuple[RemoteNode, RemoteNode]:
    """Two nodes behind their NATs and a server, until the stack is closed."""
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
                    found = json.loads(await caller.ask(f"call {course.plugin} 1 {address}"))
                    if isinstance(found, list):
                        taken.append(found[0])
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
    options = parser.parse_args(arguments)
    trio.run(measure, options.runs, [each / 1000 for each in options.rtt])
    return 0


if __name__ == "__main__":
    if reason := next(filter(None, map(unmet, ("network_namespaces", "nft", "tun"))), None):
        print(f"punch_times: skipped: {reason}")
        sys.exit(0)
    run_enclosed("benchmarks.punch_times", main)
