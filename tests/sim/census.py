"""Thousands of worlds, for numbers that a test run has no time for: ``python -m tests.sim.census WHAT COUNT [SEED]``.

    punchable        worlds in which theory promises a path without a relay      100 %
    lossy            the same with 5 % loss                                      99.9 %
    spray            port-restricted with symmetric random, either initiating    95 %
    population       pairs of peers as they are found in the wild, with offices and clouds        88 %
    any              peers behind anything, with servers of every kind or none in common          100 %
    any-lossy        the same with 5 % loss                                                       100 %
    live             Pipes that began by a relay are on the best path after a minute of trouble   100 %

Prints every world that failed with its seed and the command that repeats it, how often each plugin won, and the
one-sided 95 % bound of Clopper and Pearson.  With `any`, only worlds count for which `tests.sim.oracles` knows a path,
direct or relayed; the results of the others are in brackets.  A relay in place of a direct path, too much time and a
wrong verdict are failures too.  `live` prints, for each class of path that is promised, how many Pipes are on a path of
that class or a better one.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, lgamma, log
from queue import SimpleQueue
from random import Random
from threading import Thread

from tests.sim.anywhere import Anywhere, draw, meet_anywhere
from tests.sim.live_worlds import LiveWorld, best_class, live
from tests.sim.live_worlds import draw as draw_live
from tests.sim.oracles import complaints, networks, promised
from tests.sim.punching import draw_punchable
from tests.sim.walks import meet, rows
from warpgate_trio import Node, PeerAddress, Pipe
from warpgate_trio.sim import presets
from warpgate_trio.testing.populations import POPULATIONS
from warpgate_trio.testing.worlds import PeerPair

KINDS = ("punchable", "lossy", "spray", "population", "any", "any-lossy", "live")
LOSS = 0.05


@dataclass(frozen=True)
class Census:
    """The result of one world.

    Attributes:
      world: its readable form.
      details: of a failure, in readable form.
      won: the winning plugin; in brackets if nothing was promised; None for a failure.
      why: what is wrong, in sentences.
      kinds: the kinds to which the world belongs, each counted by itself.
    """

    world: str
    details: str
    won: str | None
    why: Sequence[str] = ()
    kinds: Sequence[str] = ()


async def _spray(node: Node, address: PeerAddress) -> Pipe:
    return await node.connect(address, plugin="random_probe", timeout=5.0)


def one(what: str, seed: int) -> Census:
    """Run one world; the result is the same for the same seed."""
    random = Random(f"{what} {seed}")
    if what in ("punchable", "lossy"):
        pair, ntp = draw_punchable(random, loss=LOSS if what == "lossy" else 0.0)
        result = meet(pair, ntp=ntp, lossy=what == "lossy")
        return Census(f"{pair}, {'NTP' if ntp else 'no NTP'}", rows(result), result.plugin)
    if what in ("any", "any-lossy"):
        return _anywhere(draw(random, loss=LOSS if what == "any-lossy" else 0.0))
    if what == "live":
        return _live(draw_live(random))
    if what == "spray":
        nats = [presets.LINUX, presets.LINUX_SYMMETRIC]
        random.shuffle(nats)
        pair = PeerPair.between(*nats, rtt=random.choice((0.02, 0.05, 0.15)), seed=seed)
        result = meet(pair, _spray)
        return Census(str(pair), rows(result), result.plugin)
    people = POPULATIONS["everybody"]
    a, b = (people.sample(random) for _ in range(2))
    pair = PeerPair.between(a.nats, b.nats, rtt=random.choice((0.02, 0.05, 0.15)), seed=seed)
    result = meet(pair)
    return Census(str(pair), rows(result), result.plugin)


def _anywhere(world: Anywhere) -> Census:
    result = meet_anywhere(world)
    if why := complaints(world, result):
        return Census(str(world), rows(result), None, why, networks(world))
    if promised(world):
        return Census(str(world), rows(result), result.plugin, kinds=networks(world))
    return Census(str(world), rows(result), f"({result.plugin or 'no way'})")


def _live(world: LiveWorld) -> Census:
    lived = live(world)
    return Census(
        str(world), lived.log, None if lived.why else lived.path, lived.why, [f"promised {best_class(world).name}"]
    )


def lower_bound(hits: int, tries: int, confidence: float = 0.95) -> float:
    """The lower bound of the true success rate, with this confidence (one-sided Clopper and Pearson)."""
    if hits == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        at_least = sum(
            exp(lgamma(tries + 1) - lgamma(k + 1) - lgamma(tries - k + 1) + k * log(p) + (tries - k) * log(1 - p))
            for k in range(hits, tries + 1)
        )
        low, high = (p, high) if at_least < 1 - confidence else (low, p)
    return low


def main() -> None:
    what, count = sys.argv[1], int(sys.argv[2])
    start = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if what not in KINDS:
        raise SystemExit(f"what to count: {', '.join(KINDS)}")
    if len(sys.argv) <= 4:  # one process for each core
        cores = len(os.sched_getaffinity(0))
        command = [sys.executable, "-m", "tests.sim.census", what, str(count), str(start)]
        winners: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for line in lines_of([[*command, str(part), str(cores)] for part in range(cores)]):
            if not line.startswith("# "):
                print(line, end="", flush=True)
                continue
            winner, *more = line[2:].strip().split("; ")
            winners[winner] += 1
            kinds.update(more)
            kinds.update(f"{kind}: failed" for kind in more if winner == "None")
        hits, tries = _count(winners)
        share = f"{hits / tries:.4%}, more than {lower_bound(hits, tries):.4%}" if tries else "none"
        print(f"{what}: {hits} of {tries} = {share}; {dict(winners.most_common())}")
        for kind in sorted(kind for kind in kinds if not kind.endswith(": failed")):
            print(f"    {kind}: {kinds[kind] - kinds[f'{kind}: failed']} of {kinds[kind]}")
        return
    logging.getLogger("warpgate_trio").setLevel(logging.ERROR)  # worlds lack servers on purpose
    part, cores = int(sys.argv[4]), int(sys.argv[5])
    for seed in range(start + part, start + count, cores):
        again = f"again: python -m tests.sim.census {what} 1 {seed}"
        try:
            found = one(what, seed)
        except BaseException as error:
            print(f"seed {seed}: {type(error).__name__}: {error}\n{again}\n# None", flush=True)
            if isinstance(error, KeyboardInterrupt):
                raise
            continue
        if found.won is None:
            print(*(f"seed {seed}: {found.world}", *found.why, found.details, again), sep="\n", flush=True)
        print("# " + "; ".join([str(found.won), *found.kinds]), flush=True)


def lines_of(commands: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of several programs as they come; all are read at once, because a full pipe would stop a program."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        process.wait()
        lines.put(None)

    for command in commands:
        Thread(target=read, args=[subprocess.Popen(command, stdout=subprocess.PIPE, text=True)], daemon=True).start()
    for _ in commands:
        yield from iter(lines.get, None)


def _count(winners: Counter[str]) -> tuple[int, int]:
    """The successes, and the worlds that count; the winners of the others are in brackets."""
    tries = sum(number for name, number in winners.items() if not name.startswith("("))
    return tries - winners["None"], tries


if __name__ == "__main__":
    main()
