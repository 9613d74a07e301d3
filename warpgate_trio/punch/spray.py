"""The arithmetic of sprays: how many packets to send for a range of ports, which side sends which, how fast.  No I/O.

The *hard* side's NAT has endpoint-dependent mapping and assigns random ports.  The *easy* side's mapping is
endpoint-independent, but its filtering is port-dependent.  So neither side knows a port to send to.  The easy side
opens its NAT for K different ports of the hard side's range, with packets from its one mapped socket.  The hard side
sends from N sockets to that one endpoint, and so gets N mappings in the same range.  They meet if one of the N ports is
among the K.  With P ports the probability is 1 - C(P-N, K) / C(P, K).  That is 98.35 % for N = 256, K = 1,024 and the
full range; where a carrier gives each customer a block of ports, a fraction of the packets is enough.

When both sides are hard, each sends from ports that it cannot choose to ports that it does not know, and both have to
match: about 1 - exp(-nA·nB / (PA·PB)).  That is hopeless over full ranges, and 1 in 5 within two small blocks.

Ranges and roles are claims of the peer.  They order the work and may reduce it.  The caps below bound what any peer can
make this node do, whatever it claims.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from math import ceil, exp, lgamma, log, log1p, sqrt
from typing import TYPE_CHECKING, Final, final

from ..address.nat_profile import ALL_PORTS, Filtering, TransportProfile

if TYPE_CHECKING:
    from random import Random

__all__ = [
    "BURST",
    "BURST_INTERVAL",
    "HAIRPINNING",
    "MAX_OPENERS",
    "MAX_SOCKETS",
    "MIN_CHANCE",
    "Role",
    "SprayPlan",
    "balanced_for",
    "batches",
    "both_hard_probability",
    "draw_ports",
    "plan_both_hard",
    "plan_spray",
    "seen_at_one_address",
    "spray_duration",
    "spray_probability",
    "spray_roles",
]

MAX_SOCKETS: Final = 256
"""Sockets of the hard side (N): as many as file descriptors (1,024 by default; `Host.spare_descriptors` where there are
fewer) and the flow tables of home routers allow.  Behind one with about 256 entries, 512 failed and 256 passed."""
MAX_OPENERS: Final = 1024
"""Openers of the easy side (K), and packets of a side when both are hard: 98.35 % against 256 sockets over all ports.
Doubling would add 1.6 points; it is also the number that a stranger can make this node send to one address."""
TARGET: Final = 0.999
"""The probability that is planned for where the caps allow it; above, packet loss matters more."""
MIN_CHANCE: Final = 0.1
"""The least probability that is worth the packets when both sides are hard: 1 in 10 costs some 20,000 packets a hit."""
HAIRPINNING: Final = 0.24
"""The probability that a NAT which both sides share hairpins, where that is not known: of a symmetric NAT it cannot be
measured.  24 % of 335 NATs did over UDP (Ford, Srisuresh and Kegel 2005, section 6)."""
MAX_SHARE: Final = 0.5
"""Share of a range that sockets may use up: in a carrier's block the customer's other traffic needs the rest."""
BURST: Final = 25
"""Packets sent at once; few against every router's queue."""
BURST_INTERVAL: Final = 0.01
"""Seconds between two bursts: 2,500 packets/s, 1,024 in 0.41 s, a rate that was measured to pass; some 2 Mbit/s."""


class Role(Enum):
    """A side's role in a spray."""

    EASY = "easy"
    """One mapped socket and K openers: the side with a constant external endpoint."""
    HARD = "hard"
    """N sockets with one packet each: the side whose next port cannot be predicted."""
    BOTH = "both"
    """Both sides are hard: each sends from many sockets to random ports."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SprayPlan:
    """The size of a spray.

    Attributes:
      sockets: N, the sockets of a hard side.
      openers: K, the openers of the easy side; when both are hard, the packets of each side, `openers / sockets` from
        each socket.
      low, high: the range in which the hard side's ports are expected, to which the easy side sends.
      probability: that the sides meet, if the ranges are right; 0 where the spray is not worth a packet.
    """

    sockets: int
    openers: int
    low: int
    high: int
    probability: float

    @property
    def worth_it(self) -> bool:
        return self.probability > 0


def spray_probability(sockets: int, openers: int, ports: int, *, delivery: float = 1.0) -> float:
    """The probability that one of `openers` different ports is one of `sockets` different ones among `ports`.

    It is exact without loss (hypergeometric); with loss it uses the expected number of packets that arrive.

    Args:
      delivery: the probability that a packet arrives.

    Raises:
      ValueError: a number is negative, or more than there are ports.
    """
    if not (0 <= sockets <= ports and 0 <= openers <= ports and 0 <= delivery <= 1):
        raise ValueError(f"{sockets} sockets and {openers} openers do not fit into {ports} ports")
    arriving = openers * delivery
    if arriving + sockets > ports:
        return 1.0

    def log_choose(n: float, k: float) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    return max(0.0, 1 - exp(log_choose(ports - sockets, arriving) - log_choose(ports, arriving)))


def both_hard_probability(
    packets_a: int, packets_b: int, ports_a: int, ports_b: int, *, filters_a_by_port: bool, filters_b_by_port: bool
) -> float:
    """The probability when both sides send from new ports of their own range to random ports of the other's.

    Where a side's filtering is not port-dependent, any packet to one of its open ports passes: the sender's port does
    not matter.

    Raises:
      ValueError: a range has no ports, or a number is negative.
    """
    if min(ports_a, ports_b) < 1 or min(packets_a, packets_b) < 0:
        raise ValueError("a spray needs ports on both sides and no negative packets")
    pairs = packets_a * packets_b
    misses = pairs / (ports_a * ports_b)
    if not filters_a_by_port:
        misses = max(misses, pairs / ports_a)
    if not filters_b_by_port:
        misses = max(misses, pairs / ports_b)
    return 1 - exp(-misses)


def spray_roles(ours: TransportProfile, peers: TransportProfile, *, we_are_lower: bool) -> Role | None:
    """Our role in a spray; None when both sides are known to be easy, and need no spray.

    A side that is known to be endpoint-independent is easy; one known not to be is hard; an unknown side is the other's
    counterpart.  Which side initiates does not matter.  Both sides come to matching roles by the same two profiles.

    Args:
      we_are_lower: our peer id is lower than the peer's.  Where nothing is known of either side, the lower one is easy.
    """
    us, them = ours.endpoint_independent, peers.endpoint_independent
    if us is None and them is None:
        return Role.EASY if we_are_lower else Role.HARD
    if us is None or them is None:
        return Role.EASY if us or them is False else Role.HARD
    if us and them:
        return None
    if us is them:
        return Role.BOTH
    return Role.EASY if us else Role.HARD


def plan_spray(
    hard: TransportProfile,
    *,
    max_sockets: int = MAX_SOCKETS,
    max_openers: int = MAX_OPENERS,
    delivery: float = 1.0,
) -> SprayPlan:
    """The size of a spray against a hard side: the fewest sockets and openers for `TARGET`, within the caps.

    Both sides can compute it from the hard side's profile, with the same result.  The limits can be lowered, but not
    raised above `MAX_SOCKETS` and `MAX_OPENERS`.  At least one packet of each side is planned.
    """
    ports = hard.ports
    sockets_cap = max(1, min(max_sockets, MAX_SOCKETS, int(ports * MAX_SHARE)))
    openers_cap = max(1, min(max_openers, MAX_OPENERS, ports))
    balanced = ceil(sqrt(-ports * log1p(-TARGET)))  # N = K, where N·K/P = -ln(1 - TARGET)
    sockets = min(sockets_cap, balanced)
    openers = openers_cap
    if spray_probability(sockets, openers, ports, delivery=delivery) > TARGET:
        low, high = 1, openers_cap  # the probability grows with the openers: bisect for the fewest
        while low < high:
            middle = (low + high) // 2
            if spray_probability(sockets, middle, ports, delivery=delivery) > TARGET:
                high = middle
            else:
                low = middle + 1
        openers = low
    probability = spray_probability(sockets, openers, ports, delivery=delivery)
    return SprayPlan(sockets=sockets, openers=openers, low=hard.low, high=hard.high, probability=probability)


def plan_both_hard(ours: TransportProfile, peers: TransportProfile) -> SprayPlan:
    """The size of a spray between two hard sides; its probability is 0 where it is not worth a packet.

    The numbers are the same on both sides.  They use at most half of the smaller range, and unknown filtering counts as
    the strictest.

    Where both sides have the same external address, their NAT has to hairpin, too.  A spray for that small probability
    would take ports that a relay needs next.  There may be fewer of these than seen from outside, since a subscriber
    behind a second NAT of a carrier shares that one's ports.
    """
    smaller = min(ours.ports, peers.ports)
    packets = max(1, min(MAX_OPENERS, int(smaller * MAX_SHARE)))
    probability = both_hard_probability(
        packets,
        packets,
        ours.ports,
        peers.ports,
        filters_a_by_port=_filters_by_port(ours),
        filters_b_by_port=_filters_by_port(peers),
    )
    if seen_at_one_address(ours, peers):
        probability *= _hairpinning(ours, peers)
    return SprayPlan(
        sockets=min(packets, MAX_SOCKETS),
        openers=packets,
        low=peers.low,
        high=peers.high,
        probability=probability if probability >= MIN_CHANCE else 0.0,
    )


def seen_at_one_address(ours: TransportProfile, peers: TransportProfile) -> bool:
    """Whether servers saw both sides at the same external address, so that both are behind that NAT."""
    return not set(ours.external).isdisjoint(peers.external)


def _hairpinning(ours: TransportProfile, peers: TransportProfile) -> float:
    """The probability that the common NAT hairpins; it does where either side has observed it."""
    known = {ours.hairpin, peers.hairpin} - {None}
    return HAIRPINNING if not known else float(True in known)


def _filters_by_port(profile: TransportProfile) -> bool:
    return profile.filtering in (Filtering.UNKNOWN, Filtering.ADDRESS_AND_PORT_DEPENDENT)


def draw_ports(
    random: Random, count: int, *, low: int = ALL_PORTS[0], high: int = ALL_PORTS[1], first: Collection[int] = ()
) -> list[int]:
    """Draw `count` different ports of a range in random order, or all of them where it has fewer.

    The valid ports of `first` come before the drawn ones and are counted.  There are at most `MAX_OPENERS` in all.

    Raises:
      ValueError: the range is invalid.
    """
    if not 0 < low <= high <= 65535:
        raise ValueError(f"a range of ports lies within 1 to 65535, not {low} to {high}")
    count = max(0, min(count, MAX_OPENERS))
    chosen = list(dict.fromkeys(port for port in first if 0 < port <= 65535))[:count]
    taken = {port for port in chosen if low <= port <= high}
    room = min(count - len(chosen), high - low + 1 - len(taken))
    drawn = random.sample(range(low, high + 1), min(room + len(taken), high - low + 1))
    return chosen + [port for port in drawn if port not in taken][:room]


def batches(count: int) -> Iterator[int]:
    """The sizes of the bursts for `count` packets, with a pause of `BURST_INTERVAL` after each."""
    while count > 0:
        yield min(count, BURST)
        count -= BURST


def spray_duration(count: int) -> float:
    """Seconds that it takes to send `count` packets by `batches`, without a pause after the last burst."""
    return max(0, ceil(count / BURST) - 1) * BURST_INTERVAL


def balanced_for(probability: float, ports: int) -> int:
    """N = K for a probability p over P ports, by the approximation sqrt(-P·ln(1 - p)); for documentation."""
    if not 0 <= probability < 1:
        raise ValueError(f"no number of packets makes a chance of {probability}")
    return ceil(sqrt(-ports * log(1 - probability)))
