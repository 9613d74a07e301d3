"""What the signal channels of a node receive, until somebody takes it.

Every channel has a bounded queue of its own, and they take turns: whoever floods one takes nothing from the others.
De-duplication is not done here: the same message comes in by several servers as different or equal bytes, and only its
id, inside the seal, tells (`warpgate_trio.signal.Inbox`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import trio

from ..errors import SignalUnavailable
from .slot import Slot

__all__ = ["Arrivals", "Incoming"]

MAX_WAITING: Final = 64
"""Payloads of one channel that wait for `receive`; 1 MiB at most."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A payload that came in, still sealed; `via` names the channel, for the reply's `SignalHub.send`."""

    payload: bytes
    via: str


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

    def put(self, slot: Slot, payload: bytes) -> None:
        """A channel has received something."""
        slot.touch()
        if not self._is_worth_a_place(payload):
            return
        if len(slot.waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        slot.waiting.append(payload)
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
        payload = slot.waiting.popleft()
        if slot.waiting:
            self._turns.append(slot)
        elif not self._turns and not self._ended:
            self._arrived = trio.Event()
        return Incoming(payload, slot.key)

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._arrived.set()
