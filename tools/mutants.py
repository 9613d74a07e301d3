"""Changes the code in one place at a time and asks the tests: which change does none of them notice?

Usage: python tools/mutants.py [--count N] [--seed N] [--only PATH]… [--limit SECONDS] [--keep] [--list]

A mutant is one file with one change:

* a comparison (`<` to `<=`, `is` to `is not`);
* a condition (made true, made false, negated);
* `and` to `or`;
* a sign or an operator;
* a number, by one;
* a call left out whose value is not used.

Only that piece of text is replaced, in a copy of the tree, so the work tree and the layout stay as they are.

A seed chooses the mutants, evenly over the files; it is printed, and `--seed` chooses the same again.  For each mutant
the tests run until the first one fails: first those nearest to the file by name or imports, then the others of their
kind, then the rest.  Each run ends within `--limit` seconds, so a mutant that hangs is noticed too.  Survivors are
listed with file, line and difference.  Those of tools/accepted_survivors.toml, each with its reason, are not tried.

Exits with 1 when there were survivors.  Standard library only; one process at a time.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "tools" / "accepted_survivors.toml"
SOURCES = tuple(
    f"{room}/*.py"
    for room in ("combos", "link", "messages", "nat", "node", "punch", "servers", "signal", "stun", "walk")
)
"""The folders and files below warpgate_trio/ that are mutated."""
COPIED = ("warpgate_trio", "strategies", "tests", "docs", "examples", "benchmarks", "tools", "newsfragments")
BROADER = (["tests/unit"], ["tests/integration", "tests/fuzz"], ["tests/sim"])
"""Tests that run after the nearest, in this order; those with the kernel or processes take too long for their worth."""
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "+",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.BitXor: "|",
}
NO_END = "no end within"
IDLE_CALLS = re.compile(r"(?:^|\.)(?:logger|log|warnings)\.\w+$|\.(?:checkpoint|debug|info)$")
"""Calls that no test has to notice when they are left out."""


@dataclass(frozen=True)
class Mutant:
    """One replacement of `start` to `end`, offsets into the text of `file`."""

    file: str
    line: int
    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def changed_lines(self, text: str) -> tuple[str, str]:
        """The first line that differs, before and after."""
        before, after = text.splitlines(), self.apply(text).splitlines()
        at = next((n for n, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), 0)
        return before[at].strip(), after[at].strip()

    def difference(self, text: str) -> str:
        lines = difflib.unified_diff(
            text.splitlines(), self.apply(text).splitlines(), self.file, self.file, n=1, lineterm=""
        )
        return "\n".join(f"    {line}" for line in list(lines)[2:])


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Every mutant of one file, in order."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    raw = text.encode()

    def at(line: int, column: int) -> int:
        return len(raw[: starts[line - 1] + column].decode())

    def span(node: ast.AST) -> tuple[int, int]:
        place = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return at(place[0], place[1]), at(place[2], place[3])

    found: list[Mutant] = []

    def add(start: int, end: int, new: str) -> None:
        found.append(Mutant(file, text.count("\n", 0, start) + 1, start, end, new))

    def between(left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        start, end = span(left)[1], span(right)[0]
        gap = re.search(rf"(?<!\w){re.escape(old)}(?!\w)" if old.isalpha() else re.escape(old), text[start:end])
        if gap is not None:
            add(start + gap.start(), start + gap.end(), new)

    for node in _code(ast.parse(text)):
        match node:
            case ast.Compare(left=left, ops=ops, comparators=others):
                for one, op, other in zip([left, *others], ops, others, strict=False):
                    old = {ast.IsNot: "is not", ast.NotIn: "not in"}.get(type(op)) or _symbol(op)
                    between(one, other, old, COMPARISONS[type(op)])
            case ast.BoolOp(op=op, values=values):
                old, new = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                between(values[0], values[1], old, new)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                between(left, right, _symbol(op), OPERATORS[type(op)])
            case ast.AugAssign(target=target, op=op, value=value) if type(op) in OPERATORS:
                between(target, value, _symbol(op) + "=", OPERATORS[type(op)] + "=")
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                add(span(node)[0], span(operand)[0], "")
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                start, end = span(test)
                if not isinstance(test, ast.Constant):
                    add(start, end, "True" if isinstance(node, ast.If | ast.IfExp) else "False")
                    add(start, end, "False")
                    add(start, end, f"not ({text[start:end]})")
            case ast.Expr(value=ast.Call(func=func)) if not IDLE_CALLS.search(ast.unparse(func)):
                add(*span(node), "pass")
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                add(*span(node), str(value + 1))
    return sorted(dict.fromkeys(found), key=lambda mutant: (mutant.start, mutant.new))


def _symbol(op: ast.AST) -> str:
    """The source text of an operator."""
    one = ast.Constant(1)
    if isinstance(op, ast.cmpop):
        return ast.unparse(ast.Compare(one, [op], [one])).split(" ", 1)[1].rsplit(" ", 1)[0]
    assert isinstance(op, ast.operator)
    return ast.unparse(ast.BinOp(one, op, one)).split(" ")[1]


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: no annotations, nothing under TYPE_CHECKING, no format strings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from _code(child)


def accepted() -> set[tuple[str, str, str]]:
    """(file, line before, line after) of the accepted survivors."""
    entries = tomllib.loads(ACCEPTED.read_text(encoding="utf-8")).get("survivor", [])
    for entry in entries:
        if not entry["reason"].strip():
            sys.exit(f"mutants: {ACCEPTED.name} gives no reason for {entry['file']}: {entry['mutant']}")
    return {(entry["file"], entry["original"], entry["mutant"]) for entry in entries}


def nearest(file: str) -> list[str]:
    """Tests of a module: those named like it, then those that import it; the quick ones first."""
    path = Path(file)
    words = {path.stem, path.stem.removesuffix("_core"), f"{path.parent.name}_{path.stem}"}
    dotted = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    imports = re.compile(
        rf"\b{re.escape(dotted)}\b|from {re.escape(dotted.rpartition('.')[0])} import .*\b{path.stem}\b"
    )
    named: list[str] = []
    others: list[str] = []
    for folder in ("unit", "integration", "sim"):
        for test in sorted((ROOT / "tests" / folder).glob("test_*.py")):
            name = test.relative_to(ROOT).as_posix()
            if test.stem.removeprefix("test_") in words:
                named.append(name)
            elif imports.search(test.read_text(encoding="utf-8")):
                others.append(name)
    return named + others


def copy_of(tree: Path) -> None:
    """Copies to `tree` what the tests need."""
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)


def killed_by(tree: Path, tests: list[list[str]], limit: float, seed: int) -> str | None:
    """The first failed test, or why a run ended otherwise; None if every run passed."""
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "strategies"))),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / ".hypothesis"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    seeds = [f"--randomly-seed={seed}", f"--hypothesis-seed={seed}"]
    for some in filter(None, tests):
        command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", *seeds, *some]
        try:
            done = subprocess.run(
                command,
                cwd=tree,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return f"{NO_END} {limit:.0f} s of {' '.join(some)[:80]}"
        if done.returncode not in (0, 5):  # 5: no tests
            found = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
            return found[1] if found else f"pytest ended with {done.returncode}"
    return None


def main() -> None:
    """Chooses mutants, tries them, and lists the survivors."""
    parser = argparse.ArgumentParser(description="Changes the code a little, and asks the tests.")
    parser.add_argument("--count", type=int, default=40, help="how many mutants (40)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="chooses them")
    parser.add_argument("--only", action="append", help="a file or folder; may be repeated")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for one run of tests (900)")
    parser.add_argument("--nearest", action="store_true", help="ask the nearest tests alone, which overstates")
    parser.add_argument("--list", action="store_true", help="show the chosen ones, and try none")
    options = parser.parse_args()

    files = [
        path.relative_to(ROOT).as_posix() for each in SOURCES for path in sorted((ROOT / "warpgate_trio").glob(each))
    ]
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in files}
    only = tuple(options.only or [""])
    skipped = accepted()
    chance = random.Random(options.seed)
    by_file: list[list[Mutant]] = []
    for file, text in texts.items():
        known = [each for each in mutants_of(file, text) if (file, *each.changed_lines(text)) not in skipped]
        if known and file.startswith(only):
            by_file.append(chance.sample(known, len(known)))
    total = sum(map(len, by_file))
    chance.shuffle(by_file)
    rows = max(map(len, by_file), default=0)
    chosen = [some[row] for row in range(rows) for some in by_file if row < len(some)][: options.count]
    print(f"mutants: {len(chosen)} of {total}, --seed {options.seed}; {len(skipped)} accepted survivors", flush=True)
    survivors: list[Mutant] = []
    hung = 0
    with tempfile.TemporaryDirectory(prefix="warpgate-mutants-") as folder:
        tree = Path(folder) / "tree"
        copy_of(tree)
        for number, mutant in enumerate(chosen, 1):
            text = texts[mutant.file]
            print(f"{number:3} {mutant.file}:{mutant.line}  {'  ->  '.join(mutant.changed_lines(text))}", flush=True)
            if options.list:
                continue
            started = time.monotonic()
            place = tree / mutant.file
            place.write_text(mutant.apply(text), encoding="utf-8")
            near = nearest(mutant.file)
            # In batches, so that the first failure comes soon: one run per file would cost a start of pytest each.
            tests = [near[:2], near[2:8], *([] if options.nearest else BROADER)]
            killer = killed_by(tree, tests, options.limit, options.seed)
            place.write_text(text, encoding="utf-8")
            if killer is not None and killer.startswith("tests/"):
                again = killed_by(tree, [[killer]], options.limit, options.seed)
                killer += "" if again is None else f", WHICH IS RED WITHOUT IT TOO: {again}"
            if killer is None:
                survivors.append(mutant)
            hung += killer is not None and killer.startswith(NO_END)
            print(f"      {killer or 'SURVIVED'}  ({time.monotonic() - started:.0f} s)", flush=True)
    for mutant in survivors:
        print(f"\n{mutant.file}:{mutant.line}\n{mutant.difference(texts[mutant.file])}")
    if not options.list:
        killed = len(chosen) - len(survivors)
        tried = f"{len(chosen)} tried, {killed} killed ({hung} by the time limit), {len(survivors)} survived"
        print(f"\nmutants: {tried}; --seed {options.seed}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
