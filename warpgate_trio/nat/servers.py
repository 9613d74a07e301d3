"""A node's STUN servers over one transport: their addresses, which of them answer, and asking several at once.

Servers are configured by name.  A name may fail to resolve, or lead to dead addresses or to one address family only.  A
server may answer over UDP but not over TCP, so each transport remembers separately which servers were silent.  This
module also finds the local address on the way to the servers: ports are bound to it, and when it changes, the host has
moved to another network.
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
"""Server addresses that are asked about a port: the second shows whether both see the same mapping, and more add
little."""
NAMES_WITHIN: Final = 1.0
"""Seconds that are waited for names while no address of any server is known; the lookups themselves go on.  An attempt
that waited longer would miss its punch, and peers on one LAN need no server."""


class Asks(Protocol):
    """Asks one server from one port."""

    def __call__(self, server: TransportAddress, /) -> Awaitable[StunAnswer]: ...


@final
class StunServers:
    """The STUN servers of one transport; see the module's docstring.

    Args:
      urls: the servers, in order of preference.
      names: resolves the servers' names; has to be running.

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
        """The servers' addresses of a family, `MAX_SERVERS` at most; those that were silent last time come last."""
        known = await self._names.look_up([url.host for url in self._urls], timeout=NAMES_WITHIN)
        found = in_turn([(ip, url.port) for ip in known.get(url.host, ()) if family_of(ip) == af] for url in self._urls)
        silent = self._silent[af] = self._silent[af].intersection(found)
        return sorted(found, key=silent.__contains__)[:MAX_SERVERS]

    async def ask_all(
        self, af: Family, ask: Asks, servers: Sequence[TransportAddress], *, enough: int | None = None
    ) -> set[TransportAddress]:
        """Ask several servers at the same time; returns those that have answered.

        Without `enough`, this waits until every server has answered or failed.  With it, this returns as soon as so
        many have answered, and at the latest when twice the time of the first answer has passed.
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
        """The local addresses on the routes to the given servers; empty where there is no route to any of them."""
        found = (self._host.source_address(ip_address(ip)) for ip, _ in servers)
        return {source for source in found if source is not None}

    def source(self, af: Family, servers: Sequence[TransportAddress]) -> str:
        """The local address on the route to the first server that has one; else a lasting one, preferably public.

        Raises:
          OSError: this host has no address of the family.
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
