"""By which of a node's servers peers can be called, and the circuit to do so.

A server that relays nothing when it is asked to, that ends circuits before anything came by them, or that says nothing,
is called by after the others for a while, later beside them (`warpgate_trio.standing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import trio

from ..config import ServerUrl
from ..standing import Standing, Standings
from .channel import Relays
from .circuits import Circuit, CircuitRefused
from .keeper import ChannelKeeper
from .slot import Slot

__all__ = ["RelayingServer", "circuit_by", "relays_of"]

CONNECTS_WITHIN: Final = 1.0
"""Seconds in which a server that was just begun with is as good as one that is connected: which of several is connected
first decides nothing."""
SILENT_TRIPS: Final = 3
"""Round trips to a server after which a call that was given up says that it is silent: an answer takes two where the
peer is as far from it."""
SILENT_FOR: Final = 0.2
"""Seconds beside them: less than it takes until another server is called by as well, and answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayingServer:
    """A server of ours that may carry circuits.

    Attributes:
      relays: for whom; None: that is not known.
      standing: whether it failed lately, or cannot be connected to.
    """

    url: ServerUrl
    relays: Relays | None
    standing: Standing


def relays_of(keeper: ChannelKeeper) -> dict[str, RelayingServer]:
    """The node's own servers that may carry circuits, by the names that `circuit_by` takes."""
    found: dict[str, RelayingServer] = {}
    for slot in keeper.own:
        if slot.url.scheme in ("ws", "wss"):
            relays = None if slot.channel is None else slot.channel.relays
            standing = keeper.standings.of(slot.key, trio.current_time())
            if relays is None and not slot.is_new(CONNECTS_WITHIN):
                standing = Standing.FAILED
            found[slot.key] = RelayingServer(url=slot.url, relays=relays, standing=standing)
    return found


async def circuit_by(keeper: ChannelKeeper, server: str) -> Circuit:
    """A circuit to call a peer by, by one of the node's own servers (`ServerStatus.url`).

    Waits until that is connected, or being connected to for the first time; the caller bounds the time.

    Raises:
      CircuitRefused: there is no such server, it relays nothing, or there are too many circuits.
    """
    await trio.lowlevel.checkpoint()
    slot = next((slot for slot in keeper.own if slot.key == server), None)
    while slot is not None and not keeper.ended:
        circuit = None
        if slot.opening is not None:
            circuit = slot.opening.make()
        elif slot.channel is not None and slot.channel.relays is not None:
            circuit = slot.channel.circuit()
        if circuit is not None:
            circuit.judge = _Judge(keeper.standings, slot)
            return circuit
        await keeper.wait_changed()
    raise CircuitRefused(server, None, "this node is not connected to it")


@final
class _Judge:
    """Of one server, by one call."""

    def __init__(self, standings: Standings[str], slot: Slot) -> None:
        self._standings = standings
        self._slot = slot

    def worked(self) -> None:
        self._standings.worked(self._slot.key)

    def failed(self) -> None:
        self._standings.failed(self._slot.key, trio.current_time())

    def gave_up(self, waited: float) -> None:
        channel = self._slot.channel
        if channel is not None and waited >= SILENT_TRIPS * (channel.rtt or 0.0) + SILENT_FOR:
            self.failed()
            channel.check()
