"""What a plugin's run may see and do: the interfaces of its node and of its attempt.

`warpgate_trio.node.view` and `warpgate_trio.walk.attempt` implement them.  A test of a plugin may implement its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from ..address import PeerAddress
from ..carrier import Carrier, TlsContexts
from ..clock.wall import Clock
from ..combos import JudgedPath
from ..config import Budgets
from ..host import Host
from ..link import Link
from ..nat.service import NatService
from ..ports.datagrams import DatagramPath
from ..ports.udp import UdpPorts
from ..signal import Circuit, Message
from ..turn.relays import Relays

__all__ = ["AttemptContext", "NodeView"]


class NodeView(ABC):
    """A plugin's read-only view of its node.

    Attributes:
      peer_id: the node's own id.
      address: the `PeerAddress` that the node publishes now.
      host: this host (`warpgate_trio.host.Host`).
      tls: the node's TLS contexts, for `TlsCarrier.dial` and `TlsCarrier.serve`.
      budgets: the configured times.
      clock: the corrected wall clock.
      signal_rtt: seconds that a signal to a peer and its answer take at least; None while no server is connected.
      udp_ports: opens UDP ports, whose owner tasks live as long as the node.
      nat: what is known of the node's NATs, and ports that are mapped already.
      relays: allocations at the node's TURN servers.
    """

    peer_id: str
    address: PeerAddress
    host: Host
    tls: TlsContexts
    budgets: Budgets
    clock: Clock
    signal_rtt: float | None
    udp_ports: UdpPorts
    nat: NatService
    relays: Relays

    @abstractmethod
    async def serve_quic(self, path: DatagramPath) -> Carrier:
        """Act as the QUIC server on a path, with the node's key; see `QuicCarrier.serve`."""

    @abstractmethod
    def known_address(self, peer_key: bytes) -> PeerAddress | None:
        """The last address that a peer (by its Ed25519 key) sent itself; None where it has sent none."""


class AttemptContext(Protocol):
    """One run of a plugin on one side; `Plugin` documents each method and attribute."""

    @property
    def node(self) -> NodeView: ...
    @property
    def peer(self) -> PeerAddress: ...
    @property
    def path(self) -> JudgedPath:
        """The path that the run works on.

        Raises:
          PluginError: the plugin makes no path.
        """

    @property
    def session_id(self) -> bytes: ...
    @property
    def attempt_id(self) -> bytes: ...
    @property
    def inbound(self) -> bool: ...
    @property
    def nursery(self) -> trio.Nursery: ...
    async def send_signal(self, message: Message) -> None: ...
    async def receive_signal(self) -> Message: ...
    async def wait_inbound(self) -> Link: ...
    async def receive_proof(self, carrier: Carrier) -> Link: ...
    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link: ...
    def hold_phase(self) -> None: ...
    def has_room(self) -> bool: ...
    def expect_accept(self) -> None: ...
    async def circuit(self) -> Circuit: ...
    async def call(self, circuit: Circuit, message: Message) -> Message: ...
    async def answer_call(self, message: Message) -> None: ...
    def adopt(self, task: Callable[[], Awaitable[object]]) -> None: ...
    def goodbye(self, task: Callable[[], Awaitable[object]]) -> None: ...
