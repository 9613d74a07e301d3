"""Plugins: one traversal technique each, yours included; docs/writing_a_plugin.md is the guide.

A plugin is a class with the `register` decorator (`plugin.registry`).  For every valid combo of a walk one instance is
made, and its `run` turns one possible path into a `Carrier` (or a `Link` that a dialler has already proven itself on),
or raises.  What becomes of it, the race, the commit, the report and the closing, is the walk's business.
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
"""In the order in which a walk takes them."""


class PathRequest(Message, frozen=True):
    """The base of a plugin's first signal: it names the path that the initiator's combo is about.

    The responder's side judges the path by the same rules before its plugin's `run` is called, so a stranger cannot
    aim it anywhere.

    Attributes:
      af: 4 or 6.
      route_type: a `RouteType`.
      address, port: the endpoint that the responder is to dial.  It has to be one of the sender's signed address, and
        the rules have to allow it; else the sender hears that the run failed.  Empty and 0 for a plugin that dials
        nobody (`Aim.MEET`).
    """

    af: Literal[4, 6]
    route_type: RouteType
    address: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class Plugin(ABC):
    """One run of a technique, on one side, for one combo.

    Class attributes, all declared by the plugin:

    ====================  ===========================================================================================
    ``name``              unique; what reports, logs and wire names show
    ``transport``         `TCP` or `UDP`: which endpoints of an address it can use
    ``route_types``       the `RouteType` it can use
    ``timeout``           ceiling in seconds for a pinned call (`Node.connect`); a walk has its phases' budgets
    ``proto_messages``    the `Message` types of its own that it sends and understands
    ``aim``               `Aim.PEER` when it dials the peer's endpoints, `Aim.OURS` when it asks to be dialled,
                          `Aim.MEET` when both sides send at once, `Aim.RELAY` when a server passes on what they say:
                          a rendezvous server of both with `TCP`, a TURN server of either with `UDP`
    ``pathless``          True when it works on no particular address family, route and endpoint (`fan_out`)
    ``phase``             set by `register`
    ====================  ===========================================================================================

    Instance attributes and methods, what `run` works with:

    ======================  ===========================================================================================
    ``node``                `NodeView`
    ``peer``                the peer's `PeerAddress`, authentic
    ``af``, ``route_type``  of this combo; PluginError where there is no path, and for the next two
    ``src``                 address to bind before dialling, or None for the routing table's choice
    ``dest``                the `Endpoint` to dial, ours when the plugin asks to be dialled; PluginError with `Aim.MEET`
    ``session_id``          16 bytes that both sides share; ``attempt_id`` 16 more for this run
    ``inbound``             True in the responder's half, which a peer's request has started
    ``nursery``             for background work; cancelled when the attempt ends, before the caller has the Pipe; if a
                            task in it raises, the attempt fails
    ``send_signal``         send a `Message` to the other side's run of this attempt
    ``receive_signal``      the next `Message` from there
    ``wait_inbound``        the `Link` of a peer that dialled us for this attempt
    ``receive_proof``       the `Link` on a carrier that the peer dialled, once it has proven itself there
    ``budget``              seconds until this attempt is ended from outside
    ``clock``, ``nat``      corrected wall clock; our NAT profile as our address has it (None: nothing is known)
    ``race``                run other plugins, and take the first path that one of them makes
    ``hold_phase``          a path answers: have the phase wait a second for its handshake
    ``circuit``             with `Aim.RELAY` and `TCP`: a stream by the combo's server that leads nowhere yet; in the
                            responder's half the one that the peer calls by
    ``call``                call the peer by a circuit; the `Message` of its answer
    ``answer_call``         take the peer's call
    ``adopt``               give a task a life beyond the attempt, with the winner's Link
    ``goodbye``             hand in what is still to be said over the network after the attempt
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
          reply: on the responder's side (`inbound`), the message that asked for it; else None.

        Returns:
          A `Carrier`, or a `Link` that the peer has proven itself on; it belongs to the attempt from then on, which
          closes it unless it wins.  Auxiliary plugins (``phase=None``) return what they are for, or None.

        Raises:
          AttemptFailed: it did not work, for a reason that the technique expects.  So may OSError, CarrierError,
            trio.BrokenResourceError, trio.TooSlowError and signal errors be left to escape.  Any other exception is
            logged with its traceback; none of them ends more than this combo.
        """

    @classmethod
    def outlook(cls, ours: NatProfile, peers: NatProfile, af: int) -> tuple[Likelihood, str] | None:
        """What the technique makes of two NATs, where nobody is dialled (`Aim.MEET`); None: no opinion.

        Args:
          ours, peers: what each side has measured; an axis that is unknown makes nothing hopeless.
        """
        return None

    @classmethod
    def setup(cls, node: NodeView) -> AbstractAsyncContextManager[Callable[[AttemptContext], Plugin]]:
        """Per-node state: override it with an async context manager that yields the factory of the instances.

        It is entered when the node opens and left when the node closes.  An exception in it disables the plugin.
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
            raise PluginError(f"{self.name} meets its peer, so there is no endpoint to dial")
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
        """Seconds that this attempt has at most from now; a walk may end it earlier, when another combo wins."""
        return max(trio.current_effective_deadline() - trio.current_time(), 0.0)

    async def send_signal(self, message: Message) -> None:
        """Send a message to the peer's run of this attempt; the first one starts it there.

        Returns when a server has taken it.

        Raises:
          SignalUnavailable: no server could.
          AttemptFailed: the servers know that the peer is not there, or that it reads nothing.
        """
        await self._attempt.send_signal(message)

    async def receive_signal(self) -> Message:
        """The next message of the peer's run of this attempt.  A Link that comes meanwhile is closed.

        Raises:
          PeerRefused: the peer does not take part.
          AttemptFailed: its run failed.
        """
        return await self._attempt.receive_signal()

    async def wait_inbound(self) -> Link:
        """Wait for the peer to dial our listener for this attempt; errors as in `receive_signal`.

        Messages that come meanwhile are dropped.
        """
        return await self._attempt.wait_inbound()

    async def receive_proof(self, carrier: Carrier) -> Link:
        """Wait until the peer has proven itself on a carrier that it dialled, and return the Link on it.

        For a plugin that has several and does not know which one the peer will choose; return the first Link.

        Raises:
          WrongPeer: it was another node, or another session.
          trio.BrokenResourceError, ProtocolError: the carrier ended first.
        """
        return await self._attempt.receive_proof(carrier)

    hear_proof = receive_proof
    """The same, under the name that it had in the first releases."""

    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        """Run other plugins towards the peer, every valid combo of theirs that the call allows, and return the first
        proven Link.

        Args:
          plugins: their names, in the order in which they start.
          stagger: seconds between two starts.

        Raises:
          AttemptFailed: none of them made a path.
          PeerRefused: the peer said no to one of them.
          PluginError: in the responder's half.
        """
        return await self._attempt.race(plugins, stagger=stagger)

    def hold_phase(self) -> None:
        """A path answers: do not end the phase within the next second, while a handshake is made on it.

        However often it is called, a phase takes no more than a second longer than its budget.  On the responder's side
        it does nothing.
        """
        self._attempt.hold_phase()

    def has_room(self) -> bool:
        """Whether the peer's Pipe would be accepted if it committed now, and may leave its path for a better one.

        For the responder's half, which may tell the peer; False in the initiator's.
        """
        return self._attempt.has_room()

    def expect_accept(self) -> None:
        """The peer has said that it `has_room`: where the call is in a hurry, its Pipe does not wait for the ACCEPT.

        On the responder's side it does nothing.
        """
        self._attempt.expect_accept()

    async def circuit(self) -> Circuit:
        """A stream by the combo's server: a new one, to `call` by; in the responder's half the peer's, to answer.

        Waits until the server is connected.  Whoever takes a new one closes it.

        Raises:
          CircuitRefused: the server cannot relay now.
          AttemptFailed: the combo goes by no server.
          PluginError: the peer has not called.
        """
        return await self._attempt.circuit()

    async def call(self, circuit: Circuit, message: Message) -> Message:
        """Call the peer's run of this attempt, which starts it there, and return what it answers with.

        Raises:
          CircuitRefused: the server or the peer does not take the call; its `reason` says why, `try_again` that the
            peer has told its time meanwhile, and `too_early` that another call may be taken all the same.
          PeerRefused, AttemptFailed: as in `receive_signal`.
        """
        return await self._attempt.call(circuit, message)

    async def answer_call(self, message: Message) -> None:
        """Take the peer's call: the circuit is open from here on.

        Raises:
          CircuitRefused: it was taken back.
          PluginError: the peer has not called.
        """
        await self._attempt.answer_call(message)

    def adopt(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run `task` in the node, for as long as the Link lives that this attempt makes, goodbyes included; only if it
        wins, or on the responder's side is accepted.

        It is started by the ACCEPT and cancelled when the Link has ended.  What it raises is logged, and breaks the
        Link.
        """
        self._attempt.adopt(task)

    def goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run `task` in the node, from now on and for at most ``budgets.goodbye`` seconds, whatever ends this attempt.

        For what is still to be said over the network; hand it in on the way out.  It runs while the node closes, too.
        What it raises is logged, no more.
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
