"""The key record of a node that can be called, which its servers show to everybody who knows its peer id."""

from __future__ import annotations

from typing import Final, NoReturn, final

import trio

from ..address import KEY_RECORD_LIFETIME, KeyRecord
from ..clock.corrected import CorrectedClock
from ..identity import Identity
from ..signal import SignalHub
from .own_address import OwnAddress

__all__ = ["RENEWAL", "OwnKeyRecord"]

RENEWAL: Final = KEY_RECORD_LIFETIME / 2
"""Seconds after which a new record is issued and published: half of a record's lifetime."""
PUT_RIGHT: Final = 300.0
"""Seconds that the clock may go back without a new record.  Further back, the clock was wrong before, and a record with
an earlier time is issued."""


@final
class OwnKeyRecord:
    """Issues the record and publishes it at each of the node's own servers."""

    def __init__(
        self, identity: Identity, own: OwnAddress, clock: CorrectedClock, hub: SignalHub, *, asks_time: bool
    ) -> None:
        self._identity = identity
        self._own = own
        self._clock = clock
        self._hub = hub
        self._asks_time = asks_time
        self._issued: KeyRecord | None = None

    def current(self) -> bytes:
        """The record; the same one while it is fresh."""
        now = max(int(self._clock.now() * 1000), 0)
        issued = self._issued
        if issued is None or not -PUT_RIGHT * 1000 <= now - issued.issued_ms < RENEWAL * 1000:
            self._issued = issued = KeyRecord.issue(
                self._identity, issued_ms=now, signals=self._own.current().signals, instance=self._hub.instance
            )
        return issued.to_bytes()

    async def run(self) -> NoReturn:
        """Publish a new record as the old one ages, and once NTP servers have shown that our clock was wrong."""
        if self._asks_time:
            await self._clock.wait_asked()
            before = self._issued
            self.current()
            if before is not None and self._issued is not before:
                self._hub.publish_key_record(self.current)
        while True:
            await trio.sleep(RENEWAL)
            self._hub.publish_key_record(self.current)
