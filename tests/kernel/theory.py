"""Which pairs of NATs two peers get through, and how: derived from the definitions of RFC 4787, not from any program.

A server sees one endpoint of each peer, and the other peer learns it: the known endpoint. The first packet from X
reaches Y under two conditions:

* X reaches Y at the known endpoint: Y's mapping is endpoint-independent, or its next port was predicted.
* Y's filter passes the packet. Y has already sent to X's known endpoint, so the filter passes X's address. It passes
  X's port if that is the known one.

One packet that arrives is enough, since its receiver answers to the packet's source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from tests.kernel.nats import Nat, Transport

Phase = Literal["direct", "punch", "spray", "relay"]
PHASES: Final[tuple[Phase, ...]] = ("direct", "punch", "spray", "relay")

SPRAY_SOCKETS: Final = 256
SPRAY_PROBES: Final = 1024
SPRAY_WORTH: Final = 0.5
"""The probability of success from which on a spray is expected to connect."""


def arrives(x: Nat, y: Nat, *, foretelling: bool = False) -> bool:
    """Whether the first packet from x can reach y."""
    return is_where_told(y, foretelling) and (y.filtering != "APDF" or is_where_told(x, foretelling))


def is_where_told(x: Nat, foretelling: bool) -> bool:
    """Whether the other peer reaches a peer at the endpoint that a server saw, or at its predicted next port."""
    return x.mapping == "EIM" or (foretelling and x.allocation == "sequential")


def carries(x: Nat, transport: Transport) -> bool:
    """Whether a NAT lets a transport out."""
    return x.udp or transport == "tcp"


def can_punch(a: Nat, b: Nat, transport: Transport, *, foretelling: bool = False) -> bool:
    """Whether the pair connects with one known endpoint each.

    Both transports are alike: over TCP a first packet meets a listener on the known port, or crosses another SYN. A
    NAT's reaction to unsolicited packets (RST, ICMP, its own stack) costs retries or openers with a small TTL, but does
    not prevent the connection.
    """
    if not (carries(a, transport) and carries(b, transport)):
        return False
    return arrives(a, b, foretelling=foretelling) or arrives(b, a, foretelling=foretelling)


def possible(phase: Phase, a: Nat, b: Nat, transport: Transport | None = None, *, known_forward: bool = False) -> bool:
    """Whether a library that does everything possible connects the pair in a phase.

    Args:
      transport: the only one between the peers; None for both.
      known_forward: whether a node behind a forwarded port is configured with it.
    """
    transports: tuple[Transport, ...] = ("udp", "tcp") if transport is None else (transport,)
    if phase == "direct":
        # Over TCP, one of the two dials the other one, whichever is reachable.
        reachable = a.is_open or b.is_open or (known_forward and (a.forwards or b.forwards))
        return reachable and "tcp" in transports
    if phase == "punch":  # over TCP
        return "tcp" in transports and can_punch(a, b, "tcp", foretelling=True)
    if phase == "spray":  # over UDP, where a punch is a spray that hits with its first probe
        return "udp" in transports and spray_chance(a, b) >= SPRAY_WORTH
    return True


def expected_phase(
    a: Nat, b: Nat, transport: Transport | None = None, *, phases: Sequence[Phase] = PHASES, known_forward: bool = False
) -> Phase | None:
    """The first of some phases in which the pair connects."""
    for phase in PHASES:
        if phase in phases and possible(phase, a, b, transport, known_forward=known_forward):
            return phase
    return None


def spray_chance(a: Nat, b: Nat, *, sockets: int = SPRAY_SOCKETS, probes: int = SPRAY_PROBES) -> float:
    """The probability that a peer hits one of the other's many ports without knowing any."""
    if not (a.udp and b.udp):
        return 0.0
    if can_punch(a, b, "udp", foretelling=True):
        return 1.0
    # The side that opens needs one outside port for all its destinations. A predicted port does not serve: it holds for
    # the destination of the next packet only, and every further opener gets another mapping.
    moving = [x for x in (a, b) if not is_where_told(x, False)]
    if len(moving) == 1:
        return hit_chance(sockets, probes, len(moving[0].ports))
    if all(x.filtering == "APDF" for x in moving):
        # Both ports of a probe are random, and it must hit a mapping of the other side towards exactly its own port.
        return -math.expm1(-sockets * probes / (len(a.ports) * len(b.ports)))
    return hit_chance(sockets, probes, max(len(x.ports) for x in moving))


def hit_chance(sockets: int, probes: int, ports: int) -> float:
    """The probability that `probes` distinct ports out of `ports` hit one of `sockets` distinct ones."""
    if sockets + probes > ports:
        return 1.0
    missed = sum(math.log1p(-sockets / (ports - n)) for n in range(probes))
    return -math.expm1(missed)
