"""The same NATs from Linux itself: the answers of the kernel lab to `cells.CELLS`, as JSON.

Run as ``python -m tests.sim.kernel_lab`` by root.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, final

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import Host, Lab, open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.wire import Wire
from tests.sim.cells import CELLS, Cell
from tests.sim.programs import LATENCY

KINDS: Final = {
    "full-cone": "full-cone",
    "restricted": "address-restricted",
    "linux": "port-restricted",
    "linux-local": "port-restricted/local",
    "openwrt": "port-restricted/reject",
    "linux-symmetric": "symmetric",
}
"""The simulator's presets, by the names of the kernel lab."""
JOBS: Final = 6
"""Cells at a time."""
TRIES: Final = 3
"""Of a cell that is about who was first, and when: a busy machine delays now one and now the other."""


@final
class World:
    """A lab as `cells.World`."""

    def __init__(self, lab: Lab) -> None:
        home, away = lab.homes
        assert home.second is not None
        self.a: Host = home.host
        self.a2: Host = home.second
        self.b: Host = away.host
        self.one: Host = lab.server
        self.two: Host = lab.bystander
        self.outside_a, self.outside_b = home.outside, away.outside


async def ask() -> dict[str, Any]:
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    answers: dict[str, Any] = {}

    races: dict[str, list[tuple[str, float]]] = {}

    async def one(cell: Cell, slots: trio.CapacityLimiter) -> None:
        async with slots, open_lab(wire, KINDS[cell.nat_a], KINDS[cell.nat_b], second=True, rtt=4 * LATENCY) as lab:
            with trio.fail_after(20):
                answer = await cell.run(World(lab), 40_000, 0.2)
        if cell.ask == "attempt":
            races.setdefault(str(cell), []).append((answer[0], answer[1]))
        answers[str(cell)] = answer

    with Wire() as wire:
        for are_races, jobs in ((False, JOBS), (True, TRIES)):
            async with trio.open_nursery() as nursery:
                slots = trio.CapacityLimiter(jobs)
                for cell in [cell for cell in CELLS if (cell.ask == "attempt") == are_races]:
                    for _ in range(TRIES if are_races else 1):
                        nursery.start_soon(one, cell, slots)
    return answers | {name: usual(tries) for name, tries in races.items()}


def usual(tries: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """What happened most often, and when at the earliest."""
    ((word, _),) = Counter(word for word, _ in tries).most_common(1)
    return word, min(when for each, when in tries if each == word)


def main(_arguments: Sequence[str]) -> int:
    os.setpriority(os.PRIO_PROCESS, 0, -10)  # the other tests can wait
    print(json.dumps(trio.run(ask)))
    return 0


if __name__ == "__main__":
    run_enclosed("tests.sim.kernel_lab", main)
