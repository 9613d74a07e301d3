"""Readers of single values of the configuration: numbers, flags, paths, lists, URLs.

A reader takes a value from code or TOML, or as text from the environment.  It returns the value checked and converted,
and raises `Unfit` for one that is not valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .server_url import Unfit, read_url

__all__: list[str] = []  # all of it is for config.py


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from."""

    name: str  # for errors; empty for code
    base_dir: Path | None  # relative paths start there; None leaves them as they are
    text: bool = False  # whether every value is text, as in the environment


Reader: TypeAlias = Callable[[object, Source], object]


def read_port(value: object, source: Source) -> int:
    if source.text and isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise Unfit("expected a port number, 0 to 65535")
    return value


def read_seconds(value: object, source: Source) -> float:
    seconds = _seconds_in(value, source)
    if not seconds:
        raise Unfit("expected a number of seconds above 0")
    return seconds


def read_seconds_or_none(value: object, source: Source) -> float:
    seconds = _seconds_in(value, source)
    if seconds is None:
        raise Unfit("expected a number of seconds, or 0")
    return seconds


def _seconds_in(value: object, source: Source) -> float | None:
    if source.text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    # The upper bound excludes infinity, too; comparisons with nan are false.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return None
    return float(value)


def read_flag(value: object, source: Source) -> bool:
    if source.text and isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if not isinstance(value, bool):
        raise Unfit("expected true or false")
    return value


def read_flag_or_none(value: object, source: Source) -> bool | None:
    return None if value is None or (source.text and value == "") else read_flag(value, source)


def read_path(value: object, source: Source) -> Path | None:
    if value is None or (source.text and value == ""):
        return None
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise Unfit("expected a path")
    path = expanded(Path(value))
    return path if source.base_dir is None else source.base_dir / path


def expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise Unfit("the home directory that '~' stands for is not known") from None
    except ValueError:  # a name after '~' that no user can have, with a NUL or half of a surrogate pair
        raise Unfit("'~' is followed by an invalid user name") from None


def read_urls(*schemes: str) -> Reader:
    return read_list(lambda item: read_url(item, *schemes), f"{' and '.join(schemes)} URLs")


def read_list(read: Callable[[object], object], expected: str) -> Reader:
    def reader(value: object, source: Source) -> tuple[object, ...]:
        if source.text and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise Unfit(f"expected a list of {expected}")
        items: list[object] = []
        for position, item in enumerate(value):
            try:
                items.append(read(item))
            except Unfit as error:
                raise Unfit(str(error), item=(position, item)) from None
        return tuple(items)

    return reader
