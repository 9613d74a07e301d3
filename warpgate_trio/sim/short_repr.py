"""Short `repr`s of plain data: an expression that makes it again, without the fields that have their default.

They keep the report of a failing test readable: one NAT has thirty fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any, Protocol


class _Printer(Protocol):
    def text(self, text: str, /) -> object: ...


class ShortRepr:
    """A dataclass made with ``repr=False`` whose `repr` names the fields that are not their default."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(_unusual(self))})"

    def _repr_pretty_(self, printer: _Printer, cycle: bool) -> None:
        """For Hypothesis and IPython, which would print every field of a dataclass."""
        printer.text(repr(self))


def _unusual(data: Any) -> Iterator[str]:
    for field in fields(data):
        value = getattr(data, field.name)
        if field.repr and value != _default(field):
            yield f"{field.name}={_text(value)}"


def _default(field: Field[object]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
