"""Worlds as data: what a network is made of, before it is made.

Everything here is frozen, prints, and compares, so that a test can draw it, report it and cut it down; `Topology.build`
and `PeerPair.build` make a `warpgate_trio.sim.Network` of it.  A `Topology` is any tree of LANs; a `PeerPair` is the
one that peer-to-peer programs are about: two peers, their NATs, and a server that both reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from ..sim import Link, NatConfig, Network, Router, Segment
from ..sim.packet import TCP

__all__ = ["PERFECT", "Lan", "Machine", "PeerPair", "Place", "Topology"]

PERFECT: Final = Link()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A host to be: the arguments of `Segment.host`."""

    name: str
    link: Link = PERFECT
    clock_offset: float = 0.0
    clock_drift: float = 0.0

    def attach(self, segment: Segment) -> None:
        """Make it a host of a segment."""
        segment.host(self.name, link=self.link, clock_offset=self.clock_offset, clock_drift=self.clock_drift)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lan:
    """A LAN to be, behind a router of the same name: the arguments of `Segment.lan`, and what is on it."""

    name: str
    nat: NatConfig
    firewall6: NatConfig | None = None
    machines: tuple[Machine, ...] = ()
    lans: tuple[Lan, ...] = ()
    uplink: Link = PERFECT
    prefix4: str | None = None

    def attach(self, segment: Segment) -> None:
        """Put it, and all that is on it, behind a segment."""
        made = segment.lan(self.name, nat=self.nat, firewall6=self.firewall6, uplink=self.uplink, prefix4=self.prefix4)
        _attach(self.machines, self.lans, made)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A whole world to be.

    Attributes:
      machines: hosts on the internet itself.
      lans: LANs at the internet, which may have LANs behind them (CGN).
      ipv6: whether the internet has IPv6, and with it everything else.
      hops, seed: of the `Network`.
    """

    machines: tuple[Machine, ...] = ()
    lans: tuple[Lan, ...] = ()
    ipv6: bool = False
    hops: int = 6
    seed: int = 0

    def build(self, *, time_limit: float = 86400.0) -> Network:
        """Make the network, to be entered by the caller; its hosts and routers are in `Network.hosts` by name."""
        net = Network(self.seed, ipv6=self.ipv6, hops=self.hops, time_limit=time_limit)
        _attach(self.machines, self.lans, net.internet)
        return net

    def host_names(self) -> list[str]:
        """The names of all hosts, without the routers."""
        return [machine.name for machine in (*self.machines, *(m for lan in _walk(self.lans) for m in lan.machines))]

    def router_names(self) -> list[str]:
        """The names of all routers."""
        return [lan.name for lan in _walk(self.lans)]


def _attach(machines: Sequence[Machine], lans: Sequence[Lan], segment: Segment) -> None:
    for machine in machines:
        machine.attach(segment)
    for lan in lans:
        lan.attach(segment)


def _walk(lans: Sequence[Lan]) -> list[Lan]:
    return [found for lan in lans for found in (lan, *_walk(lan.lans))]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a peer is.

    Attributes:
      nats: it is behind these, outermost first; none for the internet itself.
      link: its uplink: the outermost router's, or without NATs its own.
      clock_offset: seconds by which its clock is wrong.
      forwarded: whether its NATs forward a TCP port to it.  Which port is the test's to say, after `PeerPair.build`:
        `PeerPair.forward`.
      prefix4: of its innermost LAN; None for one that no other LAN has.  Half the world's homes have 192.168.1.0/24.
    """

    nats: tuple[NatConfig, ...] = ()
    link: Link = PERFECT
    clock_offset: float = 0.0
    forwarded: bool = False
    prefix4: str | None = None

    def __str__(self) -> str:
        where = " > ".join(nat.name for nat in self.nats) or "no NAT"
        clock = f", clock {self.clock_offset:+g} s" if self.clock_offset else ""
        return f"{where}{' forwarded' if self.forwarded else ''}, {self.link.latency * 1000:g} ms{clock}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPair:
    """Two peers, and a server that both can reach.

    Attributes:
      alice, bob: where they are; hosts ``"alice"`` and ``"bob"``.
      shared: NATs that both are behind, outermost first.  With no NATs of their own, peers with shared ones are on one
        LAN.
      server: the link of the host ``"server"``, on the internet.
      seed: of the `Network`.
    """

    alice: Place = Place()
    bob: Place = Place()
    shared: tuple[NatConfig, ...] = ()
    server: Link = PERFECT
    seed: int = 0

    def __str__(self) -> str:
        shared = f"; both behind {' > '.join(nat.name for nat in self.shared)}" if self.shared else ""
        return f"alice: {self.alice}; bob: {self.bob}{shared}; seed {self.seed}"

    def topology(self) -> Topology:
        """The pair as a world."""
        machines: list[Machine] = []
        lans: list[Lan] = []
        for name, place in (("alice", self.alice), ("bob", self.bob)):
            machine = Machine(name=name, link=PERFECT if place.nats else place.link, clock_offset=place.clock_offset)
            found = _behind(place.nats, f"{name}-nat", machine, uplink=place.link, prefix4=place.prefix4)
            if isinstance(found, Lan):
                lans.append(found)
            else:
                machines.append(found)
        for number, nat in reversed(list(enumerate(self.shared))):
            lans = [Lan(name=f"shared-nat{number}", nat=nat, machines=tuple(machines), lans=tuple(lans))]
            machines = []
        server = Machine(name="server", link=self.server)
        return Topology(machines=(server, *machines), lans=tuple(lans), seed=self.seed)

    def build(self, *, time_limit: float = 86400.0) -> Network:
        """Make the network, to be entered by the caller."""
        return self.topology().build(time_limit=time_limit)

    def forward(self, net: Network, name: str, port: int) -> str:
        """Let every NAT before a host of `net` forward a TCP port to it; returns the address to reach it at."""
        place = self.alice if name == "alice" else self.bob
        chain = [f"shared-nat{number}" for number in range(len(self.shared))]
        chain += [f"{name}-nat{number}" for number in range(len(place.nats))]
        inside = net.hosts[name].ip
        for router in (net.hosts[each] for each in reversed(chain)):
            assert isinstance(router, Router)
            assert router.nat is not None
            router.nat.add_forward(TCP, port, (inside, port))
            inside = router.ip
        return inside


def _behind(
    nats: Sequence[NatConfig], name: str, machine: Machine, *, uplink: Link, prefix4: str | None
) -> Lan | Machine:
    """A machine behind NATs, outermost first."""
    found: Lan | Machine = machine
    for number, nat in reversed(list(enumerate(nats))):
        innermost = isinstance(found, Machine)
        found = Lan(
            name=f"{name}{number}",
            nat=nat,
            machines=(found,) if isinstance(found, Machine) else (),
            lans=(found,) if isinstance(found, Lan) else (),
            uplink=uplink if number == 0 else PERFECT,
            prefix4=prefix4 if innermost else None,
        )
    return found
