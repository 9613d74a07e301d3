"""How long the first call of a new process takes to the first echoed byte, and one of a warm node (root, Linux).

All of it is processes in the kernel lab (`tests/kernel/`): ``warpgate-trio serve``, with a second address; ``listen
--echo``, ready once it has printed its address; ``connect --echo-test 65536``.  Any two of them, servers too, are one
round trip apart.  Everything is new in each run, NATs included, but what Python has compiled.

A *cold* time runs from the call of a node that was opened in the same moment, when no packet has left it, to the first
echoed byte of a first write of 64 KiB: ``first_byte_ms`` of ``connect --json``.  What goes before it (Python, imports,
the configuration) is told apart, as *start*: from the start of the process to the first packet that leaves its home.
A *warm* time runs from the call to the same byte, when both nodes have all that they keep ready: signals, clock, NAT
profile, a mapped port of each kind.  They have called each other before, but for a spray.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import trio

from benchmarks._lab_nodes import RemoteNode, node_on
from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import RTT, SECOND, SERVER, Lab, open_lab
from tests.kernel.run import configuration, program_on
from tests.kernel.wire import Wire
from tests.requirements import unmet

RUNS = 7
FIRST_WRITE = 64 * 1024
"""Bytes of the first write: as many as programs write at once, and more than TCP's initial window."""


@final
@dataclass(frozen=True, slots=True)
class Course:
    """One measurement.

    Attributes:
      caller, listener: the kinds of their NATs.
      plugin: the only plugin that is tried; None: the whole walk.
      expected: the plugin that should connect.
      relay_first: whether the walk begins with a relay.
    """

    name: str
    caller: str
    listener: str
    plugin: str | None
    expected: str
    relay_first: bool = False


COURSES = (
    Course("direct", "port-restricted", "open", None, "direct_connect"),
    Course("reverse", "open", "port-restricted", None, "reverse_connect"),
    Course("two cones", "port-restricted", "port-restricted", None, "tcp_punch"),
    Course("tcp_punch alone", "port-restricted", "port-restricted", "tcp_punch", "tcp_punch"),
    Course("spray", "port-restricted", "symmetric", None, "random_probe"),
    Course("relay first", "symmetric", "symmetric", None, "ws_relay", relay_first=True),
    Course("the same, cones", "port-restricted", "port-restricted", None, "ws_relay", relay_first=True),
)


@final
@dataclass(slots=True)
class Times:
    """Times in seconds; each list has one for every run that went as expected."""

    start: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)


@asynccontextmanager
async def served_lab(wire: Wire, course: Course, rtt: float) -> AsyncGenerator[tuple[Lab, Path]]:
    """A lab with a server, and a folder with the configuration of the nodes."""
    with tempfile.TemporaryDirectory(prefix="warpgate-lab-") as name:
        folder = Path(name)
        async with open_lab(wire, course.caller, course.listener, rtt=rtt) as lab:
            words = ("serve", "--host", SERVER, "--second-host", SECOND, "--no-turn", "--json")
            async with program_on(lab.server, *words, home=folder, logs=None) as server:
                ready = await server.event()
                token = f"[servers]\nrelay_token = {json.dumps(ready['relay_token'])}\n"
                text = configuration(ready["servers"]).replace("[servers]\n", token)
                (folder / "config.toml").write_text(text, encoding="utf-8")
                yield lab, folder


async def cold(wire: Wire, course: Course, rtt: float, times: Times) -> None:
    async with served_lab(wire, course, rtt) as (lab, folder):
        caller, listener = lab.homes
        settings = ("--config", str(folder / "config.toml"), "--json")
        words = ("listen", *settings, "--echo", "--allow-any")
        async with program_on(listener.host, *words, home=folder, logs=None) as listening:
            address = (await listening.event())["address"]
            first_packet = until_first_packet(lab, caller.outside)
            began = time.monotonic()
            how = ["--relay-first" if course.relay_first else "--no-relay-first"]
            how += [] if course.plugin is None else ["--plugin", course.plugin]
            words = ("connect", address, *settings, "--echo-test", str(FIRST_WRITE), *how)
            async with program_on(caller.host, *words, home=folder, logs=None) as calling:
                event = await calling.event()
                await calling.code()
            if event.get("echo_ok") and event["plugin"] == course.expected:
                times.start.append(first_packet[0] - began)
                times.cold.append(event["first_byte_ms"] / 1000)
            else:
                complain(course, "cold", str(event.get("error") or f"connected by {event['plugin']}"))


def until_first_packet(lab: Lab, outside: str) -> list[float]:
    """A list to which the thread of the wire adds the times of packets that leave a home."""
    source = socket.inet_aton(outside)
    times: list[float] = []

    def see(packet: bytes) -> bool:
        if packet[12:16] == source:
            times.append(time.monotonic())
        return False

    lab.internet.drop = see
    return times


async def warm(wire: Wire, course: Course, rtt: float, times: Times, runs: int) -> None:
    """Measure the same two nodes several times.  For a spray they are new each time, since it uses up the unsolicited
    packets that an address may get (`warpgate_trio.punch.allowance`).
    """
    sprays = course.expected == "random_probe"
    async with AsyncExitStack() as stack:
        lab, folder = await stack.enter_async_context(served_lab(wire, course, rtt))
        nodes = [await stack.enter_async_context(node_on(home.host, folder / "config.toml")) for home in lab.homes]
        if not sprays:
            await call(course, *nodes)
        for _ in range(runs):
            found = await call(course, *nodes)
            if isinstance(found, list) and found[1] == course.expected:
                times.warm.append(found[0])
            else:
                complain(course, "warm", str(found))
            if sprays:
                for node in nodes:
                    await node.ask("renew")


async def call(course: Course, caller: RemoteNode, listener: RemoteNode) -> object:
    address = await listener.ask("warm")
    await caller.ask("warm")
    how = course.plugin or ("relay_first" if course.relay_first else "walk")
    return json.loads(await caller.ask(f"call {how} {FIRST_WRITE} {address}"))


def complain(course: Course, kind: str, found: str) -> None:
    print(f"{course.name}, {kind}: {found}", file=sys.stderr, flush=True)


async def measure(courses: Sequence[Course], runs: int, rtt: float) -> None:
    print(
        f"RTT {1000 * rtt:.0f} ms between all, servers too; a first write of {FIRST_WRITE // 1024} KiB;\n"
        f"from the call to the first echoed byte, least and median of {runs} runs; start: the process before it"
    )
    print(f"{'':16} {'start':>8} {'cold, ms':>14} {'cold, RTT':>14} {'warm, ms':>14} {'warm, RTT':>14}", flush=True)
    with Wire() as wire:
        for course in courses:
            times = Times()
            await cold(wire, course, rtt, Times())  # compiles the imported modules
            for _ in range(runs):
                await cold(wire, course, rtt, times)
            await warm(wire, course, rtt, times, runs)
            print(line(course, times, rtt, runs), flush=True)


def line(course: Course, times: Times, rtt: float, runs: int) -> str:
    start = f"{1000 * statistics.median(times.start):5.0f} ms" if times.start else "-"
    cells = [both(taken, unit) for taken in (times.cold, times.warm) for unit in (0.001, rtt)]
    missing = "".join(
        f"  {len(taken)} of {runs} {kind}"
        for kind, taken in (("cold", times.cold), ("warm", times.warm))
        if len(taken) != runs
    )
    return f"{course.name:16} {start:>8} {' '.join(f'{cell:>14}' for cell in cells)}{missing}"


def both(taken: Sequence[float], unit: float) -> str:
    """The minimum and the median."""
    if not taken:
        return "-"
    digits = 0 if unit == 0.001 else 1
    return f"{min(taken) / unit:.{digits}f} / {statistics.median(taken) / unit:.{digits}f}"


def keep_bytecode(folder: str) -> None:
    """Have modules compiled once, as installed ones are, instead of anew in each process."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rtt", type=float, default=1000 * RTT, metavar="MS")
    parser.add_argument("--only", choices=[course.name for course in COURSES], action="append", help="one pair")
    options = parser.parse_args(arguments)
    os.setpriority(os.PRIO_PROCESS, 0, -10)  # for all processes measured: at 50 ms, another program's time slice shows
    courses = [course for course in COURSES if options.only is None or course.name in options.only]
    with tempfile.TemporaryDirectory(prefix="warpgate-bytecode-") as folder:
        keep_bytecode(folder)
        trio.run(measure, courses, options.runs, options.rtt / 1000)
    return 0


if __name__ == "__main__":
    if reason := next(filter(None, map(unmet, ("network_namespaces", "nft", "tun"))), None):
        print(f"cold_start: skipped: {reason}")
        sys.exit(0)
    run_enclosed("benchmarks.cold_start", main)
