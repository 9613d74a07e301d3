"""Asks the kernel once for all selected tests here, many questions at a time, since most of each is waiting."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.enclosed import enclosed

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
"""Seconds for all questions to one module."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives a test that asks for `question` each of its module's QUESTIONS."""
    if "question" in metafunc.fixturenames:
        metafunc.parametrize("question", metafunc.module.QUESTIONS, ids=str)


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the module's PROGRAM says to the questions of all selected tests, by question.

    Of several workers of pytest-xdist the first one asks and the others wait for the answers.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    program: str = request.module.PROGRAM
    mine = (
        item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module
    )
    parameters = (item.callspec.params for item in mine if hasattr(item, "callspec"))
    chosen = [str(each["question"]) for each in parameters if "question" in each]
    with (folder / f"{program}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / f"{program}.json"
        if not file.exists():
            file.write_text(json.dumps(_asked(program, request.module.words(chosen))), encoding="utf-8")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _asked(program: str, words: list[str]) -> Any:
    done = subprocess.run(
        enclosed(program, *words, "--json"), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    # 1 says that an answer was not as expected, which the tests will see for themselves.
    return json.loads(done.stdout) if done.returncode in (0, 1) and done.stdout else {"stderr": done.stderr}


@pytest.fixture
def answer(answers: dict[str, Any], question: object) -> Any:
    """The answer to the test's question."""
    assert str(question) in answers, answers.get("stderr", "the lab did not answer")
    return answers[str(question)]
