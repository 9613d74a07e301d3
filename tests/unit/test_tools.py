"""The project's own tools: which mutants there are, which tests failed in a run, and how fuzzers report a fault."""

from __future__ import annotations

import ast
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutation import mutated, mutated_msgpack, mutated_text
from tests.fuzz.registry import Target
from tests.fuzz.run import Fault, feed
from tools import flake, house_lint, import_circles, mutants

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''\
"""A module."""

from __future__ import annotations

LIMIT: int = 4  # a comment stays


def decide(value: int | None, *, rows: list[int]) -> str:
    """What it does."""
    if value is not None and value >= LIMIT:
        rows.append(-value)
        logger.debug("no test has to miss this")
    return "ä" + f"{value + 1}" if not rows else "none"
'''


def test_mutants_change_one_piece_of_text_and_can_be_read() -> None:
    found = mutants.mutants_of("m.py", SOURCE)
    lines = {mutant.changed_lines(SOURCE)[1] for mutant in found}
    assert {
        "LIMIT: int = 5  # a comment stays",
        "if value is None and value >= LIMIT:",
        "if value is not None or value >= LIMIT:",
        "if value is not None and value > LIMIT:",
        "if True:",
        "if False:",
        "if not (value is not None and value >= LIMIT):",
        "rows.append(value)",
        "pass",
        'return "ä" + f"{value + 1}" if rows else "none"',
        'return "ä" - f"{value + 1}" if not rows else "none"',
    } <= lines
    assert not any("logger" in mutant.changed_lines(SOURCE)[0] for mutant in found)
    for mutant in found:
        ast.parse(mutant.apply(SOURCE))
        assert mutant.apply(SOURCE) != SOURCE
        assert len(mutant.apply(SOURCE).splitlines()) == len(SOURCE.splitlines())


def test_every_file_that_is_changed_is_there() -> None:
    for each in mutants.SOURCES:
        assert list((ROOT / "warpgate_trio").glob(each)), each
    for file, _, _ in mutants.accepted():
        assert (ROOT / file).exists()


@pytest.mark.slow("reads all tests")
def test_the_tests_of_a_module_are_asked_first() -> None:
    near = mutants.nearest("warpgate_trio/punch/probe.py")
    assert near[0] == "tests/unit/test_punch_probe.py"
    assert "tests/integration/test_datagram_race.py" in near


def test_who_failed_by_luck_is_named_with_the_seeds() -> None:
    output = (
        "ERROR    warpgate_trio.signal:hub.py:1 a line of a log\n"
        "=== short test summary info ===\n"
        "FAILED tests/sim/test_kernel.py::test_x[attempt linux skew=0.12] - AssertionError: a - b\n"
        "ERROR tests/unit/test_y.py::test_y\n"
    )
    run = flake.Run(order=1, draws=2, code=1, seconds=3.0, output=output)
    assert run.failures == ["tests/sim/test_kernel.py::test_x[attempt linux skew=0.12]", "tests/unit/test_y.py::test_y"]
    assert run.seeds == ["--randomly-seed=1", "--hypothesis-seed=2"]
    assert flake.Run(1, 2, 0, 3.0, "").failures == []
    assert flake.Run(1, 2, None, 3.0, "").failures == ["(the run did not end in time)"]
    assert flake.Run(1, 2, 4, 3.0, "").failures == ["(pytest ended with 4)"]
    chosen = flake.chosen()
    assert {"tests/integration", "tests/sim/test_nodes.py", "tests/unit/test_pipe_laws.py"} <= set(chosen)
    assert not {"tests/sim/test_walk_times.py", "tests/unit/test_docs.py"} & set(chosen)


class Panic(BaseException):
    """Like a Rust panic in Python: an exception that is no `Exception`."""


@pytest.mark.parametrize("error", [KeyError, Panic])
def test_a_fuzzer_tells_what_a_target_may_not_raise(error: type[BaseException]) -> None:
    def raises(data: bytes) -> None:
        raise error

    target = Target("raises", lambda random: random.randbytes(4), raises, (ValueError,), 1)
    with pytest.raises(Fault, match=f"{error.__name__}.*\n.*--target raises --seed 7 --input 3") as caught:
        feed(target, 7, 3)
    assert Random("7 3").randbytes(4).hex() in str(caught.value)


def test_a_fuzzer_lets_pass_what_a_target_may_raise() -> None:
    def raises(data: bytes) -> None:
        raise UnicodeError  # a subclass of ValueError

    feed(Target("raises", lambda random: b"", raises, (ValueError,), 1), 7, 3)


def test_inputs_follow_from_their_seed() -> None:
    for make in (
        lambda random: mutated(random, [b"one", b"another"]),
        lambda random: mutated_text(random, ["one", "another"]),
        lambda random: mutated_msgpack(random, [b"\x93\x01\xa1a\xc4\x01b"]),
    ):
        made = [make(Random(seed)) for seed in range(50)]
        assert made == [make(Random(seed)) for seed in range(50)]
        assert len(set(made)) > 25


LONG = "def f():\n" + "    pass\n" * 61
LONG_CLASS = "class C:\n" + "    x = 1\n" * 301


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (LONG, ["f has 62 lines, more than 60, and no `# long: reason`"]),
        (f"# long: it is a table\n{LONG}", []),
        (LONG.replace("():", "():  # long: it is a table"), []),
        (
            LONG.replace("pass", '"""A docstring is not counted.\n' + "\n" * 40 + '"""', 1).replace(
                "    pass\n", "", 5
            ),
            [],
        ),
        (LONG_CLASS, ["C has 302 lines, more than 300, and no `# long: reason`"]),
        ("def f():\n    pass\n", []),
    ],
)
def test_what_is_too_long_says_why(source: str, found: list[str]) -> None:
    assert [sentence for _, sentence in house_lint.too_long(ast.parse(source), source.splitlines())] == found


@pytest.mark.parametrize(
    ("first", "second", "circle"),
    [
        ("from .b import x", "", False),
        ("from .b import x", "from .a import y", True),
        ("from . import b", "import p.a", True),
        ("if TYPE_CHECKING:\n    from .b import x", "def f():\n    from p.a import y", True),
    ],
)
def test_modules_that_import_each_other_are_found(tmp_path: Path, first: str, second: str, circle: bool) -> None:
    """Imports for types and inside functions count, too."""
    (tmp_path / "p").mkdir()
    for name, text in (("__init__", ""), ("a", first), ("b", second)):
        (tmp_path / "p" / f"{name}.py").write_text(text)
    assert bool(import_circles.find_circle({"p": tmp_path})) is circle


# -- the tests themselves ----------------------------------------------------------------------------------------------


def cancels_itself(source: str) -> list[str]:
    """Names of the tests that go on after they have cancelled pytest-trio's `nursery`.

    That ends a test at its next checkpoint, and it counts as passed.
    """
    return [
        test.name
        for test in ast.walk(ast.parse(source))
        if isinstance(test, ast.AsyncFunctionDef)
        and test.name.startswith("test_")
        and "nursery" in {each.arg for each in (*test.args.args, *test.args.kwonlyargs)}
        for call in ast.walk(test)
        if isinstance(call, ast.Call)
        and ast.unparse(call) == "nursery.cancel_scope.cancel()"
        and call.end_lineno != test.end_lineno
    ]


def test_no_test_passes_because_it_has_cancelled_itself() -> None:
    cancelled = (
        "async def test_it(nursery):\n    async with server:\n        nursery.cancel_scope.cancel()\n    assert 0\n"
    )
    assert cancels_itself(cancelled) == ["test_it"]
    assert not cancels_itself(cancelled.removesuffix("    assert 0\n"))
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        if "nursery: trio.Nursery" in source and "nursery.cancel_scope.cancel()" in source:
            assert not cancels_itself(source), path.name
