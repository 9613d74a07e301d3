"""The messages for pairing by an MQTT broker, which has no mailboxes, gives no numbers, and counts no tries.  No I/O.

A mailbox is a topic that is named by its nameplate; the offerer subscribes to it.  Each try is a topic below that; its
claimer subscribes to it:

    [<path of the URL>/]warpgate-trio/1/pair/<nameplate>
    [<path of the URL>/]warpgate-trio/1/pair/<nameplate>/<id, 16 hexadecimal digits>

A message is kind u8, id 8 and a payload.  The *id* is 8 random bytes.  It is that of the claimer, and identifies the
try, or that of an offerer that asks whether the number is free:

    1 PROBE   to the mailbox: an offerer that has it is to answer
    2 TAKEN   to the sender of PROBE, with its id
    3 CLAIM   to the mailbox: payload 1..4,096
    4 POST    to either side: payload 1..4,096
    5 SETTLE  to either side: outcome u8
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, final

from ..errors import RemoteProtocolError
from ..servers.mailbox_frames import MAX_POST

__all__ = ["ID_LENGTH", "MAX_PUBLISHED", "BrokerMessage", "Kind", "mailbox_topic", "try_topic"]

ID_LENGTH: Final = 8
_HEAD_LENGTH: Final = 1 + ID_LENGTH
MAX_PUBLISHED: Final = _HEAD_LENGTH + MAX_POST
"""Bytes in the longest message; a longer one is dropped before it is decoded."""


class Kind(enum.IntEnum):
    """The kind of a message; the module's page has their senders and receivers."""

    PROBE = 1
    TAKEN = 2
    CLAIM = 3
    POST = 4
    SETTLE = 5


_LENGTHS: Final = {
    Kind.PROBE: (0, 0),
    Kind.TAKEN: (0, 0),
    Kind.CLAIM: (1, MAX_POST),
    Kind.POST: (1, MAX_POST),
    Kind.SETTLE: (1, 1),
}
"""Bytes behind the head, at least and at most."""


@final
@dataclass(frozen=True, slots=True)
class BrokerMessage:
    """One message; `id` is that of the claimer, or of the offerer that has sent PROBE."""

    kind: Kind
    id: bytes
    payload: bytes = b""

    def encode(self) -> bytes:
        return struct.pack("!B8s", self.kind, self.id) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> BrokerMessage:
        """Decode a message; raises `RemoteProtocolError` if the bytes are not a pairing message."""
        if len(data) < _HEAD_LENGTH or data[0] not in _LENGTHS:
            raise RemoteProtocolError(f"not a pairing message: it begins with {data[:1].hex() or 'nothing'}")
        kind = Kind(data[0])
        least, most = _LENGTHS[kind]
        if not least <= len(data) - _HEAD_LENGTH <= most:
            raise RemoteProtocolError(
                f"a pairing message {kind.name} with a payload of {len(data) - _HEAD_LENGTH} bytes"
            )
        return cls(kind, data[1:_HEAD_LENGTH], data[_HEAD_LENGTH:])


def mailbox_topic(prefix: str, nameplate: int) -> str:
    """The topic of a mailbox; `prefix`: the prefix of all topics, empty or with "/" at its end."""
    return f"{prefix}warpgate-trio/1/pair/{nameplate}"


def try_topic(prefix: str, nameplate: int, try_id: bytes) -> str:
    """The topic at which a claimer, or an offerer that has sent PROBE, receives."""
    return f"{mailbox_topic(prefix, nameplate)}/{try_id.hex()}"
