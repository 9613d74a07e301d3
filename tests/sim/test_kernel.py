"""The simulator agrees with a Linux kernel: the same programs between the same NATs, cell by cell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.enclosed import enclosed
from tests.sim.cells import CELLS, Cell, config, drawn
from tests.sim.programs import LINK
from tests.sim.scripts import was_late
from tests.sim.worlds import run
from warpgate_trio.sim import Host, Network

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 0.03  # seconds by which a busy machine may be late
DRAWS = 16


class Simulated:
    """The simulator's counterpart of the lab's world."""

    def __init__(self, net: Network, cell: Cell) -> None:
        home = net.lan("nata", nat=config(cell.nat_a), uplink=LINK)
        away = net.lan("natb", nat=config(cell.nat_b), uplink=LINK)
        self.a, self.a2, self.b = home.host("a"), home.host("a2"), away.host("b")
        self.one: Host = net.host("one", link=LINK)
        self.two: Host = net.host("two", link=LINK)
        assert home.router is not None
        assert away.router is not None
        self.outside_a, self.outside_b = home.router.ip, away.router.ip


def simulated(cell: Cell, seed: int = 0) -> Any:
    async def world(net: Network) -> Any:
        return await cell.run(Simulated(net, cell), 40000, 1.0)

    return run(world, seed=seed)


def ask_kernel(*words: str) -> dict[str, Any]:
    """The kernel's answers to drawn cells."""
    done = subprocess.run(enclosed("tests.sim.kernel_lab", *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def difference(cell: Cell, kernel: Any) -> tuple[Any, Any] | None:
    """The differing parts of the simulator's and the kernel's answers; None if they agree.

    For some TCP scripts the kernel's answer depends on its random initial sequence numbers: they decide whether the RST
    of a closed port, with number 0, passes a connection tracker that has seen SYNs cross.  The same holds for the
    simulator, and one of its draws must agree.
    """
    simulator = simulated(cell)
    if cell.ask == "attempt":
        same = simulator[0] == kernel[0] and (
            kernel[0] == "pending" or kernel[1] == pytest.approx(simulator[1], abs=TOLERANCE)
        )
        return None if same else (simulator, kernel)
    if simulator == kernel or (cell.ask == "tcp script" and any(simulated(cell, n) == kernel for n in range(1, DRAWS))):
        return None
    return simulator, kernel


PROGRAM = "tests.sim.kernel_lab"
QUESTIONS = CELLS


def words(questions: list[str]) -> list[str]:
    return [f"--cell={question}" for question in questions]


@pytest.mark.slow("real time, if the answers are not there yet")
@pytest.mark.needs("network_namespaces", "nft", "tun")
def test_kernel_and_simulator_agree(question: Cell, answer: Any) -> None:
    assert difference(question, answer) is None


def test_a_script_is_asked_again_where_the_machine_was_late() -> None:
    in_time = ["0: b:1 to one:0", "one:0 heard 0 from B:1", "1: one:1 to A:0", "2: a:0 to one:1"]
    assert not was_late(in_time)
    assert was_late([in_time[0], in_time[2], in_time[1]])


def main() -> None:
    """``python -m tests.sim.test_kernel COUNT SEED`` (root) runs more scripts; meant for changes of the simulator."""
    count, seed = sys.argv[1:]
    answers = ask_kernel(count, seed)
    differences = 0
    for cell in drawn(int(count), int(seed)):
        found = difference(cell, answers[str(cell)])
        if found is not None:
            differences += 1
            print(cell, *(f"  simulator {ours:<50} kernel {its}" for ours, its in zip(*found, strict=False)), sep="\n")
    print(f"{count} scripts, {differences} differences")


if __name__ == "__main__":
    main()
