"""Starts the measurements of the kernel when a test run begins: they mostly wait, so other tests run meanwhile.

A module of such tests defines three names:

* PROGRAM: the module of the lab that answers;
* QUESTIONS: what the tests ask, one question each;
* `words`: a function from the selected questions to the program's arguments.

The programs run one after the other, at a higher priority than the tests, because they measure times.  With several
workers of pytest-xdist, the first one starts the programs.  A test that needs an answer waits for its program's end.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from tests import requirements
from tests.kernel.enclosed import enclosed

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 300.0
"""Seconds for all programs together."""
POLL: Final = 0.05
"""Seconds between two looks at whether a program has ended."""


@contextmanager
def asked_ahead(items: Iterable[pytest.Item], folder: Path) -> Generator[None]:
    """Start the programs whose answers the tests need; at the end, kill those that no test waited for.

    Args:
      folder: where the answers go; the same for all workers.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for module, questions in _wanted(items).items():
            if (process := _started(module, questions, folder)) is not None:
                running.append(process)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _wanted(items: Iterable[pytest.Item]) -> dict[ModuleType, list[str]]:
    """The questions of the selected tests whose needs are met, by module."""
    found: dict[ModuleType, list[str]] = {}
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        question = item.callspec.params.get("question")
        needs = [name for marker in item.iter_markers("needs") for name in marker.args]
        if question is not None and not any(map(requirements.unmet, needs)):
            found.setdefault(item.module, []).append(str(question))
    return found


def _started(module: ModuleType, questions: list[str], folder: Path) -> subprocess.Popen[bytes] | None:
    """The program, unless another worker has started it."""
    out = folder / f"{module.PROGRAM}.out"
    # The program inherits the lock: whoever acquires it later knows that the program has ended.
    with _lock_file(module.PROGRAM, folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if out.exists():
            return None
        command = enclosed(module.PROGRAM, *module.words(questions))
        one_at_a_time = ["flock", "--no-fork", str(folder / "kernel.lock")]
        with out.open("wb") as stdout, out.with_suffix(".err").open("wb") as stderr:
            return subprocess.Popen(
                ["nice", "-n", "-10", *one_at_a_time, *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[lock.fileno()],
            )


def answers_of(program: str, folder: Path) -> dict[str, Any]:
    """A program's answers, by question; its error output, as ``stderr``, if it has failed.

    Raises:
      TimeoutError: it does not end.
    """
    deadline = time.monotonic() + PATIENCE
    with _lock_file(program, folder) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{program} has not ended within {PATIENCE} s") from None
                time.sleep(POLL)
    out = folder / f"{program}.out"
    try:
        found: dict[str, Any] = json.loads(out.read_bytes())
    except ValueError:
        return {"stderr": out.with_suffix(".err").read_text(encoding="utf-8")}
    return found


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def _lock_file(program: str, folder: Path) -> Any:
    return (folder / f"{program}.lock").open("w")
