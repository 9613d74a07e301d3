"""Key records at a node's servers: ours is published at each, a peer's is asked for at all of them at once.

A rendezvous server has either said that it keeps them or it is of an older release; a broker retains them
(`signal.mqtt.records`).  What a server says of a peer is passed on as it came: who asks judges it (`node.finding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import trio

from ..errors import SignalUnavailable
from ..nurseries import open_bare_nursery
from ..report import LookupOutcome
from .slot import Slot

__all__ = ["Answer", "look_up", "publish", "wait_published"]


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What one server says of a key: `record`, not judged yet, where `outcome` is RECORD."""

    server: str
    outcome: LookupOutcome
    record: bytes = b""


def publish(slots: Sequence[Slot], record: Callable[[], bytes] | None) -> None:
    """Publish our record at each of some servers that are connected."""
    if record is None:
        return
    for slot in slots:
        if slot.channel is not None and slot.connected:
            slot.channel.records.publish(record())


async def wait_published(slots: Sequence[Slot]) -> None:
    """Return once each server that is connected has said what became of our record; the caller bounds the time."""
    await trio.lowlevel.checkpoint()
    for records in [slot.channel.records for slot in slots if slot.channel is not None and slot.connected]:
        await records.wait_published()


async def look_up(slots: Sequence[Slot], key: bytes, *, patience: float) -> list[Answer]:
    """What each of some servers says of a key; SILENT of those that say nothing within `patience` seconds."""
    answers = [Answer(slot.key, LookupOutcome.SILENT) for slot in slots]

    async def ask(place: int, slot: Slot) -> None:
        channel = slot.channel
        if channel is None:
            return
        try:
            await channel.wait_registered()
            answers[place] = Answer(slot.key, *await channel.records.look_up(key))
        except SignalUnavailable:
            return

    with trio.move_on_after(patience):
        async with open_bare_nursery() as nursery:
            for place, slot in enumerate(slots):
                nursery.start_soon(partial(ask, place, slot))
    return answers
