"""Pairing codes: the list of words, and which inputs are read as a code."""

from __future__ import annotations

import itertools
import re
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.errors import CodeMalformed
from warpgate_trio.host import RealHost
from warpgate_trio.pairing.code import MAX_NAMEPLATE, Code, draw_words, parse_code
from warpgate_trio.pairing.words import WORDS

GUITAR = Code(7, ("guitar", "orbit"))


def distance(one: str, two: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        new = [i]
        for j, b in enumerate(two, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (a != b)))
        row = new
    return row[-1]


def sound(word: str) -> str:
    """Roughly how an English word sounds: homophones get the same result."""
    for spelled, heard in (("ph", "f"), ("ck", "k"), ("qu", "kw"), ("x", "ks"), ("wh", "w"), ("kn", "n"), ("wr", "r")):
        word = word.replace(spelled, heard)
    word = re.sub("c(?=[eiy])", "s", word.replace("gh", "g")).replace("ch", "7").replace("c", "k")
    word = re.sub("e$", "", word.replace("z", "s").replace("y", "i").replace("v", "f"))
    return re.sub("[aeiou]+", lambda match: match.group()[0], re.sub(r"(.)\1+", r"\1", word))


def test_the_words_are_512_short_ones_in_order() -> None:
    assert len(WORDS) == 512
    assert list(WORDS) == sorted(set(WORDS))
    assert all(re.fullmatch("[a-z]{4,8}", word) for word in WORDS)
    assert len({word[:4] for word in WORDS}) == 512, "four letters tell them apart"


@pytest.mark.slow("compares each word with each: 130,816 pairs")
def test_no_word_is_mistaken_for_another() -> None:
    for one, two in itertools.combinations(WORDS, 2):
        if abs(len(one) - len(two)) < 3:
            assert distance(one, two) >= 3, (one, two)
            assert distance(sound(one), sound(two)) >= 2, (one, two)


@pytest.mark.parametrize(
    "text",
    [
        "7-guitar-orbit",
        " 7 Guitar  ORBIT\n",
        "7_guitar_orbit",
        "7-guit-orbi",
        "007-guitar-orbit",
        "7\u2013guitar\u2014orbit",
        "7, guitar, orbit.",
    ],
)
def test_reading_is_forgiving(text: str) -> None:
    assert parse_code(text) == GUITAR


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the code is empty"),
        ("--", "the code is empty"),
        ("guitar-orbit", "begins with a number"),
        ("\u0667-guitar-orbit", "begins with a number"),
        ("\u00b2-guitar-orbit", "begins with a number"),
        ("0-guitar-orbit", "1 to 99,999"),
        ("100000-guitar-orbit", "1 to 99,999"),
        ("9" * 50 + "-guitar-orbit", "1 to 99,999"),
        ("7-guitar", "and not 1"),
        ("7-guitar-orbit-acorn", "and not 3"),
        ("7-guitar-orbot", "did you mean 'orbit'"),
        ("7-guitar-qqqq", "'qqqq' is not a code word$"),
        ("7-g-orbit", "the beginning of several words"),
        ("wg1" + "A" * 300, "303 characters are too long"),
    ],
)
def test_what_cannot_be_a_code_is_told_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(CodeMalformed, match=why):
        parse_code(text)


@settings(max_examples=50)
@given(st.integers(1, MAX_NAMEPLATE), st.sampled_from(WORDS), st.sampled_from(WORDS))
def test_a_code_is_read_as_it_was_written(nameplate: int, one: str, two: str) -> None:
    code = Code(nameplate, (one, two))
    assert parse_code(str(code)) == code
    assert parse_code(f"{nameplate} {one[:4]} {two[:4]}") == code
    assert str(code).encode() == code.password


@pytest.mark.slow("looks for the nearest word")
@settings(max_examples=30)
@given(st.text(max_size=20))
def test_any_text_is_a_code_or_malformed(text: str) -> None:
    with suppress(CodeMalformed):
        code = parse_code(text)
        assert parse_code(str(code)) == code


def test_a_code_is_not_shown_whole_in_logs() -> None:
    assert "guitar" not in repr(GUITAR)


def test_words_are_drawn_from_all() -> None:
    drawn = {word for _ in range(400) for word in draw_words(RealHost())}
    assert drawn <= set(WORDS)
    assert len(drawn) > 300
