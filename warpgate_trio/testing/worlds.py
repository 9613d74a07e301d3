"""Worlds as plain data, from which networks are built.

The classes are frozen, printable and comparable, so that a test can draw, report and shrink them.  `Topology.build` and
`PeerPair.build` make a `warpgate_trio.sim.Network`.  A `Topology` is any tree of LANs.  A `PeerPair` is the world of
peer-to-peer programs: two peers, their NATs, and a server that both reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from ..sim import Link, NatConfig, Network, Router, Segment
from ..sim.packet import TCP
from ..sim.short_repr import ShortRepr

__all__ = ["PERFECT", "Lan", "Machine", "PeerPair", "Place", "Topology"]

PERFECT: Final = Link()


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Machine(ShortRepr):
    """A host as data: the arguments of `Segment.host`.

    Attributes:
      addresses: the number of its IPv4 addresses; its name stands for the first one.
    """

    name: str
    link: Link = PERFECT
    clock_offset: float = 0.0
    clock_drift: float = 0.0
    addresses: int = 1

    def attach(self, segment: Segment) -> None:
        """Attach it to a segment as a host."""
        host = segment.host(self.name, link=self.link, clock_offset=self.clock_offset, clock_drift=self.clock_drift)
        for _ in range(self.addresses - 1):
            segment.give(host.interfaces[0], segment.free_address())


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Lan(ShortRepr):
    """A LAN as data, behind a router of the same name: the arguments of `Segment.lan`, and its machines and LANs."""

    name: str
    nat: NatConfig
    firewall6: NatConfig | None = None
    machines: tuple[Machine, ...] = ()
    lans: tuple[Lan, ...] = ()
    uplink: Link = PERFECT
    prefix4: str | None = None

    def attach(self, segment: Segment) -> None:
        """Attach it, with everything on it, to a segment."""
        made = segment.lan(self.name, nat=self.nat, firewall6=self.firewall6, uplink=self.uplink, prefix4=self.prefix4)
        _attach(self.machines, self.lans, made)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Topology(ShortRepr):
    """A whole world as data.

    Attributes:
      machines: hosts directly on the internet.
      lans: LANs at the internet, which may have LANs behind them (CGN).
      ipv6: whether the internet, and with it everything else, has IPv6.
      hops, seed: arguments of the `Network`.
    """

    machines: tuple[Machine, ...] = ()
    lans: tuple[Lan, ...] = ()
    ipv6: bool = False
    hops: int = 6
    seed: int = 0

    def build(self, *, time_limit: float = 86400.0) -> Network:
        """Make the network, which the caller enters; its hosts and routers are in `Network.hosts` by name."""
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
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Place(ShortRepr):
    """The network location of a peer.

    Attributes:
      nats: the NATs in front of it, outermost first; none if it is directly on the internet.
      link: its uplink: the link of the outermost router, or without NATs its own.
      clock_offset: seconds by which its clock is wrong.
      clock_drift: seconds that its clock gains per second.
      firewall6: the IPv6 firewall at each of its NATs' routers; None lets everything through.
      forwarded: whether its NATs forward a TCP port to it.  The test sets the port with `PeerPair.forward`, after
        `PeerPair.build`.
      prefix4: the prefix of its innermost LAN, such as the widespread 192.168.1.0/24; None for a unique one.
    """

    nats: tuple[NatConfig, ...] = ()
    link: Link = PERFECT
    clock_offset: float = 0.0
    clock_drift: float = 0.0
    firewall6: NatConfig | None = None
    forwarded: bool = False
    prefix4: str | None = None

    def __str__(self) -> str:
        where = " > ".join(nat.name for nat in self.nats) or "no NAT"
        clock = f", clock {self.clock_offset:+g} s" if self.clock_offset else ""
        return f"{where}{' forwarded' if self.forwarded else ''}, {self.link.latency * 1000:g} ms{clock}"


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PeerPair(ShortRepr):
    """Two peers, and a server that both can reach.

    Attributes:
      alice, bob: the places of the hosts ``"alice"`` and ``"bob"``.
      shared: NATs in front of both, outermost first.  Peers with shared NATs and none of their own are on one LAN.
      server: the link of the host ``"server"``, on the internet.
      public: further machines on the internet, for servers of the test.
      ipv6: whether there is IPv6 everywhere.
      seed: the seed of the `Network`.
    """

    alice: Place = Place()
    bob: Place = Place()
    shared: tuple[NatConfig, ...] = ()
    server: Link = PERFECT
    public: tuple[Machine, ...] = ()
    ipv6: bool = False
    seed: int = 0

    @classmethod
    def between(
        cls,
        alice: NatConfig | Sequence[NatConfig] | None = None,
        bob: NatConfig | Sequence[NatConfig] | None = None,
        *,
        rtt: float = 0.05,
        server_rtt: float | tuple[float, float] | None = None,
        loss: float = 0.0,
        jitter: float = 0.0,
        clock_offsets: tuple[float, float] = (0.0, 0.0),
        clock_drifts: tuple[float, float] = (0.0, 0.0),
        shared: Sequence[NatConfig] = (),
        seed: int = 0,
    ) -> PeerPair:
        """Two peers behind NATs, with exact round-trip times between them and the servers.

        Besides ``"server"`` there are the public hosts ``"stun"``, which has two addresses (RFC 5780), ``"stun2"`` and
        ``"ntp"``, at the same distance.  They cost nothing until something runs there.

        Args:
          alice, bob: the NATs of each: one, several (outermost first), or None.
          rtt: round-trip time in seconds between the peers.
          server_rtt: round-trip times in seconds from alice, and from bob, to each server; one number for both; None:
            the same as `rtt`.
          loss: the share of packets that is lost between any two of them, one way.
          jitter: the most seconds by which a packet is delayed between any two of them, one way.
          clock_offsets, clock_drifts: errors of alice's clock and of bob's; the servers' clocks are right.
          shared: NATs in front of both, outermost first.
          seed: the seed of the `Network`.

        Raises:
          ValueError: three points cannot have these distances.
        """
        from_alice, from_bob = server_rtt if isinstance(server_rtt, tuple) else (server_rtt, server_rtt)
        to_alice = rtt if from_alice is None else from_alice
        to_bob = rtt if from_bob is None else from_bob
        # Every path consists of two links, so the three latencies follow from the three distances.
        latencies = (rtt + to_alice - to_bob) / 4, (rtt + to_bob - to_alice) / 4, (to_alice + to_bob - rtt) / 4
        if min(latencies) < 0:
            raise ValueError(
                f"no server is {to_alice:g} s from alice and {to_bob:g} s from bob when they are {rtt:g} s apart: "
                "one of the three is longer than the other two together"
            )
        near_a, near_b, near_s = (
            Link(latency=latency, loss=1 - (1 - loss) ** 0.5, jitter=jitter / 2) for latency in latencies
        )
        places = [
            Place(nats=_as_nats(nats), link=link, clock_offset=offset, clock_drift=drift)
            for nats, link, offset, drift in zip(
                (alice, bob), (near_a, near_b), clock_offsets, clock_drifts, strict=True
            )
        ]
        servers = (
            Machine(name="stun", link=near_s, addresses=2),
            Machine(name="stun2", link=near_s),
            Machine(name="ntp", link=near_s),
        )
        return cls(alice=places[0], bob=places[1], shared=tuple(shared), server=near_s, public=servers, seed=seed)

    def __str__(self) -> str:
        shared = f"; both behind {' > '.join(nat.name for nat in self.shared)}" if self.shared else ""
        return f"alice: {self.alice}; bob: {self.bob}{shared}; seed {self.seed}"

    def topology(self) -> Topology:
        """The pair as a `Topology`."""
        machines: list[Machine] = []
        lans: list[Lan] = []
        for name, place in (("alice", self.alice), ("bob", self.bob)):
            machine = Machine(
                name=name,
                link=PERFECT if place.nats else place.link,
                clock_offset=place.clock_offset,
                clock_drift=place.clock_drift,
            )
            found = _behind(place, f"{name}-nat", machine)
            if isinstance(found, Lan):
                lans.append(found)
            else:
                machines.append(found)
        for number, nat in reversed(list(enumerate(self.shared))):
            lans = [Lan(name=f"shared-nat{number}", nat=nat, machines=tuple(machines), lans=tuple(lans))]
            machines = []
        server = Machine(name="server", link=self.server)
        return Topology(machines=(server, *self.public, *machines), lans=tuple(lans), ipv6=self.ipv6, seed=self.seed)

    def build(self, *, time_limit: float = 86400.0) -> Network:
        """Make the network, which the caller enters."""
        return self.topology().build(time_limit=time_limit)

    def forward(self, net: Network, name: str, port: int) -> str:
        """Forward a TCP port to a host of `net` at every NAT in front of it; returns its address from outside."""
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


def _as_nats(nats: NatConfig | Sequence[NatConfig] | None) -> tuple[NatConfig, ...]:
    if nats is None:
        return ()
    return (nats,) if isinstance(nats, NatConfig) else tuple(nats)


def _behind(place: Place, name: str, machine: Machine) -> Lan | Machine:
    """A machine behind a place's NATs."""
    found: Lan | Machine = machine
    for number, nat in reversed(list(enumerate(place.nats))):
        innermost = isinstance(found, Machine)
        found = Lan(
            name=f"{name}{number}",
            nat=nat,
            firewall6=place.firewall6,
            machines=(found,) if isinstance(found, Machine) else (),
            lans=(found,) if isinstance(found, Lan) else (),
            uplink=place.link if number == 0 else PERFECT,
            prefix4=place.prefix4 if innermost else None,
        )
    return found
