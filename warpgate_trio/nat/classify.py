"""Classifies a NAT by the answers of STUN servers.  Pure functions over `NatObservations`, which `measure` collects.

Theory of operation, axis by axis.  Each axis is UNKNOWN rather than a guess, and no server is believed alone where a
second one can contradict it.

* *Mapping* (RFC 5780 §4.3): one socket asks several servers.  Two servers on different addresses that saw the same
  endpoint prove an endpoint-independent mapping, since no endpoint-dependent NAT gives one port to two mappings.  A
  minority that saw something else lies, or met a conflict.  When no two servers agree, the mapping is
  endpoint-dependent.  It depends on addresses alone when different ports of one address agreed.  Without a second port
  to ask, the strictest kind is assumed: plans are the same for both.
* *Filtering* (RFC 5780 §4.4): whether answers came in from an address, and from a port, that the socket never sent to.
* *Allocation*: the ports of new mappings, made from several fresh sockets, in the order in which they were asked for.
* *Range*: see `port_range`.
* *Blocked*: true only with evidence that the network works.  Servers die, and an unknown costs less than a wrong yes.

Times are in seconds on any one clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import combinations, pairwise
from math import gcd
from typing import Final, final

from ..address.nat_profile import ALL_PORTS, MAX_DELTA, MAX_EXTERNAL, Allocation, Filtering, Mapping, TransportProfile
from ..address.scope import AddressScope, scope_of
from ..sockaddr import IpAddress, TransportAddress

__all__ = [
    "Binding",
    "Evidence",
    "NatObservations",
    "Sighting",
    "classify",
    "classify_allocation",
    "classify_filtering",
    "classify_mapping",
    "contradicts",
    "new_mappings",
    "port_range",
]

MAX_BINDINGS: Final = 512
"""Answers that are considered: far more than a measurement collects."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One answer of a server: it saw the request that `local` sent at time `at` come from `mapped`."""

    local: TransportAddress
    server: TransportAddress
    mapped: TransportAddress
    at: float = 0.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NatObservations:
    """What was measured over one transport, interface and address family.

    Attributes:
      bindings: every answer, of every socket.
      asked: all servers that were asked.
      online: whether something beyond the NAT answered by other means (the other transport, a signal server).
      alive: servers that answered over the other transport: their silence over this one does not mean that they are
        down.
      other_address: whether an answer came in from an address and a port that the socket had not sent to; None where
        that was not tested.
      other_port: whether one came in from another port of an address that the socket had sent to; None as above.
      hairpin: whether a packet to our own mapping came back; None where that was not tested.
    """

    bindings: tuple[Binding, ...] = ()
    asked: frozenset[TransportAddress] = frozenset()
    online: bool = False
    alive: frozenset[TransportAddress] = frozenset()
    other_address: bool | None = None
    other_port: bool | None = None
    hairpin: bool | None = None


def classify(observations: NatObservations) -> TransportProfile:
    """The profile that the observations add up to.  Never raises: nonsense from servers leaves axes unknown."""
    credible = _credible(observations.bindings)
    outvoted = _outvoted(credible)
    bindings = [each for each in credible if each.server[0] not in outvoted]
    if not bindings:
        enough = len(observations.asked) >= 2 or observations.asked & observations.alive
        blocked = True if observations.online and enough else None
        return TransportProfile(blocked=blocked)
    translated = classify_translated(bindings)
    mapping = Mapping.ENDPOINT_INDEPENDENT if translated is False else classify_mapping(bindings)
    allocation, delta = (Allocation.UNKNOWN, 0) if translated is False else classify_allocation(bindings, mapping)
    low, high = ALL_PORTS
    if translated and allocation is Allocation.RANDOM:
        low, high = port_range([each.mapped[1] for each in new_mappings(bindings, mapping)])
    return TransportProfile(
        translated=translated,
        blocked=False,
        mapping=mapping,
        filtering=classify_filtering(observations.other_address, observations.other_port),
        allocation=allocation,
        delta=delta,
        low=low,
        high=high,
        hairpin=observations.hairpin,
        external=_external(bindings),
    )


def _ip(text: str) -> IpAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _credible(bindings: Iterable[Binding]) -> list[Binding]:
    """The plausible answers, in the order of asking: valid port, unicast address, one for each socket and server."""
    first: dict[tuple[TransportAddress, TransportAddress], Binding] = {}
    for binding in sorted(bindings, key=lambda each: each.at)[:MAX_BINDINGS]:
        ip, local = _ip(binding.mapped[0]), _ip(binding.local[0])
        if ip is None or local is None or ip.version != local.version or not 0 < binding.mapped[1] <= 65535:
            continue
        if scope_of(ip) is AddressScope.NO_HOST or ip.is_loopback != local.is_loopback:
            continue
        first.setdefault((binding.local, binding.server), binding)
    return list(first.values())


def _by_socket(bindings: Iterable[Binding]) -> dict[TransportAddress, list[Binding]]:
    found: dict[TransportAddress, list[Binding]] = {}
    for each in bindings:
        found.setdefault(each.local, []).append(each)
    return found


def _witnesses(bindings: Iterable[Binding]) -> dict[TransportAddress, set[str]]:
    """For each endpoint as which one socket was seen, the addresses of the servers that saw it."""
    found: dict[TransportAddress, set[str]] = {}
    for each in bindings:
        found.setdefault(each.mapped, set()).add(each.server[0])
    return found


def _outvoted(bindings: Sequence[Binding]) -> set[str]:
    """The servers that disagree with a majority about the endpoint of a socket: none of their answers is used."""
    found: set[str] = set()
    for asked in _by_socket(bindings).values():
        witnesses = list(_witnesses(asked).values())
        servers = set().union(*witnesses)
        most = max(witnesses, key=len)
        if len(most) > 1 and 2 * len(most) > len(servers):
            found |= servers - most
    return found


def _external(bindings: Sequence[Binding]) -> tuple[IpAddress, ...]:
    """The addresses that servers saw, ordered by how many servers saw them, most first."""
    seen = Counter(address for address, _ in {(each.mapped[0], each.server[0]) for each in bindings})
    found = (_ip(address) for address, _ in seen.most_common(MAX_EXTERNAL))
    return tuple(ip for ip in found if ip is not None)


def classify_translated(bindings: Sequence[Binding]) -> bool | None:
    """Whether servers see an endpoint other than the local one; None on a tie."""
    votes = Counter(same for same, _ in {(each.mapped == each.local, each.server[0]) for each in bindings})
    return None if votes[True] == votes[False] else votes[False] > votes[True]


def classify_mapping(bindings: Sequence[Binding]) -> Mapping:
    """The mapping, by a vote of the sockets that asked more than one server."""
    by_socket = _by_socket(bindings).values()
    votes = Counter(vote for each in by_socket if (vote := _mapping_of_one(each)) is not Mapping.UNKNOWN)
    if not votes:
        return Mapping.UNKNOWN
    (mapping, most), *others = votes.most_common(2)
    return mapping if not others or most > others[0][1] else Mapping.UNKNOWN


def _mapping_of_one(bindings: Sequence[Binding]) -> Mapping:
    """The mapping, by what servers saw of one socket."""
    servers = {each.server[0] for each in bindings}
    agreeing = max(len(each) for each in _witnesses(bindings).values())
    if agreeing > 1:
        # Two servers cannot agree by chance or by a lie.  If at least as many disagree, the answers are nonsense.
        return Mapping.ENDPOINT_INDEPENDENT if 2 * agreeing > len(servers) else Mapping.UNKNOWN
    ports = [a.mapped == b.mapped for a, b in combinations(bindings, 2) if a.server[0] == b.server[0]]
    if len(servers) > 1:
        if ports and all(ports):
            return Mapping.ADDRESS_DEPENDENT
        return Mapping.UNKNOWN if any(ports) else Mapping.ADDRESS_AND_PORT_DEPENDENT
    # One address alone: its ports may agree where other addresses would not.
    return Mapping.ADDRESS_AND_PORT_DEPENDENT if ports and not any(ports) else Mapping.UNKNOWN


def classify_filtering(other_address: bool | None, other_port: bool | None) -> Filtering:
    """The filtering, by which unexpected answers came in (see `NatObservations`)."""
    if other_address:
        return Filtering.ENDPOINT_INDEPENDENT
    if other_address is None or other_port is None:
        return Filtering.UNKNOWN
    return Filtering.ADDRESS_DEPENDENT if other_port else Filtering.ADDRESS_AND_PORT_DEPENDENT


# --- Allocation -------------------------------------------------------------------------------------------------------

MIN_RANDOM: Final = 4
"""Mappings without a pattern that it takes to call an allocation random: among three, another host's burst may have
disturbed both steps."""
_SHORT: Final = 6  # below so many mappings, rising ports may be chance: over half of the steps have to be equal


def new_mappings(bindings: Sequence[Binding], mapping: Mapping) -> list[Binding]:
    """The answers to requests that each made a new mapping, in the order of asking."""
    seen: set[tuple[object, ...]] = set()
    found = []
    for each in sorted(bindings, key=lambda each: each.at):
        key: tuple[object, ...] = (each.local,)
        if mapping is Mapping.ADDRESS_DEPENDENT:
            key = (each.local, each.server[0])
        elif mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT:
            key = (each.local, each.server)
        if key not in seen:
            seen.add(key)
            found.append(each)
    return found


def classify_allocation(bindings: Sequence[Binding], mapping: Mapping) -> tuple[Allocation, int]:
    """How ports are chosen, and the delta (see `TransportProfile.delta`).

    * Preserving: at least two thirds of the sockets' first mappings have the local port; for the others it was in use.
      Or all of at least three sockets, with local ports far apart, have the same offset from it.
    * Sequential: the ports of new mappings rise (or fall) in order by small steps, with one wrap at most.  Allocations
      for other hosts make a step a multiple of the delta, so the delta is the steps' greatest common divisor.
    * Random: at least `MIN_RANDOM` new mappings without such a pattern.
    """
    first = new_mappings(bindings, Mapping.ENDPOINT_INDEPENDENT)
    offsets = Counter((each.mapped[1] - each.local[1]) % 65536 for each in first)
    ((offset, most),) = offsets.most_common(1)
    if 3 * offsets[0] >= 2 * len(first):
        return Allocation.PRESERVING, 0
    local = [each.local[1] for each in first]
    if most == len(first) >= 3 and max(local) - min(local) > MAX_DELTA * len(first):
        return Allocation.PRESERVING, offset - 65536 if offset >= 32768 else offset
    ports = [each.mapped[1] for each in new_mappings(bindings, mapping)]
    delta = _common_step(ports)
    if delta:
        return Allocation.SEQUENTIAL, delta
    return (Allocation.RANDOM if len(ports) >= MIN_RANDOM else Allocation.UNKNOWN), 0


def _common_step(ports: Sequence[int]) -> int:
    """The common step of a sequence of ports; 0 when there is none."""
    steps = [later - sooner for sooner, later in pairwise(ports)]
    jumps = [step for step in steps if abs(step) > MAX_DELTA]
    small = [step for step in steps if abs(step) <= MAX_DELTA]
    if len(jumps) > 1 or len(small) < 2 or 0 in small or len({step > 0 for step in small}) > 1:
        return 0
    if jumps and (len(ports) < _SHORT or (jumps[0] > 0) == (small[0] > 0)):
        return 0  # a wrap jumps against the direction of the steps; in a short sequence it proves nothing
    common = Counter(small).most_common(1)[0][1]
    if len(ports) < _SHORT and 2 * common <= len(small):
        return 0
    delta = gcd(*small)
    return delta if small[0] > 0 else -delta


# --- The range --------------------------------------------------------------------------------------------------------

RANGE_DOUBT: Final = 0.01
"""The accepted chance of an estimate that covers only a part of the range: that costs one spray in a hundred, while too
wide an estimate only lowers the chance per packet."""
MAX_BLOCK: Final = 16384
"""Largest aligned block that is used as an estimate: a larger one holds half of all ports anyway."""
MIN_BLOCK: Final = 512
"""Smallest range that is believed: carriers give 512 to 4,096 ports, and ports that lie closer together are more likely
those of a sequence in heavy traffic, which has moved on by the time of a spray."""


def port_range(ports: Iterable[int]) -> tuple[int, int]:
    """First and last port of the range of a random allocation, estimated generously from the ports seen.

    The narrower of two estimates, each of which is too narrow with a chance of at most `RANGE_DOUBT`:

    * The span seen, widened on both sides by what a uniform sample may miss at the ends (the German tank problem with
      both ends unknown).  The span of n ports is below a share s of the range with a chance of n·s^(n-1) - (n-1)·s^n.
    * An aligned block whose size is a power of two, counted as carriers do from port 0 or from port 1024.  The smallest
      block that holds all n ports is doubled until a still larger range is not credible: in a range of two such blocks,
      all n ports are in one of them with a chance of 2^-(n-1).

    With fewer than `MIN_RANDOM` ports the result is `ALL_PORTS`.
    """
    found = sorted(set(ports))
    if len(found) < MIN_RANDOM:
        return ALL_PORTS
    first, last = found[0], found[-1]
    low_end = ALL_PORTS[0] if first >= ALL_PORTS[0] else 1
    size = max(MIN_BLOCK, int((last - first) / _least_span(len(found))) + 1)
    tank = (max(low_end, last - size), min(65535, first + size))
    estimates = [tank, *_aligned_blocks(first, last, len(found))]
    low, high = min(estimates, key=lambda each: each[1] - each[0])
    return max(low, low_end), min(high, 65535)


def _least_span(n: int) -> float:
    """The share of its range that a sample of n ports spans at least, except with a chance of `RANGE_DOUBT`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if n * middle ** (n - 1) - (n - 1) * middle**n < RANGE_DOUBT:
            low = middle
        else:
            high = middle
    return low


def _aligned_blocks(first: int, last: int, n: int) -> list[tuple[int, int]]:
    """For each alignment, the smallest block that holds the ports, doubled as `port_range` says."""
    found = []
    for origin in (0, ALL_PORTS[0]):
        size = MIN_BLOCK
        while size <= MAX_BLOCK and (first - origin) // size != (last - origin) // size:
            size *= 2
        part = 0.5
        while part ** (n - 1) > RANGE_DOUBT:
            part /= 2
            size *= 2
        if size <= MAX_BLOCK and first >= origin:
            start = origin + (first - origin) // size * size
            found.append((start, start + size - 1))
    return found


# --- Contradictions ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The endpoint from which an authenticated peer says that our packets came, and the one that we had announced."""

    announced: TransportAddress
    observed: TransportAddress


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an attempt learned about our own NAT over one transport.

    A sighting is a peer's claim.  It may only cause a new measurement, at a rate that the caller limits.

    Attributes:
      bindings: answers of servers, as in `NatObservations`.
      sightings: the endpoints that peers saw.
      received: whether anything came in.
    """

    bindings: tuple[Binding, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    received: bool = False


def contradicts(profile: TransportProfile, evidence: Evidence) -> str | None:
    """Why a profile can no longer be true, in one sentence; None when it can.

    An unknown axis cannot be contradicted, and silence proves nothing.
    """
    bindings = _credible(evidence.bindings)
    if profile.blocked and (bindings or evidence.received or evidence.sightings):
        return "packets come in, though everything seemed blocked"
    if bindings and (why := _contradicted_by(bindings, profile)):
        return why
    if profile.endpoint_independent and any(each.announced != each.observed for each in evidence.sightings):
        return "a peer saw another external endpoint than the STUN servers"
    return None


def _contradicted_by(bindings: Sequence[Binding], profile: TransportProfile) -> str | None:
    """Why answers of servers contradict a profile; None when they do not."""
    if profile.external and not set(_external(bindings)) & set(profile.external):
        return f"the external address is {bindings[0].mapped[0]} now"
    translated = classify_translated(bindings)
    if None not in (translated, profile.translated) and translated is not profile.translated:
        return "there is a NAT now" if translated else "there is no NAT any more"
    if not translated:
        return None
    mapping = classify_mapping(bindings)
    independent = mapping is Mapping.ENDPOINT_INDEPENDENT
    known = Mapping.UNKNOWN not in (mapping, profile.mapping)
    if known and independent is not profile.endpoint_independent:
        return f"the mapping turned out to be {mapping.name.lower().replace('_', '-')}"
    first = new_mappings(bindings, Mapping.ENDPOINT_INDEPENDENT)
    kept = any((each.mapped[1] - each.local[1] - profile.delta) % 65536 == 0 for each in first)
    if profile.allocation is Allocation.PRESERVING and len(first) > 1 and not kept:
        return "ports are not preserved any more"
    outside = [each.mapped[1] for each in bindings if not profile.low <= each.mapped[1] <= profile.high]
    if profile.allocation is Allocation.RANDOM and outside:
        return f"port {outside[0]} lies outside of the range seen, {profile.low} to {profile.high}"
    return None
