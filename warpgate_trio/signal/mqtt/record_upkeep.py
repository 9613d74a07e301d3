"""When a node publishes its key record at a broker: at once, and again if somebody else has published at its topic.

No I/O.  Any client that may publish at a broker may overwrite or clear a retained message.  The node subscribes to its
topic, so it notices that, and publishes again, at a bounded rate.  An attacker who keeps overwriting the record can
hide it, as by a flood, but makes the node send no more than a record now and then.  A subscriber cannot tell whether a
message was published as retained, so the node reacts to any message at its topic.  One such message is the question
that a look-up publishes there after it has found nothing.

Another process of the key may have a record as well.  The newest one stays: a process that receives a newer record of
its own key leaves it alone until it is cleared.  A record that is newer by more than the interval at which a node
issues new ones is from the future, or from a time when a clock was wrong; it is treated like any other message.
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
"""Seconds between two republications, sustained.  Each costs 1,100 bytes; an attacker who hides a node permanently has
to send one message in each such period."""
AGAIN_BURST: Final = 4
"""Republications at once: dead connections of ours that the broker still considers alive clear the record when they
end."""
_NEWER_MS: Final = KEY_RECORD_LIFETIME * 1000 // 2  # milliseconds after which a node issues a new record


@final
class RecordUpkeep:
    """See the module's page.  `topic` is our own; times are in seconds of a monotonic clock."""

    def __init__(self, topic: KeyTopic) -> None:
        self._topic = topic
        self._record: KeyRecord | None = None
        self._newer: bytes | None = None
        self._again = TokenBucket(1 / AGAIN_PERIOD, AGAIN_BURST)
        self.deadline: float = math.inf
        """When `transmit` returns a record next; infinity: not before `publish` or `receive` is called."""

    def publish(self, record: bytes, now: float) -> None:
        """Set our record, which is due at once."""
        self._record = KeyRecord.from_bytes(record, of=self._topic.public_key)
        self._newer = None
        self.deadline = now

    def receive(self, published: bytes, now: float) -> None:
        """Take a message at our topic, published by us or by somebody else; an empty one clears it."""
        if self._record is None or self.deadline < math.inf:
            return  # the record will be published soon in any case
        if not self.is_good(self._topic.open(published)):
            self._again.earn(now)
            self.deadline = now + self._again.seconds_until(now)
            self._again.spend(1)

    def transmit(self, now: float) -> bytes | None:
        """The record that is to be published now, or None."""
        if self._record is None or now < self.deadline:
            return None
        self.deadline = math.inf
        return self._record.to_bytes()

    def is_good(self, record: bytes | None) -> bool:
        """Whether `record` is our record, or a newer one of another process of our key."""
        if record is None or self._record is None:
            return False
        if record in (self._record.to_bytes(), self._newer):
            return True  # a flood of known records costs no verification
        try:
            heard = KeyRecord.from_bytes(record, of=self._topic.public_key)
        except KeyRecordError:
            return False
        if not 0 < heard.issued_ms - self._record.issued_ms < _NEWER_MS:
            return False
        self._newer = record
        return True
