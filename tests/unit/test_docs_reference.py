"""The reference has every public name, once; `make docs` builds it, and fails where a name cannot be imported."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from tests.documented import DOCS

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
SHOWN = Counter(re.findall(r"^\.\. auto\w+:: ([\w.]+)", "\n".join(PAGES.values()), re.MULTILINE))
PUBLIC = ("", ".errors", ".files", ".forwarding", ".plugin", ".report", ".sim", ".testing", ".testing.strategies")
"""Modules whose `__all__` is public API.  A name that several of them export is documented at the first of these."""
ELSEWHERE = {"presets"}  # a module; `warpgate-trio simulate --list` and docs/simulator.md list its names


def test_what_is_shown_is_there_and_shown_once() -> None:
    assert SHOWN
    assert [name for name, times in SHOWN.items() if times > 1] == []
    for name in SHOWN:
        module, _, last = name.rpartition(".")
        assert hasattr(import_module(module), last), name


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_shown(module: str) -> None:
    module = f"warpgate_trio{module}"
    shown = {id(getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2])) for name in SHOWN}
    missing = [
        name
        for name in import_module(module).__all__
        if f"{module}.{name}" not in SHOWN
        and name not in ELSEWHERE
        and id(getattr(import_module(module), name)) not in shown
    ]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    assert set(re.findall(r"^\| \[[^]]*\]\(([\w.]+)\)", PAGES["README.md"], re.MULTILINE)) == set(PAGES) - {"README.md"}


def test_every_page_is_in_the_menu() -> None:
    """docs/conf.py makes the menu from the rows of docs/README.md that begin with a page."""
    listed = {
        (DOCS / link).resolve()
        for link in re.findall(r"^\| \[[^]]*\]\(([^)#]+\.md)\)", (DOCS / "README.md").read_text("utf-8"), re.MULTILINE)
    }
    pages = {path.resolve() for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).parts[0].startswith("_")}
    of_their_own = {path.resolve() for path in (DOCS / "reference").glob("*.md")} - {
        (DOCS / "reference/README.md").resolve()
    }
    assert pages - of_their_own - {(DOCS / "README.md").resolve()} <= listed
    assert {path for path in listed if not path.exists()} == set()


def test_nothing_of_sphinx_is_in_a_page_that_a_forge_shows() -> None:
    folders: list[Path] = [
        path for path in DOCS.rglob("*.md") if "reference" not in path.parts and "_build" not in path.parts
    ]
    assert [
        path.name for path in folders if re.search(r"^```\{|^:::|^\.\. ", path.read_text("utf-8"), re.MULTILINE)
    ] == []
