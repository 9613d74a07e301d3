"""`KeyRecord`: what signal servers tell those who know a node's peer id, so that they can ask it for its address.

It holds nothing that is secret from the servers: the key that signals are sealed to, the servers at which the node
receives signals, and the instance (which process that is).  It has no endpoints and is no address.  The peer itself
sends its address, to those whom it admits.

    version u8 = 1 | Ed25519 public key, 32 | signature, 64 | body
    body = msgpack array [sealing key, issued_ms, expires_at, [signal URL...], instance]

The signature, context ``warpgate-trio key record v1``, is over version, key and body.  Later releases append fields.

Of two records of one key, the one with the higher `issued_ms` is newer.  A server that returns an older record than one
seen before has been restored from a backup, or lies.  A `KeyRecord` object always is an authentic record of the key
that was asked for, whatever the source.  It is used to send the peer a question that only the owner of the key can read
and answer.
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
"""Bytes of a key record: four server URLs take 300, and a server keeps one record for each of its clients."""
KEY_RECORD_LIFETIME: Final = 7 * 86_400
"""Seconds for which a record is valid, as long as an address is: a running node issues a new one before that."""
AHEAD: Final = 86_400
"""Seconds that the issuer's clock may be ahead of ours: a wrong day or time zone does not make a record false."""
MAX_URLS: Final = 8
"""Signal servers in a record, as many as in an address."""
INSTANCE_LENGTH: Final = 8  # bytes that identify one process among all that have the same key

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
    """What is needed to send a peer a signal: both a `PeerAddress` and a `KeyRecord` have it."""

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
    """A key record, made by `issue` or `from_bytes`: always authentic and within its limits.

    Two records are equal when their bytes are.

    Attributes:
      public_key, peer_id: the owner's Ed25519 key, and the same as a peer id.
      sealing_key: the X25519 key that messages to the peer are sealed to.
      issued_ms: Unix milliseconds on the issuer's clock; of two records, the higher is newer.
      expires_at: Unix seconds on the same clock.
      signals: URLs of the servers through which the peer receives signals.
      instance: 8 bytes that identify the process which published it.
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
        # Not public, and the only way in: the caller has checked the size, version and signature of `_record`.
        try:
            body = _decode_body(_record[_BODY_START:])
        # msgspec documents only the first.  It also lets errors of UTF-8 through, and RecursionError for deep nesting.
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
        """Sign a record for `identity`; the last servers are left out where the record would be too long.

        Args:
          issued_ms: Unix milliseconds; the record expires `KEY_RECORD_LIFETIME` later.
        """
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
        """Check and read what is claimed to be the record of a key.

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
        """Raise unless `now`, in Unix seconds, lies within the record's validity, and no newer record was seen.

        Args:
          seen: the highest `issued_ms` seen so far for this key.
          leeway: seconds for which the record is accepted after it has expired.

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

    # -- the rest of `Recipient`: a process that can be called, on a host of which nothing is known --------------------

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Empty: a key record lists none."""
        return ()

    @property
    def listens(self) -> bool:
        """True: a process that does not listen publishes no key record."""
        return True

    def is_same_host(self, host: Host) -> bool:
        """False: a key record does not say, so the peer is treated as on another host."""
        return False

    def __repr__(self) -> str:
        return f"<KeyRecord {self.peer_id} issued_ms={self.issued_ms} signals={len(self.signals)}>"
