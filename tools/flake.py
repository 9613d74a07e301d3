"""Looks for tests that fail by luck: runs those that draw random values or open sockets again and again, under load.

Usage: python tools/flake.py [--runs N] [--first N] [--jobs N] [--load N] [--limit SECONDS] [--seed N]
                             [PYTEST_ARGUMENT…]

Every run has new seeds (of Hypothesis, and of pytest-randomly, which also shuffles the order), an empty Hypothesis
database, and CPU load beside it: processes that only compute.  Without arguments for pytest it takes

* the folders of FOLDERS;
* of tests/unit the files that draw or open sockets;
* of tests/sim those that draw or start something real: the others run in virtual time from fixed seeds, and so the same
  each time.

Twenty runs take hours.  With the same --seed, --first 9 continues after eight runs: run 9 has the seeds that it would
have had then.

Prints a line per run; for each failure the test, the seeds and the command that repeats it; and at the end how many
runs failed.  The output of failing runs is kept, and its place is printed.  Exits with 1 when any run failed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("integration", "kernel", "end_to_end", "fuzz")
DRAWS = re.compile(r"^(?:from|import) (?:hypothesis|socket)\b|\btrio\.socket\b|\bopen_node\b|\bopen_tcp_", re.MULTILINE)
"""Matches the files of tests/unit that draw or open sockets."""
REAL = re.compile(r"^(?:from|import) (?:hypothesis|socket|subprocess|threading)\b|\bpytester\b", re.MULTILINE)
"""Matches the files of tests/sim that draw, or are not wholly simulated."""
BUSY = "while True: pass"
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
ENDED_BY_TESTS = (0, 1)
"""Exit codes of pytest with a complete summary; any other (interrupted, usage error) is a failure of the run itself."""


def chosen() -> list[str]:
    """The files and folders that draw or open sockets."""
    folders = [f"tests/{name}" for name in FOLDERS if (ROOT / "tests" / name).is_dir()]
    return folders + [
        path.relative_to(ROOT).as_posix()
        for folder, luck in (("unit", DRAWS), ("sim", REAL))
        for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))
        if luck.search(path.read_text(encoding="utf-8"))
    ]


@contextmanager
def load(count: int) -> Iterator[None]:
    """Keeps `count` processors busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Run:
    """One run of pytest: its seeds and its result."""

    order: int
    draws: int
    code: int | None
    seconds: float
    output: str

    @property
    def seeds(self) -> list[str]:
        return [f"--randomly-seed={self.order}", f"--hypothesis-seed={self.draws}"]

    @property
    def failures(self) -> list[str]:
        """The ids of the failed tests, or one sentence that says why the run has no result."""
        found = list(dict.fromkeys(FAILED.findall(self.output)))
        if self.code is None:
            return [*found, "(the run did not end in time)"]
        return found if self.code in ENDED_BY_TESTS else [*found, f"(pytest ended with {self.code})"]


def run(tests: list[str], jobs: int, limit: float, chance: random.Random) -> Run:
    """Runs the tests once, with new seeds; a run that does not end within `limit` seconds is ended."""
    order, draws = chance.getrandbits(32), chance.getrandbits(32)
    with tempfile.TemporaryDirectory(prefix="warpgate-flake-") as folder:
        environ = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": folder}
        environ.pop("CI", None)  # with it, Hypothesis would draw the same values each time
        seeds = [f"--randomly-seed={order}", f"--hypothesis-seed={draws}"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(jobs), *seeds, *tests]
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        code: int | None
        try:
            output, _ = process.communicate(timeout=limit)
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then ends the processes that it started
            output, _ = process.communicate()
            code = None
        finally:
            process.kill()
    return Run(order, draws, code, time.monotonic() - started, output)


def main() -> None:
    """Runs, prints and counts."""
    parser = argparse.ArgumentParser(description="Runs all that draws or opens sockets again and again.")
    parser.add_argument("--runs", type=int, default=20, help="how many (20)")
    parser.add_argument("--first", type=int, default=1, help="the number of the first one (1)")
    parser.add_argument("--jobs", type=int, default=0, help="tests at a time, as for pytest -n (0)")
    parser.add_argument("--load", type=int, default=os.cpu_count() or 1, help="busy processes beside (one a processor)")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for one run (3600)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of all seeds")
    options, tests = parser.parse_known_args()
    tests = tests or chosen()
    chance = random.Random(options.seed)
    print(f"flake: {options.runs} runs with --seed {options.seed}, {options.load} busy processes beside", flush=True)
    red = 0
    with load(options.load):
        for _ in range(2 * (options.first - 1)):
            chance.getrandbits(32)
        for number in range(options.first, options.first + options.runs):
            result = run(tests, options.jobs, options.limit, chance)
            failures = result.failures
            red += bool(failures)
            last = result.output.rstrip().rpartition("\n")[2].strip("= ")
            print(f"{number:3} {'FAILED' if failures else 'ok':<7}{' '.join(result.seeds)}  {last}", flush=True)
            if failures:
                with tempfile.NamedTemporaryFile("w", prefix="flake-", suffix=".txt", delete=False) as kept:
                    kept.write(result.output)
                print(f"    all of it: {kept.name}")
            for name in failures:
                where = tests if name.startswith("(") else [name]
                command = shlex.join(["sh", "tools/in_venv.sh", "dev", "pytest", *result.seeds, *where])
                print(f"    {name}\n      {command}", flush=True)
    print(f"flake: {red} of {options.runs} runs failed")
    sys.exit(red > 0)


if __name__ == "__main__":
    main()
