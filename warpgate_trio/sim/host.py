"""Hosts: interfaces, routes, a clock that may be wrong, seeded entropy, and the programs that run there.

A context variable holds the host on which code runs: `host.run(fn)` and ``with host:`` set it, and tasks inherit it
from the task that starts them.  The network's socket factory and resolver read it, so unchanged programs use the host
on which they were started.

A host passes packets to its addresses to its `Stack`, and sends the packets of its stack through the interface that
the routes name.  Packets to the host itself never leave it.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar, Token
from random import Random
from types import TracebackType
from typing import Final, NamedTuple, Protocol, TypeVar, TypeVarTuple, final

import trio

from .addr import BROADCAST, LOOPBACK4, LOOPBACK6, Prefix, is_loopback, is_multicast, is_v6
from .host_clock import HostClock
from .link import DEFAULT_MTU, Direction, Links
from .network_base import NetworkBase
from .packet import Icmp, Packet, icmp_error
from .ports import os_error
from .stack import Stack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LOOPBACK_MTU: Final = 65536
DEFAULT4: Final = Prefix("0.0.0.0/0")
DEFAULT6: Final = Prefix("::/0")
_current: ContextVar[Host] = ContextVar("warpgate_sim_host")
# The tokens of the `with host:` blocks that this context is in.  They are kept in the context and not by the host,
# since many tasks may be in blocks of one host.
_blocks: ContextVar[tuple[Token[Host], ...]] = ContextVar("warpgate_sim_blocks", default=())


def current_host() -> Host:
    """The simulated host on which the calling code runs.  Raises RuntimeError if there is none."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "this code runs on no simulated host: start it with host.run(fn), or below `with host:`"
        ) from None


def host_here() -> Host | None:
    """The simulated host on which the calling code runs; None if there is none, or its network has been left."""
    host = _current.get(None)
    return host if host is not None and host.net.entered else None


def host_of(context_value: object) -> Host | None:
    """The host in a task's context, given the task's `context`; for listings."""
    get = getattr(context_value, "get", None)
    found = get(_current) if get is not None else None
    return found if isinstance(found, Host) else None


class Medium(Protocol):
    """What an interface is attached to: a `Segment`, as far as hosts and routers know it."""

    @property
    def name(self) -> str: ...

    @property
    def cloud(self) -> bool:
        """Whether it is a cloud of routers, in which every host is a network of its own, instead of a LAN."""
        ...

    @property
    def prefix4(self) -> Prefix | None: ...

    @property
    def prefix6(self) -> Prefix | None: ...

    @property
    def router(self) -> Host | None:
        """The router between it and the segment above; None for the topmost."""
        ...

    def host(self, name: str, *, address: str | Sequence[str] | None = None, link: Links | None = None) -> Host:
        """Attach a new host."""
        ...

    @property
    def hosts(self) -> list[Host]:
        """The hosts whose first interface is here."""
        ...

    def attach(
        self, host: Host, *, addresses: Sequence[str] | None = None, link: Links | None = None, ipv6: bool = True
    ) -> Interface:
        """Give a host an additional interface on this segment."""
        ...

    def detach(self, interface: Interface) -> None:
        """Remove an interface and its addresses from this segment and from its host."""
        ...

    def carry(self, sender: Interface, packet: Packet, hop: str) -> None:
        """Carry a packet over an interface's link to the neighbour `hop`."""
        ...

    def announce(self, prefix: Prefix, interface: Interface) -> None:
        """Route packets for a prefix to an interface's host."""
        ...

    def free_address(self, *, v6: bool = False) -> str:
        """An unassigned address."""
        ...

    def give(self, interface: Interface, address: str) -> str:
        """Add an address to an interface; ValueError if it is taken or belongs to another network."""
        ...

    def take_away(self, address: str) -> None:
        """Remove an address from the interface that has it."""
        ...


@final
class Interface:
    """The attachment of a host or a router to a segment.

    Attributes:
      name, index: as on a real machine, such as ``eth0`` and 2.
      addresses: (address, prefix) pairs.
      deprecated: addresses that new connections do not use while there is another (RFC 4862, section 5.5.4).
      temporary: temporary addresses, which new connections prefer (RFC 8981).
      tx, rx: the two directions of its link, towards the segment and from it.
      tap: called for a capture with the time, the packet, and whether it is outgoing.
    """

    def __init__(self, host: Host, segment: Medium, name: str, index: int, tx: Direction, rx: Direction) -> None:
        self.host = host
        self.segment = segment
        self.name = name
        self.index = index
        self.tx = tx
        self.rx = rx
        self.addresses: list[tuple[str, Prefix]] = []
        self.deprecated: set[str] = set()
        self.temporary: set[str] = set()
        self.tap: Callable[[float, Packet, bool], object] | None = None
        self._downs = 0  # calls of `take_down` without a `bring_up`

    @property
    def is_up(self) -> bool:
        """Whether the interface is up: it passes packets, and routes use it."""
        return not self._downs

    def take_down(self) -> None:
        """Take the interface down until `bring_up` has been called as often: see `Kind.LINK_DOWN`."""
        self._downs += 1
        self.host.changed()

    def bring_up(self) -> None:
        """Undo one `take_down`; addresses and routes are as they were."""
        self._downs -= 1
        self.host.changed()

    def address(self, *, v6: bool) -> str | None:
        """The source address of a family: the first by rules 3 and 7 of RFC 6724, section 5; None without one."""
        ours = (address for address, _ in self.addresses if is_v6(address) == v6)
        return min(ours, key=lambda address: (address in self.deprecated, address not in self.temporary), default=None)

    def send(self, packet: Packet, hop: str) -> None:
        """Put a packet on the link, for the neighbour `hop`."""
        if self.host.is_asleep or self._downs:
            self.host.drop(packet, "asleep" if self.host.is_asleep else "link down")
            return
        if packet.size > self.tx.link.mtu and not packet.fragments:
            self.host.too_big(packet, self)
            return
        if self.tap is not None:
            self.tap(self.host.net.wire.now, packet, True)
        self.segment.carry(self, packet, hop)

    def deliver(self, packet: Packet) -> None:
        """Process a packet that the link delivers."""
        if self.host.is_asleep or self._downs:
            self.host.drop(packet, "asleep" if self.host.is_asleep else "link down")
            return
        if self.tap is not None:
            self.tap(self.host.net.wire.now, packet, False)
        self.host.receive(packet, self)


class Route(NamedTuple):
    """Packets to `prefix` leave through `interface`, to `gateway` or, without one, directly to their destination."""

    prefix: Prefix
    interface: Interface
    gateway: str | None


class Host:
    """A simulated host.  Made by `Segment.host`, not directly.

    Args:
      clock_offset: seconds by which its wall clock is ahead of the true time.
      clock_drift: seconds that its wall clock gains per second.

    Attributes:
      spare_descriptors: the number of sockets that its programs may open in bulk.
      is_asleep: whether it sleeps now: see `suspend`.
    """

    forwarding = False

    def __init__(
        self, net: NetworkBase[Host], name: str, *, clock_offset: float = 0.0, clock_drift: float = 0.0
    ) -> None:
        self.net = net
        self.clock: HostClock = HostClock(net.wire)
        self.is_asleep: bool = False
        self.name = name
        self.clock_offset = clock_offset
        self.clock_drift = clock_drift
        self.interfaces: list[Interface] = []
        self.attached = 0  # number of interfaces that it ever had, so that no name is used twice
        self._change = trio.Event()
        self.spare_descriptors: int = 1024
        self.random: Random = net.rng(f"host:{name}:random")
        self._entropy = net.rng(f"host:{name}:entropy")
        self.own: dict[str, Interface | None] = {LOOPBACK4: None, LOOPBACK6: None}
        self.routes: list[Route] = []
        self._cache: dict[str, Route | None] = {}
        self.path_mtu: dict[str, int] = {}
        self.stack: Stack = Stack(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {' '.join(self.addresses)}>"

    # Programs

    async def run(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await `fn(*args)` on this host."""
        __tracebackhide__ = True  # of pytest: what failed is in `fn`
        token = _current.set(self)
        try:
            return await fn(*args)
        finally:
            _current.reset(token)

    def __enter__(self) -> Host:
        _blocks.set((*_blocks.get(), _current.set(self)))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        *outer, token = _blocks.get()
        _current.reset(token)
        _blocks.set(tuple(outer))

    def wall_time(self) -> float:
        """Unix time in seconds by this host's wall clock, which may be wrong."""
        now = self.net.wire.now
        return self.net.epoch + now * (1 + self.clock_drift) + self.clock_offset

    def asleep(self) -> float:
        """Seconds that the host has slept since the run began: CLOCK_BOOTTIME minus CLOCK_MONOTONIC of Linux."""
        return self.clock.slept()

    def suspend(self) -> None:
        """Put the host to sleep until `resume` has been called as often: see `Kind.SLEEP`."""
        self.clock.stop()
        self.is_asleep = True

    def resume(self) -> None:
        """Undo one `suspend`.  When the host wakes, its programs continue where they were."""
        self.is_asleep = self.clock.go_on()

    def reset_connections(self) -> None:
        """Reset every TCP connection of this host."""
        for connection in list(self.stack.tcp.connections.values()):
            connection.endpoint.abort()
            self.net.wire.act(connection.pump)

    def entropy(self, n: int) -> bytes:
        """`n` random bytes, drawn from a stream that depends on the seed and the host's name alone."""
        return self._entropy.randbytes(n)

    # Addresses and routes

    @property
    def addresses(self) -> list[str]:
        """Its addresses without the loopback ones, in the order in which they were given."""
        return [address for address, interface in self.own.items() if interface is not None]

    @property
    def ip(self) -> str:
        """Its first IPv4 address; LookupError without one."""
        return self._first(v6=False)

    @property
    def ip6(self) -> str:
        """Its first IPv6 address; LookupError without one."""
        return self._first(v6=True)

    def _first(self, *, v6: bool) -> str:
        for address in self.addresses:
            if is_v6(address) == v6:
                return address
        raise LookupError(f"{self.name} has no IPv{6 if v6 else 4} address")

    def add_address(self, interface: Interface, address: str, prefix: Prefix) -> None:
        interface.addresses.append((address, prefix))
        self.own[address] = interface
        self.add_route(prefix, interface, None)
        self.changed()

    def remove_address(self, address: str) -> None:
        """Remove an address.  Sockets that are bound to it stay open: see docs/simulator.md."""
        interface = self.own.pop(address)
        if interface is not None:
            interface.addresses = [pair for pair in interface.addresses if pair[0] != address]
        self.changed()

    def remove_interface(self, interface: Interface) -> None:
        """Remove an interface whose addresses were removed before, and its routes."""
        self.interfaces.remove(interface)
        self.routes = [route for route in self.routes if route.interface is not interface]
        self.changed()

    def change_address(self, new: str | None = None) -> str:
        """Replace the addresses of the first interface, as DHCP and SLAAC may.

        Args:
          new: the only new address; by default a free address for each old one.

        Returns the first of the new addresses.  DNS names keep the old ones.
        """
        interface = self.interfaces[0]
        segment, old = interface.segment, [address for address, _ in interface.addresses]
        chosen = [segment.free_address(v6=is_v6(address)) for address in old] if new is None else [new]
        for address in old:
            segment.take_away(address)
        first, *_ = [segment.give(interface, address) for address in chosen]
        return first

    def move_to(self, segment: Medium, *, link: Links | None = None) -> Interface:
        """Replace the first interface by one on another segment, as when a phone moves from Wi-Fi to cellular.

        The new interface gets an address of each family of the segment.  It gets no IPv6 address if the old one had
        none although its segment has IPv6.

        Args:
          link: the link between the host and the segment; by default the segment's.
        """
        old = self.interfaces[0]
        ipv6 = old.segment.prefix6 is None or old.address(v6=True) is not None
        old.segment.detach(old)
        new = segment.attach(self, link=link, ipv6=ipv6)
        self.interfaces.insert(0, self.interfaces.pop())
        segment.hosts.append(self)
        new.tap = old.tap
        return new

    def changed(self) -> None:
        """Note that an interface or an address was added, removed or changed."""
        self._cache.clear()
        change, self._change = self._change, trio.Event()
        change.set()

    async def wait_change(self) -> None:
        """Wait until an interface or an address is added, removed or changed, and the host is awake."""
        await self._change.wait()
        await self.clock.wait()

    def add_route(self, prefix: Prefix, interface: Interface, gateway: str | None) -> None:
        """Add a route.  The longest prefix wins, and among equal ones the first that was added."""
        if any(r.prefix == prefix and r.interface is interface and r.gateway == gateway for r in self.routes):
            return
        self.routes.append(Route(prefix, interface, gateway))
        self.routes.sort(key=lambda route: -route.prefix.bits)
        self._cache.clear()

    def default_route(self, interface: Interface, gateway: str) -> None:
        self.add_route(DEFAULT6 if is_v6(gateway) else DEFAULT4, interface, gateway)

    def route(self, dst: str) -> Route | None:
        """The route to an address outside this host; None without one."""
        try:
            return self._cache[dst]
        except KeyError:
            # An interface without an address of the family is not usable.
            usable = (
                r for r in self.routes if dst in r.prefix and r.interface.is_up and r.interface.address(v6=is_v6(dst))
            )
            found = next(usable, None)
            if found is not None and (is_multicast(dst) or dst == BROADCAST):
                found = found._replace(gateway=None)  # to all neighbours, not to the gateway
            self._cache[dst] = found
            return found

    def source_for(self, dst: str) -> str | None:
        """The address from which packets to `dst` leave; None when there is no route."""
        if dst in self.own or is_loopback(dst):
            return dst
        route = self.route(dst)
        if route is None and (is_multicast(dst) or dst == BROADCAST):
            first = self._first_up()
            return None if first is None else first.address(v6=is_v6(dst))
        return None if route is None else route.interface.address(v6=is_v6(dst))

    def _first_up(self) -> Interface | None:
        return next((interface for interface in self.interfaces if interface.is_up), None)

    def mtu_to(self, dst: str) -> int:
        """The path MTU to an address as far as it is known, in bytes."""
        if dst in self.own or is_loopback(dst):
            return LOOPBACK_MTU
        route = self.route(dst)
        first = DEFAULT_MTU if route is None else route.interface.tx.link.mtu
        return min(first, self.path_mtu.get(dst, first))

    # Packets

    def check_source(self, address: str) -> None:
        """Raise OSError(ENETUNREACH) for an IPv4 source address that was removed.  Linux does not check IPv6 ones."""
        if address not in self.own and not is_loopback(address) and not is_v6(address):
            raise os_error(errno.ENETUNREACH)

    def output(self, packet: Packet, interface: Interface | None = None) -> None:
        """Send a packet unchanged.  Raises OSError(ENETUNREACH) without a route.  `interface` is for multicast."""
        net = self.net
        dst = packet.dst[0]
        net.trace.add(net.wire.now, self.name, "send", packet)
        if dst in self.own or is_loopback(dst):
            net.wire.after(0, self.receive, packet, None)
            return
        if interface is not None:
            interface.send(packet, dst)
            return
        route = self.route(dst)
        if route is not None:
            route.interface.send(packet, route.gateway or dst)
            return
        first = self._first_up()
        if first is None or not (is_multicast(dst) or dst == BROADCAST):
            raise os_error(errno.ENETUNREACH)
        first.send(packet, dst)

    def reply(self, packet: Packet) -> None:
        """Send a TCP segment or an ICMP error; without a route it is dropped."""
        try:
            self.check_source(packet.src[0])
            self.output(packet)
        except OSError:
            self.drop(packet, "no route for the answer")

    def receive(self, packet: Packet, interface: Interface | None) -> None:
        """Process a packet that arrived on an interface, or without one, from this host itself."""
        dst = packet.dst[0]
        if dst in self.own or interface is None or is_multicast(dst) or dst == BROADCAST:
            net = self.net
            net.trace.add(net.wire.now, self.name, "receive", packet)
            self.stack.receive(packet, None if interface is None else interface.index)
        elif self.forwarding:
            self.forward(packet, interface)
        else:
            self.drop(packet, "not for this host")

    def forward(self, packet: Packet, interface: Interface) -> None:
        """Forward a packet for another host; only routers do."""
        self.drop(packet, "not a router")

    def drop(self, packet: Packet, why: str) -> None:
        self.net.trace.add(self.net.wire.now, self.name, "drop", packet, why)

    def too_big(self, packet: Packet, interface: Interface) -> None:
        """Drop a packet that is larger than the MTU of `interface`, and report that to the local stack by ICMP."""
        self.drop(packet, "too big")
        error = icmp_error(packet.src[0], Icmp.PACKET_TOO_BIG, packet, mtu=interface.tx.link.mtu)
        self.net.wire.after(0, self.stack.receive, error, None)
