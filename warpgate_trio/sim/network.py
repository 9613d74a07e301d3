"""A simulated network, for one run.

    async def main() -> None:
        async with Network(seed=7) as net:
            home = net.lan("home", nat=presets.LINUX)
            alice = home.host("alice")
            server = net.host("server", link=Link(latency=0.02))
            ...

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))      # or simulate(main, seed=7)

Entering it installs its sockets and its resolver behind `trio.socket`; code then uses the host on which it was started.
An exception that leaves the network gets a note with one screen about the network's state (`Network.explain`).

All random numbers come from streams that are named after their purpose.  A change in one place of a world therefore
does not change the draws elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar, final

import trio
import trio.testing

from . import doors, explain
from .addr import Prefix
from .determinism import deterministic
from .faults import Fault, apply_faults
from .host import Host
from .link import PERFECT, Links
from .nat_axes import NatConfig
from .netstat import Netstat, netstat
from .network_base import NetworkBase
from .pcapng import Capture
from .reality import watched
from .resolver import Resolver
from .segment import Segment

T = TypeVar("T")

# Programs classify addresses with `ipaddress`, which must take these for public; that excludes the documentation
# blocks.  No packet ever leaves the process.
INTERNET4: Final = "11.0.0.0/8"
INTERNET6: Final = "2a0a::/32"


observers: list[Callable[[Network], object]] = []
"""Called with every network after it was left; its trace and listings can still be read."""


@final
class Network(NetworkBase[Host]):
    """A simulated internet.

    Args:
      seed: determines all random numbers.
      ipv6: whether its topmost segment has IPv6; hosts and LANs then have it too, unless they are made without.
      hops: number of routers between two neighbours of the topmost segment.
      link: the default link of hosts and routers that are attached there.
      time_limit: virtual seconds after which the run is cancelled because it hangs.  Leaving the network then raises
        trio.TooSlowError with the last packets.
      resolver_delay: seconds that a DNS answer takes.

    Attributes:
      internet: the topmost segment, to which `host` and `lan` attach.
      names: DNS names and their addresses; `add_name` adds to them.
      name_troubles: names whose lookups are slow or fail; set by `spoil_name`.
      epoch: the true Unix time at time 0 of the run's clock.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        ipv6: bool = False,
        hops: int = 6,
        link: Links = PERFECT,
        time_limit: float = 7 * 86400.0,
        resolver_delay: float = 0.0,
    ) -> None:
        prefix6 = Prefix(INTERNET6) if ipv6 else None
        super().__init__(seed, prefix6=prefix6, resolver_delay=resolver_delay)
        self.resolver: Resolver = Resolver(self)
        self.faults: list[Fault] = []
        self._captures: list[Capture] = []
        self._time_limit = time_limit
        self._wire_failure: Exception | None = None
        first6 = None if prefix6 is None else str(prefix6.subnet(64, 0))
        self.internet: Segment = Segment(
            self, "internet", prefix4=INTERNET4, prefix6=first6, link=link, hops=hops, cloud=True
        )

    def __repr__(self) -> str:
        return f"<Network seed={self.seed} hosts={len(self.hosts)}>"

    @property
    def segments(self) -> list[Segment]:
        """All segments, each before the segments behind it."""
        found = [self.internet]
        for segment in found:
            found += segment.children
        return found

    # Building

    def host(
        self,
        name: str,
        *,
        address: str | Sequence[str] | None = None,
        link: Links | None = None,
        ipv6: bool = True,
        clock_offset: float = 0.0,
        clock_drift: float = 0.0,
    ) -> Host:
        """Attach a host to the internet: `Segment.host`."""
        return self.internet.host(
            name, address=address, link=link, ipv6=ipv6, clock_offset=clock_offset, clock_drift=clock_drift
        )

    def lan(
        self,
        name: str,
        *,
        nat: NatConfig | None = None,
        firewall6: NatConfig | None = None,
        prefix4: str | None = None,
        ipv6: bool = True,
        addresses: int | Sequence[str] = 1,
        uplink: Links | None = None,
        link: Links = PERFECT,
    ) -> Segment:
        """Attach a LAN to the internet: `Segment.lan`."""
        return self.internet.lan(
            name,
            nat=nat,
            firewall6=firewall6,
            prefix4=prefix4,
            ipv6=ipv6,
            addresses=addresses,
            uplink=uplink,
            link=link,
        )

    # Running

    async def __aenter__(self) -> Network:
        clock = trio.lowlevel.current_clock()
        if not isinstance(clock, trio.testing.MockClock) or clock.autojump_threshold > 0:
            raise RuntimeError(
                "a Network needs virtual time: trio.run(…, clock=trio.testing.MockClock(autojump_threshold=0)), "
                "pytest-trio's autojump_clock, or warpgate_trio.sim.simulate"
            )
        if self._used:
            raise RuntimeError("a Network is entered once; build a new one for another run")
        self._used = True
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._limit_at = trio.current_time() + self._time_limit
        self._nursery.cancel_scope.deadline = self._limit_at
        doors.guard()
        self._resolver_before = trio.socket.set_custom_hostname_resolver(self.resolver)
        self._factory_before = trio.socket.set_custom_socket_factory(doors.Factory())
        self._guard = watched(clock, self.wire.stop)
        self._guard.__enter__()
        self._wire_scope = trio.CancelScope()
        self._nursery.start_soon(self._run_wire, name="the wire")
        return self

    async def _run_wire(self) -> None:
        with self._wire_scope:
            try:
                await self.wire.run()
            except Exception as failure:
                self._wire_failure = failure
                raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        trio.socket.set_custom_hostname_resolver(self._resolver_before)
        trio.socket.set_custom_socket_factory(self._factory_before)
        self._guard.__exit__(None, None, None)
        for capture in self._captures:
            capture.close()
        self._wire_scope.cancel()
        if isinstance(exc, Exception):
            exc.add_note(self.explain())
        hung = self._nursery.cancel_scope.cancel_called and trio.current_time() >= self._limit_at
        try:
            try:
                await self._manager.__aexit__(exc_type, exc, traceback)
            finally:
                self.wire.ended = trio.current_time()
                for observe in observers:
                    observe(self)
        except BaseExceptionGroup:
            # The group holds the body's exception and the wire's, if any.  The latter explains the former.
            if self._wire_failure is not None:
                raise self._wire_failure from None
            return  # the body's exception propagates without the group
        if hung:
            raise trio.TooSlowError(
                f"nothing came to an end in {self._time_limit:g} virtual seconds\n\n{self.explain()}"
            )

    def schedule(self, faults: Iterable[Fault]) -> None:
        """Schedule faults, at times relative to now.  ValueError for a target that does not exist."""
        found = tuple(faults)
        apply_faults(self, found)
        self.faults += found

    # Explaining

    def netstat(self) -> Netstat:
        """List open sockets, running tasks, closing connections and mappings."""
        return netstat(self)

    def digest(self) -> str:
        """A hash over all events of all packets so far."""
        return self.trace.digest()

    def topology(self) -> str:
        """The network as a tree."""
        return explain.topology(self.internet)

    def ladder(self, last: int = 60, hosts: Iterable[str] = (), *, since: float = 0.0) -> str:
        """The last packets, one line each; optionally only at `hosts`, and only from the time `since` on."""
        entries = [entry for entry in self.trace.latest() if entry.time >= since]
        return explain.ladder(entries, last, tuple(hosts))

    def explain(self) -> str:
        """One screen about this network: seed, topology, faults, open sockets and tasks, the last packets."""
        return explain.explain(self, self.internet, self.faults)

    def capture(self, path: str | Path) -> None:
        """Write every packet from now on to a pcapng file, in which each interface of each host and router is one."""
        capture = Capture(Path(path), self.epoch)
        for host in self.hosts.values():
            for interface in host.interfaces:
                capture.tap(interface)
        self._captures.append(capture)


def simulate(fn: Callable[[], Awaitable[T]], *, seed: int = 0) -> T:
    """`trio.run(fn)` in virtual time, with task scheduling that depends on `seed` alone."""
    __tracebackhide__ = True  # of pytest: what failed is in `fn`
    with deterministic(seed):
        return trio.run(fn, clock=trio.testing.MockClock(autojump_threshold=0))
