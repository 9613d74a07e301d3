"""The simulator against a Linux kernel: the same programs between the same NATs, cell by cell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.enclosed import enclosed
from tests.sim.cells import CELLS, Cell, config
from tests.sim.programs import LINK
from tests.sim.worlds import run
from warpgate_trio.sim import Host, Network

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 0.03  # seconds by which a busy machine may be late


class Simulated:
    """The lab's world in the simulator."""

    def __init__(self, net: Network, cell: Cell) -> None:
        home = net.lan("nata", nat=config(cell.nat_a), uplink=LINK)
        away = net.lan("natb", nat=config(cell.nat_b), uplink=LINK)
        self.a, self.a2, self.b = home.host("a"), home.host("a2"), away.host("b")
        self.one: Host = net.host("one", link=LINK)
        self.two: Host = net.host("two", link=LINK)
        assert home.router is not None
        assert away.router is not None
        self.outside_a, self.outside_b = home.router.ip, away.router.ip


def simulated(cell: Cell) -> Any:
    async def world(net: Network) -> Any:
        return await cell.run(Simulated(net, cell), 40000, 1.0)

    return run(world)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What the kernel says; asked once."""
    done = subprocess.run(enclosed("tests.sim.kernel_lab"), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.slow("real time: a second for most cells, all in the first test")
@pytest.mark.needs("network_namespaces", "nft", "tun")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_kernel_and_simulator_agree(cell: Cell, measured: dict[str, Any]) -> None:
    kernel, simulator = measured[str(cell)], simulated(cell)
    if cell.ask == "attempt":
        assert simulator[0] == kernel[0]
        if kernel[0] != "pending":
            assert simulator[1] == pytest.approx(kernel[1], abs=TOLERANCE)
    else:
        assert simulator == kernel
