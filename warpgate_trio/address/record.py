"""`PeerAddress`: the signed record in which a peer says where and how it can be reached, and its text form.

The binary form, in which a record is signed, carried in signals and compared::

    version u8 = 1 | Ed25519 public key, 32 | signature, 64 | body
    body = msgpack array [sealing key, seq, issued_at, expires_at, host salt, host id, [signal URL...],
                          [[interface index, [endpoint...]]...], nat or nil, [relay URL...], [capability...],
                          instance or nil, listens]
    endpoint = [transport, kind, address, prefix or nil, port, base or nil, observed_at or nil]

The signature, context ``warpgate-trio address v1``, is over version, key and body.  Later releases append fields: a
reader ignores trailing fields and skips endpoints whose transport or kind it does not know.  The record's bytes are
kept as received, so a reader passes on fields that it does not know.  Records of older releases lack the last two
fields.

The text form, for people to paste: ``wg1`` and, in base64url without padding, four bytes of checksum and the record.

Records come from strangers.  The size is limited before anything is parsed, and the signature is checked before the
body is read.  Whatever the input, only an `AddressError` is raised.  Every `PeerAddress` has passed these checks.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, final

import msgspec

from ..errors import (
    AddressExpired,
    AddressForged,
    AddressMalformed,
    AddressNotYetValid,
    AddressUnsupported,
)
from ..host import HOST_ID_LENGTH, HOST_SALT_LENGTH, host_id
from ..identity import KEY_LENGTH, SIGNATURE_LENGTH, Identity, peer_id_from_key, verify
from .endpoint import LATEST, MAX_INTERFACES, AddressInterface, Endpoint, EndpointKind, Transport, check_endpoint
from .nat_profile import NatProfiles

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["MAX_RECORD", "MAX_TEXT", "PeerAddress"]

MAX_RECORD: Final = 2048
"""Bytes of a record: it has to fit into a QR code, and several times into a signal."""
MAX_TEXT: Final = 2800
"""Characters of a record's text form: a record of `MAX_RECORD` bytes takes 2,739."""
MAX_ENDPOINTS: Final = 16
"""Endpoints of one interface: its own addresses, and those at which it is seen from outside."""
MAX_URLS: Final = 8
"""Signal servers named in one record, and as many relays."""
MAX_CAPABILITIES: Final = 16
"""Capabilities of one record; there are three at most today."""
MAX_NAT: Final = 512
"""Bytes of a NAT profile in a record."""
INSTANCE_LENGTH: Final = 8  # bytes that identify one process among all that have the same key

_VERSION: Final = 1
_CONTEXT: Final = b"warpgate-trio address v1"
_BODY_START: Final = 1 + KEY_LENGTH + SIGNATURE_LENGTH
_TEXT_PREFIX: Final = "wg1"
_CHECKSUM_LENGTH: Final = 4  # one typo in 4e9 slips through, and then the signature finds it
_TEXT = re.compile(r"wg1[A-Za-z0-9_-]*", re.ASCII)


# The body with its limits, for parsing.  URLs and capabilities are shown to people, so only printable ASCII is allowed.
_Moment = Annotated[int, msgspec.Meta(ge=0, le=LATEST)]
_Url = Annotated[str, msgspec.Meta(max_length=256, pattern="^[!-~]+\\Z")]
_Word = Annotated[str, msgspec.Meta(max_length=64, pattern="^[!-~]+\\Z")]
_Urls = Annotated[tuple[_Url, ...], msgspec.Meta(max_length=MAX_URLS)]


class _WireInterface(msgspec.Struct, frozen=True, array_like=True):
    index: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    endpoints: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(max_length=MAX_ENDPOINTS)]


class _Body(msgspec.Struct, frozen=True, array_like=True):
    sealing_key: Annotated[bytes, msgspec.Meta(min_length=KEY_LENGTH, max_length=KEY_LENGTH)]
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    issued_at: _Moment
    expires_at: _Moment
    host_salt: Annotated[bytes, msgspec.Meta(min_length=HOST_SALT_LENGTH, max_length=HOST_SALT_LENGTH)]
    host_id: Annotated[bytes, msgspec.Meta(min_length=HOST_ID_LENGTH, max_length=HOST_ID_LENGTH)]
    signals: _Urls
    interfaces: Annotated[tuple[_WireInterface, ...], msgspec.Meta(max_length=MAX_INTERFACES)]
    nat: Annotated[bytes, msgspec.Meta(max_length=MAX_NAT)] | None
    relays: _Urls
    capabilities: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=MAX_CAPABILITIES)]
    instance: Annotated[bytes, msgspec.Meta(min_length=INSTANCE_LENGTH, max_length=INSTANCE_LENGTH)] | None = None
    listens: bool = True


class _EndpointHead(msgspec.Struct, frozen=True, array_like=True):
    """The first fields of every endpoint, in all releases and for all transports and kinds."""

    transport: int
    kind: int


_decode_body = msgspec.msgpack.Decoder(_Body).decode
_decode_head = msgspec.msgpack.Decoder(_EndpointHead).decode
_decode_endpoint = msgspec.msgpack.Decoder(Endpoint).decode
_TRANSPORTS: Final = frozenset(int(each) for each in Transport)
_KINDS: Final = frozenset(int(each) for each in EndpointKind)


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class PeerAddress:
    """What a peer published about itself, signed with its node key.

    Made by `issue`, `from_bytes` and `from_text`, all of which check everything but the time (see `check_fresh`): an
    instance is always authentic and within its limits.  Immutable; equal when the bytes are equal.

    Attributes:
      public_key: the peer's Ed25519 key, 32 bytes.
      peer_id: the same key as a peer id.
      sealing_key: the X25519 key that messages to the peer are sealed to, 32 bytes.
      seq: grows with every record that the peer issues; of two records, the higher is newer.
      issued_at, expires_at: Unix seconds on the issuer's clock.
      host_salt, host_id: the peer's host, recognizable only to programs on the same host; see `is_same_host`.
      signals: URLs of the servers through which the peer receives signals, the preferred one first.
      interfaces: its interfaces with their endpoints.
      nat: the encoded NAT profile of the record, or None; `nat_profiles` reads it.
      relays: URLs of relays at which it can be met.
      capabilities: names of the extensions that it supports beyond the base protocol.
      instance: 8 bytes that identify the process which published it; None in the records of older releases.
      listens: whether that process can be called; True where the record does not say.
    """

    _record: bytes
    public_key: bytes = field(compare=False)
    peer_id: str = field(compare=False)
    sealing_key: bytes = field(compare=False)
    seq: int = field(compare=False)
    issued_at: int = field(compare=False)
    expires_at: int = field(compare=False)
    host_salt: bytes = field(compare=False)
    host_id: bytes = field(compare=False)
    signals: tuple[str, ...] = field(compare=False)
    interfaces: tuple[AddressInterface, ...] = field(compare=False)
    nat: bytes | None = field(compare=False)
    relays: tuple[str, ...] = field(compare=False)
    capabilities: tuple[str, ...] = field(compare=False)
    instance: bytes | None = field(compare=False)
    listens: bool = field(compare=False)

    def __init__(self, *, _record: bytes) -> None:
        # Not public, and the only way in: the caller has checked the size, version and signature of `_record`.
        body, interfaces = _parse_body(_record[_BODY_START:])
        key = _record[1 : 1 + KEY_LENGTH]
        values = msgspec.structs.asdict(body) | {
            "_record": _record,
            "public_key": key,
            "peer_id": peer_id_from_key(key),
            "interfaces": interfaces,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def issue(
        cls,
        identity: Identity,
        *,
        seq: int,
        issued_at: int,
        expires_at: int,
        host_salt: bytes,
        host_id: bytes,
        signals: Iterable[str] = (),
        interfaces: Iterable[AddressInterface] = (),
        nat: bytes | None = None,
        relays: Iterable[str] = (),
        capabilities: Iterable[str] = (),
        instance: bytes | None = None,
        listens: bool = True,
    ) -> PeerAddress:
        """Sign a record for `identity`.  Deterministic: the same values give the same bytes.

        Raises:
          AddressMalformed: a value is over its limit, so that a reader would refuse the record; a ValueError.
        """
        try:
            body = msgspec.msgpack.encode(
                (
                    identity.sealing_key,
                    seq,
                    issued_at,
                    expires_at,
                    host_salt,
                    host_id,
                    tuple(signals),
                    tuple(interfaces),
                    nat,
                    tuple(relays),
                    tuple(capabilities),
                    *(() if instance is None else (instance, listens)),
                )
            )
        except (OverflowError, UnicodeEncodeError) as error:  # more than 64 bits; half of a surrogate pair
            raise AddressMalformed(f"a value of the address cannot be written: {error}") from error
        head = bytes([_VERSION]) + identity.public_key
        record = head + identity.sign(_CONTEXT, head + body) + body
        if len(record) > MAX_RECORD:
            raise AddressMalformed(f"the address would have {len(record)} bytes, more than {MAX_RECORD}")
        return cls(_record=record)

    @classmethod
    def from_bytes(cls, data: bytes) -> PeerAddress:
        """Check and read a record, as `to_bytes` returns it.

        Raises:
          AddressMalformed: it is too long or too short, or the body does not follow the format.
          AddressUnsupported: the version is not known to this release.
          AddressForged: the signature is wrong.
        """
        if len(data) > MAX_RECORD:
            raise AddressMalformed(f"the address has {len(data)} bytes, more than {MAX_RECORD}")
        if not data:
            raise AddressMalformed("the address is empty")
        if data[0] != _VERSION:
            raise AddressUnsupported(f"the address is of version {data[0]}; this release reads version {_VERSION}")
        if len(data) <= _BODY_START:
            raise AddressMalformed(f"the address ends after {len(data)} bytes, before its body")
        record = bytes(data)
        key = record[1 : 1 + KEY_LENGTH]
        signature, body = record[1 + KEY_LENGTH : _BODY_START], record[_BODY_START:]
        if not verify(key, signature, _CONTEXT, record[: 1 + KEY_LENGTH] + body):
            raise AddressForged("the address is not signed by the peer that it names")
        return cls(_record=record)

    @classmethod
    def from_text(cls, text: str) -> PeerAddress:
        """Check and read the text form, as `str` returns it.  All white space is skipped: pasted text may be wrapped.

        Raises:
          AddressMalformed: the text is no address, or has a typo.
          AddressUnsupported: the text has another version.
          AddressError: as `from_bytes`.
        """
        if len(text) > 2 * MAX_TEXT:  # room for line breaks and indentation
            raise AddressMalformed(f"the text has {len(text)} characters, too many for an address")
        joined = "".join(text.split())
        if len(joined) > MAX_TEXT:
            raise AddressMalformed(f"the text has {len(joined)} characters, more than {MAX_TEXT}")
        if not joined.startswith(_TEXT_PREFIX):
            if re.match("wg[0-9]", joined):
                raise AddressUnsupported(f"the address starts with {joined[:3]!r}; this release reads {_TEXT_PREFIX!r}")
            raise AddressMalformed(f"an address starts with {_TEXT_PREFIX!r}; was it copied whole?")
        if not _TEXT.fullmatch(joined):
            raise AddressMalformed("the text has characters that no address has: letters, digits, '-' and '_' only")
        encoded = joined[len(_TEXT_PREFIX) :]
        try:
            payload = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except ValueError:  # a length that no encoding has
            payload = b""
        checksum, record = payload[:_CHECKSUM_LENGTH], payload[_CHECKSUM_LENGTH:]
        # The second comparison ensures that the unused last bits are zero, so that a record has exactly one text.
        if checksum != _checksum(record) or _base64url(payload) != encoded:
            raise AddressMalformed("checksum does not match: was it copied whole?")
        return cls.from_bytes(record)

    def to_bytes(self) -> bytes:
        """The record, exactly as it was signed."""
        return self._record

    @property
    def text(self) -> str:
        """The text form: one line without spaces, for people to paste."""
        return _TEXT_PREFIX + _base64url(_checksum(self._record) + self._record)

    def check_fresh(self, now: float, *, leeway: float = 300.0) -> None:
        """Raise unless `now` lies within the record's validity.

        Args:
          now: Unix seconds.
          leeway: seconds by which the validity is extended at both ends, for clocks that differ.

        Raises:
          AddressExpired: the record has expired.
          AddressNotYetValid: the record is from the future.
        """
        if now >= self.expires_at + leeway:
            late = now - self.expires_at
            raise AddressExpired(f"the address of {self.peer_id} expired {late:.0f} s ago: ask for a fresh one")
        if now < self.issued_at - leeway:
            early = self.issued_at - now
            raise AddressNotYetValid(
                f"the address of {self.peer_id} becomes valid in {early:.0f} s: one of the two clocks is wrong"
            )

    @property
    def nat_profiles(self) -> NatProfiles:
        """What the peer says about its NATs; empty where the profile cannot be read."""
        return NatProfiles.of(self.nat, measured_at=self.issued_at)

    def is_same_host(self, host: Host) -> bool:
        """Whether the peer runs on the same machine as `host` and shares its loopback interface.

        True cannot be forged without the machine's fingerprint, nor copied from another peer's record.  It adds the
        machine's own addresses to those that are tried, and has no other effect.
        """
        return host_id(host.machine_fingerprint(), self.host_salt, self.public_key) == self.host_id

    def endpoints(self) -> Iterator[tuple[int, Endpoint]]:
        """Every endpoint as (index of its interface, endpoint), in the record's order (`AddressInterface.index`)."""
        for interface in self.interfaces:
            for endpoint in interface.endpoints:
                yield interface.index, endpoint

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        count = sum(len(interface.endpoints) for interface in self.interfaces)
        return f"<PeerAddress {self.peer_id} seq={self.seq} endpoints={count} signals={len(self.signals)}>"

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return PeerAddress.from_bytes, (self._record,)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _checksum(record: bytes) -> bytes:
    return hashlib.sha256(_TEXT_PREFIX.encode() + record).digest()[:_CHECKSUM_LENGTH]


def _parse_body(data: bytes) -> tuple[_Body, tuple[AddressInterface, ...]]:
    try:
        body = _decode_body(data)
        interfaces = tuple(_parse_interface(each) for each in body.interfaces)
    # msgspec documents only the first.  It also lets errors of UTF-8 through, and RecursionError for deep nesting.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AddressMalformed(f"the body of the address does not follow the format: {error}") from error
    if len({each.index for each in interfaces}) != len(interfaces):
        raise AddressMalformed("the address lists an interface twice")
    if body.expires_at <= body.issued_at:
        raise AddressMalformed("the address expires before it was issued")
    return body, interfaces


def _parse_interface(wire: _WireInterface) -> AddressInterface:
    """An interface with only the endpoints that this release knows; their `base` is adapted to what remains."""
    known: list[Endpoint] = []
    place: dict[int, int] = {}  # index in the record -> index in `known`
    for position, raw in enumerate(wire.endpoints):
        head = _decode_head(raw)
        if head.transport in _TRANSPORTS and head.kind in _KINDS:
            place[position] = len(known)
            known.append(check_endpoint(_decode_endpoint(raw)))
    result: list[Endpoint] = []
    for endpoint in known:
        base = endpoint.base
        if base is not None:
            if base >= len(wire.endpoints):
                raise AddressMalformed(
                    f"an endpoint is derived from one that does not exist, number {base} of its interface"
                )
            base = place.get(base)
            # A base is a local endpoint (RFC 8445 section 2), so bases never form a chain or a loop.
            if base is not None and known[base].kind is not EndpointKind.NIC:
                raise AddressMalformed("an endpoint is derived from one that is not an interface's own")
            endpoint = msgspec.structs.replace(endpoint, base=base)
        result.append(endpoint)
    return AddressInterface(wire.index, tuple(result))
