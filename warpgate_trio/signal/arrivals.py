"""What the signal channels of a node receive, until somebody takes it.

Every channel has a bounded queue of its own, and they take turns: whoever floods one takes nothing from the others.
De-duplication is not done here: the same message comes in by several servers as different or equal bytes, and only its
id, inside the seal, tells (`warpgate_trio.signal.Inbox`).
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
    """What payloads come in by: a channel, or the Links with peers.

    Attributes:
      key: its name, for replies.
      of_peer: a peer has chosen it.
      waiting: what came in by it and nobody has taken yet.
    """

    @property
    def key(self) -> str: ...
    @property
    def of_peer(self) -> bool: ...
    @property
    def waiting(self) -> deque[Incoming]: ...
    def touch(self) -> None:
        """Something has come in by it."""


@final
class Inlet:
    """A source that is no channel: all Links of a node, which have one turn together.

    There may be thousands of them, and what comes by servers is of who has no Link yet.
    """

    def __init__(self, key: str) -> None:
        self.key: Final = key
        self.of_peer: Final = True
        self.waiting: Final[deque[Incoming]] = deque()

    def touch(self) -> None:
        """Nothing."""


@final
class Arrivals:
    """See the module's page.

    Args:
      is_worth_a_place: whether a payload that came in is to be queued, told at a glance.

    Attributes:
      dropped: payloads that came in while as many as may of their channel waited.
    """

    def __init__(self, is_worth_a_place: Callable[[bytes], bool]) -> None:
        self._is_worth_a_place = is_worth_a_place
        self._turns: deque[Source] = deque()  # those with payloads, each once
        self._arrived = trio.Event()
        self._ended = False
        self.dropped: int = 0

    def put(self, source: Source, arrival: bytes | Ringing) -> None:
        """A channel has received something.

        A call that finds no place is refused; so is one by a peer's server, where our connection does not stay.
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
        """Nothing more will come."""
        self._ended = True
        self._arrived.set()
