"""Progress reports of a running transfer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["OnProgress", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of a transfer.

    Attributes:
      stage: ``"offered"``, ``"checking"``, ``"moving"`` or ``"done"``.  While checking, data is read again for its
        checksum, or written to the disk and named by the receiver.
      size: bytes of all files.
      there: bytes that the receiver had before this Pipe.
      done: bytes that the receiver has or was sent, including `there`.
      files: number of files, without folders.
      name: path of the current file.
    """

    stage: str
    size: int
    there: int = 0
    done: int = 0
    files: int = 0
    name: str = ""


OnProgress: TypeAlias = Callable[[Progress], object]
