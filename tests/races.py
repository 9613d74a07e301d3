"""One run of a plugin without a node around it, to test the two ends of a race by themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from tests.identities import ALICE, BOB
from tests.nodes import address_of
from warpgate_trio import Identity, PeerAddress
from warpgate_trio import host as machine
from warpgate_trio.carrier import Carrier, TlsContexts
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.combos import JudgedPath
from warpgate_trio.config import Budgets
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.link import Link
from warpgate_trio.names import Names
from warpgate_trio.nat.service import NatService
from warpgate_trio.plugin import Message, NodeView, Plugin, RouteType
from warpgate_trio.ports.datagrams import DatagramPath
from warpgate_trio.ports.udp import UdpPorts
from warpgate_trio.signal.circuits import Circuit

SECRET = bytes(16)


class TrueClock:
    """A clock that is right."""

    def now(self) -> float:
        return machine.current().wall_time()

    def uncertainty(self, at: float | None = None) -> float:
        return 0.0


class LoneNode(NodeView):
    """A plugin's view of a node that has a key and ports, but no servers and no signals."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self.peer_id = identity.peer_id
        self.address = address_of(identity, port=1)
        self.host = machine.current()
        self.tls = TlsContexts(identity)
        self.budgets = Budgets()
        self.clock = TrueClock()
        self.signal_rtt = None
        self.udp_ports = UdpPorts()
        self.nat = NatService(self.udp_ports, [], self.host, names=Names(), is_online=lambda: False)

    async def serve_quic(self, path: DatagramPath) -> Carrier:
        return await QuicCarrier.serve(path, self._identity)

    def known_address(self, peer_key: bytes) -> PeerAddress | None:
        return None


class LoneAttempt:
    """An `AttemptContext` of Alice's run, or of Bob's if it is inbound; its peer sends no signals.

    Whoever dials in is accepted as the peer without a proof, and what the plugin hands in for later is recorded.
    """

    def __init__(self, *, inbound: bool) -> None:
        self.node: NodeView = LoneNode(BOB if inbound else ALICE)
        self.peer = address_of(ALICE if inbound else BOB, port=1)
        self.path = JudgedPath(af=4, route_type=RouteType.LOOPBACK_BIND, target=None, source=None)
        self.session_id = bytes(16)
        self.attempt_id = bytes(16)
        self.inbound = inbound
        self.sent: list[Message] = []
        self.tasks: list[Callable[[], Awaitable[object]]] = []

    @property
    def nursery(self) -> trio.Nursery:
        raise RuntimeError("nothing runs beside a race")

    async def send_signal(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    async def receive_signal(self) -> Message:
        return await trio.sleep_forever()

    async def wait_inbound(self) -> Link:
        return await trio.sleep_forever()

    async def receive_proof(self, carrier: Carrier) -> Link:
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            carrier.close_nowait()
            raise
        return Link(carrier, peer_key=self.peer.public_key, session_id=self.session_id, initiator=not self.inbound)

    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        await trio.lowlevel.checkpoint()
        raise AttemptFailed("there are no other plugins")

    def hold_phase(self) -> None:
        """Nobody waits here."""

    def has_room(self) -> bool:
        return False

    def expect_accept(self) -> None:
        """Nobody waits here."""

    async def circuit(self) -> Circuit:
        await trio.lowlevel.checkpoint()
        raise AttemptFailed("no server relays")

    async def call(self, circuit: Circuit, message: Message) -> Message:
        return await trio.sleep_forever()

    async def answer_call(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()

    def adopt(self, task: Callable[[], Awaitable[object]]) -> None:
        self.tasks.append(task)

    def goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        self.tasks.append(task)


class Half(Plugin):
    """One side of a race that is run by hand."""

    name = "half"

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        raise AssertionError("the test does what a run would do")


def half(*, inbound: bool) -> Plugin:
    return Half(LoneAttempt(inbound=inbound))


def carrier_of(winner: Carrier | Link) -> Carrier:
    """The carrier that a race has won, on either side."""
    return winner.carrier if isinstance(winner, Link) else winner


async def hold(winner: Carrier) -> None:
    """Keep the carrier of a race until the other end closes it."""
    try:
        with suppress(trio.BrokenResourceError):
            await winner.receive()
    finally:
        winner.close_nowait()
