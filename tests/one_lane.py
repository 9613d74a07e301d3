"""A sans-IO Link that stays on its first carrier."""

from __future__ import annotations

from typing import Any, final

from warpgate_trio.link.channel import Channel
from warpgate_trio.link.lane import LaneProtocol
from warpgate_trio.link.protocol import LinkProtocol


@final
class OneLane:
    """A Link with one lane: the carrier that it was made on."""

    def __init__(
        self, *, dialler: bool, initiator: bool | None, now: float, idle_interval: float, padded: bool = False
    ) -> None:
        self.lane = LaneProtocol(
            dialler=dialler, initiator=initiator, now=now, idle_interval=idle_interval, padded=padded
        )
        self.link = LinkProtocol(self.lane, initiator=initiator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link if hasattr(self.link, name) else self.lane, name)

    @property
    def has_outbox(self) -> bool:
        return self.link.has_outbox(self.lane)

    @property
    def deadline(self) -> float:
        return self.link.deadline(self.lane)

    def transmit(self, now: float) -> bytes:
        return self.link.transmit(self.lane, now)

    def receive(self, pieces: list[bytes], now: float) -> None:
        self.link.receive(self.lane, pieces, now)

    def handle_timer(self, now: float) -> None:
        self.link.handle_timer(self.lane, now)

    def note_data_sent(self, channel: Channel, data: memoryview, now: float) -> None:
        self.link.note_data_sent(self.lane, channel, data, now)
