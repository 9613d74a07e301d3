"""Reads tables and blocks of code from the documentation, for tests that check it or run its examples verbatim."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt  # comes with rich

DOCS = Path(__file__).parents[1] / "docs"

Row = dict[str, str]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def tables(text: str) -> Iterator[list[Row]]:
    """Every table of a page, a row as column -> cell; a cell keeps its Markdown."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, rule, *rows = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        )
        assert all(set(cell) <= {"-"} for cell in rule), block
        assert all(len(row) == len(head) for row in rows), block
        yield [dict(zip(head, row, strict=True)) for row in rows]


def table(text: str, *columns: str) -> list[Row]:
    """The one table with these first columns."""
    (found,) = [rows for rows in tables(text) if rows and tuple(rows[0])[: len(columns)] == columns]
    return found


def bare(cell: str) -> str:
    return cell.strip("`")


def code(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def changed(text: str, changes: Mapping[str, object]) -> str:
    """An example with the test's own hosts, ports and files; each text that they replace has to occur in it."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, str(new))
    return text


class Block(NamedTuple):
    """A block of code on a page; `language` is empty for one that is only indented."""

    page: str
    line: int
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """The page and how the block begins: its name in the lists of tests."""
        return self.page, self.text.splitlines()[0].strip()[:60].rstrip()


ROOT = DOCS.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
)
"""Every page except the news fragments."""


def blocks() -> Iterator[Block]:
    """Every block of code on every page."""
    for path in PAGES:
        for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
            if token.type in ("fence", "code_block"):
                assert token.map is not None
                name = path.relative_to(ROOT).as_posix().removeprefix("docs/")
                yield Block(name, token.map[0] + 1, token.info.strip(), token.content)
