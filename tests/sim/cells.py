"""The questions that are put to the kernel and to the simulator alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

from tests.sim.programs import Place, classify, one_attempt, overload, punch_tcp, punch_udp
from warpgate_trio.sim import presets

PATIENCE = 1.2  # seconds of trying to punch; real ones, on the kernel
KINDS = ("full-cone", "restricted", "linux", "linux-local", "openwrt", "linux-symmetric")
LATE = 0.12  # seconds of skew that exceed the one-way delay of 0.04


class World(Protocol):
    """Two NATs with two hosts behind the first and one behind the second, and two servers outside."""

    outside_a: str
    outside_b: str

    @property
    def a(self) -> Place: ...

    @property
    def a2(self) -> Place: ...

    @property
    def b(self) -> Place: ...

    @property
    def one(self) -> Place: ...

    @property
    def two(self) -> Place: ...


@final
@dataclass(frozen=True)
class Cell:
    """One question: what the program `ask` sees between NATs of these kinds."""

    ask: str
    nat_a: str
    nat_b: str = "linux"
    skew: float = 0.0
    openers: int | None = None

    def __str__(self) -> str:
        extra = f" openers={self.openers}" if self.openers else ""
        return f"{self.ask} {self.nat_a} {self.nat_b} skew={self.skew}{extra}"

    async def run(self, world: World, port: int, wait: float) -> Any:
        """The answer, in terms of JSON."""
        if self.ask == "classify":
            mapping, filtering = await classify(world.a, world.one, world.two, port, wait)
            return [mapping.name, filtering.name]
        if self.ask == "overload":
            return await overload([world.a, world.a2], [world.one, world.two], port)
        if self.ask == "udp":
            return await punch_udp(
                world.one, world.a, world.b, port=port, skew=self.skew, openers=self.openers, patience=PATIENCE
            )
        if self.ask == "tcp":
            return await punch_tcp(world.one, world.a, world.b, port=port, skew=self.skew, patience=PATIENCE)
        word, when = await one_attempt(
            world.a, world.outside_a, world.b, world.outside_b, port=port, skew=self.skew, limit=0.9
        )
        return [word, when]


def _all() -> list[Cell]:
    cells = [Cell("classify", kind) for kind in KINDS]
    cells.append(Cell("overload", "linux"))
    crossing = ("linux", "linux-local", "openwrt")
    for a, b in [(x, x) for x in crossing] + [("linux", "linux-local"), ("linux-local", "linux")]:
        cells += [Cell("udp", a, b, skew) for skew in (0.0, LATE)]
        cells += [Cell("attempt", a, b, skew) for skew in (0.0, LATE)]
    cells.append(Cell("udp", "linux-local", "linux-local", LATE, openers=3))
    matrix = ("full-cone", "restricted", "linux", "linux-symmetric")
    for ask in ("udp", "tcp"):
        cells += [Cell(ask, a, b) for n, a in enumerate(matrix) for b in matrix[n:]]
    return cells


CELLS = list(dict.fromkeys(_all()))


def config(kind: str) -> Any:
    """The preset that models a kind."""
    return presets.NATS[kind]
