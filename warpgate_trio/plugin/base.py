"""Plugins: one traversal technique each.  The guide for writing one is docs/writing_a_plugin.md.

A plugin is a class with the `register` decorator (`plugin.registry`).  For every valid combo of a walk one instance is
made.  Its `run` turns one possible path into a `Carrier`, or into a `Link` whose peer is proven, or raises.  The walk
does the rest: it races the combos, commits, reports, and closes what is not needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, ClassVar, Final, Literal, final

import msgspec
import trio

from ..address import Endpoint, PeerAddress, Transport
from ..address.nat_profile import NatProfile
from ..carrier import Carrier
from ..clock.wall import Clock
from ..combos import Aim, Likelihood, RouteType
from ..errors import PluginError
from ..link import Link
from ..signal import Circuit, Message
from .context import AttemptContext, NodeView

__all__ = [
    "IP4",
    "IP6",
    "PHASES",
    "TCP",
    "UDP",
    "PathRequest",
    "Phase",
    "Plugin",
]

IP4: Final = 4
IP6: Final = 6
TCP: Final = Transport.TCP
UDP: Final = Transport.UDP

Phase = Literal["direct", "punch", "spray", "relay"]
PHASES: Final[tuple[Phase, ...]] = ("direct", "punch", "spray", "relay")
"""The phases, in the order of a walk."""


class PathRequest(Message, frozen=True):
    """The base of a plugin's first signal, which names the path of the initiator's combo.

    The responder's node judges the path by the same rules before it calls the plugin's `run`, so that a stranger cannot
    make it dial arbitrary targets.

    Attributes:
      af: 4 or 6.
      route_type: a `RouteType`.
      address, port: the endpoint that the responder is to dial.  It must be one of the sender's signed address, and the
        rules must allow it; otherwise the sender learns that the run failed.  Empty and 0 for a plugin that dials
        nothing (`Aim.MEET`).
    """

    af: Literal[4, 6]
    route_type: RouteType
    address: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class Plugin(ABC):
    """One run of a technique, on one side, for one combo.

    Class attributes, which the plugin declares:

    ====================  ===========================================================================================
    ``name``              unique; appears in reports, logs and the names of its messages
    ``transport``         `TCP` or `UDP`: which endpoints of an address it can use
    ``route_types``       the `RouteType` members that it can use
    ``timeout``           seconds that a pinned call (`Node.connect`) may last; a walk has its phases' budgets
    ``proto_messages``    its own `Message` types, which it sends and understands
    ``aim``               `Aim.PEER` if it dials the peer's endpoints, `Aim.OURS` if it asks to be dialled,
                          `Aim.MEET` if both sides send at once, `Aim.RELAY` if a server forwards their data:
                          a rendezvous server of both with `TCP`, a TURN server of either with `UDP`
    ``pathless``          True if it works on no particular address family, route type and endpoint (`fan_out`)
    ``phase``             set by `register`
    ====================  ===========================================================================================

    Instance attributes and methods, for use in `run`:

    ======================  ===========================================================================================
    ``node``                `NodeView`
    ``peer``                the peer's `PeerAddress`, authentic
    ``af``, ``route_type``  of this combo; like the next two, they raise PluginError where there is no path
    ``src``                 address to bind before dialling, or None for the routing table's choice
    ``dest``                the `Endpoint` to dial, ours if the plugin asks to be dialled; PluginError with `Aim.MEET`
    ``session_id``          16 bytes that both sides share; ``attempt_id`` 16 more for this run
    ``inbound``             True on the responder's side, where a peer's request started the run
    ``nursery``             for background work; cancelled when the attempt ends, before the caller has the Pipe; if a
                            task in it raises, the attempt fails
    ``send_signal``         send a `Message` to the other side's run of this attempt
    ``receive_signal``      receive the next `Message` from there
    ``wait_inbound``        wait for the `Link` of a peer that dialled us for this attempt
    ``receive_proof``       the `Link` on a carrier that the peer dialled, once the peer is proven
    ``budget``              seconds until this attempt is ended from outside
    ``clock``, ``nat``      corrected wall clock; our NAT profile as our address has it (None: nothing is known)
    ``race``                run other plugins, and take the first path that one of them makes
    ``hold_phase``          keep the phase open for a second, for the handshake on a path that has answered
    ``has_room``            on the responder's side: whether the peer's Pipe would be accepted now
    ``expect_accept``       on the initiator's side: the peer has promised to accept
    ``circuit``             with `Aim.RELAY` and `TCP`: a new stream by the combo's server, not connected yet; on the
                            responder's side the stream that the peer calls by
    ``call``                call the peer by a circuit; returns the `Message` of its answer
    ``answer_call``         accept the peer's call
    ``adopt``               run a task beyond the attempt, for as long as the winning carrier lives
    ``goodbye``             run a task for the last messages after the attempt
    ======================  ===========================================================================================
    """

    name: ClassVar[str]
    phase: ClassVar[str | None] = None
    transport: ClassVar[Transport] = TCP
    route_types: ClassVar[frozenset[RouteType]] = frozenset(RouteType)
    timeout: ClassVar[float] = 10.0
    proto_messages: ClassVar[tuple[type[Message], ...]] = ()
    aim: ClassVar[Aim] = Aim.PEER
    pathless: ClassVar[bool] = False

    def __init__(self, attempt: AttemptContext) -> None:
        self._attempt = attempt

    @abstractmethod
    async def run(self, reply: Message | None = None) -> Carrier | Link | PeerAddress | None:
        """Make a path.

        Args:
          reply: on the responder's side (`inbound`), the message that requested the run; else None.

        Returns:
          A `Carrier`, or a `Link` whose peer is proven.  It belongs to the attempt from then on, which closes it unless
          it wins.  Auxiliary plugins (``phase=None``) return their result, or None.

        Raises:
          AttemptFailed: no path was made, for a reason that the technique expects.  OSError, CarrierError,
            trio.BrokenResourceError, trio.TooSlowError and signal errors need not be caught either.  Any other
            exception is logged with its traceback.  No exception ends more than this combo.
        """

    @classmethod
    def outlook(cls, ours: NatProfile, peers: NatProfile, af: int) -> tuple[Likelihood, str] | None:
        """How likely the technique is between two NATs, and why, in one sentence (`Aim.MEET`); None is no opinion.

        Args:
          ours, peers: what each side has measured.  An unknown property should not make a combo hopeless.
          af: 4 or 6.
        """
        return None

    @classmethod
    def setup(cls, node: NodeView) -> AbstractAsyncContextManager[Callable[[AttemptContext], Plugin]]:
        """Per-node state.  Override it with an async context manager that yields the factory of the instances.

        It is entered when the node opens and left when the node closes.  An exception on entering disables the plugin.
        """
        return _NoSetup(cls)

    # -- what run() sees ---------------------------------------------------------------------------------------------

    @property
    def node(self) -> NodeView:
        return self._attempt.node

    @property
    def peer(self) -> PeerAddress:
        return self._attempt.peer

    @property
    def af(self) -> int:
        return self._attempt.path.af

    @property
    def route_type(self) -> RouteType:
        return self._attempt.path.route_type

    @property
    def src(self) -> IPv4Address | IPv6Address | None:
        return self._attempt.path.source

    @property
    def dest(self) -> Endpoint:
        target = self._attempt.path.target
        if target is None:
            raise PluginError(f"{self.name} does not dial: it has no target endpoint")
        return target

    @property
    def session_id(self) -> bytes:
        return self._attempt.session_id

    @property
    def attempt_id(self) -> bytes:
        return self._attempt.attempt_id

    @property
    def inbound(self) -> bool:
        return self._attempt.inbound

    @property
    def nursery(self) -> trio.Nursery:
        return self._attempt.nursery

    @property
    def clock(self) -> Clock:
        return self._attempt.node.clock

    @property
    def nat(self) -> bytes | None:
        return self._attempt.node.address.nat

    @property
    def budget(self) -> float:
        """Seconds left for this attempt; a walk may end it earlier, when another combo wins."""
        return max(trio.current_effective_deadline() - trio.current_time(), 0.0)

    async def send_signal(self, message: Message) -> None:
        """Send a message to the peer's run of this attempt; the first message starts that run.

        Returns when a server has accepted the message.

        Raises:
          SignalUnavailable: no server could carry it.
          AttemptFailed: the servers report that the peer is not connected, or does not read its signals.
        """
        await self._attempt.send_signal(message)

    async def receive_signal(self) -> Message:
        """Receive the next message of the peer's run of this attempt.  A Link that arrives meanwhile is closed.

        Raises:
          PeerRefused: the peer does not accept calls of this node.
          AttemptFailed: the peer refused this request, or its run failed.
        """
        return await self._attempt.receive_signal()

    async def wait_inbound(self) -> Link:
        """Wait for the peer to dial our listener for this attempt; errors as in `receive_signal`.

        Messages that arrive meanwhile are dropped.
        """
        return await self._attempt.wait_inbound()

    async def receive_proof(self, carrier: Carrier) -> Link:
        """Wait for the peer's PROOF on a carrier that it dialled, and return the Link on that carrier.

        For a plugin with several carriers that does not know which one the peer will choose: return the first Link.

        Raises:
          WrongPeer: the PROOF is of another node, or of another session.
          trio.BrokenResourceError, ProtocolError: the carrier ended first.
        """
        return await self._attempt.receive_proof(carrier)

    hear_proof = receive_proof
    """The former name of `receive_proof`."""

    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        """Race other plugins, with every valid combo that the call allows, and return the first proven Link.

        Args:
          plugins: their names, in the order in which they start.
          stagger: seconds between two starts.

        Raises:
          AttemptFailed: none of them made a path.
          PeerRefused: none of them made a path, and the peer refused this node.
          PluginError: this is the responder's side.
        """
        return await self._attempt.race(plugins, stagger=stagger)

    def hold_phase(self) -> None:
        """Keep the phase open for the next second, while a handshake is made on a path that has answered.

        However often this is called, a phase lasts at most a second longer than its budget.  On the responder's side it
        does nothing.
        """
        self._attempt.hold_phase()

    def has_room(self) -> bool:
        """Whether the peer's Pipe would be accepted if it committed now, and may later move to a better path.

        For the responder's side, which may tell the peer so; always False on the initiator's side.
        """
        return self._attempt.has_room()

    def expect_accept(self) -> None:
        """Note that the peer `has_room`: with `relay_first`, the Pipe then does not wait for the ACCEPT.

        On the responder's side it does nothing.
        """
        self._attempt.expect_accept()

    async def circuit(self) -> Circuit:
        """A stream by the combo's server: a new one to `call` by, or, on the responder's side, the peer's to answer.

        It waits until the server is connected.  The plugin has to close a new circuit.

        Raises:
          CircuitRefused: the server cannot relay now.
          AttemptFailed: the combo has no server.
          PluginError: this is the responder's side, and the peer has not called.
        """
        return await self._attempt.circuit()

    async def call(self, circuit: Circuit, message: Message) -> Message:
        """Call the peer by a circuit, which starts its run of this attempt, and return its answer.

        Raises:
          CircuitRefused: the server or the peer refuses the call; `reason` says why.  A second call is worthwhile where
            `try_again` is set (the peer has told its time meanwhile) or `too_early` (the call was made while the
            connection to the server was still being opened).
          PeerRefused, AttemptFailed: as in `receive_signal`.
        """
        return await self._attempt.call(circuit, message)

    async def answer_call(self, message: Message) -> None:
        """Accept the peer's call: the circuit is open from now on.

        Raises:
          CircuitRefused: the peer has withdrawn the call.
          PluginError: the peer has not called.
        """
        await self._attempt.answer_call(message)

    def adopt(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run `task` in the node for as long as the carrier of this attempt lives, goodbyes included.

        The task starts once the carrier is accepted, so only if this attempt wins.  It is cancelled when the carrier,
        or its Link, has ended.  An exception in it is logged and breaks the carrier.
        """
        self._attempt.adopt(task)

    def goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run `task` in the node, from now on and for at most ``budgets.goodbye`` seconds, whatever ends this attempt.

        It is for last messages, and is called where the plugin cleans up.  The task also runs while the node closes.
        Its exceptions are only logged.
        """
        self._attempt.goodbye(task)


@final
class _NoSetup(AbstractAsyncContextManager[Callable[[AttemptContext], Plugin]]):
    def __init__(self, plugin: type[Plugin]) -> None:
        self._plugin = plugin

    async def __aenter__(self) -> Callable[[AttemptContext], Plugin]:
        return self._plugin

    async def __aexit__(self, *_: object) -> None:
        return None
