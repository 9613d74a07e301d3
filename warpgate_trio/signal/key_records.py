"""Key records at a node's servers: ours is published at each; a peer's is looked up at all of them at once.

A rendezvous server announces that it keeps key records; one of an older release does not.  A broker retains them
(`signal.mqtt.records`).  A server's answer is passed on unverified; `node.finding` judges it.
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
    """One server's answer about a key; if `outcome` is RECORD, `record` is the record, not verified yet."""

    server: str
    outcome: LookupOutcome
    record: bytes = b""


def publish(slots: Sequence[Slot], record: Callable[[], bytes] | None) -> None:
    """Publish our record at those of the servers that are connected; None: do nothing."""
    if record is None:
        return
    for slot in slots:
        if slot.channel is not None and slot.connected:
            slot.channel.records.publish(record())


async def wait_published(slots: Sequence[Slot]) -> None:
    """Return once it is known of each connected server whether it keeps our record; the caller bounds the time."""
    await trio.lowlevel.checkpoint()
    for records in [slot.channel.records for slot in slots if slot.channel is not None and slot.connected]:
        await records.wait_published()


async def look_up(slots: Sequence[Slot], key: bytes, *, patience: float) -> list[Answer]:
    """Ask each of the servers for the record of a key; SILENT for those without an answer in `patience` seconds."""
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
