"""Which of a node's servers peers can be called by, and the circuit for a call.

A server may refuse to relay, end circuits before any bytes came by them, or not answer.  For a while such a server is
used only after the others; later it is tried beside them (`warpgate_trio.standing`).
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
"""Seconds from the first connection attempt for which a server is preferred as if it were connected: which of several
servers connects first is to decide nothing."""
SILENT_TRIPS: Final = 3
"""Round trips to a server after which an abandoned call shows that the server is silent; an answer takes two if the
peer is as far from the server as we are."""
SILENT_FOR: Final = 0.2
"""Seconds added to `SILENT_TRIPS`: less than it takes to call by another server as well and get its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayingServer:
    """A server of ours that may carry circuits.

    Attributes:
      relays: for whom it relays; None: that is not known.
      standing: FAILED if it failed lately or is not connected; see `Standing`.
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
    """A new circuit to call a peer, relayed by one of the node's own servers.

    Waits until the server is connected, or is being connected to and calls may go ahead; the caller bounds the time.

    Args:
      server: its `ServerStatus.url`.

    Raises:
      CircuitRefused: there is no such server, it does not relay, or there are too many circuits.
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
    """Records how one server performs in one call: a `Judge`."""

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
