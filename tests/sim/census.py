"""Thousands of worlds, for numbers that a test run has no time for: ``python -m tests.sim.census WHAT COUNT [SEED]``.

    punchable        worlds in which theory promises a path without a relay      100 %
    lossy            the same with 5 % loss                                      99.9 %
    spray            port-restricted with symmetric random, either initiating    95 %
    population       pairs of peers as they are found in the wild, with offices and clouds        88 %

Prints every world that failed with its seed, what won how often, and the one-sided 95 % bound of Clopper and Pearson.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from math import exp, lgamma, log
from random import Random

from tests.sim.punching import draw_punchable
from tests.sim.walks import Meeting, meet, rows
from warpgate_trio import Node, PeerAddress, Pipe
from warpgate_trio.sim import presets
from warpgate_trio.testing.populations import POPULATIONS
from warpgate_trio.testing.worlds import PeerPair

KINDS = ("punchable", "lossy", "spray", "population")


async def _spray(node: Node, address: PeerAddress) -> Pipe:
    return await node.connect(address, plugin="random_probe", timeout=5.0)


def one(what: str, seed: int) -> tuple[str, Meeting]:
    """One world and what came of it; the same for the same seed."""
    random = Random(f"{what} {seed}")
    if what in ("punchable", "lossy"):
        pair, ntp = draw_punchable(random, loss=0.05 if what == "lossy" else 0.0)
        return f"{pair}, {'NTP' if ntp else 'no NTP'}", meet(pair, ntp=ntp, lossy=what == "lossy")
    if what == "spray":
        nats = [presets.LINUX, presets.LINUX_SYMMETRIC]
        random.shuffle(nats)
        pair = PeerPair.between(*nats, rtt=random.choice((0.02, 0.05, 0.15)), seed=seed)
        return str(pair), meet(pair, _spray)
    people = POPULATIONS["everybody"]
    a, b = (people.sample(random) for _ in range(2))
    pair = PeerPair.between(a.nats, b.nats, rtt=random.choice((0.02, 0.05, 0.15)), seed=seed)
    return str(pair), meet(pair)


def lower_bound(hits: int, tries: int, confidence: float = 0.95) -> float:
    """The share that the true one is above, with this confidence (one-sided Clopper and Pearson)."""
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
        running = [
            subprocess.Popen([*command, str(part), str(cores)], stdout=subprocess.PIPE, text=True)
            for part in range(cores)
        ]
        winners: Counter[str] = Counter()
        for process in running:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("# "):
                    winners[line[2:].strip()] += 1
                else:
                    print(line, end="", flush=True)
        hits = sum(number for name, number in winners.items() if name != "None")
        tries = winners.total()
        print(
            f"{what}: {hits} of {tries} = {hits / tries:.4%}, more than {lower_bound(hits, tries):.4%}; {dict(winners)}"
        )
        return
    part, cores = int(sys.argv[4]), int(sys.argv[5])
    for seed in range(start + part, start + count, cores):
        try:
            world, result = one(what, seed)
        except BaseException as error:
            print(f"seed {seed}: {type(error).__name__}: {error}\n# None", flush=True)
            if isinstance(error, KeyboardInterrupt):
                raise
            continue
        if not result.connected:
            print(f"seed {seed}: {world}\n{rows(result)}", flush=True)
        print(f"# {result.plugin}", flush=True)


if __name__ == "__main__":
    main()
