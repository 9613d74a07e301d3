"""Builds the sdist and, from it, the wheel into dist/, and tries the wheel as a user would.

This is done for the oldest and the newest Python present, in an empty environment outside the tree:

* a new user's first minute (`tests/end_to_end/first_minute.sh`), which begins with `pip install` of the wheel, and may
  take no more than a minute of processor time;
* `pip check`, the command, its demo, and mypy --strict over a user's script with the installed package.

At last pip has to refuse the wheel for a Python that is too new, before it installs anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TOO_NEW = "3.14"
"""The first Python that `requires-python` excludes."""
FIRST_MINUTE = 60.0
"""Seconds of processor time from `pip install` to two paired terminals.  The script prints elapsed time, which is about
the same on an idle machine with a near package index, and can be anything on a busy one."""


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
    """Runs a command that must succeed; the first failure ends the whole check."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    environ |= env or {}
    code = subprocess.run(words, cwd=cwd, env=environ, stdin=subprocess.DEVNULL).returncode
    if code:
        sys.exit(f"dist: this failed with {code}: {' '.join(words)}")


def pythons() -> list[tuple[str, str]]:
    """(version, path) of the oldest and the newest Python present, or of the only one."""
    command = ["sh", "tools/find_python.sh", "--all"]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found = [(version, path) for version, _, path in (line.partition(" ") for line in answer.stdout.splitlines())]
    return [found[-1], found[0]] if len(found) > 1 else found


@contextmanager
def server() -> Iterator[str]:
    """Runs a rendezvous server; yields its URL, which a new user is given."""
    serve = ("serve", "--host", "127.0.0.1", "--port", "0", "--no-stun", "--no-ntp", "--json")
    words = [sys.executable, "-m", "warpgate_trio", *serve]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            (url,) = json.loads(process.stdout.readline())["servers"]["websocket"]
            yield url
        finally:
            process.terminate()


def try_first_minute(wheel: Path, venv_bin: Path, place: Path) -> None:
    """Installs the wheel as a new user does, without caches, and pairs two terminals."""
    with server() as url:
        env = {
            "PATH": f"{venv_bin}{os.pathsep}{os.environ['PATH']}",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "WARPGATE_SERVERS_WEBSOCKET": url,
            "WARPGATE_IDENTITY_EPHEMERAL": "true",
        }
        before = processor_time()
        run("sh", ROOT / "tests" / "end_to_end" / "first_minute.sh", wheel, cwd=place, env=env)
        took = processor_time() - before
    print(f"dist: a new user's first minute takes {took:.1f} s of a processor")
    if took > FIRST_MINUTE:
        sys.exit("dist: that is more than a minute")


def processor_time() -> float:
    """Seconds of processor time of all ended child processes, with their own children."""
    used = os.times()
    return used.children_user + used.children_system


def try_wheel(wheel: Path, python: str, place: Path) -> None:
    """Installs the wheel in an empty environment at `place` and uses it from there."""
    run(python, "-m", "venv", place / "venv")
    venv_bin = place / "venv" / "bin"
    try_first_minute(wheel, venv_bin, place)
    run(venv_bin / "python", "-m", "pip", "check", cwd=place)
    run(venv_bin / "warpgate-trio", "--version", cwd=place)
    run(venv_bin / "python", "-m", "warpgate_trio", "--version", cwd=place)
    run(venv_bin / "warpgate-trio", "demo", cwd=place)
    shutil.copy(ROOT / "tests" / "typing" / "user_script.py", place)
    # This environment's mypy reads the other one's packages, so that no tool is installed among the user's.
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", venv_bin / "python")
    run(*mypy, "user_script.py", cwd=place)


def try_refusal(wheel: Path, place: Path) -> None:
    """Checks that pip refuses the wheel for the Python `TOO_NEW`, which the metadata excludes."""
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
