"""Makes, or brings up to date, the virtual environment that the Makefile's commands run in.

Usage: setup_venv.py DIRECTORY run|dev|docs

`run` holds the project (editable) and its dependencies; `dev` adds the tools that check it, `docs` those that build its
documentation. A stamp for each stage records what the environment was made from: the interpreter, the checkout's path
and pyproject.toml. If one of them has changed, the environment is made anew, so that no test depends on leftovers of an
older one. Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fingerprint() -> str:
    """Everything that an environment depends on, as one line."""
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return json.dumps([sys.version, sys.executable, str(ROOT), pyproject])


def pip(venv: Path, *arguments: str) -> None:
    """Runs the environment's pip; its output is shown only if it fails."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}setting up {venv} failed: pip could not install what pyproject.toml names (see above).")


def main() -> None:
    """Brings the environment to the requested stage."""
    venv, stage = Path(sys.argv[1]), sys.argv[2]
    wanted = fingerprint()

    def ready(name: str) -> bool:
        stamp = venv / f".stamp-{name}"
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted

    if ready(stage):
        return
    started = time.monotonic()
    print(f"setting up {venv} (once, about half a minute; needs the package index)", file=sys.stderr, flush=True)
    if not ready("run"):
        shutil.rmtree(venv, ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(venv)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if made.returncode:
            sys.exit(f"{made.stdout}setting up {venv} failed: {sys.executable} -m venv does not work (see above).")
        pip(venv, "--editable", ".")
        (venv / ".stamp-run").write_text(wanted, encoding="utf-8")
    if stage != "run":
        pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        pip(venv, *pyproject["dependency-groups"][stage])
        (venv / f".stamp-{stage}").write_text(wanted, encoding="utf-8")
    print(f"set up in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


main()
