"""What is told of a transfer while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["OnProgress", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a transfer is.

    Attributes:
      stage: ``"offered"``, ``"checking"`` (the sender reads again what the receiver has, the receiver gives the names),
        ``"moving"`` or ``"done"``.
      size: bytes of all files.
      there: bytes that the receiver had before this Pipe.
      done: bytes that are over, with those.
      files: how many there are.
      name: of the file that is moving.
    """

    stage: str
    size: int
    there: int = 0
    done: int = 0
    files: int = 0
    name: str = ""


OnProgress: TypeAlias = Callable[[Progress], object]
