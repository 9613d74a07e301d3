"""The behaviours in which NATs differ, each as an independent axis, so that every combination can be simulated.

The terms are those of RFC 4787 (UDP), RFC 5382 (TCP) and RFC 7857.  `Unsolicited.LOCAL` is the behaviour of a stock
Linux router whose firewall does not drop packets to itself.  A `Behavior` holds the axes of one transport; a
`NatConfig` holds a `Behavior` for UDP, one for TCP, and the properties that they share.  The defaults are the most
permissive NAT, so a configuration states only how a NAT is worse.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, final

from .nat_ports import Allocation, Preserve
from .packet import Icmp
from .short_repr import ShortRepr


class Mapping(Enum):
    """Mapping behaviour: which sessions share a mapping (RFC 4787, section 4.1)."""

    EIM = "endpoint-independent"
    ADM = "address-dependent"
    APDM = "address-and-port-dependent"


class Filtering(Enum):
    """Filtering behaviour: from which remote endpoints a mapping admits packets (RFC 4787, section 5)."""

    EIF = "endpoint-independent"
    ADF = "address-dependent"
    APDF = "address-and-port-dependent"


class Conflict(Enum):
    """What happens when the port for a new mapping is in use by another mapping."""

    NEXT = "next"  # the allocator tries the next candidate
    OVERLOAD = "overload"  # the port is shared while the remote endpoints differ (Linux; RFC 4787 REQ-3 forbids it)
    DEGRADE = "degrade"  # as NEXT; the inside endpoint is then mapped address-and-port-dependently (Ford 2005, 6.3)
    DROP = "drop"  # no mapping is made, and the packet is dropped


class Hairpin(Enum):
    """What happens to a packet from inside to an outside address of the NAT (RFC 4787, section 6)."""

    NONE = "none"
    LOCAL = "local"  # delivered to the router itself, which answers with RST or ICMP at once (Linux without more rules)
    INTERNAL = "internal"  # delivered with the sender's inside endpoint as its source
    EXTERNAL = "external"  # delivered with the sender's outside endpoint, REQ-9a


class Refresh(Enum):
    """Which packets keep a mapping alive (RFC 4787, REQ-6)."""

    OUT = "out"
    IN = "in"
    BOTH = "both"


class Unsolicited(Enum):
    """The answer to a packet from outside that no mapping or filter admits (RFC 5382, REQ-4)."""

    DROP = "drop"
    RST = "rst"  # TCP only
    ICMP = "icmp"
    HOLD = "hold"  # TCP only: silence for six seconds, then ICMP, unless a SYN from inside crosses it
    LOCAL = "local"  # handed to the router's own stack and tracked, which occupies the port for that remote


class Pooling(Enum):
    """Which of several outside addresses an inside host gets (RFC 4787, section 4.1)."""

    PAIRED = "paired"
    ARBITRARY = "arbitrary"


HOLD: Final = 6.0
"""Seconds (RFC 5382, REQ-4)."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Timers(ShortRepr):
    """Seconds after which a quiet session is forgotten.

    Attributes:
      udp: of a UDP session at first.
      udp_stream: of a UDP session that was answered and is older than `udp_stream_after`.
      opening: of a TCP session after the first SYN.
      half_open: of a TCP session after a SYN of each side, or after the SYN-ACK.
      established, closing: of a TCP session after the handshake; after the first FIN.
      reset: of a TCP session after a RST; `opening_reset` after a RST that answers a SYN.
    """

    udp: float = 300.0  # RFC 4787, REQ-5c
    udp_stream: float = 300.0
    udp_stream_after: float = 2.0
    opening: float = 240.0  # RFC 5382, REQ-5
    half_open: float = 240.0
    established: float = 7440.0
    closing: float = 240.0
    reset: float = 240.0  # RFC 7857, section 2.2
    opening_reset: float = 240.0


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Behavior(ShortRepr):
    """How a NAT treats one transport.

    Attributes:
      mapping, filtering, allocation, conflict, hairpin, refresh, unsolicited: see the enums.
      unsolicited_icmp: the error that the policies ICMP and HOLD send.
      ports: destination ports that may be reached; None for all, empty for none.
      simultaneous_open: for TCP: whether simultaneous open is supported (RFC 5382, REQ-2a).
      loose: for TCP: whether a segment in mid-stream from inside makes a session (nf_conntrack_tcp_loose).
      strict_isn: for TCP: whether, after SYNs have crossed, each endpoint is held to the sequence number of its SYN.
        Connection trackers do this.  A listener then cannot answer the SYN of a peer that its host has tried to reach
        before from the same port and has given up on (measured, Linux 6.18).

    A `NatConfig` raises ValueError for a `udp` whose unsolicited packets are to be answered by RST or HOLD.
    """

    mapping: Mapping = Mapping.EIM
    filtering: Filtering = Filtering.EIF
    allocation: Allocation = field(default_factory=Preserve)
    conflict: Conflict = Conflict.NEXT
    hairpin: Hairpin = Hairpin.EXTERNAL
    refresh: Refresh = Refresh.BOTH
    unsolicited: Unsolicited = Unsolicited.DROP
    unsolicited_icmp: Icmp = Icmp.PORT_UNREACHABLE
    ports: Collection[int] | None = None
    simultaneous_open: bool = True
    loose: bool = True
    strict_isn: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NatConfig(ShortRepr):
    """A NAT.

    Attributes:
      name: for display.
      source: where this behaviour was observed or is required.
      udp, tcp: the behaviour for each transport.
      identity: translate nothing and only filter, as an IPv6 firewall does.
      one_to_one: every inside host has an outside address of its own, with all ports (RFC 2663, section 4.1.1).
      pooling: see the enum.
      quota: mappings that one inside host may have at a time; None for no limit (RFC 6888, REQ-4).
      hold_down: seconds before a port is used again after its mapping has ended (RFC 6888, REQ-8).
      icmp: whether ICMP errors are translated and passed on.
      icmp_kills: whether an ICMP error ends the session to which it refers (against RFC 4787, REQ-12).
      alg: whether the sender's inside address, found as four bytes in a payload, is replaced (Ford 2005, 5.3).
      timers: see `Timers`.
    """

    name: str = "friendly"
    source: str = "RFC 4787 and RFC 5382, at their most permissive"
    udp: Behavior = field(default_factory=Behavior)
    tcp: Behavior = field(default_factory=Behavior)
    identity: bool = False
    one_to_one: bool = False
    pooling: Pooling = Pooling.PAIRED
    quota: int | None = None
    hold_down: float = 0.0
    icmp: bool = True
    icmp_kills: bool = False
    alg: bool = False
    timers: Timers = field(default_factory=Timers)

    def __repr__(self) -> str:
        known = next((name for name, config in named.items() if config == self), None)
        return ShortRepr.__repr__(self) if known is None else known

    def __post_init__(self) -> None:
        if self.udp.unsolicited in (Unsolicited.RST, Unsolicited.HOLD):
            raise ValueError(f"unsolicited UDP cannot be answered by {self.udp.unsolicited.name}, which is of TCP")
        if self.quota is not None and self.quota < 1:
            raise ValueError(f"a quota of {self.quota} mappings lets nobody out: use ports=() for that")


named: dict[str, NatConfig] = {}
"""Presets, by the expression that `repr` shows for them."""
