"""Pipes that the peer opens on a Link: whether it may, and who takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import trio

from .channel import Channel
from .frames import RefuseReason
from .pipe import Pipe
from .protocol import LinkProtocol

__all__ = ["OpenHandler", "Openings", "refuse_all"]

OpenHandler = Callable[[Pipe], RefuseReason | None]
"""Takes a Pipe that the peer opened; a reason instead of None refuses it."""


def refuse_all(_pipe: Pipe) -> RefuseReason:
    """The `OpenHandler` of a node that does not listen."""
    return RefuseReason.NOT_ACCEPTING


@final
class Openings:
    """The Pipes that the peer opens on one Link.

    Args:
      make, drop: make the Pipe of a channel, and forget a Pipe that was refused.

    Attributes:
      take: the handler that takes a Pipe or refuses it.
      admitted: whether the peer may open Pipes; None while that is not decided.
      over: no more Pipes are taken.
    """

    def __init__(
        self, protocol: LinkProtocol, *, make: Callable[[Channel], Pipe], drop: Callable[[Channel], object]
    ) -> None:
        self._protocol: Final = protocol
        self._make: Final = make
        self._drop: Final = drop
        self._first: Final = trio.Event()
        self.take: OpenHandler = refuse_all
        self.admitted: bool | None = None
        self.over: bool = False

    async def wait_first(self) -> None:
        """Wait until the peer opens a Pipe while `admitted` is None."""
        await self._first.wait()

    def answer(self) -> None:
        """Answer the OPENs that wait.  Until `admitted` is set they stay in the protocol, which bounds their number."""
        if self.admitted is None:
            if self._protocol.channels.opened:
                self._first.set()
            return
        for opened in self._protocol.take_opened():
            self.answer_one(opened.channel)

    def answer_one(self, channel: Channel) -> None:
        """Take or refuse one Pipe."""
        if self.over:
            reason: RefuseReason | None = RefuseReason.NOT_ACCEPTING
        elif not self.admitted:
            reason = RefuseReason.UNAUTHORIZED
        else:
            reason = self.take(self._make(channel))
        if reason is None:
            self._protocol.accept_channel(channel)
        else:
            self._drop(channel)
            channel.closed_here = True
            self._protocol.refuse_channel(channel, reason)
