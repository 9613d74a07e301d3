"""What a NAT does, as data: the axes of RFC 4787, their form in an address record, and the names derived from them.

Theory of operation.  A `TransportProfile` says how one NAT treats one transport.  Every axis may be UNKNOWN, and plans
treat an unknown as possible.  A `NatProfile` covers UDP and TCP behind one NAT.  `NatProfiles` covers a whole node,
with one profile for each interface and address family: Wi-Fi and a mobile network are behind different NATs, and an
IPv6 firewall filters where an IPv4 NAT translates.

The record form is item 8 of an address record.  People copy that record as text, so the form is packed into bits::

    version u8 = 1 | section...
    section   = head u8 | UDP | TCP or nothing, which is "as UDP" | external IPv4 address or nothing (behind TCP only)
    head      = interface (3 bits; position in the record's list, 7: every one that has no section) | IPv6 (1 bit)
                | length of what follows, less 2 (4 bits)
    transport = u16 | low u16 high u16, if bit 12 | delta i16, if bit 13
    u16       = translated (bits 0-1) | blocked (2-3) | hairpin (4-5) | mapping (6-7) | filtering (8-9)
                | allocation (10-11) | has a range (12) | has a delta (13) | 0 (14-15)

Yes, no and unknown are 2, 1 and 0; a 3 is read as unknown.  Later releases append bytes to a section, which a reader
skips; where that is not enough, they use another version.  The time of measurement is not included, since the record
says when it was issued.  At most one external address is included, where the record has room for it: the IPv4 address
that servers saw over UDP.  A peer that receives no answer to its signals can still meet us there.

A profile in a record is a peer's claim about itself.  Reading one never fails (`NatProfiles.of`), and its values are
bounded.  So a lie does no more than make a node try things in the wrong order.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field, replace
from enum import IntEnum
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Final, TypeAlias, final

from ..errors import AddressError, AddressMalformed, AddressUnsupported
from ..sockaddr import Family, IpAddress

__all__ = [
    "ALL_PORTS",
    "PROFILE_LIFETIME",
    "UNKNOWN",
    "Allocation",
    "DeltaType",
    "Filtering",
    "Mapping",
    "NatProfile",
    "NatProfiles",
    "NatType",
    "TransportProfile",
    "delta_type",
    "describe",
    "nat_type",
]


ALL_PORTS: Final = (1024, 65535)
"""First and last port that a NAT allocates, unless a narrower range was seen: RFC 4787 REQ-3a maps only internal ports
below 1024 to external ones below 1024, and punching does not use those."""
PROFILE_LIFETIME: Final = 3600.0
"""Seconds for which a profile counts as fresh.  A NAT's behaviour changes with the network rather than with time, and a
change of network is noticed by other means.  This covers unnoticed changes: a restarted router, a carrier that
rebalances."""
MAX_DELTA: Final = 64
"""Largest step that counts as a sequential allocation; real steps are 1, 2, or the number of a CGN's cores."""
MAX_EXTERNAL: Final = 4
"""External addresses that a profile keeps: a CGN may show its whole pool, one address after another."""


class Mapping(IntEnum):
    """For which destinations a NAT uses the same mapping (RFC 4787 §4.1)."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class Filtering(IntEnum):
    """From which sources a mapping lets packets in (RFC 4787 §5)."""

    UNKNOWN = 0
    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class Allocation(IntEnum):
    """How a NAT chooses the port of a new mapping (RFC 4787 §4.2)."""

    UNKNOWN = 0
    PRESERVING = 1
    """The internal port plus `delta`, if that port is free.  `delta` is 0 except on unusual NATs."""
    SEQUENTIAL = 2
    """The port of the previous mapping, plus `delta`."""
    RANDOM = 3
    """No pattern was seen within the range that was seen."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TransportProfile:
    """How a NAT, or a firewall that translates nothing, treats UDP or TCP.

    Attributes:
      translated: whether our endpoint looks different from outside; None for unknown, here and below.
      blocked: whether no answers come in.
      mapping, filtering, allocation: see the enums.
      delta: the step of a sequential allocation, or the offset of a preserving one.
      low, high: first and last port that a new mapping may have, as far as measured; else `ALL_PORTS`.
      hairpin: whether a packet to our own mapping comes back in (RFC 4787 §6).
      external: the addresses that servers saw, `MAX_EXTERNAL` at most, those that most servers saw first.

    Raises:
      ValueError: the range or the delta is impossible.
    """

    translated: bool | None = None
    blocked: bool | None = None
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    allocation: Allocation = Allocation.UNKNOWN
    delta: int = 0
    low: int = ALL_PORTS[0]
    high: int = ALL_PORTS[1]
    hairpin: bool | None = None
    external: tuple[IpAddress, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 65535:
            raise ValueError(f"a range of ports lies within 1 to 65535, not {self.low} to {self.high}")
        if self.allocation is Allocation.SEQUENTIAL and not 0 < abs(self.delta) <= MAX_DELTA:
            raise ValueError(f"a sequence of ports has a step of 1 to {MAX_DELTA} either way, not {self.delta}")
        if not -65535 <= self.delta <= 65535:
            raise ValueError(f"no two ports differ by {self.delta}")

    @property
    def ports(self) -> int:
        """The number of ports from `low` to `high`."""
        return self.high - self.low + 1

    @property
    def endpoint_independent(self) -> bool | None:
        """Whether all destinations see the same endpoint, by the mapping or because nothing is translated."""
        if self.translated is False:
            return True
        return None if self.mapping is Mapping.UNKNOWN else self.mapping is Mapping.ENDPOINT_INDEPENDENT

    @property
    def predictable(self) -> bool:
        """Whether the port of the next mapping can be predicted."""
        return self.allocation in (Allocation.PRESERVING, Allocation.SEQUENTIAL)


UNKNOWN: Final = TransportProfile()
"""Nothing is known; also the profile of a peer that publishes none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NatProfile:
    """What is between one interface and the internet, over one address family.

    Attributes:
      udp, tcp: the profile of each transport; most NATs treat the two differently.
      measured_at: Unix seconds; for a profile from a record, the time when the record was issued.
    """

    udp: TransportProfile = UNKNOWN
    tcp: TransportProfile = UNKNOWN
    measured_at: float = 0.0

    def is_fresh(self, now: float, *, lifetime: float = PROFILE_LIFETIME) -> bool:
        """Whether it was measured within `lifetime` seconds of `now`; it may lie in the future, as clocks jump."""
        return -lifetime < now - self.measured_at < lifetime


# --- The record form --------------------------------------------------------------------------------------------------

_VERSION: Final = 1
_ANY: Final = 7  # as an interface: all interfaces without a section of their own
_NOTHING: Final = (UNKNOWN, UNKNOWN)
_MAX_WIRE: Final = 512  # what an address record has room for
_HAS_RANGE: Final = 1 << 12
_HAS_DELTA: Final = 1 << 13
_IS_V6: Final = 1 << 4
_EXTERNAL_LENGTH: Final = 4  # an IPv4 address
_TRISTATE: Final = {None: 0, False: 1, True: 2}
_FROM_TRISTATE: Final = (None, False, True, None)

Key: TypeAlias = tuple[int | None, Family]
"""An interface, by its position in the record's list, and an address family.  None means all interfaces not named."""


def _encode_transport(profile: TransportProfile) -> bytes:
    word = (
        _TRISTATE[profile.translated]
        | _TRISTATE[profile.blocked] << 2
        | _TRISTATE[profile.hairpin] << 4
        | profile.mapping << 6
        | profile.filtering << 8
        | profile.allocation << 10
    )
    rest = b""
    if (profile.low, profile.high) != ALL_PORTS:
        word |= _HAS_RANGE
        rest += struct.pack(">HH", profile.low, profile.high)
    if profile.delta:
        word |= _HAS_DELTA
        # An offset is modulo 65536, as ports are, so that 16 bits hold it.
        rest += struct.pack(">h", (profile.delta + 0x8000) % 0x10000 - 0x8000)
    return struct.pack(">H", word) + rest


def _decode_transport(data: bytes) -> tuple[TransportProfile, bytes]:
    """A transport's profile, and the bytes that follow it.  Raises ValueError or struct.error."""
    (word,), data = struct.unpack_from(">H", data), data[2:]
    low, high = ALL_PORTS
    delta = 0
    if word & _HAS_RANGE:
        (low, high), data = struct.unpack_from(">HH", data), data[4:]
    if word & _HAS_DELTA:
        (delta,), data = struct.unpack_from(">h", data), data[2:]
    profile = TransportProfile(
        translated=_FROM_TRISTATE[word & 3],
        blocked=_FROM_TRISTATE[word >> 2 & 3],
        hairpin=_FROM_TRISTATE[word >> 4 & 3],
        mapping=Mapping(word >> 6 & 3),
        filtering=Filtering(word >> 8 & 3),
        allocation=Allocation(word >> 10 & 3),
        low=low,
        high=high,
        delta=delta,
    )
    return profile, data


def _bare(profile: NatProfile, external: bool) -> tuple[TransportProfile, TransportProfile]:
    """The parts of a profile that a record carries."""
    seen = [ip for ip in profile.udp.external if isinstance(ip, IPv4Address)][:1] if external else []
    return replace(profile.udp, external=tuple(seen)), replace(profile.tcp, external=())


@final
@dataclass(frozen=True, slots=True)
class NatProfiles:
    """The profiles of a node, by interface and address family; `NatProfiles()` knows nothing.

    An interface is named by its position in the list of the address record, and None stands for all that have no
    profile of their own.
    """

    by_key: MappingABC[Key, NatProfile] = field(default_factory=lambda: MappingProxyType({}))

    def get(self, interface: int | None, family: Family) -> NatProfile:
        """The profile of an interface and address family; an unknown one where there is none."""
        found = self.by_key.get((interface, family)) or self.by_key.get((None, family))
        return NatProfile() if found is None else found

    def __iter__(self) -> Iterator[tuple[Key, NatProfile]]:
        return iter(self.by_key.items())

    def __bool__(self) -> bool:
        return bool(self.by_key)

    def to_bytes(self, *, interfaces: int, external: bool = False) -> bytes | None:
        """The record form: usually 4 bytes for one address family, 7 for both; None when nothing is known.

        Args:
          interfaces: how many interfaces the record lists; what they share is written once.  Only the first seven can
            have a section of their own; to the others, the shared one applies.
          external: whether to include the external IPv4 address, which takes 4 to 6 bytes more.
        """
        sections: list[bytes] = []
        families: tuple[Family, Family] = (4, 6)
        for family in families:
            pairs = {interface: _bare(self.get(interface, family), external) for interface in range(interfaces)}
            shared = _bare(self.get(None, family), external)
            if pairs and shared == _NOTHING and interfaces <= _ANY:
                ((shared, _),) = Counter(pairs.values()).most_common(1)
            if shared != _NOTHING:
                sections.append(_section(_ANY, family, shared))
            for interface, pair in pairs.items():
                if pair != shared and interface < _ANY:
                    sections.append(_section(interface, family, pair))
        return bytes([_VERSION]) + b"".join(sections) if sections else None

    @classmethod
    def from_bytes(cls, data: bytes, *, measured_at: float) -> NatProfiles:
        """Read the record form; `measured_at` is when the record was issued, in Unix seconds.

        Raises:
          AddressUnsupported: the version is not known to this release.
          AddressMalformed: the bytes do not follow the format.
        """
        if not data or len(data) > _MAX_WIRE:
            raise AddressMalformed(f"a NAT profile has 1 to {_MAX_WIRE} bytes, not {len(data)}")
        if data[0] != _VERSION:
            raise AddressUnsupported(f"the NAT profile is of version {data[0]}; this release reads {_VERSION}")
        found: dict[Key, NatProfile] = {}
        rest = data[1:]
        while rest:
            head, rest = rest[0], rest[1:]
            interface = None if head >> 5 == _ANY else head >> 5
            family: Family = 6 if head & _IS_V6 else 4
            length = (head & 15) + 2
            section, rest = rest[:length], rest[length:]
            if len(section) < length or (interface, family) in found:
                raise AddressMalformed("a NAT profile ends within a section or has a section twice")
            try:
                udp, left = _decode_transport(section)
                tcp, left = _decode_transport(left) if left else (udp, left)
                if len(left) >= _EXTERNAL_LENGTH and family == 4:
                    udp = replace(udp, external=(IPv4Address(left[:_EXTERNAL_LENGTH]),))
            except (ValueError, struct.error) as error:
                raise AddressMalformed(f"a section of the NAT profile does not follow the format: {error}") from error
            found[interface, family] = NatProfile(udp=udp, tcp=tcp, measured_at=measured_at)
        return cls(MappingProxyType(found))

    @classmethod
    def of(cls, data: bytes | None, *, measured_at: float) -> NatProfiles:
        """As `from_bytes`, but None and bytes that cannot be read give an empty `NatProfiles`."""
        try:
            return cls() if data is None else cls.from_bytes(data, measured_at=measured_at)
        except AddressError:
            return cls()


def _section(interface: int, family: int, pair: tuple[TransportProfile, TransportProfile]) -> bytes:
    udp, tcp = (_encode_transport(each) for each in pair)
    where = pair[0].external[0].packed if pair[0].external else b""
    body = udp if tcp == udp and not where else udp + tcp + where
    return bytes([interface << 5 | (_IS_V6 if family == 6 else 0) | len(body) - 2]) + body


# --- Derived names ----------------------------------------------------------------------------------------------------


class NatType(IntEnum):
    """RFC 3489's types under the original's names and numbers."""

    UNKNOWN = 0
    OPEN_INTERNET = 1
    SYMMETRIC_UDP_FIREWALL = 2
    """Not translated, and filtered."""
    FULL_CONE = 3
    RESTRICT_NAT = 4
    RESTRICT_PORT_NAT = 5
    SYMMETRIC_NAT = 6
    BLOCKED_NAT = 7


class DeltaType(IntEnum):
    """The original's names and numbers for how external ports follow from internal ones."""

    UNKNOWN = 0
    NA = 1
    """Nothing is translated."""
    EQUAL = 2
    """The external port is the local one."""
    PRESERV = 3
    """The distance between local ports is kept between external ones."""
    INDEPENDENT = 4
    """Each new mapping is the last one plus a value, whatever the local port."""
    DEPENDENT = 5
    """The original's name for INDEPENDENT when local ports advance by one.  `delta_type` never returns it."""
    RANDOM = 6


def nat_type(profile: TransportProfile) -> NatType:
    """The type's classic name; UNKNOWN as long as an axis that it depends on is unknown."""
    if profile.blocked:
        return NatType.BLOCKED_NAT
    filtering = profile.filtering
    if profile.translated is False:
        if filtering is Filtering.UNKNOWN:
            return NatType.UNKNOWN
        open_ = filtering is Filtering.ENDPOINT_INDEPENDENT
        return NatType.OPEN_INTERNET if open_ else NatType.SYMMETRIC_UDP_FIREWALL
    if profile.endpoint_independent is False:
        return NatType.SYMMETRIC_NAT
    if profile.endpoint_independent is None:
        return NatType.UNKNOWN
    return {
        Filtering.UNKNOWN: NatType.UNKNOWN,
        Filtering.ENDPOINT_INDEPENDENT: NatType.FULL_CONE,
        Filtering.ADDRESS_DEPENDENT: NatType.RESTRICT_NAT,
        Filtering.ADDRESS_AND_PORT_DEPENDENT: NatType.RESTRICT_PORT_NAT,
    }[filtering]


def delta_type(profile: TransportProfile) -> DeltaType:
    """The allocation's name in the original."""
    if profile.translated is False:
        return DeltaType.NA
    if profile.allocation is Allocation.PRESERVING:
        return DeltaType.PRESERV if profile.delta else DeltaType.EQUAL
    return {
        Allocation.UNKNOWN: DeltaType.UNKNOWN,
        Allocation.SEQUENTIAL: DeltaType.INDEPENDENT,
        Allocation.RANDOM: DeltaType.RANDOM,
    }[profile.allocation]


_TYPE_WORDS: Final = {
    NatType.OPEN_INTERNET: "open internet",
    NatType.SYMMETRIC_UDP_FIREWALL: "no NAT, a firewall",
    NatType.FULL_CONE: "full cone",
    NatType.RESTRICT_NAT: "address-restricted cone",
    NatType.RESTRICT_PORT_NAT: "port-restricted cone",
    NatType.SYMMETRIC_NAT: "symmetric",
    NatType.BLOCKED_NAT: "blocked",
}


def describe(profile: TransportProfile) -> str:
    """A few words for people, such as "symmetric, random ports of 1024 to 3071"."""
    name = _TYPE_WORDS.get(nat_type(profile))
    if name is None:
        if profile.translated is False:
            name = "no NAT, filtering unknown"
        elif profile.endpoint_independent:
            name = "cone, filtering unknown"
        else:
            name = "a NAT of unknown kind" if profile.translated else "unknown"
    if profile.blocked or not profile.translated:
        return name
    ports = {
        Allocation.UNKNOWN: "",
        Allocation.PRESERVING: f"keeps ports, offset {profile.delta:+d}" if profile.delta else "keeps ports",
        Allocation.SEQUENTIAL: f"sequential ports, step {profile.delta:+d}",
        Allocation.RANDOM: f"random ports of {profile.low} to {profile.high}",
    }[profile.allocation]
    return f"{name}, {ports}" if ports else name
