"""What tests ask the kernel is asked once, when a run begins: nearly all of it is waiting, which other tests can use.

A module of such tests names the program that answers, as PROGRAM; the words for the questions of the tests that were
selected, as a function `words`; and the questions, as QUESTIONS.  The programs run one after the other, above the
priority of the tests, since they look at what comes when.  Of several workers of pytest-xdist the first one starts
them, and all wait for their ends where a test needs an answer.
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
    """Start the programs that the tests want answers of, and end those that nobody waited for.

    Args:
      folder: for the answers; the same for all workers.
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
    """The modules whose selected tests need the kernel, and can have it; and their questions."""
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
    # The program inherits the lock, so that whoever gets it later knows that the program has ended.
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
    """What a program says, by question; what it complains of, as ``stderr``, where it has failed.

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
    """One folder of this run, for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def _lock_file(program: str, folder: Path) -> Any:
    return (folder / f"{program}.lock").open("w")
