"""Plans of calls: the combos with a peer, by this host's present routes and all known addresses of the peer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, final

from ..address import AddressScope, Endpoint, EndpointKind, OwnAddresses, PeerAddress, Recipient, Transport, scope_of
from ..clock.wall import Clock
from ..combos import (
    Combo,
    Likelihood,
    Pair,
    RelayServer,
    Route,
    RouteType,
    dialling,
    find_source,
    meeting,
    pathless_combo,
    relaying,
)
from ..config import ServerUrl
from ..errors import AddressError, ConfigError
from ..host import Host
from ..plugin import Plugin
from ..plugin.registry import technique_of
from ..signal import Relays
from ..signal.calls import RelayingServer
from ..sockaddr import IpAddress, unmapped
from ..walk.attempt import Factory
from .address_book import AddressBook
from .own_address import OwnAddress

__all__ = ["Factories", "Planning", "may_connect"]

Factories = Mapping[str, tuple[type[Plugin], Factory]]
"""Plugin name -> its class and the maker of its instances."""

_RANKS: Final = tuple(Likelihood)


@final
class Planning:
    """See the module's docstring.

    Args:
      peer_time: the time on a peer's clock (by its key), as far as the peer has told it.
      relays: our rendezvous servers, by the names that circuits are requested with.
    """

    def __init__(
        self,
        host: Host,
        own: OwnAddress,
        book: AddressBook,
        clock: Clock,
        factories: Factories,
        *,
        peer_time: Callable[[bytes], float],
        relays: Callable[[], Mapping[str, RelayingServer]],
    ) -> None:
        self._host: Final = host
        self._own: Final = own
        self._book: Final = book
        self._clock: Final = clock
        self._factories: Final = factories
        self._peer_time: Final = peer_time
        self._relays: Final = relays

    def usable_addresses(self, peer_key: bytes) -> list[PeerAddress]:
        """The known addresses of a peer that are valid now, by our clock or the peer's; the first-hand one first."""
        return [record for record in self._book.records(peer_key) if self._is_fresh(record)]

    def _is_fresh(self, record: PeerAddress) -> bool:
        """Whether a record is valid by our clock or by its issuer's, which may differ and is known once it told us."""
        for now in (self._clock.now(), self._peer_time(record.public_key)):
            with suppress(AddressError):
                record.check_fresh(now)
                return True
        return False

    def plan(
        self,
        peer: PeerAddress,
        plugins: Sequence[str],
        afs: Collection[int] | None = None,
        route_types: Collection[RouteType] | None = None,
    ) -> list[Combo]:
        """The valid combos of these plugins with a peer, by this host's present routes.

        The combos for the address `peer` come first, then those that the peer's other known addresses add.
        """
        combos: dict[object, Combo] = {}
        for record in dict.fromkeys((peer, *self.usable_addresses(peer.public_key))):
            for combo in self._plan(record, plugins, afs, route_types):
                known = combos.get(combo.aim)
                if known is None or _RANKS.index(combo.likelihood) > _RANKS.index(known.likelihood):
                    combos[combo.aim] = combo
        return list(combos.values())

    def _plan(
        self,
        peer: PeerAddress,
        plugins: Sequence[str],
        afs: Collection[int] | None,
        route_types: Collection[RouteType] | None,
    ) -> list[Combo]:
        """The combos for one address of the peer."""
        kinds = [self._factories[name][0] for name in plugins]
        reaches = frozenset(
            endpoint.address for _, endpoint in peer.endpoints() if self._host.source_address(endpoint.ip) is not None
        )
        techniques = [technique_of(kind) for kind in kinds if not kind.pathless]
        same_host = peer.is_same_host(self._host)
        address, own = self._own.look_around()
        pair = Pair(
            ours=Route(interfaces=address.interfaces, reaches=reaches, own=own),
            peers=Route(interfaces=peer.interfaces, own=own if same_host else frozenset()),
            same_host=same_host,
            our_nat=address.nat_profiles,
            peer_nat=peer.nat_profiles,
            our_capabilities=address.capabilities,
            peer_capabilities=peer.capabilities,
            relays=relay_servers(self._relays(), peer),
            peer_has_servers=any(url.startswith(("ws:", "wss:")) for url in peer.signals),
        )
        combos = [
            combo
            for planner in (dialling, meeting, relaying)
            for combo in planner.plan(pair, techniques, afs=afs, route_types=route_types)
        ]
        return combos + [pathless_combo(kind.name, kind.phase) for kind in kinds if kind.pathless]


def relay_servers(ours: Mapping[str, RelayingServer], peer: PeerAddress) -> tuple[RelayServer, ...]:
    """Our rendezvous servers, as the planner sees them."""
    theirs = set()
    for text in peer.signals:
        with suppress(ConfigError):  # a peer wrote it
            theirs.add(_place(ServerUrl.parse(text)))
    return tuple(
        RelayServer(
            url=name,
            is_peers_too=_place(each.url) in theirs,
            relays=None if each.relays is None else each.relays is not Relays.NOBODY,
            relays_for_us=each.relays is Relays.US,
            standing=each.standing,
        )
        for name, each in ours.items()
    )


def _place(url: ServerUrl) -> tuple[str, str, int]:
    """The parts of a URL that identify the server: login and query are ignored."""
    return (url.scheme, url.host_name, url.port)


def may_connect(host: Host, own: OwnAddress, peer: Recipient, ip: IpAddress) -> bool:
    """Whether this node may connect to an address of a server that a peer names, by the rules for a peer's endpoints.

    It may be a public address or one in our own networks.  Loopback, and this host's own addresses, are allowed only
    where the peer is on the same host.
    """
    ip = unmapped(ip)
    if ip in OwnAddresses(host):
        return peer.is_same_host(host)
    scope = scope_of(ip)
    if scope in (AddressScope.NO_HOST, AddressScope.LINK_LOCAL):
        return False
    if scope is AddressScope.PUBLIC:
        return True
    target = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip=ip, port=1)
    return find_source(target, Route(interfaces=own.current().interfaces)) is not None
