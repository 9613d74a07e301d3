"""The live view that plugins have of their node."""

from __future__ import annotations

from typing import Final, final

from ..address import PeerAddress
from ..carrier import Carrier, TlsContexts
from ..carrier.quic import QuicCarrier
from ..clock.wall import Clock
from ..config import Budgets
from ..host import Host
from ..identity import Identity
from ..nat.service import NatService
from ..plugin import NodeView
from ..ports.datagrams import DatagramPath
from ..ports.udp import UdpPorts
from ..signal import SignalHub
from ..turn.relays import Relays
from .address_book import AddressBook
from .own_address import OwnAddress

__all__ = ["View"]


@final
class View(NodeView):
    """The `NodeView` of a running node."""

    def __init__(
        self,
        *,
        identity: Identity,
        own: OwnAddress,
        book: AddressBook,
        hub: SignalHub,
        host: Host,
        tls: TlsContexts,
        budgets: Budgets,
        clock: Clock,
        udp_ports: UdpPorts,
        nat: NatService,
        relays: Relays,
    ) -> None:
        self._identity: Final = identity
        self._own: Final = own
        self._book: Final = book
        self._hub: Final = hub
        self.host = host
        self.tls = tls
        self.budgets = budgets
        self.clock = clock
        self.udp_ports = udp_ports
        self.nat = nat
        self.relays = relays

    @property
    def peer_id(self) -> str:  # type: ignore[override]  # read-only here, declared as plain attributes for plugins
        return self._identity.peer_id

    @property
    def address(self) -> PeerAddress:  # type: ignore[override]
        return self._own.current()

    @property
    def signal_rtt(self) -> float | None:  # type: ignore[override]
        rtt = self._hub.rtt
        return None if rtt is None else 2 * rtt  # to the server and from there to the peer, and back

    def known_address(self, peer_key: bytes) -> PeerAddress | None:
        return self._book.heard(peer_key)

    async def serve_quic(self, path: DatagramPath) -> Carrier:
        return await QuicCarrier.serve(path, self._identity)
