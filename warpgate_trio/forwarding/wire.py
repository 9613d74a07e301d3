"""The protocol of forwarding: labels of Pipes, and the answer at the beginning of a Pipe.

    ``tcp:HOST:PORT``     connect this Pipe to that target
    ``bind:HOST:PORT``    listen there while this Pipe is open; each connection becomes a Pipe of the next kind
    ``bound:HOST:PORT``   a connection to that port

The serving side begins a `tcp` or `bind` Pipe with an answer: one byte, an `Answer`; one byte, the length of a text;
and the text in UTF-8.  The text is the address of the listener for `bind`, or the reason of a refusal.  On a `tcp` Pipe
the bytes of the target follow.  The requesting side may send before it has received the answer.
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
"""Bytes of the text of an answer: one sentence."""


class Answer(IntEnum):
    """The answer to a request."""

    DONE = 0
    NOT_EXPOSED = 1
    """The target or port is not on the list of the serving side."""
    UNREACHABLE = 2
    """Looking up, connecting or listening failed, or took too long; the text says why."""
    MALFORMED = 3
    """The label names no valid target."""
    BUSY = 4
    """Too many lookups are running for this peer; the request may be repeated later."""


def is_forward(pipe: Pipe) -> bool:
    """Whether the label of a Pipe is a forwarding request, or belongs to a forwarded connection."""
    return pipe.label.startswith((TCP, BIND, BOUND))


def asked_target(label: str, prefix: str) -> Target:
    """The target in a label.  Raises `TargetRefused` if it is not valid."""
    try:
        return Target.parse(label.removeprefix(prefix), least=0 if prefix == BIND else 1)
    except ValueError as error:
        raise TargetRefused(Answer.MALFORMED, str(error)) from None


def encode_answer(answer: Answer, text: str = "") -> bytes:
    """Encode an answer; the text is cut to `MAX_TEXT` bytes."""
    data = text.encode()[:MAX_TEXT].decode(errors="ignore").encode()
    return bytes((answer, len(data))) + data


async def receive_answer(pipe: Pipe) -> str:
    """Receive the peer's answer, and return its text.

    Raises:
      TargetRefused: the peer refused the request, or could not fulfil it.
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
