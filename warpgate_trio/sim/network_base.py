"""The part of a network that its own parts use: time and events, the trace, random numbers, hosts, names and numbers.

A network consists of hosts, segments, sockets and a resolver, and each of these needs the network.  They use
`NetworkBase`, which imports none of them.  `Network` extends it and imports them all.
"""

from __future__ import annotations

from collections.abc import Container
from random import Random
from typing import Final, Generic, Protocol, TypeVar

from trio.socket import SocketType

from .addr import Prefix, canonical
from .names import NameTrouble, canonical_name
from .trace import Trace
from .wire import Wire

_FIRST_NUMBER: Final = 100_000  # no real file descriptor
_EPOCHS: Final = (1_735_689_600, 2_208_988_800)  # 2025 to 2039: a wall clock that starts at 0 hides bugs


class Named(Protocol):
    """What `NetworkBase` needs of a host."""

    @property
    def name(self) -> str: ...

    @property
    def own(self) -> Container[str]:
        """Its addresses."""
        ...


H = TypeVar("H", bound=Named)


class NetworkBase(Generic[H]):
    """The part of a network that its own parts use; `H` is the type of its hosts.

    Attributes:
      wire: the time, and the future events.
      trace: the events of packets so far.
      hosts: its hosts and routers by name.
      names, name_troubles: DNS names with their addresses; names whose lookups are slow or fail.
      resolver_delay: seconds that a DNS answer takes.
      epoch: the true Unix time at time 0 of the run's clock.
      prefix6: the block that the IPv6 subnets of LANs are cut from; None for a network without IPv6.
    """

    def __init__(self, seed: int, *, prefix6: Prefix | None, resolver_delay: float) -> None:
        self.seed = seed
        self.wire: Wire = Wire()
        self.trace: Trace = Trace()
        self.hosts: dict[str, H] = {}
        self.names: dict[str, list[str]] = {}
        self.name_troubles: dict[str, NameTrouble] = {}
        self.resolver_delay = resolver_delay
        self.epoch: float = self.rng("epoch").uniform(*_EPOCHS)
        self.prefix6: Prefix | None = prefix6
        self._numbers = {"lan": 0, "socket": _FIRST_NUMBER, "subnet": 0}
        self._sockets: dict[int, SocketType] = {}
        self._used = False

    @property
    def entered(self) -> bool:
        """Whether the network has been entered and not yet left."""
        return self._used and self.wire.ended is None

    # Random numbers

    def rng(self, name: str) -> Random:
        """The stream of random numbers for one purpose; it depends on the seed and the name alone."""
        return Random(f"{self.seed}/{name}")

    # Hosts and names

    def register(self, host: H) -> None:
        """Add a host; ValueError if its name is taken."""
        if host.name in self.hosts:
            raise ValueError(f"there is a host {host.name!r} already")
        self.hosts[host.name] = host

    def add_name(self, name: str, *addresses: str) -> None:
        """Add addresses to a DNS name; ValueError for an address that no host has."""
        found = [canonical(address) for address in addresses]
        for address in found:
            if not any(address in host.own for host in self.hosts.values()):
                raise ValueError(f"no host has the address {address}, so {name} cannot stand for it")
        self.names.setdefault(canonical_name(name), []).extend(found)

    def spoil_name(self, name: str, *, delay: float = 0.0, error: int | None = None) -> None:
        """Make lookups of a name slow or let them fail, from now on; without arguments, make them normal again.

        The name need not exist.

        Args:
          delay: additional seconds; math.inf for a resolver that never answers.
          error: the number of the `socket.gaierror`, such as `socket.EAI_AGAIN`.
        """
        if delay or error is not None:
            self.name_troubles[canonical_name(name)] = NameTrouble(delay=delay, error=error)
        else:
            self.name_troubles.pop(canonical_name(name), None)

    # Numbers

    def private_prefix(self) -> Prefix:
        """A block of private addresses that no other LAN of this network was given."""
        self._numbers["lan"] += 1
        number = self._numbers["lan"]
        return Prefix(f"10.{number >> 8}.{number & 255}.0/24")

    def next_number(self) -> int:
        """A number for the next IPv6 subnet."""
        self._numbers["subnet"] += 1
        return self._numbers["subnet"]

    def open_socket(self, sock: SocketType) -> int:
        """Register a socket; returns its descriptor number."""
        self._numbers["socket"] += 1
        self._sockets[self._numbers["socket"]] = sock
        return self._numbers["socket"]

    def renew_socket(self, number: int, sock: SocketType) -> None:
        """Register another object for the number of an open socket."""
        self._sockets[number] = sock

    def find_socket(self, number: int) -> SocketType | None:
        """The open socket with a number; None if there is none."""
        return self._sockets.get(number)

    def close_socket(self, number: int) -> bool:
        """Unregister a socket; returns whether it was registered."""
        return self._sockets.pop(number, None) is not None

    def open_sockets(self) -> list[SocketType]:
        """The sockets that are not closed, oldest first."""
        return list(self._sockets.values())
