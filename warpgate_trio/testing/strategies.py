"""Hypothesis strategies for networks: NATs, links, worlds of NATs and hosts, faults, and pairs of peers.

The module needs the extra ``testing``.  The strategies draw plain frozen data, which is printable and shrinks towards
fewer machines on perfect links without NATs.  `Topology.build` and `PeerPair.build` make a `warpgate_trio.sim.Network`
of it::

    @given(peer_pairs())
    def test_my_protocol(pair: PeerPair) -> None:
        async def main() -> None:
            async with pair.build() as net:
                await net.hosts["alice"].run(my_client, net.hosts["bob"].ip)

        simulate(main, seed=pair.seed)

To look for bugs, draw from all behaviours of NATs (`nats`, `peer_pairs`).  To estimate how often something works for
users, draw from a `population`, in which the corner cases that break programs are rare.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

from hypothesis import strategies as st

from ..sim import (
    Behavior,
    Block,
    Conflict,
    Fault,
    Filtering,
    Hairpin,
    Hash,
    Kind,
    Link,
    Mapping,
    NatConfig,
    Pooling,
    Preserve,
    Refresh,
    Sequential,
    Uniform,
    Unsolicited,
    presets,
)
from .populations import POPULATIONS, Population
from .worlds import Lan, Machine, PeerPair, Place, Topology

__all__ = [
    "POPULATIONS",
    "Lan",
    "Machine",
    "PeerPair",
    "Place",
    "Population",
    "Topology",
    "behaviors",
    "fault_schedules",
    "links",
    "nats",
    "peer_pairs",
    "population",
    "topologies",
]

SEEDS: Final = st.integers(0, 2**16 - 1)
SLOTS: Final = 1000  # the shares of a population are rounded to thousandths


def links(*, max_latency: float = 0.2, noisy: bool = True) -> st.SearchStrategy[Link]:
    """Links of up to `max_latency` seconds, in milliseconds; `noisy` adds jitter, loss, duplicates and reordering."""
    latency = st.integers(0, int(max_latency * 1000)).map(lambda ms: ms / 1000)
    if not noisy:
        return st.builds(Link, latency=latency)
    percent = st.integers(0, 10).map(lambda value: value / 100)
    return st.builds(
        Link,
        latency=latency,
        jitter=st.integers(0, 20).map(lambda ms: ms / 1000),
        loss=percent,
        duplicate=percent,
        reorder=percent,
    )


def _allocations() -> st.SearchStrategy[Preserve | Uniform | Sequential | Block | Hash]:
    return st.one_of(
        st.just(Preserve()),
        st.builds(Uniform, parity=st.booleans()),
        st.builds(Sequential, delta=st.sampled_from((1, 2, -1, 7)), per_host=st.booleans()),
        st.builds(Block, size=st.sampled_from((64, 1024)), sequential=st.booleans()),
        st.builds(Hash, remote=st.booleans()),
    )


def behaviors(*, tcp: bool) -> st.SearchStrategy[Behavior]:
    """Every combination of the axes of one transport; they shrink towards the most permissive one."""
    policies = [each for each in Unsolicited if tcp or each not in (Unsolicited.RST, Unsolicited.HOLD)]
    return st.builds(
        Behavior,
        mapping=st.sampled_from(Mapping),
        filtering=st.sampled_from(Filtering),
        allocation=_allocations(),
        conflict=st.sampled_from(Conflict),
        hairpin=st.sampled_from((Hairpin.EXTERNAL, Hairpin.INTERNAL, Hairpin.LOCAL, Hairpin.NONE)),
        refresh=st.sampled_from((Refresh.BOTH, Refresh.OUT, Refresh.IN)),
        unsolicited=st.sampled_from(policies),
        simultaneous_open=st.sampled_from((True, False)) if tcp else st.just(True),
        strict_isn=st.booleans() if tcp else st.just(False),
    )


def _composed(udp: Behavior, tcp: Behavior, pooling: Pooling) -> NatConfig:
    name = f"{udp.mapping.name}/{udp.filtering.name}+{tcp.mapping.name}/{tcp.filtering.name}".lower()
    return NatConfig(name=name, source="composed of RFC 4787's axes", udp=udp, tcp=tcp, pooling=pooling)


def nats(*, composed: bool = True) -> st.SearchStrategy[NatConfig]:
    """NATs: those of `presets.NATS`, and with `composed` every combination of the axes, separately for UDP and TCP."""
    known = st.sampled_from(list(presets.NATS.values()))
    if not composed:
        return known
    made = st.builds(_composed, behaviors(tcp=False), behaviors(tcp=True), st.sampled_from(Pooling))
    return known | made


@st.composite
def topologies(
    draw: st.DrawFn,
    *,
    max_lans: int = 3,
    max_depth: int = 2,
    max_machines: int = 3,
    nat: st.SearchStrategy[NatConfig] | None = None,
    link: st.SearchStrategy[Link] | None = None,
    ipv6: st.SearchStrategy[bool] | None = None,
) -> Topology:
    """Worlds: at least one machine on the internet, and LANs `max_depth` deep, each with at least one machine.

    Hosts are called ``"host0"``, ``"host1"`` and so on, routers ``"lan0"`` and so on.  `max_lans` and `max_machines`
    apply to each segment.
    """
    nat = nats() if nat is None else nat
    link = links() if link is None else link
    numbers = {"host": 0, "lan": 0}

    def name(kind: str) -> str:
        numbers[kind] += 1
        return f"{kind}{numbers[kind] - 1}"

    def machines() -> tuple[Machine, ...]:
        count = draw(st.integers(1, max_machines))
        return tuple(Machine(name=name("host"), link=draw(link)) for _ in range(count))

    def lans(depth: int) -> tuple[Lan, ...]:
        count = draw(st.integers(0, max_lans)) if depth else 0
        firewalls = st.sampled_from((None, *presets.FIREWALLS6.values()))
        return tuple(
            Lan(
                name=name("lan"),
                nat=draw(nat),
                firewall6=draw(firewalls),
                uplink=draw(link),
                machines=machines(),
                lans=lans(depth - 1),
            )
            for _ in range(count)
        )

    with_ipv6 = draw(st.booleans() if ipv6 is None else ipv6)
    return Topology(machines=machines(), lans=lans(max_depth), ipv6=with_ipv6, seed=draw(SEEDS))


_OF_ROUTERS: Final = (Kind.REBOOT, Kind.REBIND)
_KINDS: Final = (
    Kind.LOSS,
    Kind.DUPLICATE,
    Kind.REORDER,
    Kind.DELAY,
    Kind.BLACKHOLE,
    Kind.MTU_BLACKHOLE,
    *_OF_ROUTERS,
)
"""The faults that are drawn: those of networks.  Faults of hosts, such as SLEEP, have to be made explicitly."""


@st.composite
def fault_schedules(
    draw: st.DrawFn, topology: Topology, *, horizon: float = 60.0, max_size: int = 4
) -> tuple[Fault, ...]:
    """Faults at hosts and routers of a world that begin and end within `horizon` seconds; for `Network.schedule`."""
    hosts, routers = topology.host_names(), topology.router_names()
    instants = st.integers(0, int(horizon * 10)).map(lambda tenths: tenths / 10)
    found: list[Fault] = []
    for _ in range(draw(st.integers(0, max_size))):
        kind = draw(st.sampled_from([each for each in _KINDS if routers or each not in _OF_ROUTERS]))
        of_router = kind in _OF_ROUTERS
        target = draw(st.sampled_from(routers if of_router else [*hosts, *routers]))
        way = "" if of_router else draw(st.sampled_from(("", ":up", ":down")))
        first, second = sorted((draw(instants), draw(instants)))
        found.append(Fault(at=first, until=second, target=target + way, kind=kind, value=draw(_values(kind))))
    return tuple(sorted(found, key=lambda fault: (fault.at, fault.target)))


def _values(kind: Kind) -> st.SearchStrategy[float]:
    if kind in (Kind.LOSS, Kind.DUPLICATE, Kind.REORDER):
        return st.integers(1, 10).map(lambda tenths: tenths / 10)
    if kind is Kind.DELAY:
        return st.integers(1, 50).map(lambda tenths: tenths / 10)
    if kind is Kind.MTU_BLACKHOLE:
        return st.sampled_from((1400.0, 1280.0, 576.0))  # a tunnel, IPv6's minimum, IPv4's
    return st.just(0.0)


@st.composite
def _places(
    draw: st.DrawFn, nat: st.SearchStrategy[NatConfig], link: st.SearchStrategy[Link], max_skew: int, max_nats: int
) -> Place:
    behind = tuple(draw(st.lists(nat, max_size=max_nats)))
    return Place(
        nats=behind,
        link=draw(link),
        clock_offset=float(draw(st.integers(-max_skew, max_skew))),
        forwarded=draw(st.booleans()) if behind else False,
        prefix4=draw(st.sampled_from((None, "192.168.1.0/24"))) if behind else None,
    )


@st.composite
def peer_pairs(
    draw: st.DrawFn,
    *,
    nat: st.SearchStrategy[NatConfig] | None = None,
    link: st.SearchStrategy[Link] | None = None,
    max_skew: int = 30,
    max_nats: int = 2,
) -> PeerPair:
    """Two peers anywhere: without NAT, behind up to `max_nats` NATs each, on one LAN, or behind one CGN.

    Args:
      nat: strategy for every NAT; by default `nats`.
      link: strategy for the links of both peers and of the server.
      max_skew: the most whole seconds by which each clock is wrong.
      max_nats: the most NATs of each peer, besides one that they may share.
    """
    nat = nats() if nat is None else nat
    link = links() if link is None else link
    places = _places(nat, link, max_skew, max_nats)
    return PeerPair(
        alice=draw(places),
        bob=draw(places),
        shared=tuple(draw(st.lists(nat, max_size=1))),
        server=draw(link),
        seed=draw(SEEDS),
    )


def _kinds(who: Population) -> st.SearchStrategy[tuple[NatConfig, ...]]:
    """The kinds of a population, by their shares; they shrink towards a host without NAT."""
    ordered = sorted(who.kinds, key=lambda kind: len(kind[1]))
    upto = list(accumulate(share for share, _ in ordered))
    slots = [next(kind for (_, kind), end in zip(ordered, upto, strict=True) if n / SLOTS < end) for n in range(SLOTS)]
    return st.sampled_from(slots)


@st.composite
def population(
    draw: st.DrawFn, name: str = "everybody", *, link: st.SearchStrategy[Link] | None = None, max_skew: int = 2
) -> PeerPair:
    """Two random peers of one of `POPULATIONS`.  KeyError for another name.

    It is for tests of the usual case, and does not replace `peer_pairs`.  Hypothesis prefers examples that it has not
    tried yet, so measure shares with `Population.sample`.
    """
    kinds = _kinds(POPULATIONS[name])
    link = links(noisy=False) if link is None else link
    skew = st.integers(-max_skew, max_skew).map(float)
    alice = Place(nats=draw(kinds), link=draw(link), clock_offset=draw(skew))
    bob = Place(nats=draw(kinds), link=draw(link), clock_offset=draw(skew))
    return PeerPair(alice=alice, bob=bob, server=draw(link), seed=draw(SEEDS))
