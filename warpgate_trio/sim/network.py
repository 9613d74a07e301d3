"""A network: the world of one run.

    async def main() -> None:
        async with Network(seed=7) as net:
            home = net.lan("home", nat=presets.LINUX)
            alice = home.host("alice")
            server = net.host("server", link=Link(latency=0.02))
            ...

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))      # or simulate(main, seed=7)

Entering it puts its sockets and its resolver behind `trio.socket`, for the run; code then runs on the host that it was
started on.  An exception that leaves it takes along, as a note, one screen on what the network did (`explain`).

Everything random in it is drawn from streams that are named after what they are for, so that a change in one place of
a world leaves the draws of all others as they were.
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

# Programs sort addresses by what they are for, so public ones must be public to `ipaddress` too, which rules the
# documentation blocks out; nothing here ever leaves the process.
INTERNET4: Final = "11.0.0.0/8"
INTERNET6: Final = "2a0a::/32"


observers: list[Callable[[Network], object]] = []
"""Called with every network that was left; it still answers what happened in it."""


@final
class Network(NetworkBase[Host]):
    """A simulated internet.

    Args:
      seed: decides everything random.
      ipv6: whether its topmost segment has IPv6; hosts and LANs then get it too, unless they say otherwise.
      hops: routers between two neighbours of the topmost segment.
      link: of what is attached there, by default.
      time_limit: virtual seconds after which a run has hung; then leaving it raises trio.TooSlowError with the last
        packets.  Without a limit, a program that waits for ever would never end.
      resolver_delay: seconds that a DNS answer takes.

    Attributes:
      internet: the topmost segment; `host` and `lan` are its.
      names: DNS names and their addresses, to be added to with `add_name`.
      name_troubles: what is wrong with some of them, as `spoil_name` said.
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
        """All segments, each before those that are behind it."""
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
            # It holds what the body raised and what the wire raised, if it did; then the latter explains the former.
            if self._wire_failure is not None:
                raise self._wire_failure from None
            return  # the body's own goes on, bare
        if hung:
            raise trio.TooSlowError(
                f"nothing came to an end in {self._time_limit:g} virtual seconds\n\n{self.explain()}"
            )

    def schedule(self, faults: Iterable[Fault]) -> None:
        """Let things go wrong, at times that count from now.  ValueError for a target that is not there."""
        found = tuple(faults)
        apply_faults(self, found)
        self.faults += found

    # Explaining

    def netstat(self) -> Netstat:
        """What is still there."""
        return netstat(self)

    def digest(self) -> str:
        """A hash over everything that every packet did so far."""
        return self.trace.digest()

    def topology(self) -> str:
        """The network as a tree."""
        return explain.topology(self.internet)

    def ladder(self, last: int = 60, hosts: Iterable[str] = (), *, since: float = 0.0) -> str:
        """The last packets, one line each, optionally only at some hosts or from a time on."""
        entries = [entry for entry in self.trace.latest() if entry.time >= since]
        return explain.ladder(entries, last, tuple(hosts))

    def explain(self) -> str:
        """One screen on this world: seed, topology, faults, what is open, the last packets."""
        return explain.explain(self, self.internet, self.faults)

    def capture(self, path: str | Path) -> None:
        """Write every packet from now on to a pcapng file with one interface for each of every host and router."""
        capture = Capture(Path(path), self.epoch)
        for host in self.hosts.values():
            for interface in host.interfaces:
                capture.tap(interface)
        self._captures.append(capture)


def simulate(fn: Callable[[], Awaitable[T]], *, seed: int = 0) -> T:
    """`trio.run(fn)` in virtual time with a schedule that `seed` decides."""
    __tracebackhide__ = True  # of pytest: what failed is in `fn`
    with deterministic(seed):
        return trio.run(fn, clock=trio.testing.MockClock(autojump_threshold=0))
