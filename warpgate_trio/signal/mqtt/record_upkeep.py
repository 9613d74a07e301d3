"""When a node publishes its key record at a broker: at once, and again where somebody has put something else there.

No I/O.  Whoever may publish at a broker may overwrite what is retained, or clear it.  The node hears that, as it
subscribes to its topic, and publishes again, at a bounded rate: somebody who goes on for ever hides it, as he could by
flooding it, and gets no more out of it than a record now and then.  A node cannot tell what was retained from what was
only said, so it answers any word at its topic alike; one is a caller's question there, who has found nothing.

Another process of its key may have a record as well.  The newest stays: who hears a newer one of its own key is content
until that is cleared.  One that is newer by more than the time after which a node issues another one is from the
future, or from a time when a clock was wrong, and counts as anybody's.
"""

from __future__ import annotations

import math
from typing import Final, final

from ...address import KEY_RECORD_LIFETIME, KeyRecord
from ...errors import KeyRecordError
from ...limits import TokenBucket
from .key_topic import KeyTopic

__all__ = ["RecordUpkeep"]

AGAIN_PERIOD: Final = 10.0
"""Seconds for each time that a record is published again, sustained: 1,100 bytes, and what hides a node for good costs
its enemy a message in each."""
AGAIN_BURST: Final = 4
"""Times that it is published again at once: connections of ours that the broker still takes to be there clear it when
they end."""
_NEWER_MS: Final = KEY_RECORD_LIFETIME * 1000 // 2  # milliseconds after which a node issues another one


@final
class RecordUpkeep:
    """See the module's page; `topic`: our own.  Times are in seconds of any clock that does not jump."""

    def __init__(self, topic: KeyTopic) -> None:
        self._topic = topic
        self._record: KeyRecord | None = None
        self._newer: bytes | None = None
        self._again = TokenBucket(1 / AGAIN_PERIOD, AGAIN_BURST)
        self.deadline: float = math.inf
        """When `transmit` has something; infinity: not before somebody publishes."""

    def publish(self, record: bytes, now: float) -> None:
        """This is our record from now on."""
        self._record = KeyRecord.from_bytes(record, of=self._topic.public_key)
        self._newer = None
        self.deadline = now

    def receive(self, published: bytes, now: float) -> None:
        """Something was published at our topic, by us or by somebody else; empty: it was cleared."""
        if self._record is None or self.deadline < math.inf:
            return  # what is going to be published soon is not looked for
        if not self.is_good(self._topic.open(published)):
            self._again.earn(now)
            self.deadline = now + self._again.seconds_until(now)
            self._again.spend(1)

    def transmit(self, now: float) -> bytes | None:
        """The record that is to be published now; None: none is."""
        if self._record is None or now < self.deadline:
            return None
        self.deadline = math.inf
        return self._record.to_bytes()

    def is_good(self, record: bytes | None) -> bool:
        """Whether that is our record, or a newer one of another process of our key."""
        if record is None or self._record is None:
            return False
        if record in (self._record.to_bytes(), self._newer):
            return True  # a flood of what is good costs no signature
        try:
            heard = KeyRecord.from_bytes(record, of=self._topic.public_key)
        except KeyRecordError:
            return False
        if not 0 < heard.issued_ms - self._record.issued_ms < _NEWER_MS:
            return False
        self._newer = record
        return True
