"""Pairs of NATs against theory: ``python -m tests.kernel.matrix`` (root).

    --program bare        small programs that punch (the default), over UDP and over TCP
    --program package     `warpgate-trio` itself, in --phases
    --kinds K,K,…         of tests.kernel.nats, NAME or NAME/drop, /rst, /reject, /local
    --transport udp|tcp|any
    --skew S              seconds by which B begins later, of --program bare
    --phases P,P,…        what --program package may take
    --jobs N              pairs at a time; most of the time is waiting
    --repeat N            ask each cell so often; the answer is the phase if it was always the same
    --again N             ask what is not as theory says so often again, alone
    --cell CELL           one cell, written as in the output; may be given several times
    --logs FOLDER         what the programs printed, the wire carried, and the NATs knew (--program package)
    --second-host, --rtt S, --settings TOML, --serve ARG, --listen ARG, --connect ARG
                          more for --program package: see tests.kernel.run.pair
    --json                one JSON object, cell to answer, instead of the table

The exit code is 1 when something is not as theory says. It runs in a process namespace of its own, so that nothing of
it is left when it ends, however it ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.lab import RTT
from tests.kernel.nats import NATS, Transport, nat
from tests.kernel.programs import punches
from tests.kernel.run import Outcome, pair
from tests.kernel.theory import PHASES, Phase, can_punch, expected_phase
from tests.kernel.wire import Wire

JOBS: Final = {"bare": 12, "package": 4}
"""Pairs at a time, by program, on two cores: the small programs wait most of the time, the package starts processes."""
KINDS: Final = [name for name in NATS if name not in ("forwarded", "full-cone-hairpin")]
"""All kinds but two that make no difference: no node knows the forwarded port, and no two homes share an address."""


@final
@dataclass(frozen=True, slots=True)
class Cell:
    """One pair of homes, and the program that runs between them.

    Attributes:
      transport: the only one between the peers; None if there are both (for the package).
      a, b: the kinds of their NATs.
      phases: the phases that the package may take.
      skew: seconds by which B begins later, with the small programs.
    """

    program: Literal["bare", "package"]
    transport: Transport | None
    a: str
    b: str
    phases: tuple[Phase, ...] = ()
    skew: float = 0.0

    def __str__(self) -> str:
        last = ",".join(self.phases) or (f"skew={self.skew:g}" if self.skew else "")
        return " ".join([self.program, self.transport or "any", self.a, self.b, *([last] if last else [])])

    @staticmethod
    def parse(text: str) -> Cell:
        """The cell of which `str` made the text."""
        program, transport, a, b, *rest = text.split()
        if program not in ("bare", "package"):
            raise ValueError(f"there is no program {program!r}")
        last = rest[0] if rest else ""
        if program == "bare":
            return Cell("bare", _transport(transport), a, b, skew=float(last.removeprefix("skew=") or 0))
        return Cell("package", _transport(transport), a, b, _phases(last))

    @property
    def expected(self) -> str | None:
        """The phase in which the pair connects according to theory; None if it does not."""
        a, b = nat(self.a), nat(self.b)
        if self.program == "package":
            return expected_phase(a, b, self.transport, phases=self.phases)
        assert self.transport is not None
        return "punch" if can_punch(a, b, self.transport) else None


def _phases(words: str) -> tuple[Phase, ...]:
    return tuple(phase for phase in PHASES if phase in words.split(","))


def _transport(word: str) -> Transport | None:
    return "udp" if word == "udp" else "tcp" if word == "tcp" else None


def cells(
    program: Literal["bare", "package"],
    kinds: Sequence[str],
    transports: Iterable[Transport | None],
    *,
    phases: tuple[Phase, ...] = (),
    skew: float = 0.0,
) -> list[Cell]:
    """Every pair of some kinds; one order is enough for the small programs, which are the same on both sides."""
    return [
        Cell(program, transport, a, b, phases, skew)
        for transport in transports
        for n, a in enumerate(kinds)
        for b in (kinds if program == "package" else kinds[n:])
    ]


async def answer(cell: Cell, wire: Wire, logs: Path | None = None) -> dict[str, Any]:
    """Run one cell; returns the phase (None if the pair did not connect) and details that explain it."""
    started = time.monotonic()
    if cell.program == "bare":
        assert cell.transport is not None
        found = "punch" if await punches(wire, cell.a, cell.b, cell.transport, skew=cell.skew) else None
        return {"phase": found, "text": found or "no", "seconds": round(time.monotonic() - started, 2)}
    if logs is not None:
        logs = logs / str(cell).replace("/", "-").replace(" ", "_")
        logs.mkdir(parents=True, exist_ok=True)
    outcome: Outcome = await pair(
        cell.a, cell.b, phases=cell.phases, transport=cell.transport, wire=wire, logs=logs, **PACKAGE
    )
    return {
        "phase": outcome.phase,
        "text": str(outcome),
        "seconds": round(time.monotonic() - started, 2),
        "first_byte_ms": outcome.event.get("first_byte_ms"),
        "event": outcome.event,
        "stderr": outcome.stderr,
    }


async def answers(cell: Cell, wire: Wire, logs: Path | None, repeat: int) -> dict[str, Any]:
    """Run one cell `repeat` times, one after the other."""
    try:
        found = [await answer(cell, wire, logs and logs / str(n)) for n in range(repeat)]
    except Exception as error:  # a broken cell must not end the others
        return {"phase": f"error: {error!r}", "text": f"error: {error!r}", "seconds": 0.0}
    if repeat == 1:
        return found[0]
    phases = Counter(each["phase"] for each in found)
    text = ", ".join(f"{phase or 'no'} {count}/{repeat}" for phase, count in phases.most_common())
    if times := [each["first_byte_ms"] for each in found if each.get("first_byte_ms")]:
        text += f", first byte {statistics.median(times):.0f} ms"
    odd = next((each for each in found if each["phase"] != cell.expected), found[0])
    return {**odd, "text": text, "seconds": sum(each["seconds"] for each in found)}


PACKAGE: dict[str, Any] = {}
"""More arguments of `tests.kernel.run.pair`, for all cells."""


async def ask(
    wanted: Sequence[Cell],
    *,
    jobs: int | None = None,
    logs: Path | None = None,
    repeat: int = 1,
    again: int = 0,
    show: bool = False,
) -> dict[Cell, dict[str, Any]]:
    """Run cells, `jobs` at a time; those that contradict theory run up to `again` times more, alone.

    A busy machine delays packets and processes by more than the few round trips of a punch.
    """
    found: dict[Cell, dict[str, Any]] = {}
    slots = {program: trio.CapacityLimiter(jobs or usual) for program, usual in JOBS.items()}

    async def one(cell: Cell) -> None:
        async with slots[cell.program]:
            found[cell] = await answers(cell, wire, logs, repeat)
        if show:
            print(line(cell, found[cell]), flush=True)

    with Wire() as wire:
        async with trio.open_nursery() as nursery:
            for cell in wanted:
                nursery.start_soon(one, cell)
        for _ in range(again):
            for cell in [cell for cell in wanted if found[cell]["phase"] != cell.expected]:
                await one(cell)
    return {cell: found[cell] for cell in wanted}


def line(cell: Cell, found: dict[str, Any]) -> str:
    verdict = "ok" if found["phase"] == cell.expected else f"NOT AS EXPECTED ({cell.expected or 'no'})"
    return f"{cell!s:<60} {found['seconds']:5.1f} s  {found['text']:<40} {verdict}"


def table(found: dict[Cell, dict[str, Any]]) -> str:
    """A table for each program, transport and choice of phases: A in rows, B in columns."""
    squares: dict[tuple[Any, ...], dict[tuple[str, str], str]] = {}
    for cell, what in found.items():
        mark = (what["phase"] or "-")[:6] + ("" if what["phase"] == cell.expected else " !")
        squares.setdefault((cell.program, cell.transport or "any", *cell.phases), {})[cell.a, cell.b] = mark
    lines = []
    for title, marks in squares.items():
        rows, columns = (list(dict.fromkeys(pair[n] for pair in marks)) for n in (0, 1))
        width = max(map(len, rows))
        lines += ["", " ".join(title)]
        lines += [f"{'':{width}}  " + " ".join(f"{number:>8}" for number in range(1, len(columns) + 1))]
        for a in rows:
            number = str(columns.index(a) + 1) if a in columns else ""
            lines.append(f"{a:{width}}{number:>3} " + " ".join(f"{marks.get((a, b), ''):>8}" for b in columns))
        lines += [f"  {number} {b}" for number, b in enumerate(columns, 1) if b not in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", choices=("bare", "package"), default="bare")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--transport", choices=("udp", "tcp", "any"))
    parser.add_argument("--phases", default="direct")
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--cell", action="append", default=[])
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--again", type=int, default=0)
    parser.add_argument("--second-host", action="store_true")
    parser.add_argument("--rtt", type=float, default=RTT)
    parser.add_argument("--settings", default="")
    for program in ("serve", "listen", "connect"):
        parser.add_argument(f"--{program}", action="append", default=[], metavar="ARG")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    for name in ("second_host", "rtt", "settings", "serve", "listen", "connect"):
        PACKAGE[name] = getattr(options, name)
    if options.cell:
        wanted = [Cell.parse(text) for text in options.cell]
    else:
        bare = options.program == "bare"
        either: list[Transport | None] = ["udp", "tcp"] if bare else [None]
        transports = [_transport(options.transport)] if options.transport else either
        phases = () if bare else _phases(options.phases)
        wanted = cells(
            options.program, options.kinds.split(","), transports, phases=phases, skew=options.skew if bare else 0.0
        )
    found = trio.run(
        lambda: ask(
            wanted,
            jobs=options.jobs,
            logs=options.logs,
            repeat=options.repeat,
            again=options.again,
            show=not options.json,
        )
    )
    if options.json:
        print(json.dumps({str(cell): what for cell, what in found.items()}))
    else:
        print(table(found))
        wrong = [cell for cell, what in found.items() if what["phase"] != cell.expected]
        print(f"\n{len(found) - len(wrong)} of {len(found)} as theory says")
    return int(any(what["phase"] != cell.expected for cell, what in found.items()))


if __name__ == "__main__":
    run_enclosed("tests.kernel.matrix", main)
