"""`KeyRecord`: what a node lets its signal servers tell whoever knows its peer id, so that it can be asked where it is.

It holds what is no secret of theirs: the key that signals are sealed to, the servers at which the node hears them, and
which of its processes that is.  It has no endpoint and is no address: a peer tells where it is itself, to whom it lets
in.

    version u8 = 1 | Ed25519 public key, 32 | signature, 64 | body
    body = msgpack array [sealing key, issued_ms, expires_at, [signal URL...], instance]

The signature, context ``warpgate-trio key record v1``, is over version, key and body.  Later releases append fields.

Of two records of a key the one with the higher `issued_ms` is the newer: a server that shows an older one than was seen
before has been put back, or lies.  Whoever it comes from, nothing but a record of the key that was asked for exists as
an object; what it leads to is a question that the owner of the key alone can read and answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Protocol, final

import msgspec

from ..errors import KeyRecordError
from ..identity import KEY_LENGTH, SIGNATURE_LENGTH, Identity, peer_id_from_key, verify
from ..report import LookupOutcome
from .endpoint import LATEST

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["KEY_RECORD_LIFETIME", "MAX_KEY_RECORD", "KeyRecord", "Recipient"]

MAX_KEY_RECORD: Final = 1024
"""Bytes of a key record: four URLs of servers take 300, and a server keeps one for each of its clients."""
KEY_RECORD_LIFETIME: Final = 7 * 86_400
"""Seconds for which a record is good, as long as an address is: a node that is there issues another one before."""
AHEAD: Final = 86_400
"""Seconds that the clock of who issued a record may be ahead of ours: a wrong day, or time zone, is no lie."""
MAX_URLS: Final = 8
"""Signal servers in a record, as many as an address has."""
INSTANCE_LENGTH: Final = 8  # bytes that name one process among all that have the same key

_VERSION: Final = 1
_CONTEXT: Final = b"warpgate-trio key record v1"
_BODY_START: Final = 1 + KEY_LENGTH + SIGNATURE_LENGTH

_Url = Annotated[str, msgspec.Meta(max_length=256, pattern="^[!-~]+\\Z")]


class _Body(msgspec.Struct, frozen=True, array_like=True):
    sealing_key: Annotated[bytes, msgspec.Meta(min_length=KEY_LENGTH, max_length=KEY_LENGTH)]
    issued_ms: Annotated[int, msgspec.Meta(ge=0, le=LATEST * 1000)]
    expires_at: Annotated[int, msgspec.Meta(ge=0, le=LATEST)]
    signals: Annotated[tuple[_Url, ...], msgspec.Meta(max_length=MAX_URLS)]
    instance: Annotated[bytes, msgspec.Meta(min_length=INSTANCE_LENGTH, max_length=INSTANCE_LENGTH)]


_decode_body = msgspec.msgpack.Decoder(_Body).decode


class Recipient(Protocol):
    """What it takes to say something to a peer by signal: its address has that, and so has its key record."""

    @property
    def public_key(self) -> bytes: ...
    @property
    def peer_id(self) -> str: ...
    @property
    def sealing_key(self) -> bytes: ...
    @property
    def signals(self) -> tuple[str, ...]: ...
    @property
    def instance(self) -> bytes | None: ...
    @property
    def capabilities(self) -> tuple[str, ...]: ...
    @property
    def listens(self) -> bool: ...

    def is_same_host(self, host: Host) -> bool: ...


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class KeyRecord:
    """A key record; made by `issue` and `from_bytes`.  Authentic and within its limits; equal when its bytes are.

    Attributes:
      public_key, peer_id: whose it is.
      sealing_key: the X25519 key that messages to the peer are sealed to.
      issued_ms: Unix milliseconds on the issuer's clock; of two records the higher is the newer.
      expires_at: Unix seconds on the same clock.
      signals: URLs of the servers through which the peer hears signals.
      instance: the process that published it.
    """

    _record: bytes
    public_key: bytes = field(compare=False)
    peer_id: str = field(compare=False)
    sealing_key: bytes = field(compare=False)
    issued_ms: int = field(compare=False)
    expires_at: int = field(compare=False)
    signals: tuple[str, ...] = field(compare=False)
    instance: bytes = field(compare=False)

    def __init__(self, *, _record: bytes) -> None:
        # Not public, and the only way in: `_record` is within its size, of our version and of a good signature.
        try:
            body = _decode_body(_record[_BODY_START:])
        # Two more than msgspec documents: it lets the UTF-8 decoder's error through, and nesting ends in this one.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise KeyRecordError(
                LookupOutcome.MALFORMED, f"the body of the key record does not follow the format: {error}"
            ) from error
        key = _record[1 : 1 + KEY_LENGTH]
        values = msgspec.structs.asdict(body)
        for name, value in (values | {"_record": _record, "public_key": key, "peer_id": peer_id_from_key(key)}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def issue(cls, identity: Identity, *, issued_ms: int, signals: Iterable[str], instance: bytes) -> KeyRecord:
        """Sign a record of one's own, without the last of the servers where they are too long together."""
        urls = tuple(signals)[:MAX_URLS]
        while True:
            fields = (identity.sealing_key, issued_ms, issued_ms // 1000 + KEY_RECORD_LIFETIME, urls, instance)
            body = msgspec.msgpack.encode(fields)
            head = bytes([_VERSION]) + identity.public_key
            record = head + identity.sign(_CONTEXT, head + body) + body
            if len(record) <= MAX_KEY_RECORD:
                return cls(_record=record)
            urls = urls[:-1]

    @classmethod
    def from_bytes(cls, data: bytes, *, of: bytes) -> KeyRecord:
        """Check and read what somebody says is the record of a key.

        Args:
          of: the Ed25519 key that was asked for.

        Raises:
          KeyRecordError: its `flaw` is MALFORMED, UNKNOWN_VERSION, OTHER_KEY or FORGED.
        """
        if len(data) > MAX_KEY_RECORD or not data:
            raise KeyRecordError(
                LookupOutcome.MALFORMED, f"a key record has 1 to {MAX_KEY_RECORD} bytes, not {len(data)}"
            )
        if data[0] != _VERSION:
            raise KeyRecordError(
                LookupOutcome.UNKNOWN_VERSION, f"a key record of version {data[0]}; this release reads {_VERSION}"
            )
        if len(data) <= _BODY_START:
            raise KeyRecordError(LookupOutcome.MALFORMED, f"a key record that ends after {len(data)} bytes")
        record = bytes(data)
        key = record[1 : 1 + KEY_LENGTH]
        if key != of:
            raise KeyRecordError(LookupOutcome.OTHER_KEY, "the record of another key than the one that was asked for")
        if not verify(
            key, record[1 + KEY_LENGTH : _BODY_START], _CONTEXT, record[: 1 + KEY_LENGTH] + record[_BODY_START:]
        ):
            raise KeyRecordError(LookupOutcome.FORGED, "a key record that is not signed by its key")
        return cls(_record=record)

    def to_bytes(self) -> bytes:
        """The record, exactly as it was signed."""
        return self._record

    def check_fresh(self, now: float, *, seen: int = 0, leeway: float = 300.0) -> None:
        """Raise unless `now`, in Unix seconds, lies within the record's time, and no newer one was seen.

        Args:
          seen: the highest `issued_ms` of this key that was seen.
          leeway: seconds that are granted at the end.

        Raises:
          KeyRecordError: its `flaw` is EXPIRED, NOT_YET_VALID or ROLLED_BACK.
        """
        if self.issued_ms < seen:
            raise KeyRecordError(LookupOutcome.ROLLED_BACK, "an older record than one that was seen before")
        if now >= self.expires_at + leeway:
            raise KeyRecordError(LookupOutcome.EXPIRED, f"a record that expired {now - self.expires_at:.0f} s ago")
        if now < self.issued_ms / 1000 - AHEAD:
            early = self.issued_ms / 1000 - now
            raise KeyRecordError(LookupOutcome.NOT_YET_VALID, f"a record from {early:.0f} s in the future")

    # -- what else a `Recipient` has: a process that can be called, on a machine that nothing is known of -------------

    @property
    def capabilities(self) -> tuple[str, ...]:
        """None that are known."""
        return ()

    @property
    def listens(self) -> bool:
        """It does: who does not has no record."""
        return True

    def is_same_host(self, host: Host) -> bool:
        """It does not say so; what it names is judged as on another machine."""
        return False

    def __repr__(self) -> str:
        return f"<KeyRecord {self.peer_id} issued_ms={self.issued_ms} signals={len(self.signals)}>"
