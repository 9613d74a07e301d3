"""Builds the sdist and, from it, the wheel into dist/, and tries the wheel as a user would.

For the oldest and the newest Python present: an empty environment outside the tree, the wheel and its dependencies and
nothing else, then `pip check`, the command, its demo, and mypy --strict over a user's script against what is installed.
Then pip is asked for a Python that is too new, and has to refuse before it installs anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TOO_NEW = "3.14"
"""The first Python that `requires-python` leaves out."""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Runs a command that must succeed; the first that fails ends everything."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    code = subprocess.run(words, cwd=cwd, env=environ, stdin=subprocess.DEVNULL).returncode
    if code:
        sys.exit(f"dist: this failed with {code}: {' '.join(words)}")


def pythons() -> list[tuple[str, str]]:
    """(version, path) of the oldest and the newest Python present, or of the only one."""
    command = ["sh", "tools/find_python.sh", "--all"]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found = [(version, path) for version, _, path in (line.partition(" ") for line in answer.stdout.splitlines())]
    return [found[-1], found[0]] if len(found) > 1 else found


def try_wheel(wheel: Path, python: str, place: Path) -> None:
    """Installs the wheel in an empty environment at `place` and uses it from there."""
    run(python, "-m", "venv", place / "venv")
    venv_bin = place / "venv" / "bin"
    run(venv_bin / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", wheel, cwd=place)
    run(venv_bin / "python", "-m", "pip", "check", cwd=place)
    run(venv_bin / "warpgate-trio", "--version", cwd=place)
    run(venv_bin / "python", "-m", "warpgate_trio", "--version", cwd=place)
    run(venv_bin / "warpgate-trio", "demo", cwd=place)
    shutil.copy(ROOT / "tests" / "typing" / "user_script.py", place)
    # This environment's mypy reads the other one's packages: that one stays what a user has.
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", venv_bin / "python")
    run(*mypy, "user_script.py", cwd=place)


def try_refusal(wheel: Path, place: Path) -> None:
    """Has pip choose for `TOO_NEW`, which the metadata leaves out."""
    chosen = ("--python-version", TOO_NEW, "--only-binary=:all:", "--no-deps", "--dry-run", "--target", place)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *map(str, chosen), str(wheel)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == 0 or "requires a different Python" not in done.stdout:
        sys.exit(f"{done.stdout}dist: pip would install this on Python {TOO_NEW}")


def main() -> None:
    """Builds, checks and tries."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    made = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *made)
    (wheel,) = DIST.glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="warpgate-dist-") as folder:
        try_refusal(wheel, Path(folder))
    tried = pythons()
    for version, python in tried:
        with tempfile.TemporaryDirectory(prefix="warpgate-dist-") as folder:
            print(f"== Python {version} ({python})", flush=True)
            try_wheel(wheel, python, Path(folder))
    names = ", ".join(path.name for path in made)
    print(f"dist: {names} built, checked and tried on Python {' and '.join(version for version, _ in tried)}")


if __name__ == "__main__":
    main()
