"""A node's STUN servers over one transport: which addresses they have, which of them answer, and asking them at once.

Servers are known by name, and names fail, lead to dead addresses, or to one family alone; a server may be there over
UDP and have nothing over TCP, so each transport remembers for itself who was silent.  Our own address on the way to
them stands here too: it is the address that a port is bound to, and where it changes the machine has moved.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from ..address import is_public
from ..address.interfaces import lasting_addresses
from ..errors import StunError
from ..names import in_turn
from ..sockaddr import FAMILIES, Family, IpAddress, TransportAddress, family_of

if TYPE_CHECKING:
    from ..config import ServerUrl
    from ..host import Host
    from ..names import Names
    from ..stun.transaction import StunAnswer

__all__ = ["Asks", "StunServers"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_SERVERS: Final = 4
"""Addresses of servers that a port is mapped by: the second shows whether its view is the first one's, more add
little."""
NAMES_WITHIN: Final = 1.0
"""Seconds that names are waited for where no address of any server is known; the lookups themselves go on.  An attempt
that has waited for longer would have missed its punch, and on one LAN it needs no server."""


class Asks(Protocol):
    """Asks one server from one port."""

    def __call__(self, server: TransportAddress, /) -> Awaitable[StunAnswer]: ...


@final
class StunServers:
    """See the module's page.

    Args:
      urls: the servers, in order of preference.
      names: looks their names up; has to be running.

    Attributes:
      nearest: by address family, the server that was the first to answer.
    """

    def __init__(self, urls: Sequence[ServerUrl], host: Host, names: Names) -> None:
        self._urls = urls
        self._host = host
        self._names = names
        self._silent: dict[Family, set[TransportAddress]] = {af: set() for af in FAMILIES}
        self.nearest: Final[dict[Family, TransportAddress]] = {}

    async def resolve(self, af: Family) -> list[TransportAddress]:
        """The servers' addresses of a family, the likeliest to answer first; servers that have none are left out."""
        known = await self._names.look_up([url.host for url in self._urls], timeout=NAMES_WITHIN)
        found = in_turn([(ip, url.port) for ip in known.get(url.host, ()) if family_of(ip) == af] for url in self._urls)
        silent = self._silent[af] = self._silent[af].intersection(found)
        return sorted(found, key=silent.__contains__)[:MAX_SERVERS]

    async def ask_all(
        self, af: Family, ask: Asks, servers: Sequence[TransportAddress], *, enough: int | None = None
    ) -> set[TransportAddress]:
        """Ask servers at once; returns those that have answered.

        Returns when all have answered or failed, or when `enough` have, or when after the first as much time has passed
        as it took, if so many are not to be had.
        """
        answered: set[TransportAddress] = set()
        began = trio.current_time()

        async def one(server: TransportAddress) -> None:
            try:
                await ask(server)
            except (StunError, OSError, trio.ClosedResourceError) as error:
                logger.debug("%s", error)
                self._silent[af].add(server)
                return
            self._silent[af].discard(server)
            answered.add(server)
            if enough is not None and len(answered) == 1:
                nursery.cancel_scope.deadline = 2 * trio.current_time() - began
            if enough is not None and len(answered) >= enough:
                nursery.cancel_scope.cancel(reason="enough servers have answered")

        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(one, server)
        return answered

    def sources(self, servers: Sequence[TransportAddress]) -> set[IpAddress]:
        """Our addresses on the ways to some servers; empty where no way leads to any."""
        found = (self._host.source_address(ip_address(ip)) for ip, _ in servers)
        return {source for source in found if source is not None}

    def source(self, af: Family, servers: Sequence[TransportAddress]) -> str:
        """Our address on the way to the servers; without them one of ours that lasts, a public one first.

        Raises:
          OSError: this machine has none of the family.
        """
        for ip, _ in servers:
            source = self._host.source_address(ip_address(ip))
            if source is not None:
                return str(source)
        used = [interface for interface in self._host.interfaces() if interface.is_used]
        ours = [each.ip for interface in used for each in lasting_addresses(interface, af)]
        if not ours:
            raise OSError(f"this machine has no IPv{af} address")
        return str(next((ip for ip in ours if is_public(ip)), ours[0]))
