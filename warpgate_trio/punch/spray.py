"""The arithmetic of spraying: how many packets a range of ports is worth, who sends which, and how fast.  Pure.

When one side's NAT maps endpoint-dependently and gives out random ports (the *hard* side), and the other side's filters
by port (the *easy* side), neither knows a port to send to.  The easy side opens K different ports of the hard side's
range with packets from its one mapped socket; the hard side sends from N sockets to that one endpoint, and so gets N
ports of the same range.  They meet when one of the N is among the K: with P ports, 1 - C(P-N, K) / C(P, K), which is
98.35 % for N = 256, K = 1,024 and the full range, and needs a fraction of the packets where a carrier gives each
customer a block.

When both sides are hard, each sends from ports that it cannot choose to ports that it does not know, and both have to
be right: about 1 - exp(-nA·nB / (PA·PB)), hopeless over full ranges and 1 in 5 within two small blocks.

A range and a role are what a peer claims about itself.  They order the work and may make it less; the caps below are
what any peer can make us do, whatever it says.
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
"""Sockets of the hard side (N): what file descriptors (1,024 by default; `Host.spare_descriptors` where there are
fewer) and the flow tables of home routers bear; 512 failed behind one whose table has about 256 entries, 256 passed."""
MAX_OPENERS: Final = 1024
"""Openers of the easy side (K), and packets of a side when both are hard: 98.35 % against 256 sockets over all ports;
doubling it would add 1.6 points, and is what a stranger can make us send to one address."""
TARGET: Final = 0.999
"""The chance that is planned for where the caps allow it; above, losses on the way matter more."""
MIN_CHANCE: Final = 0.1
"""The least chance that is worth two sides' packets when both are hard: 1 in 10 costs some 20,000 packets a hit."""
HAIRPINNING: Final = 0.24
"""The chance that a NAT which two share leads packets back in, where that is not known: of a symmetric one it cannot
be measured.  24 % of 335 did over UDP (Ford, Srisuresh and Kegel 2005, section 6)."""
MAX_SHARE: Final = 0.5
"""Share of a range that sockets may use up: in a carrier's block the customer's other traffic lives on the rest."""
BURST: Final = 25
"""Packets sent at once; small against every router's queue."""
BURST_INTERVAL: Final = 0.01
"""Seconds between two bursts: 2,500 packets/s, 1,024 in 0.41 s, as they were measured to pass; some 2 Mbit/s."""


class Role(Enum):
    """Who does what in a spray."""

    EASY = "easy"
    """One mapped socket, K openers: the side whose endpoint stays what it is."""
    HARD = "hard"
    """N sockets, one packet each: the side whose next port nobody knows."""
    BOTH = "both"
    """Both sides are hard: each sends from many sockets to drawn ports."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SprayPlan:
    """What one spray takes.

    Attributes:
      sockets: N, of a hard side.
      openers: K, of the easy side; when both are hard, the packets of each side, `openers / sockets` from each socket.
      low, high: the range that the hard side's ports are expected in: where the easy side sends to.
      probability: that it meets, if every packet arrives and the ranges are right; 0 when it is not worth a packet.
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
    """The chance that one of `openers` different ports is one of `sockets` different ones among `ports`.

    `delivery` is the chance that a packet arrives; lost ones count as not sent.  Exact without losses (hypergeometric),
    and with them by their expected number.  ValueError for negative numbers or more than there are ports.
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
    """The chance when both sides send packets from new ports of their own range to drawn ports of the other's.

    Where a side does not filter by port, any packet that hits one of its open ports gets in: the other side's own port
    does not matter.  ValueError for a range without ports.
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
    """Our role in a spray; None when both sides are known to be easy, and there is nothing to spray for.

    The side that is known to be endpoint-independent is easy, the one known not to be is hard, and one of which nothing
    is known is the other's counterpart; whoever initiates.  `we_are_lower` (our peer id is lower than the peer's)
    decides when nothing is known of either: then the lower is easy.  Both sides come to matching roles when they look
    at the same two profiles.
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
    """What a spray against a hard side takes: the fewest sockets and openers for `TARGET`, within the caps.

    Both sides may compute it from the hard side's profile and come to the same numbers.  The limits can be lowered,
    never raised above `MAX_SOCKETS` and `MAX_OPENERS`; at least one packet each is planned.
    """
    ports = hard.ports
    sockets_cap = max(1, min(max_sockets, MAX_SOCKETS, int(ports * MAX_SHARE)))
    openers_cap = max(1, min(max_openers, MAX_OPENERS, ports))
    balanced = ceil(sqrt(-ports * log1p(-TARGET)))  # N = K, where N·K/P = -ln(1 - TARGET)
    sockets = min(sockets_cap, balanced)
    openers = openers_cap
    if spray_probability(sockets, openers, ports, delivery=delivery) > TARGET:
        low, high = 1, openers_cap  # the chance grows with the openers, so the fewest are found by halving
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
    """What a spray between two hard sides takes of us, and whether it is worth it: else its probability is 0.

    The numbers are the same on both sides, and no more than either side's range and filter are known to bear: what is
    unknown of a filter is taken for the strictest.  Where both are seen at one address, their NAT has to lead packets
    back in, too: for that small chance a spray would take ports of which there may be less than the outside shows, as
    whoever is behind a second carrier's NAT has to share that one's, and which a relay needs next.
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
    """Whether servers saw both at one address, so that the NAT which has it stands before both."""
    return not set(ours.external).isdisjoint(peers.external)


def _hairpinning(ours: TransportProfile, peers: TransportProfile) -> float:
    """The chance that the NAT which both are behind leads packets back in: whoever has seen it do so is right."""
    known = {ours.hairpin, peers.hairpin} - {None}
    return HAIRPINNING if not known else float(True in known)


def _filters_by_port(profile: TransportProfile) -> bool:
    return profile.filtering in (Filtering.UNKNOWN, Filtering.ADDRESS_AND_PORT_DEPENDENT)


def draw_ports(
    random: Random, count: int, *, low: int = ALL_PORTS[0], high: int = ALL_PORTS[1], first: Collection[int] = ()
) -> list[int]:
    """`count` different ports of a range, in random order, or all of them where it has fewer.

    Those of `first` that are ports come before the drawn ones, and count.  At most `MAX_OPENERS`, whatever is asked
    for.  ValueError for a range that is none.
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
    """How many packets to send before each pause of `BURST_INTERVAL`, until `count` have been sent."""
    while count > 0:
        yield min(count, BURST)
        count -= BURST


def spray_duration(count: int) -> float:
    """Seconds that sending `count` packets takes by `batches`; no pause follows the last."""
    return max(0, ceil(count / BURST) - 1) * BURST_INTERVAL


def balanced_for(probability: float, ports: int) -> int:
    """N = K for a chance over a number of ports, by the approximation sqrt(-P·ln(1 - p)); for people and tables."""
    if not 0 <= probability < 1:
        raise ValueError(f"no number of packets makes a chance of {probability}")
    return ceil(sqrt(-ports * log(1 - probability)))
