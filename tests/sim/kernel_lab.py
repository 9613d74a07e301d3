"""The answers of the kernel lab, with the same NATs made by Linux, to `cells.CELLS`, as JSON.

Run as ``python -m tests.sim.kernel_lab`` by root. ``--cell=…`` answers only the named cells. With two arguments,
``COUNT SEED``, it answers that many scripts of random steps instead (`cells.drawn`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, final

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import Host, Lab, open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.nats import NATS, Nat
from tests.kernel.wire import Wire
from tests.sim.cells import BLOCK, CELLS, Cell, drawn
from tests.sim.programs import LATENCY
from tests.sim.scripts import was_late

_BLOCK: Final = replace(NATS["block-symmetric"], ports=BLOCK)
KINDS: Final[dict[str, str | Nat]] = {
    "full-cone": "full-cone",
    "restricted": "address-restricted",
    "linux": "port-restricted",
    "linux-local": "port-restricted/local",
    "openwrt": "port-restricted/reject",
    "linux-symmetric": "symmetric",
    "icmp": "port-restricted/prohibited",
    "adm": "address-dependent",
    "block": _BLOCK,
    "block-local": replace(_BLOCK, unsolicited="local"),
}
"""The kernel lab's kind for each preset of the simulator and each kind of `cells`."""
TIMED: Final = ("attempt", "retry at once", "retry late", "survives", "tcp script")
JOBS: Final = 6
"""Cells at a time."""
TRIES: Final = 3
"""Tries of a cell that depends on which side is first: a busy machine delays now one side and now the other."""
MOST_TRIES: Final = 12
"""The most tries of a cell whose answer is a time, until two agree: a busy machine is hardly late twice by as much."""
AGREE: Final = 0.005
"""Seconds by which two agreeing times may differ."""


@final
class World:
    """A lab with the interface of `programs.World`."""

    def __init__(self, lab: Lab) -> None:
        home, away = lab.homes
        assert home.second is not None
        self.a: Host = home.host
        self.a2: Host = home.second
        self.b: Host = away.host
        self.one: Host = lab.server
        self.two: Host = lab.bystander
        self.outside_a, self.outside_b = home.outside, away.outside


async def ask(cells: Sequence[Cell]) -> dict[str, Any]:
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    answers: dict[str, list[Any]] = {}

    async def one(cell: Cell, slots: trio.CapacityLimiter) -> None:
        await ask_once(cell, slots)
        tries = answers[str(cell)]
        while cell.ask == "attempt" and not settled(tries):
            await ask_once(cell, slots)
        for _ in range(MOST_TRIES):
            if cell.ask == "udp script" and was_late(tries[-1]):
                tries.pop()
                await ask_once(cell, slots)

    async def ask_once(cell: Cell, slots: trio.CapacityLimiter) -> None:
        async with slots, open_lab(wire, KINDS[cell.nat_a], KINDS[cell.nat_b], second=True, rtt=4 * LATENCY) as lab:
            with trio.fail_after(20):
                answers.setdefault(str(cell), []).append(await cell.run(World(lab), 40_000, 0.2))

    with Wire() as wire:
        for are_timed, jobs in ((False, JOBS), (True, TRIES)):
            async with trio.open_nursery() as nursery:
                slots = trio.CapacityLimiter(jobs)
                for cell in [cell for cell in cells if (cell.ask in TIMED) == are_timed]:
                    for _ in range(TRIES if are_timed else 1):
                        nursery.start_soon(one, cell, slots)
    races = {str(cell) for cell in cells if cell.ask == "attempt"}
    return {name: usual(tries) if name in races else commonest(tries) for name, tries in answers.items()}


def settled(tries: Sequence[tuple[str, float]]) -> bool:
    """Whether no more tries are needed: the two earliest ones of the usual answer agree."""
    word, when = usual(tries)
    near = [each for each, other in tries if each == word and other - when <= AGREE]
    return len(tries) >= MOST_TRIES or word == "pending" or len(near) > 1


def commonest(tries: Sequence[Any]) -> Any:
    """The most frequent answer."""
    ((answer, _),) = Counter(map(json.dumps, tries)).most_common(1)
    return json.loads(answer)


def usual(tries: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The most frequent answer, and its earliest time."""
    ((word, _),) = Counter(word for word, _ in tries).most_common(1)
    return word, min(when for each, when in tries if each == word)


def main(arguments: Sequence[str]) -> int:
    os.setpriority(os.PRIO_PROCESS, 0, -10)  # the other tests can wait
    named = {word.removeprefix("--cell=") for word in arguments if word.startswith("--cell=")}
    numbers = [int(word) for word in arguments if not word.startswith("--cell=")]
    cells = drawn(*numbers) if numbers else [cell for cell in CELLS if not named or str(cell) in named]
    print(json.dumps(trio.run(ask, cells)))
    return 0


if __name__ == "__main__":
    run_enclosed("tests.sim.kernel_lab", main)
