"""Finds modules of the package, and of the built-in plugins, that import each other, directly or in a circle.

An import under TYPE_CHECKING or inside a function counts too: a reader of the module has to know what it names.

Prints each circle with the imports that make it; exits with 1 when there is any.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"warpgate_trio": ROOT, "warpgate_strategies": ROOT / "strategies"}


def modules(packages: Mapping[str, Path]) -> dict[str, Path]:
    """Dotted name -> file, for every module of some packages, which are given with their folders."""
    found = {}
    for package, folder in packages.items():
        for path in (folder / package).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules among `known` that a module imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known or base in known:
                    yield inner if inner in known else base


def find_circle(packages: Mapping[str, Path]) -> list[str]:
    """The modules of one circle, each imported by the next, with the first one again at the end; empty if none."""
    known = modules(packages)
    graph = {name: set(imports(name, path, known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def main() -> None:
    """Looks, prints and exits."""
    circle = find_circle(PACKAGES)
    for imported, importing in itertools.pairwise(circle):
        print(f"{importing} imports {imported}")
    sys.exit(bool(circle))


if __name__ == "__main__":
    main()
