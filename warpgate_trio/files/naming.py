"""The rules for names in an offer.  Pure.

A name is accepted unchanged or refused.  It is never rewritten: a user would not find a file under another name.  Every
receiver refuses names that lead out of the destination and names that a terminal shows wrongly.  Names that only some
file systems cannot store are refused where the destination is such a file system, which is found by trial
(`Destination`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ..errors import printable

__all__ = ["MAX_DEPTH", "MAX_NAME", "MAX_PATH", "Destination", "free_names", "judge_names", "why_not"]

MAX_NAME: Final = 255
"""Bytes of one component in UTF-8: NAME_MAX of Linux and macOS.  NTFS allows as many UTF-16 units."""
MAX_PATH: Final = 2048
"""Bytes of a path in an offer: half of Linux's PATH_MAX.  The other half is left for the destination's path."""
MAX_DEPTH: Final = 64
"""Components of a path.  Each costs a lookup; real trees are about twenty deep."""
MAX_SHOWN: Final = 100
"""Characters of a name in a message."""
_RESERVED: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"]
)
"""Device names of Windows, reserved with any extension ("Naming Files, Paths, and Namespaces")."""
_FORBIDDEN_BY_WINDOWS: Final = frozenset('<>:"|?*')
_TURNING: Final = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Line separators and bidirectional controls, with which ``txt.exe`` may be shown as ``exe.txt``."""


@dataclass(frozen=True, slots=True)
class Destination:
    """How a receiver's file system treats names.

    Attributes:
      windows: whether names and characters that Windows reserves are refused.
      folds_case: whether ``a`` and ``A`` are one file.
      normalises: whether names with the same Unicode normal form are one file.
      hidden: whether top-level names that begin with a dot are accepted.
    """

    windows: bool = False
    folds_case: bool = False
    normalises: bool = False
    hidden: bool = False

    def key(self, name: str) -> str:
        """A key that is equal for two names exactly if they are one file."""
        if self.normalises or self.folds_case:
            name = unicodedata.normalize("NFC", name)
        return unicodedata.normalize("NFC", name.casefold()) if self.folds_case else name


def _controls(name: str) -> bool:
    return any(unicodedata.category(char) in ("Cc", "Cs") or char in _TURNING for char in name)


def _device(name: str) -> bool:
    return name.partition(".")[0].rstrip(" ").lower() in _RESERVED


_EVERYWHERE: Final[tuple[tuple[Callable[[str], bool], str], ...]] = (
    (lambda name: not name, "has an empty component"),
    (lambda name: name == ".", "has a component '.'"),
    (lambda name: name == "..", "leads out of the destination"),
    (_controls, "has control characters"),
    (lambda name: "\\" in name, "has a backslash, which separates folders on Windows"),
    (lambda name: len(name.encode("utf-8", "replace")) > MAX_NAME, f"has a component of more than {MAX_NAME} bytes"),
)
"""Checks of one component, in this order, each with the problem that it finds."""
_ON_WINDOWS: Final[tuple[tuple[Callable[[str], bool], str], ...]] = (
    (lambda name: ":" in name, "has a colon: a drive or a stream on Windows"),
    (lambda name: not _FORBIDDEN_BY_WINDOWS.isdisjoint(name), "has a character that Windows does not allow in names"),
    (lambda name: name.endswith((".", " ")), "ends with a dot or a space, which Windows drops"),
    (_device, "is the name of a device on Windows"),
)


def why_not(path: str, destination: Destination) -> str | None:
    """What is wrong with one path of an offer, whose components are separated by ``/``; None if it is acceptable."""
    if path.startswith("/"):
        return "is absolute"
    if len(path.encode("utf-8", "replace")) > MAX_PATH:
        return f"is longer than {MAX_PATH} bytes"
    names = path.split("/")
    if len(names) > MAX_DEPTH:
        return f"is deeper than {MAX_DEPTH} folders"
    for name in names:
        for is_wrong, why in (*_EVERYWHERE, *(_ON_WINDOWS if destination.windows else ())):
            if is_wrong(name):
                return why
    if names[0].startswith(".") and not destination.hidden:
        return "is hidden (begins with a dot), which the receiver does not accept without --hidden"
    return None


def judge_names(paths: Iterable[tuple[str, bool]], destination: Destination) -> str | None:
    """What is wrong with the names of an offer, in one sentence; None if all are acceptable.

    Args:
      paths: each path, and whether it is a folder; a folder comes before its contents.
    """
    known: dict[str, str] = {}
    folders: set[str] = set()
    for path, is_folder in paths:
        why = why_not(path, destination)
        if why is not None:
            return f"{_shown(path)} {why}"
        parent, slash, _ = path.rpartition("/")
        if slash and parent not in folders:
            return f"{_shown(path)} is in no folder of the offer"
        key = destination.key(path)
        if key in known:
            same = known[key] == path
            return (
                f"{_shown(path)} is offered twice"
                if same
                else f"{_shown(known[key])} and {_shown(path)} are one name here"
            )
        known[key] = path
        if is_folder:
            folders.add(path)
    return None


def _shown(path: str) -> str:
    return repr(printable(path, MAX_SHOWN))


def free_names(name: str, is_folder: bool) -> Iterable[str]:
    """The name, followed by its alternatives to try in turn if it is taken: ``name (1).ext``, …"""
    yield name
    stem, extension = name, ""
    if not is_folder:
        head, dot, tail = name.rpartition(".")
        if dot and head.strip("."):
            stem, extension = head, dot + tail
            if stem.lower().endswith(".tar") and stem[:-4].strip("."):
                stem, extension = stem[:-4], stem[-4:] + extension
    for number in range(1, 1000):
        end = f" ({number}){extension}"
        room = MAX_NAME - len(end.encode())
        yield stem.encode()[: max(room, 1)].decode(errors="ignore") + end
