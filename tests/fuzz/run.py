"""`make fuzz`: feed every target, or some, for as long as one likes.

Usage: python -m tests.fuzz.run [--seconds SECONDS] [--target NAME]… [--seed SEED] [--input NUMBER] [--list]

A seed and a number determine an input.  A fault is printed with both, the bytes, and a command that repeats it.
Exits with 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from random import Random

from tests.fuzz.targets import TARGETS, Target

SLOW = 0.25
"""An input that takes more seconds than this is reported."""


class Fault(AssertionError):
    """A target raised something that it must not raise."""


def feed(target: Target, seed: int, number: int) -> None:
    """Make one input, and feed it.

    Raises:
      Fault: the target raised something not in `may_raise`, including what is no `Exception`, such as a Rust panic.
    """
    data = target.make(Random(f"{seed} {number}"))
    try:
        target.feed(data)
    except target.may_raise:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        again = f"python -m tests.fuzz.run --target {target.name} --seed {seed} --input {number}"
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        raise Fault(f"{target.name}: {kind}: {error}\n  {again}\n  {data.hex()}") from error


def run(target: Target, seed: int, seconds: float) -> int:
    """Feed one target for `seconds`; print each kind of fault once, and return the number of kinds."""
    found: dict[str, int] = {}
    slowest, number = 0.0, 0
    began = last = time.monotonic()
    while last - began < seconds:
        try:
            feed(target, seed, number)
        except Fault as fault:
            frame = traceback.extract_tb((fault.__cause__ or fault).__traceback__)[-1]
            kind = f"{type(fault.__cause__).__name__} at {frame.filename}:{frame.lineno}"
            found[kind] = found.get(kind, 0) + 1
            if found[kind] == 1:
                print(f"FAULT {kind}\n{fault}", flush=True)
        number += 1
        now = time.monotonic()
        slowest = max(slowest, now - last)
        last = now
    times = "".join(f"; {count} x {kind}" for kind, count in found.items())
    slow = f"; slowest {slowest:.2f} s" if slowest > SLOW else ""
    print(f"{target.name:<32}{number:9,} inputs{slow}{times}", flush=True)
    return len(found)


def main() -> None:
    """Feed the targets one after another."""
    parser = argparse.ArgumentParser(description="Feeds hostile inputs to everything that takes some.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (60)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="this one alone; may be repeated")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--input", type=int, help="feed this one alone, and show how it ends")
    parser.add_argument("--list", action="store_true", help="name the targets")
    options = parser.parse_args()
    chosen = [TARGETS[name] for name in options.target or TARGETS]
    if options.list:
        print("\n".join(each.name for each in chosen))
        return
    if options.input is not None:
        for target in chosen:
            feed(target, options.seed, options.input)
        return
    print(f"fuzz: --seed {options.seed}", flush=True)
    found = sum(run(target, options.seed, options.seconds) for target in chosen)
    print(f"fuzz: {found} kinds of fault in {len(chosen)} targets")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
