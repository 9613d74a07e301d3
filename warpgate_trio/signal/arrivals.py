"""What the signal channels of a node receive, until somebody takes it.

Every channel has a bounded queue of its own, and they take turns: whoever floods one takes nothing from the others.
De-duplication is not done here: the same message comes in by several servers as different or equal bytes, and only its
id, inside the seal, tells (`warpgate_trio.signal.Inbox`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, final

import trio

from ..errors import SignalUnavailable
from .circuits import Incoming, Ringing
from .slot import Slot

__all__ = ["Arrivals", "Incoming"]

MAX_WAITING: Final = 64
"""Payloads of one channel that wait for `receive`; 1 MiB at most."""


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
        self._turns: deque[Slot] = deque()  # those with payloads, each once
        self._arrived = trio.Event()
        self._ended = False
        self.dropped: int = 0

    def put(self, slot: Slot, arrival: bytes | Ringing) -> None:
        """A channel has received something.

        A call that finds no place is refused; so is one by a peer's server, where our connection does not stay.
        """
        slot.touch()
        payload, circuit = (arrival.payload, arrival.circuit) if isinstance(arrival, Ringing) else (arrival, None)
        is_worth_a_place = self._is_worth_a_place(payload) and (circuit is None or not slot.of_peer)
        if not is_worth_a_place or len(slot.waiting) >= MAX_WAITING:
            self.dropped += is_worth_a_place
            if circuit is not None:
                circuit.close()
            return
        slot.waiting.append(Incoming(payload, slot.key, circuit))
        if len(slot.waiting) == 1:
            self._turns.append(slot)
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
        slot = self._turns.popleft()
        incoming = slot.waiting.popleft()
        if slot.waiting:
            self._turns.append(slot)
        elif not self._turns and not self._ended:
            self._arrived = trio.Event()
        return incoming

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._arrived.set()
