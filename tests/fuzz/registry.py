"""What a target of the fuzzers is, and how one is registered.

A format that is signed, sealed or authenticated is a target twice: as it comes from a stranger, and as its own author
may write it, so that the changes reach what is behind the check.  `feed` also uses what was decoded, as the node would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz.mutation import mutated, mutated_text

Make = Callable[[Random], bytes]
Feed = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One thing to feed.

    Attributes:
      make: an input, from a source of choices.
      feed: takes it.
      may_raise: what it may raise; anything else, and whatever is no `Exception` above all, is a fault.
      inputs: how many the test suite gives it: about a second's work.
    """

    name: str
    make: Make
    feed: Feed
    may_raise: tuple[type[Exception], ...]
    inputs: int


TARGETS: Final[dict[str, Target]] = {}


def target(
    corpus: Callable[[], Sequence[bytes]],
    *may_raise: type[Exception],
    inputs: int,
    by: Callable[[Random, Sequence[bytes]], bytes] = mutated,
) -> Callable[[Feed], Feed]:
    """Register the decorated function under its name; `corpus` is made when it is first needed."""
    corpus = functools.cache(corpus)

    def register(feed: Feed) -> Feed:
        name = feed.__name__
        TARGETS[name] = Target(name, lambda random: by(random, corpus()), feed, may_raise, inputs)
        return feed

    return register


def text_of(data: bytes) -> str:
    """Bytes of `texts` as the text that they stand for, surrogates and all."""
    return data.decode("utf-8", "surrogatepass")


def texts(*corpus: str) -> tuple[Callable[[], Sequence[bytes]], Callable[[Random, Sequence[bytes]], bytes]]:
    """Corpus and mutation of a target of text."""

    def change(random: Random, _: Sequence[bytes]) -> bytes:
        return mutated_text(random, corpus).encode("utf-8", "surrogatepass")

    return (lambda: [text.encode() for text in corpus]), change


def pieces(data: bytes) -> Iterator[bytes]:
    """A stream's bytes as they may come in: cut at places that the bytes themselves decide."""
    random = Random(len(data))
    while data:
        size = random.choice((1, 2, 3, 11, 12, 13, 100, 5000))
        yield data[:size]
        data = data[size:]
