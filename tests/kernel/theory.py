"""Which pairs of NATs two peers get through, and how: written from the definitions of RFC 4787, not from any program.

Every peer has one endpoint that a server saw and the other peer was told. For a first packet from X to reach Y, the
told endpoint has to be where Y is for X too, so Y maps independently of the endpoint (or its next port is foretold);
and Y's filter has to pass it: by then Y has sent to X's told endpoint, so the filter passes X's address, and X's port
if that is the told one. One packet that arrives is enough, since its receiver answers to where it came from.
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
"""The chance from which a spray is expected at all."""


def arrives(x: Nat, y: Nat, *, foretelling: bool = False) -> bool:
    """Whether the first packet from x can reach y."""
    return is_where_told(y, foretelling) and (y.filtering != "APDF" or is_where_told(x, foretelling))


def is_where_told(x: Nat, foretelling: bool) -> bool:
    """Whether a peer is where a server saw it, or where its next port was foretold."""
    return x.mapping == "EIM" or (foretelling and x.allocation == "sequential")


def carries(x: Nat, transport: Transport) -> bool:
    """Whether a NAT lets a transport out."""
    return x.udp or transport == "tcp"


def can_punch(a: Nat, b: Nat, transport: Transport, *, foretelling: bool = False) -> bool:
    """Whether the pair connects with one told endpoint each.

    Both transports are the same: over TCP a first packet meets a listener on the told port, or crosses another SYN.
    What a NAT does about the unexpected (RST, ICMP, its own stack) costs retries or openers with a small TTL, not the
    connection.
    """
    if not (carries(a, transport) and carries(b, transport)):
        return False
    return arrives(a, b, foretelling=foretelling) or arrives(b, a, foretelling=foretelling)


def possible(phase: Phase, a: Nat, b: Nat, transport: Transport | None = None, *, known_forward: bool = False) -> bool:
    """Whether a library that does all that can be done connects the pair in a phase.

    Args:
      transport: the only one that there is between the peers; None for both.
      known_forward: whether a node behind a forwarded port has been told so.
    """
    transports: tuple[Transport, ...] = ("udp", "tcp") if transport is None else (transport,)
    if phase == "direct":
        # One of the two dials the other, over TCP, whichever can be reached.
        reachable = a.is_open or b.is_open or (known_forward and (a.forwards or b.forwards))
        return reachable and "tcp" in transports
    if phase == "punch":  # over TCP
        return "tcp" in transports and can_punch(a, b, "tcp", foretelling=True)
    if phase == "spray":  # over UDP, where to punch is to hit with the first probe
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
    """The chance that a peer that does not know the other's port hits one of many."""
    if not (a.udp and b.udp):
        return 0.0
    if can_punch(a, b, "udp", foretelling=True):
        return 1.0
    # The side that opens has to be at one port for all that it opens to. A foretold port is not: it serves the one
    # destination that the next packet goes to, and every further opener gets a mapping of its own.
    moving = [x for x in (a, b) if not is_where_told(x, False)]
    if len(moving) == 1:
        return hit_chance(sockets, probes, len(moving[0].ports))
    if all(x.filtering == "APDF" for x in moving):
        # Both ends of a probe are at random: a probe of one hits a mapping of the other towards exactly its own port.
        return -math.expm1(-sockets * probes / (len(a.ports) * len(b.ports)))
    return hit_chance(sockets, probes, max(len(x.ports) for x in moving))


def hit_chance(sockets: int, probes: int, ports: int) -> float:
    """The chance that `probes` distinct ports of `ports` hit one of `sockets` distinct ones."""
    if sockets + probes > ports:
        return 1.0
    missed = sum(math.log1p(-sockets / (ports - n)) for n in range(probes))
    return -math.expm1(missed)
