"""Queues what the signal channels of a node receive.

Every channel has a bounded queue of its own, and the channels take turns: a flood on one takes nothing from the others.
Duplicates are not removed here: the same message may come by several servers, as equal or different bytes, and only the
id inside the seal identifies it (`warpgate_trio.signal.Inbox`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

import trio

from ..errors import SignalUnavailable
from .circuits import Incoming, Ringing

__all__ = ["Arrivals", "Incoming", "Inlet", "Source"]

MAX_WAITING: Final = 64
"""Payloads of one channel that wait for `receive`; 1 MiB at most."""


class Source(Protocol):
    """Where payloads come from: a channel, or the Links with peers.

    Attributes:
      key: its name, for replies.
      of_peer: a peer has chosen it.
      waiting: its payloads that wait for `receive`.
    """

    @property
    def key(self) -> str: ...
    @property
    def of_peer(self) -> bool: ...
    @property
    def waiting(self) -> deque[Incoming]: ...
    def touch(self) -> None:
        """A payload has come in by this source."""


@final
class Inlet:
    """A source that is no channel: all Links of a node, which share one turn.

    There may be thousands of Links.  With a turn for each they would crowd out the servers, by which peers without a
    Link send.
    """

    def __init__(self, key: str) -> None:
        self.key: Final = key
        self.of_peer: Final = True
        self.waiting: Final[deque[Incoming]] = deque()

    def touch(self) -> None:
        """Does nothing."""


@final
class Arrivals:
    """See the module's page.

    Args:
      is_worth_a_place: a cheap check of a received payload: whether it is to be queued.

    Attributes:
      dropped: payloads that were dropped because `MAX_WAITING` of their channel waited.
    """

    def __init__(self, is_worth_a_place: Callable[[bytes], bool]) -> None:
        self._is_worth_a_place = is_worth_a_place
        self._turns: deque[Source] = deque()  # those with payloads, each once
        self._arrived = trio.Event()
        self._ended = False
        self.dropped: int = 0

    def put(self, source: Source, arrival: bytes | Ringing) -> None:
        """Queue what a channel has received.

        A call that finds no room is refused.  So is a call by a peer's server, because our connection there is not kept
        open.
        """
        source.touch()
        payload, circuit = (arrival.payload, arrival.circuit) if isinstance(arrival, Ringing) else (arrival, None)
        is_worth_a_place = self._is_worth_a_place(payload) and (circuit is None or not source.of_peer)
        if not is_worth_a_place or len(source.waiting) >= MAX_WAITING:
            self.dropped += is_worth_a_place
            if circuit is not None:
                circuit.close()
            return
        source.waiting.append(Incoming(payload, source.key, circuit))
        if len(source.waiting) == 1:
            self._turns.append(source)
            self._arrived.set()

    async def receive(self) -> Incoming:
        """The next payload.  Cancelled: nothing is lost.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._turns:
            if self._ended:
                raise SignalUnavailable("the signal hub has ended")
            await self._arrived.wait()
        source = self._turns.popleft()
        incoming = source.waiting.popleft()
        if source.waiting:
            self._turns.append(source)
        elif not self._turns and not self._ended:
            self._arrived = trio.Event()
        return incoming

    def end(self) -> None:
        """No more payloads will come: `receive` returns those that wait, then raises."""
        self._ended = True
        self._arrived.set()
