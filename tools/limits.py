"""Writes docs/limits.md: every bound, rate and waiting time of the package, with its value in the code.

    python tools/limits.py            write the page
    python tools/limits.py --check    exit with 1 when the page is not what the code says

A limit is a public numeric constant of a module, or the default of a field of a dataclass `…Limits`.  Its unit and
purpose are the first sentence of the docstring below the constant, or the field's text in the docstring of its class.
Constants that a format fixes are no limits, and are named in `FIXED`.  The limits of the command line, the simulator
and the test helpers do not matter to a running node, and are left out.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import warpgate_strategies
import warpgate_trio

PAGE = Path(__file__).resolve().parents[1] / "docs" / "limits.md"
LEFT_OUT = ("cli", "sim", "testing")
FIXED = re.compile(
    r"\w*_LENGTH|\w*VERSION|IP4|IP6|HEADER_SIZE|PACKET_SIZE|MAX_FRAME|SEAL_OVERHEAD|HOST_SALT|QUEUE_FULL|LATEST"
    r"|MAX_TIME_MS|BINDING|MAGIC_COOKIE|DEFAULT_PORT"
)
"""Constants that a format or a protocol fixes, so that no other value is possible."""
HEAD = """\
# Limits

Every bound, rate and waiting time, as the code has it; what it is for is the first sentence of its docstring, and more
of the reason stands there. This page is generated: `python tools/limits.py` writes it, and a test compares it with the
code. What the limits add up to, and who waits for what, is in
[back_pressure_and_timeouts.md](back_pressure_and_timeouts.md). Budgets are configuration:
[configuration.md](configuration.md#keys).
"""


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit: its place, its value, and its docstring's first sentence, which is empty if there is none."""

    module: str
    name: str
    value: float
    text: str

    @property
    def unit(self) -> str:
        """``s``, ``B``, ``/s``, ``B/s``, or nothing for a count."""
        if re.match(r"Seconds\b", self.text):
            return "s"
        rate = self.name.lower().endswith(("rate", "per_second")) or re.match(r"[^:.,;]* per second", self.text)
        return ("B" if re.match(r"Bytes\b", self.text) else "") + ("/s" if rate else "")

    @property
    def shown(self) -> str:
        """The value in readable form."""
        value, unit = self.value, self.unit
        if unit.startswith("B"):
            prefixes = iter(("Ki", "Mi", "Gi", "Ti", "Pi"))
            prefix = ""
            while value >= 1024 and value % 1024 == 0:
                value, prefix = value / 1024, next(prefixes)
            unit = prefix + unit
        number = f"{value:,.6f}".rstrip("0").rstrip(".")
        return f"{number} {unit}".rstrip()


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Every module that a running node may use, with its short name for the page."""
    for package, prefix in ((warpgate_trio, ""), (warpgate_strategies, "strategies.")):
        root = f"{package.__name__}."
        for info in pkgutil.walk_packages(package.__path__, root):
            name = prefix + info.name.removeprefix(root)
            if name.partition(".")[0] not in LEFT_OUT:
                yield name, importlib.import_module(info.name)


@functools.cache
def limits() -> tuple[Limit, ...]:
    """All limits, in the order of the modules and of their lines."""
    return tuple(each for name, module in modules() for each in (*_constants(name, module), *_defaults(name, module)))


def undescribed() -> list[str]:
    """Limits without a docstring: each needs one, or has to be named in `FIXED`."""
    return [f"{each.module}.{each.name}" for each in limits() if not each.text]


def _constants(name: str, module: ModuleType) -> Iterator[Limit]:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    body = ast.parse(source).body
    for node, below in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if not isinstance(target, ast.Name) or not re.fullmatch("[A-Z][A-Z0-9_]*", target.id):
                continue
            value = getattr(module, target.id)
            counts = isinstance(value, int | float) and not isinstance(value, bool | enum.Enum)
            if counts and not FIXED.fullmatch(target.id):
                yield Limit(name, target.id, value, _first_sentence(_docstring(below)))


def _defaults(name: str, module: ModuleType) -> Iterator[Limit]:
    for kind in vars(module).values():
        if not inspect.isclass(kind) or kind.__module__ != module.__name__ or not kind.__name__.endswith("Limits"):
            continue
        if dataclasses.is_dataclass(kind):
            texts = _attributes(inspect.getdoc(kind) or "")
            for field in dataclasses.fields(kind):
                assert isinstance(field.default, int | float), field.name
                text = _first_sentence(texts.get(field.name, ""))
                yield Limit(name, f"{kind.__name__}.{field.name}", field.default, text)


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def _attributes(doc: str) -> dict[str, str]:
    """Field -> its text in the ``Attributes:`` of a class's docstring; several fields may share a line."""
    texts: dict[str, str] = {}
    for entry in re.findall(r"^  (\S[^:]*: .*(?:\n    .*)*)", doc.partition("Attributes:\n")[2], re.MULTILINE):
        names, _, text = entry.partition(": ")
        texts.update((each.strip(), text) for each in names.split(","))
    return texts


def _first_sentence(doc: str) -> str:
    sentence = re.split(r"(?<=\.)(?:  |\n| (?=[A-Z`]))", doc.strip())[0]  # a sentence ends before two spaces
    text = " ".join(sentence.split()).removesuffix(".").replace("``", "`").replace("|", "\\|")
    return text[:1].upper() + text[1:]


def render() -> str:
    """The page."""
    lines = [HEAD]
    room = ""
    for each in limits():
        if each.module.partition(".")[0] != room:
            room = each.module.partition(".")[0]
            lines.append(f"\n## {room}\n\n| limit | value | meaning |\n| --- | --- | --- |\n")
        lines.append(f"| `{each.module}.{each.name}` | {each.shown} | {each.text} |\n")
    return "".join(lines)


def main() -> None:
    """Writes the page, or with ``--check`` says whether it is current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is not current")
    arguments = parser.parse_args()
    missing = undescribed()
    if missing:
        sys.exit(f"no docstring: {', '.join(missing)}")
    page = render()
    if arguments.check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        sys.exit(None if current else "docs/limits.md is not what the code says: run python tools/limits.py")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
