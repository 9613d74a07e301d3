"""The pictures and the table of what connects, in the documentation, are what the simulator does now."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.documented import DOCS, page, table
from tools import ladders, what_connects

PAGE = page("what_connects.md")


@pytest.mark.slow("simulates a call")
@pytest.mark.parametrize("name", ladders.SCENES)
def test_a_picture_is_what_happens(name: str) -> None:
    drawn = ladders.picture(name)
    ElementTree.fromstring(drawn)
    file = DOCS / "pictures" / f"{name}.svg"
    assert file.read_text(encoding="utf-8") == drawn, "run python tools/ladders.py"


def test_every_picture_is_drawn_and_shown() -> None:
    assert {path.stem for path in (DOCS / "pictures").iterdir()} == set(ladders.SCENES)
    assert set(re.findall(r"\]\(pictures/(\w+)\.svg\)", page("how_it_works.md"))) == set(ladders.SCENES)


CELLS = [
    ("public", "Linux"),
    ("Linux", "public"),
    ("Linux", "OpenWrt"),
    ("symmetric", "Linux"),
    ("symmetric", "mobile"),
]
"""One cell for each phase: all cells take minutes (`python tools/what_connects.py --check`)."""


def test_the_table_has_every_kind() -> None:
    rows = {row[""].strip("*"): row for row in table(PAGE, "", *what_connects.KINDS)}
    assert list(rows) == list(what_connects.KINDS)
    assert {row["name"] for row in table(PAGE, "name", "what it is")} == set(what_connects.KINDS)
    assert {cell.partition(" ")[0] for row in rows.values() for name, cell in row.items() if name} == {
        rows[caller][listener].partition(" ")[0] for caller, listener in CELLS
    }


def test_the_readmes_table_is_a_part_of_it() -> None:
    whole = {row[""]: row for row in table(PAGE, "", *what_connects.KINDS)}
    part = table((DOCS.parent / "README.md").read_text(encoding="utf-8"), "", "public")
    assert part
    for row in part:
        assert row == {column: whole[row[""]][column] for column in row}


@pytest.mark.slow("simulates a call through all phases")
@pytest.mark.parametrize(("caller", "listener"), CELLS)
def test_a_cell_is_what_happens(caller: str, listener: str) -> None:
    (row,) = [row for row in table(PAGE, "", *what_connects.KINDS) if row[""] == f"**{caller}**"]
    found = what_connects.cell(caller, listener)
    if found.startswith("spray "):  # the time of a hit depends on the seed and on every draw before
        assert row[listener].startswith("spray ")
    else:
        assert row[listener] == found, "run python tools/what_connects.py"
