"""What the two sides say to each other: labels of Pipes, and the answer that a Pipe begins with.

    ``tcp:HOST:PORT``     lead this Pipe to that target
    ``bind:HOST:PORT``    listen there for as long as this Pipe stands, and bring what comes as
    ``bound:HOST:PORT``   a connection that has come to that port

The answer is the first thing on a Pipe that was asked for by `tcp` or `bind`: one byte, an `Answer`, one byte with the
length of a text, and the text in UTF-8: where the side listens for `bind`, or why it does not do what was asked for.
Then, for `tcp`, come the bytes of the target.  The side that has asked may send before it has the answer.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import trio

from ..errors import TargetRefused, printable
from ..link import Pipe
from .targets import Target

__all__ = [
    "BIND",
    "BOUND",
    "TCP",
    "Answer",
    "asked_target",
    "encode_answer",
    "is_forward",
    "receive_answer",
]

TCP: Final = "tcp:"
BIND: Final = "bind:"
BOUND: Final = "bound:"
MAX_TEXT: Final = 200
"""Bytes of text in an answer: one sentence."""


class Answer(IntEnum):
    """How a side answers."""

    DONE = 0
    NOT_EXPOSED = 1
    """Its list does not have it."""
    UNREACHABLE = 2
    """It was dialled or bound, and the system says why not."""
    MALFORMED = 3
    """The label names no target."""
    BUSY = 4
    """It has too much to do for this peer; the same may be asked again."""


def is_forward(pipe: Pipe) -> bool:
    """Whether the peer has opened a Pipe to forward a connection, or to have one forwarded."""
    return pipe.label.startswith((TCP, BIND, BOUND))


def asked_target(label: str, prefix: str) -> Target:
    """The target that a label names; `TargetRefused` where it names none."""
    try:
        return Target.parse(label.removeprefix(prefix), least=0 if prefix == BIND else 1)
    except ValueError as error:
        raise TargetRefused(Answer.MALFORMED, str(error)) from None


def encode_answer(answer: Answer, text: str = "") -> bytes:
    """What a Pipe begins with."""
    data = text.encode()[:MAX_TEXT].decode(errors="ignore").encode()
    return bytes((answer, len(data))) + data


async def receive_answer(pipe: Pipe) -> str:
    """The text of the peer's answer.

    Raises:
      TargetRefused: it does not do what it was asked for.
      trio.BrokenResourceError: the Pipe broke, or ended before there was an answer.
    """
    answer, length = await _receive_exactly(pipe, 2)
    text = printable((await _receive_exactly(pipe, length)).decode(errors="replace"), MAX_TEXT)
    if answer != Answer.DONE:
        raise TargetRefused(answer, text)
    return text


async def _receive_exactly(pipe: Pipe, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await pipe.receive_some(size - len(data))
        if not piece:
            raise trio.BrokenResourceError("the peer ended the pipe without an answer")
        data += piece
    return data
