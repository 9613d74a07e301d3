"""Runs every check that needs no test, two at a time, and shows the output of those that fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

SOURCES = ("warpgate_trio", "strategies", "tests", "tools", "benchmarks", "examples")


def has_python(folder: str) -> bool:
    """Whether a folder has Python files; mypy rejects one without any."""
    return any(name.endswith(".py") for _, _, names in os.walk(folder) for name in names)


CHECKS: dict[str, list[str]] = {
    # The slow ones first, so that they run beside each other.
    "mypy --strict": ["mypy", *filter(has_python, SOURCES)],
    "type completeness": ["basedpyright", "--ignoreexternal", "--verifytypes", "warpgate_trio"],
    "import-linter": ["lint-imports"],
    "house rules": [sys.executable, "tools/house_lint.py"],
    "import circles": [sys.executable, "tools/import_circles.py"],
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
}


def run(name: str) -> tuple[str, int, str, float]:
    """Runs one check; returns its name, exit code, output and seconds."""
    started = time.monotonic()
    done = subprocess.run(
        CHECKS[name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return name, done.returncode, done.stdout, time.monotonic() - started


def main() -> None:
    """Runs all checks; exits with 1 when one failed."""
    failed = False
    with ThreadPoolExecutor(2) as pool:
        for name, code, output, seconds in pool.map(run, CHECKS):
            failed |= code != 0
            print(f"{'FAILED' if code else 'ok':<7}{name:<20}{seconds:5.1f} s", flush=True)
            if code:
                print(output, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
