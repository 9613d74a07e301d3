"""Which file names an offer may contain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.files.naming import MAX_DEPTH, MAX_NAME, Destination, free_names, judge_names, why_not

POSIX, WINDOWS = Destination(), Destination(windows=True, folds_case=True)
MAC = Destination(folds_case=True, normalises=True)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "/",
        "",
        "a\0b",
        "a\nb",
        "a\x1b[2Jb",
        "a\x7f",
        "a\x85b",
        "a\u202etxt.exe",
        "a\u2066b",
        "a\u2028b",
        "a\\b",
        "..\\x",
        "C:\\x",
        "\\\\server\\share",
        "a\ud800",
        "x" * (MAX_NAME + 1),
        "\u00e9" * 128,
        "/".join("x" * 200 for _ in range(11)),
        "/".join("x" * (MAX_DEPTH + 1)),
        ".bashrc",
        ".ssh",
        ".ssh/authorized_keys",
    ],
)
def test_what_is_refused_everywhere(path: str) -> None:
    for destination in (POSIX, WINDOWS, MAC):
        assert why_not(path, destination) is not None


@pytest.mark.parametrize(
    "path",
    [
        "CON",
        "con",
        "aux.txt",
        "NUL.tar.gz",
        "a/COM1",
        "LPT9.x",
        "com\u00b9",
        "CONIN$",
        "con .txt",
        "a.",
        "a ",
        "dir./x",
        "file:stream",
        "C:x",
        "a?",
        "a*",
        'a"',
        "a<b",
        "a|b",
    ],
)
def test_what_only_windows_cannot_keep(path: str) -> None:
    assert why_not(path, WINDOWS) is not None
    assert why_not(path, POSIX) is None


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a.txt",
        "a/b/c",
        "a b",
        "...",
        "..a",
        "a..",
        "-rf",
        "\u65e5\u672c",
        "\u05e9\u05dc\u05d5\u05dd",
        "a/.git",
        "x" * 255,
        "console",
        "com10",
    ],
)
def test_what_is_taken(path: str) -> None:
    assert (why_not(path, POSIX) is None) is not path.startswith(".")
    assert why_not(path, Destination(hidden=True)) is None


def judge(*paths: str, destination: Destination = POSIX) -> str | None:
    return judge_names([(path.rstrip("/"), path.endswith("/")) for path in paths], destination)


def test_names_that_are_one() -> None:
    assert judge("a", "b") is None
    assert "twice" in (judge("a", "a") or "")
    assert judge("a", "A") is None
    assert "one name here" in (judge("a", "A", destination=WINDOWS) or "")
    assert "one name here" in (judge("Stra\u00dfe", "STRASSE", destination=MAC) or "")
    assert judge("\u00e9", "e\u0301") is None
    assert "one name here" in (judge("\u00e9", "e\u0301", destination=MAC) or "")
    assert "one name here" in (judge("d/", "D/", "d/x", destination=MAC) or "")


def test_what_is_in_a_folder_comes_behind_it() -> None:
    assert judge("a/", "a/b/", "a/b/c") is None
    for wrong in (("a/b",), ("a", "a/b"), ("a/b", "a/"), ("a/", "a/b/c")):
        assert "in no folder" in (judge(*wrong) or "")


def test_a_hostile_name_moves_no_cursor() -> None:
    assert (judge("a\x1b[2Jb" + "x" * 300) or "").isprintable()


@pytest.mark.parametrize(
    ("name", "is_folder", "second"),
    [
        ("a.txt", False, "a (1).txt"),
        ("a", False, "a (1)"),
        ("a.b", True, "a.b (1)"),
        ("a.tar.gz", False, "a (1).tar.gz"),
        (".tar.gz", False, ".tar (1).gz"),
        (".x", False, ".x (1)"),
        ("...", False, "... (1)"),
    ],
)
def test_what_is_tried_where_a_name_is_taken(name: str, is_folder: bool, second: str) -> None:
    names = iter(free_names(name, is_folder))
    assert next(names) == name
    assert next(names) == second


@pytest.mark.slow("fifty examples")
@settings(max_examples=50)
@given(st.text(min_size=1, max_size=300), st.booleans())
def test_free_names_are_names(name: str, is_folder: bool) -> None:
    """The names derived from a good name are good names."""
    if why_not(name, WINDOWS) is not None or "/" in name:
        return
    for _, other in zip(range(3), free_names(name, is_folder), strict=False):
        assert why_not(other, POSIX) is None


@pytest.mark.slow("fifty examples")
@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "A", "b", "..", "", ".", "\u00e9", "e\u0301", "con", "x:"]), min_size=1, max_size=5)
)
def test_what_is_taken_stays_inside(names: list[str]) -> None:
    import posixpath

    path = "/".join(names)
    if why_not(path, POSIX) is None:
        assert posixpath.normpath(path) == path
        assert not path.startswith(("/", ".."))
