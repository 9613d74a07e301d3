"""The trace of a network: a hash over all events of packets, and the latest events for display.

Each entry is (time, node, event, packet, note).  The hash covers time, node, event, 5-tuple, flags and length.  It does
not cover payload bytes, which may contain keys that do not depend on the seed.  Entries are kept as objects and hashed
in batches, so that a packet costs one append.  The last entries stay in a ring for the packet ladder.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from functools import lru_cache
from typing import Final, NamedTuple, final

from .addr import Endpoint
from .packet import Packet

_BATCH: Final = 4096
_KEEP: Final = 2000  # entries for the ladder; a punch between two nodes with their servers takes some hundred


class Entry(NamedTuple):
    """One event of one packet at one node.  `became` is the packet after a NAT."""

    time: float
    node: str
    event: str  # "send", "receive", "drop", "out", "in", "hairpin", …
    packet: Packet
    note: str
    became: Packet | None


_FIXED: Final = struct.Struct("<dBBI")


@lru_cache(maxsize=1 << 14)
def _named(node: str, event: str, note: str, src: Endpoint, dst: Endpoint) -> bytes:
    """The part of an entry that repeats often, as bytes."""
    return f"{node} {event} {note} {src} {dst}\n".encode()


_Raw = tuple[float, str, str, Packet, str, Packet | None]


@final
class Trace:
    """The record of a network."""

    __slots__ = ("_batch", "_hash", "_ring", "count")

    def __init__(self) -> None:
        self._batch: list[_Raw] = []
        self._ring: deque[_Raw] = deque(maxlen=_KEEP)
        self._hash = hashlib.blake2b(digest_size=16)
        self.count: int = 0

    def add(
        self, time: float, node: str, event: str, packet: Packet, note: str = "", became: Packet | None = None
    ) -> None:
        """Record an event."""
        batch = self._batch
        batch.append((time, node, event, packet, note, became))
        if len(batch) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self.count += len(batch)
        pack = _FIXED.pack
        lines: list[bytes] = []
        for time, node, event, packet, note, became in batch:
            lines.append(pack(time, packet.proto, packet.flags, packet.size))
            lines.append(_named(node, event, note, packet.src, packet.dst))
            if became is not None:
                lines.append(_named("", "", "", became.src, became.dst))
        self._hash.update(b"".join(lines))
        self._ring.extend(batch)

    @property
    def total(self) -> int:
        """The number of entries so far."""
        return self.count + len(self._batch)

    def digest(self) -> str:
        """The hash over everything so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def latest(self) -> list[Entry]:
        """The last entries, oldest first."""
        self._flush()
        return [Entry._make(raw) for raw in self._ring]
