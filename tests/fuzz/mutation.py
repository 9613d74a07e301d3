"""Nearly valid inputs: valid ones, changed in the places where decoders look.

All randomness comes from the `Random` that is passed in, so a seed determines an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

import msgspec

NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
ODD_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, 1, -1, 2**31, 2**32, 2**53, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", "\0", "\x1b[2J", "a" * 300, "%s%n", "\u202e", "💥"),
    *(b"", b"\0", b"\xff" * 40, bytes(300)),
    *([], {}, [[]], {"": None}, {1: 2}, [None] * 40),
)
DEPTH: Final = 2000
"""Levels of nesting that exhaust a recursive reader."""


def mutated(random: Random, corpus: Sequence[bytes]) -> bytes:
    """One item of the corpus after a few changes: bits, bytes, lengths, cuts, repetitions, parts of another item."""
    data = bytearray(random.choice(corpus))
    for _ in range(random.choice((1, 1, 1, 2, 2, 4, 12))):
        at = random.randrange(len(data) + 1)
        match random.randrange(9):
            case 0 if data:
                data[at % len(data)] ^= 1 << random.randrange(8)
            case 1 if data:
                data[at % len(data)] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)))
            case 2:  # an integer, as in length and count fields
                width = random.choice((1, 2, 4, 8))
                number = random.choice((*NUMBERS, len(data), len(data) - at, random.getrandbits(64)))
                data[at : at + width] = (number % 256**width).to_bytes(width, "big")
            case 3 if data:  # a byte that is off by a little
                data[at % len(data)] = (data[at % len(data)] + random.choice((-4, -2, -1, 1, 2, 4))) % 256
            case 4:
                data[at:at] = random.randbytes(random.choice((1, 2, 3, 8, 60, 400)))
            case 5:
                del data[at : at + random.choice((1, 2, 4, 16, 100))]
            case 6:
                del data[at:]
            case 7:
                piece = data[at : at + random.choice((2, 8, 30, 200))]
                data[at:at] = piece * random.choice((1, 1, 2, 20))
            case _:
                other = random.choice(corpus)
                start = random.randrange(len(other) + 1)
                data[at:] = other[start:]
    return bytes(data)


def mutated_text(random: Random, corpus: Sequence[str]) -> str:
    """`mutated` for text; inserts lone surrogates, odd digits, separators and overlong parts, too."""
    if random.randrange(3):
        return mutated(random, [text.encode() for text in corpus]).decode("utf-8", "surrogateescape")
    text = random.choice(corpus)
    at = random.randrange(len(text) + 1)
    odd = random.choice(
        ("\ud800", "\u2028", "\0", "\r\n", "\u0660", "ß", "１", "%", "%00", "@", ":", "[", "]", "/" * 300)
    )
    return text[:at] + odd + text[at + random.choice((0, 0, 1, 5)) :]


def mutated_msgpack(random: Random, corpus: Sequence[bytes]) -> bytes:
    """`mutated` for msgpack: mostly a valid encoding of invalid values."""
    if not random.randrange(4):
        return mutated(random, corpus)
    if not random.randrange(40):  # no item of the corpus nests this deep
        return bytes([0x91 if random.randrange(2) else 0x81]) * DEPTH + mutated(random, corpus)
    value = msgspec.msgpack.decode(random.choice(corpus))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(random, value)
    return msgspec.msgpack.encode(value)


def _changed(random: Random, value: Any) -> Any:
    """The value with one change at some depth."""
    if isinstance(value, list | dict) and value and random.randrange(6):
        return _changed_inside(random, value)
    match value:
        case bytes() if random.randrange(3):
            return mutated(random, [value])
        case str() if random.randrange(3):
            return mutated_text(random, [value]).encode("utf-8", "replace").decode()
        case bool() | None | float():
            return random.choice(ODD_VALUES)
        case int() if random.randrange(3):
            changed = random.choice((value + 1, value - 1, value ^ 1 << random.randrange(32), -value, value * 1000))
            return max(-(2**63), min(changed, 2**64 - 1))
    return random.choice(ODD_VALUES)


def _changed_inside(random: Random, value: Any) -> Any:
    if isinstance(value, dict):
        changed = dict(value)
        key = random.choice(list(changed))
        match random.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[random.choice(("", "x", "a" * 100, 7, key))] = random.choice(ODD_VALUES)
            case _:
                changed[key] = _changed(random, changed[key])
        return changed
    items = list(value)
    at = random.randrange(len(items))
    match random.randrange(8):
        case 0:
            del items[at]
        case 1:
            items.insert(at, random.choice(ODD_VALUES))
        case 2:
            items[at:at] = items[at : at + 1] * random.choice((1, 2, 40, 300))
        case _:
            items[at] = _changed(random, items[at])
    return items
