"""The key records that a rendezvous server stores, and their lookup by key.  No I/O.

A record is stored as long as the connection that published it is registered, since a node that has left cannot be
called.  If several processes of one key have published records, a lookup returns the newest one.  The server accepts
only records signed by the key of the connection, so nobody can store anything for another key.  Clients that receive a
record verify it again.

Lookups are limited per connection, and per address and the networks around it (`limits.SubscriberRates`).  Keys cannot
be guessed, so the limits bound the server's work, and how closely somebody can watch keys that he knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from ..address import KeyRecord
from ..errors import KeyRecordError
from ..limits import SubscriberRates
from .key_record_frames import FindStatus, Found, Lookup, Publish, Published, PublishStatus
from .server_connection import ServerConnection

__all__ = ["LOOKUPS_PER_SECOND", "LOOKUP_BURST", "KeyRecordStatistics", "KeyRecords"]

LOOKUPS_PER_SECOND: Final = 1.0
"""Lookups per second of one IPv4 address or IPv6 /64, sustained; each wider network may make four times as many as the
one within it.  Opening a contact takes one."""
LOOKUP_BURST: Final = 64
"""Lookups of one address at once, for a program that starts with that many contacts."""
REMEMBERED: Final = 16_384
"""Addresses and networks whose lookups are counted, as many as there may be connections."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecordStatistics:
    """Counts of the keys with a record now (the first one), and of lookups so far."""

    records: int
    lookups: int
    limited: int


@final
class KeyRecords:
    """All key records of one server; see the module's docstring."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, dict[ServerConnection, KeyRecord]] = {}
        self._rates = SubscriberRates(LOOKUPS_PER_SECOND, LOOKUP_BURST, REMEMBERED)
        self._lookups = 0
        self._limited = 0

    def __len__(self) -> int:
        """The number of keys with a record."""
        return len(self._by_key)

    def statistics(self) -> KeyRecordStatistics:
        """See `KeyRecordStatistics`."""
        return KeyRecordStatistics(records=len(self), lookups=self._lookups, limited=self._limited)

    def receive(self, connection: ServerConnection, frame: Publish | Lookup, now: float) -> bytes:
        """The answer to a frame of a registered connection."""
        if isinstance(frame, Publish):
            return Published(self._publish(connection, frame)).encode()
        return self._look_up(connection, frame, now).encode()

    def left(self, connection: ServerConnection) -> None:
        """A connection is no longer registered: forget its record."""
        if connection.key is None:
            return
        records = self._by_key.get(connection.key, {})
        if records.pop(connection, None) is not None and not records:
            del self._by_key[connection.key]

    def _publish(self, connection: ServerConnection, frame: Publish) -> PublishStatus:
        assert connection.key is not None
        try:
            record = KeyRecord.from_bytes(frame.record, of=connection.key)
        except KeyRecordError:
            return PublishStatus.NOT_TAKEN
        self._by_key.setdefault(connection.key, {})[connection] = record
        return PublishStatus.KEPT

    def _look_up(self, connection: ServerConnection, frame: Lookup, now: float) -> Found:
        if not self._rates.take(connection.host, now):
            self._limited += 1
            return Found(frame.id, FindStatus.TOO_MANY)
        self._lookups += 1
        records = self._by_key.get(frame.key)
        if not records:
            return Found(frame.id, FindStatus.NOBODY)
        newest = max(records.values(), key=lambda record: record.issued_ms)
        return Found(frame.id, FindStatus.RECORD, newest.to_bytes())
