"""Pairing codes as people see them: ``7-guitar-orbit``, a nameplate and two words.

The *nameplate* is the number of a mailbox at a server, and no secret.  The words are the secret, 18 bits.  Parsing is
lenient: it ignores case, accepts various separators, and accepts the beginning of a word if it is unambiguous.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, final

from ..errors import CodeMalformed
from ..host import Host
from .words import WORDS

__all__ = ["MAX_NAMEPLATE", "WORDS_PER_CODE", "Code", "draw_words", "parse_code"]

MAX_NAMEPLATE: Final = 99_999
"""The greatest nameplate: more than a server has mailboxes, with no more digits than people can remember."""
WORDS_PER_CODE: Final = 2
"""Words in a code, nine bits each: with 262,144 pairs, an offer's three tries succeed once in 87,381."""
MAX_TEXT: Final = 100
"""Characters of a text that is parsed as a code; a code has 25 at most."""
_EXAMPLE: Final = "7-guitar-orbit"


@final
@dataclass(frozen=True, slots=True)
class Code:
    """One code; its text is ``str(code)``.

    Attributes:
      nameplate: 1 to `MAX_NAMEPLATE`.
      words: `WORDS_PER_CODE` words of `words.WORDS`.
    """

    nameplate: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join((str(self.nameplate), *self.words))

    def __repr__(self) -> str:
        return f"<Code {self.nameplate}-…>"

    @property
    def password(self) -> bytes:
        """The password of the key exchange.  It includes the nameplate, so a code is good for no other mailbox."""
        return str(self).encode("ascii")


def draw_words(host: Host) -> tuple[str, ...]:
    """Draw the words of a new code, uniformly, from the host's entropy."""
    numbers = [int.from_bytes(host.entropy(2), "big") % len(WORDS) for _ in range(WORDS_PER_CODE)]
    return tuple(WORDS[number] for number in numbers)


def parse_code(text: str) -> Code:
    """Parse a code that somebody has typed.

    Raises:
      CodeMalformed: it cannot be a code; the message says what is wrong with it.
    """
    if len(text) > MAX_TEXT:
        raise CodeMalformed(f"{len(text)} characters are too long for a code; a code looks like {_EXAMPLE}")
    first, *rest = [part for part in re.split(r"[\s_\-.,/\u2010-\u2015]+", text.strip().lower()) if part] or [""]
    if not first:
        raise CodeMalformed(f"the code is empty; a code looks like {_EXAMPLE}")
    if not (first.isascii() and first.isdigit()):
        raise CodeMalformed(f"a code begins with a number, as {_EXAMPLE} does, and not with {first[:20]!r}")
    if len(first) > len(str(MAX_NAMEPLATE)) or not 1 <= int(first) <= MAX_NAMEPLATE:
        raise CodeMalformed(f"the number of a code is 1 to {MAX_NAMEPLATE:,}, and not {first[:20]}")
    if len(rest) != WORDS_PER_CODE:
        raise CodeMalformed(
            f"a code has {WORDS_PER_CODE} words after its number, as {_EXAMPLE} has, and not {len(rest)}"
        )
    return Code(int(first), tuple(map(_read_word, rest)))


def _read_word(text: str) -> str:
    at = bisect_left(WORDS, text)
    if at < len(WORDS) and WORDS[at] == text:
        return text
    beginning = [word for word in WORDS[at : at + 2] if word.startswith(text)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        raise CodeMalformed(f"{text!r} is the beginning of several words, {' and '.join(beginning)} among them")
    import difflib

    near = difflib.get_close_matches(text[:20], WORDS, n=1, cutoff=0.6)
    raise CodeMalformed(f"{text[:20]!r} is not a code word" + (f"; did you mean {near[0]!r}?" if near else ""))
