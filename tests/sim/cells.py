"""Questions that are put to both the kernel and the simulator, whose answers must agree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, final

from tests.sim.programs import World, classify, one_attempt, overload, punch_tcp, punch_udp
from tests.sim.quirks import hairpinned, poisoned, retried, sprayed, survives
from tests.sim.scripts import tcp_script, udp_script
from warpgate_trio.sim import Behavior, Filtering, Hairpin, Hash, Mapping, NatConfig, Uniform, Unsolicited, presets

PATIENCE = 1.2  # seconds of trying to punch; real seconds on the kernel
KINDS = ("full-cone", "restricted", "linux", "linux-local", "openwrt", "linux-symmetric")
BLOCK = range(50000, 50100)
LATE = 0.12  # seconds of skew that exceed the one-way delay of 0.04
LOCKED = 2 * LATE  # seconds between two starts of a side, so that the other one starts in between


@final
@dataclass(frozen=True)
class Cell:
    """One question: the result of the program `ask` between NATs of these kinds."""

    ask: str
    nat_a: str
    nat_b: str = "linux"
    skew: float = 0.0
    openers: int | None = None
    seed: int = 0

    def __str__(self) -> str:
        extra = f" openers={self.openers}" if self.openers else ""
        extra += f" seed={self.seed}" if self.seed else ""
        return f"{self.ask} {self.nat_a} {self.nat_b} skew={self.skew}{extra}"

    async def run(self, world: World, port: int, wait: float) -> Any:
        """The answer, as a JSON value."""
        if self.ask == "classify":
            mapping, filtering = await classify(world.a, world.one, world.two, port, wait)
            return [mapping.name, filtering.name]
        if self.ask == "overload":
            return await overload([world.a, world.a2], [world.one, world.two], port)
        if self.ask == "poisoned":
            return await poisoned(world.a, world.outside_a, world.one, world.two, port, wait)
        if self.ask == "hairpin":
            return await hairpinned(world.a, world.outside_a, port)
        if self.ask == "udp script":
            # The lab's cone NATs use a map in which two hosts with the same port conflict; no preset behaves like that.
            neighbour = self.nat_a not in ("full-cone", "restricted")
            return await udp_script(world, self.seed, port, neighbour=neighbour)
        if self.ask == "tcp script":
            return await tcp_script(world, self.seed, port)
        ends = world.a, world.outside_a, world.b, world.outside_b
        if self.ask in ("retry at once", "retry late"):
            period = 0.0 if self.ask == "retry at once" else LOCKED
            return await retried(*ends, port=port, skew=self.skew, period=period, patience=PATIENCE)
        if self.ask == "survives":
            return await survives(*ends, port=port, wait=LATE)
        if self.ask == "spray":
            return await sprayed(*ends, port=port, ports=BLOCK, openers=self.openers)
        if self.ask == "tcp, no listener":
            return await punch_tcp(world.one, world.a, world.b, port=port, listeners=False, patience=PATIENCE)
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
    cells += [Cell("poisoned", kind) for kind in ("linux", "linux-local", "openwrt", "full-cone")]
    cells += [Cell("hairpin", "linux"), Cell("hairpin", "linux-symmetric")]
    cells += [Cell("retry at once", x, x, LATE) for x in ("linux-local", "openwrt")]
    cells += [Cell("retry late", x, x, LATE) for x in ("linux-local", "openwrt")]
    cells += [Cell("survives", "linux", kind) for kind in ("linux", "linux-local", "openwrt", "icmp")]
    cells += [Cell("attempt", "icmp", "icmp", skew) for skew in (0.0, LATE)]
    cells.append(Cell("tcp, no listener", "full-cone", "linux-symmetric"))
    for kind in ("block", "block-local"):
        cells += [Cell("spray", "linux", kind, openers=ttl) for ttl in (None, 3)]
    cells.append(Cell("classify", "adm"))
    return cells + drawn(14, seed=1)


def drawn(count: int, seed: int) -> list[Cell]:
    """Scripts of random steps between random NATs."""
    random = Random(seed)
    kinds = (*KINDS, "icmp")
    asks = ("udp script", "tcp script")
    return [
        Cell(asks[number % 2], random.choice(kinds), random.choice(kinds), seed=random.randrange(1, 10**6))
        for number in range(count)
    ]


_SYMMETRIC_BLOCK: Final = Behavior(
    mapping=Mapping.APDM,
    filtering=Filtering.APDF,
    allocation=Uniform(ports=(BLOCK.start, BLOCK.stop - 1)),
    hairpin=Hairpin.NONE,
)
_ADM: Final = Behavior(
    mapping=Mapping.ADM, filtering=Filtering.APDF, allocation=Hash(ports=(30000, 59999)), hairpin=Hairpin.NONE
)
KINDS_OF_THE_LAB: Final = {
    "block": NatConfig(udp=_SYMMETRIC_BLOCK),
    "block-local": NatConfig(udp=replace(_SYMMETRIC_BLOCK, unsolicited=Unsolicited.LOCAL)),
    "adm": NatConfig(udp=_ADM),
}
"""Kinds without a preset."""

CELLS = list(dict.fromkeys(_all()))


def config(kind: str) -> Any:
    """The preset or configuration that models a kind."""
    return KINDS_OF_THE_LAB.get(kind) or presets.NATS[kind]
