"""Texts of servers and peers appear in exceptions, so an exception's text holds printable characters only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio import errors
from warpgate_trio.errors import MAX_MESSAGE, ConfigError, SignalUnavailable, WarpgateError, printable

PLAIN = [
    kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, WarpgateError) and kind.__init__ is WarpgateError.__init__
]


@pytest.mark.parametrize("kind", PLAIN)
def test_the_text_of_an_error_is_printable(kind: type[WarpgateError]) -> None:
    assert str(kind("a\x1b[2J\r\nERROR b\x9b\u202ec\x00")) == "a?[2J??ERROR b??c?"
    assert len(str(kind("x" * 10**6))) == MAX_MESSAGE
    assert str(kind("Grüße, 世界")) == "Grüße, 世界"
    assert issubclass(ConfigError, ValueError)


@given(st.text(), st.integers(1, 50))
def test_printable(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    if text.isprintable() and len(text) <= limit:
        assert shown == text


def test_what_an_error_was_made_with_is_kept() -> None:
    assert SignalUnavailable("a\x1bb").args == ("a\x1bb",)
