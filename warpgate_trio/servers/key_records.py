"""The key records that a rendezvous server keeps, and tells who asks for one by its key.  No I/O.

A record is kept for as long as the connection is registered that published it: who has left can be asked nothing.
Where several processes of one key have published one, the newest is told.  Records are what they say, signed by the key
of the connection, so that the server keeps nothing for anybody else; whoever is told one checks it again.

Lookups are bounded by who asks, as far as an address tells: by a connection, and by its address, its network and its
customer's network together (`limits.SubscriberRates`).  Keys cannot be guessed, so what is bounded is how closely
somebody can watch for keys that he knows, and what it costs.
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
"""Lookups a second of one IPv4 address or IPv6 /64, sustained; of a network around it four times as many.  Who opens a
contact asks once."""
LOOKUP_BURST: Final = 64
"""Lookups of one address at once: a program that starts, with that many contacts."""
REMEMBERED: Final = 16_384
"""Addresses and networks whose lookups are counted, as many as there are connections."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecordStatistics:
    """A count of what a server keeps of keys now (first one), and what was asked so far."""

    records: int
    lookups: int
    limited: int


@final
class KeyRecords:
    """See the module's page."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, dict[ServerConnection, KeyRecord]] = {}
        self._rates = SubscriberRates(LOOKUPS_PER_SECOND, LOOKUP_BURST, REMEMBERED)
        self._lookups = 0
        self._limited = 0

    def __len__(self) -> int:
        """Keys of which there is a record."""
        return len(self._by_key)

    def statistics(self) -> KeyRecordStatistics:
        """What is kept now, and was asked so far."""
        return KeyRecordStatistics(records=len(self), lookups=self._lookups, limited=self._limited)

    def receive(self, connection: ServerConnection, frame: Publish | Lookup, now: float) -> bytes:
        """The answer to a frame of a registered connection."""
        if isinstance(frame, Publish):
            return Published(self._publish(connection, frame)).encode()
        return self._look_up(connection, frame, now).encode()

    def left(self, connection: ServerConnection) -> None:
        """A connection is registered no more."""
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
