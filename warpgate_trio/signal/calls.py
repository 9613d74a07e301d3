"""By which of a node's servers peers can be called, and the circuit to do so."""

from __future__ import annotations

import trio

from ..config import ServerUrl
from .channel import Relays
from .circuits import Circuit, CircuitRefused
from .keeper import ChannelKeeper

__all__ = ["circuit_by", "relays_of"]


def relays_of(keeper: ChannelKeeper) -> dict[str, tuple[ServerUrl, Relays | None]]:
    """The node's own servers that carry circuits, by the names that `circuit_by` takes, and for whom each relays.

    None: that is not known, as it is not connected.
    """
    return {
        slot.key: (slot.url, None if slot.channel is None else slot.channel.relays)
        for slot in keeper.own
        if slot.url.scheme in ("ws", "wss")
    }


async def circuit_by(keeper: ChannelKeeper, server: str) -> Circuit:
    """A circuit to call a peer by, by one of the node's own servers (`ServerStatus.url`).

    Waits until that is connected; the caller bounds the time.

    Raises:
      CircuitRefused: there is no such server, it relays nothing, or there are too many circuits.
    """
    await trio.lowlevel.checkpoint()
    slot = next((slot for slot in keeper.own if slot.key == server), None)
    while slot is not None and not keeper.ended:
        if slot.channel is not None and slot.channel.relays is not None:
            return slot.channel.circuit()
        await keeper.wait_changed()
    raise CircuitRefused(server, None, "this node is not connected to it")
