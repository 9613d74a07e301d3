"""What a fuzz target is, and how it is registered.

A format that is signed, sealed or authenticated has two targets: with its bytes changed as a stranger could, and with
its content changed and then validly signed or sealed, so that the changes reach the decoder behind the check.
`feed` also uses what was decoded, as the node would.
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
    """A decoder, or a protocol, to be fed with hostile inputs.

    Attributes:
      make: makes an input from a source of randomness.
      feed: processes one input.
      may_raise: the exceptions that it may raise; any other one, and above all one that is no `Exception`, is a fault.
      inputs: how many inputs the test suite feeds: about a second's work.
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
    """Register the decorated function under its name; `corpus` is called when it is first needed."""
    corpus = functools.cache(corpus)

    def register(feed: Feed) -> Feed:
        name = feed.__name__
        TARGETS[name] = Target(name, lambda random: by(random, corpus()), feed, may_raise, inputs)
        return feed

    return register


def text_of(data: bytes) -> str:
    """Decode an input made by `texts`, which may contain lone surrogates."""
    return data.decode("utf-8", "surrogatepass")


def texts(*corpus: str) -> tuple[Callable[[], Sequence[bytes]], Callable[[Random, Sequence[bytes]], bytes]]:
    """Corpus and mutation of a target of text."""

    def change(random: Random, _: Sequence[bytes]) -> bytes:
        return mutated_text(random, corpus).encode("utf-8", "surrogatepass")

    return (lambda: [text.encode() for text in corpus]), change


def pieces(data: bytes) -> Iterator[bytes]:
    """A stream's bytes, cut into reads of various sizes; the cuts depend only on the input's length."""
    random = Random(len(data))
    while data:
        size = random.choice((1, 2, 3, 11, 12, 13, 100, 5000))
        yield data[:size]
        data = data[size:]
