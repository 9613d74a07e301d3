"""`open_node` and `Node`, the interface for applications: one identity with its listener, signals and Links."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import final

import trio

from .. import host as machine
from ..address import PeerAddress
from ..combos import RouteType
from ..config import NodeConfig
from ..config.chosen_interfaces import choose_interfaces
from ..contacts import Contacts
from ..errors import (
    ConfigError,
)
from ..identity import Identity, default_key_file, key_from_peer_id
from ..link import Pipe
from ..netcheck import NetcheckReport
from ..netcheck.probes import TIMEOUT as NETCHECK_TIMEOUT
from ..netcheck.probes import check_network
from ..nurseries import require_trio
from ..pairing import ACCEPT_TIMEOUT, CODE_LIFETIME, CodeOffer, Paired
from ..plugin import PHASES, Phase, Plugin, PluginStatus, load_plugins
from ..plugin.registry import status_of
from ..report import WalkEvent
from ..signal import ServerStatus
from ..walk.session import Reach
from ..walk.walk import Walk
from .admission import Authorize, check_authorize
from .listener import PipeListener
from .peers import PeerStatus
from .runtime import NodeRuntime
from .sockets import open_listening_sockets
from .stats import NodeStats

__all__ = ["Node", "open_node"]

logger: logging.Logger = logging.getLogger(__name__)


@final
# long: every operation that applications have on a node, each delegated to the part that does it
class Node:
    """A running node, as `open_node` opens it.

    Attributes:
      peer_id: this node's id, as peers see it.
      listener: the Pipes that peers open, as a `trio.abc.Listener`.
      plugins: the plugins of this node, and those that were skipped, with the reason.
    """

    def __init__(self, runtime: NodeRuntime) -> None:
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<Node {self.peer_id[:8]}… {'closed' if self._runtime.home.closing else 'open'}>"

    # -- what applications use ---------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> str:
        return self._runtime.identity.peer_id

    @property
    def listener(self) -> PipeListener:
        return self._runtime.listener

    @property
    def plugins(self) -> tuple[PluginStatus, ...]:
        return (*status_of(self._runtime.loaded), *self._runtime.problems)

    @property
    def address(self) -> PeerAddress:
        """The signed record by which peers find this node.

        ``str(node.address)`` is its text form, to be passed on.  A node that was just opened knows little of its NATs:
        see `wait_published`.  The record is issued anew when the host's addresses or the measured NATs change, and as
        it ages.
        """
        return self._runtime.own.look()

    async def refresh_address(self, peer: PeerAddress | str, *, timeout: float | None = None) -> PeerAddress:
        """Ask a peer for its present address over the signal channel (`get_addr`).

        An expired address is good enough to ask the peer by.

        Args:
          peer: as for `auto_connect`.
          timeout: seconds; ``budgets.signal`` when None.

        Raises:
          AddressError: the address is malformed, forged, or of an unknown version.
          ContactError, PeerIdError: the text names no contact, or is no valid peer id.
          PeerNotFound: no server has a usable record of the peer, or the peer that it leads to does not answer.
          PeerRefused: the peer does not tell this node.
          SignalUnavailable, AttemptFailed: the peer cannot be asked.
          ConfigError: this node lacks the plugin, or the contacts file cannot be read.
          trio.TooSlowError: the peer does not answer in time.
          trio.ClosedResourceError: the node was closed, before or meanwhile.
          ValueError: the peer is this node.
        """
        with trio.fail_after(self._runtime.config.budgets.signal if timeout is None else timeout):
            return await self._runtime.refresh(self._runtime.finder.read(peer))

    async def find_address(self, peer: PeerAddress | str, *, timeout: float | None = None) -> PeerAddress:
        """The address by which `auto_connect` would call a peer now; arguments and errors are the same.

        None for `timeout` is ``budgets.total`` seconds.
        """
        patience = self._runtime.config.budgets.total if timeout is None else timeout
        return await self._current_address(peer, trio.current_time() + patience)

    async def announce_address(self, peer: PeerAddress | str, *, timeout: float | None = None) -> None:
        """Send a peer this node's present address over the signal channel (`return_addr`).

        Arguments and errors are those of `refresh_address`.
        """
        with trio.fail_after(self._runtime.config.budgets.signal if timeout is None else timeout):
            await self._runtime.announce(self._runtime.finder.read(peer))

    def network_changed(self) -> None:
        """Tell the node that the network may have changed, for example on a notification of the operating system.

        The node probes the peers of all Links and the signal servers at once.  A path on which no answer arrives within
        a round-trip time and half a second becomes suspect (docs/live_links.md).  `address` follows the change.

        This is rarely needed: the node itself checks the host's addresses every two seconds, and twice a second whether
        the host has slept.  On an unchanged network a call costs one PING for each Link.  Synchronous.
        """
        self._runtime.network_changed()

    async def revoke(self, peer_id: str) -> int:
        """End every Link with a peer, whichever side called.

        All Pipes of these Links break: here at once, at the peer as soon as it learns of it.  Both applications get a
        `trio.BrokenResourceError`; its cause at the peer is a `PeerRefused` with the reason ``UNAUTHORIZED``.  The peer
        cannot attach another path to these Links, and neither side searches for one.

        The node also forgets the answers of `authorize` about the peer, and runs `authorize` again at the peer's next
        call: so change the rule first.  Calls that this node makes to the peer go on.  Links are ended even where this
        method is cancelled.

        Returns:
          How many Links were ended; 0 is no error.

        Raises:
          PeerIdError: the text is not a peer id.
        """
        ended = self._runtime.revoke(key_from_peer_id(peer_id))
        await trio.lowlevel.checkpoint()
        return ended

    def stats(self) -> NodeStats:
        """The present values of the node's counters."""
        return self._runtime.stats()

    def peers(self) -> tuple[PeerStatus, ...]:
        """A snapshot of the peers that this node has Pipes with: one entry for each Link, the oldest first."""
        return self._runtime.links.status()

    @property
    def signal_servers(self) -> tuple[ServerStatus, ...]:
        """Every signal server with its state, the configured ones first."""
        return self._runtime.hub.status()

    async def wait_signals(self) -> None:
        """Wait until one of the configured signal servers is connected, for as long as the caller's scope allows.

        Raises:
          SignalUnavailable: no signal server is configured.
        """
        await self._runtime.home.wait_signals()

    async def wait_published(self) -> None:
        """Wait until `address` is complete and worth passing on, for as long as the caller's scope allows.

        It waits for what is configured of these:

        * A connection to one of the signal servers.
        * The measurement of the NATs by the STUN servers.  Where no server answers, it ends after some seconds.
        * At most one second each: that a router opens this node's port, that an MQTT broker grants this node a topic of
          its own, and that a rendezvous server stores this node's key record.

        An address that was passed on earlier works too, but peers have to ask for the present one first.

        Raises:
          trio.ClosedResourceError: the node was closed, before or meanwhile.
        """
        await self._runtime.wait_published()

    async def netcheck(self, *, servers: bool = False, timeout: float = NETCHECK_TIMEOUT) -> NetcheckReport:
        """Examine the network of this host: NATs, addresses, servers and the clock.

        Everything is measured afresh.  Whatever is wrong with the network is in the report and raises nothing.

        Args:
          servers: test each configured server separately: a signal server by a new connection, a STUN server over TCP
            too, a TURN server by an allocation.  Otherwise the report has the servers' states as the node knows them.
          timeout: seconds; what is not known by then stays unknown, and the report says that it is incomplete.

        Raises:
          trio.ClosedResourceError: the node was closed.
          ValueError: the timeout is not more than 0.
        """
        if self._runtime.home.closing:
            raise trio.ClosedResourceError("this node was closed")
        return await check_network(
            servers=self._runtime.config.servers,
            hub=self._runtime.hub,
            nat=self._runtime.nat,
            names=self._runtime.names,
            relays=self._runtime.relays,
            portmaps=self._runtime.portmaps,
            host=self._runtime.host,
            everything=servers,
            timeout=timeout,
        )

    def offer_code(
        self, *, lifetime: float = CODE_LIFETIME, on_paired: Callable[[Paired], object] = lambda _: None
    ) -> AbstractAsyncContextManager[CodeOffer]:
        """Offer a code such as ``7-guitar-orbit``, by which a peer pairs with this node (docs/pairing.md).

        ``async with node.offer_code() as offer:`` enters its body once a signal server has accepted the offer.  Then
        print `CodeOffer.code`, and ``await offer.wait_paired()``.  The code is good for one peer.  It becomes void when
        its lifetime ends, after three wrong tries, and when the body is left.

        A paired peer may not open Pipes by that: `authorize` decides (`PairedPeers` is such a rule).

        Args:
          lifetime: seconds, 300 at most.
          on_paired: called with the peer, before the peer learns that it is paired.  It must not block.

        Raises:
          PairingUnavailable: no server accepts the offer: none is configured, none can be reached within ten seconds,
            or none supports pairing.
          ValueError: the lifetime is out of range.
          trio.ClosedResourceError: the node was closed, before or meanwhile.
        """
        return self._runtime.pairing.offer(lifetime=lifetime, on_paired=on_paired)

    async def accept_code(self, text: str, *, timeout: float = ACCEPT_TIMEOUT) -> Paired:
        """Pair with the peer that offers this code.

        Args:
          text: the code as typed: upper or lower case, with spaces or without hyphens.
          timeout: seconds for the whole operation.

        Returns:
          The peer's proven id and its present address.

        Raises:
          CodeMalformed: the text cannot be a code.
          CodeRefused: the code is wrong, used, void or unknown, may not be tried now (``retry_after``), or nobody
            answered.
          PairingUnavailable: there is no server to ask.
          trio.ClosedResourceError: the node was closed, before or meanwhile.
        """
        return await self._runtime.pairing.accept(text, timeout=timeout)

    async def auto_connect(
        self,
        peer: PeerAddress | str,
        *,
        phases: Iterable[Phase] | None = None,
        plugins: Collection[str] | None = None,
        afs: Collection[int] | None = None,
        route_types: Collection[RouteType] | None = None,
        early_data: bytes = b"",
        timeout: float | None = None,
        dead_after: float | None = None,
        relay_first: bool | None = None,
        on_event: Callable[[WalkEvent], None] | None = None,
    ) -> Pipe:
        """Connect to a peer by whichever way works: the walk direct → punch → spray → relay (docs/walk.md).

        Args:
          peer: the peer's address, as an object or as text (``wg1…``); its peer id; or the name of a contact.  Where no
            address of a peer is known, this node's servers are asked where the peer can be signalled, and then the peer
            itself for its address (docs/contacts.md).
          phases, plugins, afs, route_types: try only these; None tries all.
          early_data: at most 64 KiB, which the peer's application receives together with the Pipe; saves a round trip.
            Only the peer can decrypt them.  They are sent again if the path breaks before the peer has accepted.
          timeout: seconds for the whole walk; ``budgets.total`` when None.
          dead_after: seconds within which a dead path of the Pipe is detected, also while the application sends
            nothing.  The node sends keep-alives for that, once a second at most.  0: no keep-alives;
            ``paths.dead_after`` when None (docs/live_links.md).
          relay_first: begin on a relay, which any pair can use after a few round trips, and move to a better path once
            there is one, without a pause; ``paths.relay_first`` when None.  Until then the relay carries the traffic.
            It has no effect where `phases` lacks ``relay``, where neither side has a relay, or where one side does not
            let Pipes change their path (``paths.upgrade``, ``paths.resume_timeout``).  The Pipe may be returned once
            the peer has promised to accept it; it breaks if the peer then refuses, or the relay fails before that.
          on_event: called with every step of the walk, and then with every change of the path for as long as a Pipe of
            the walk's Link is open.  It must not block.  What it raises after the walk is logged.  For a Pipe that a
            peer opened there is `Pipe.path_changes`.

        Raises:
          AddressError: the address is malformed, forged, expired, or of an unknown version.
          ContactError, PeerIdError: the text names no contact, or is no valid peer id.
          PeerNotFound: no server has a usable record of the peer, or the peer that it leads to does not answer.
          PeerRefused: no address of the peer is known, and the peer refuses to tell it.
          ConnectError: no Pipe was made; ``error.report`` describes every combo.
          ConfigError: the contacts file cannot be read.
          trio.ClosedResourceError: the node was closed, before or meanwhile.
          ValueError: an option is out of range, or the peer is this node.
        """
        deadline = trio.current_time() + (self._runtime.config.budgets.total if timeout is None else timeout)
        address = await self._current_address(peer, deadline)
        chosen = [
            kind
            for name, (kind, _) in self._runtime.factories.items()
            if kind.phase is not None and (plugins is None or name in plugins)
        ]
        wanted = PHASES if phases is None else tuple(phases)
        for name in plugins or ():
            if name not in self._runtime.factories:
                raise ValueError(f"this node has no plugin {name!r}")
        for phase in wanted:
            if phase not in PHASES:
                raise ValueError(f"there is no phase {phase!r}; there are {', '.join(PHASES)}")
        names = [kind.name for kind in chosen if kind.phase in wanted]
        paths = self._runtime.config.paths
        may_leave = paths.upgrade and paths.resume_timeout > 0  # a relay, for a better path
        walk = Walk(
            self._runtime.home,
            address,
            plugins=names,
            phases=[phase for phase in PHASES if phase in wanted],
            afs=afs,
            route_types=route_types,
            refresh=self.refresh_address if "get_addr" in self._runtime.factories else None,
            early_data=early_data,
            dead_after=dead_after,
            relay_first=may_leave and bool(paths.relay_first if relay_first is None else relay_first),
            on_event=on_event,
        )
        pipe = await walk.run(deadline=deadline)
        self._runtime.note_reached(address)
        return pipe

    async def connect(
        self,
        peer: PeerAddress | str,
        *,
        plugin: str | Sequence[str],
        af: int | None = None,
        route_type: RouteType | None = None,
        early_data: bytes = b"",
        timeout: float | None = None,
        dead_after: float | None = None,
        on_event: Callable[[WalkEvent], None] | None = None,
    ) -> Pipe:
        """Connect by one named plugin, or by a race of several, and by nothing else.

        Args:
          plugin: a plugin's name, or several names, which `fan_out` races.
          af, route_type: use only these, with each of the plugins; None tries all that the pair has.
          timeout: seconds; None is the plugin's own timeout plus ``budgets.total``.

        The other arguments and the errors are those of `auto_connect`.
        """
        asked_at = trio.current_time()
        address = await self._current_address(peer, math.inf if timeout is None else asked_at + timeout)
        name, candidates = (plugin, None) if isinstance(plugin, str) else ("fan_out", tuple(plugin))
        for each in (name, *(candidates or ())):
            if each not in self._runtime.factories:
                raise ValueError(f"this node has no plugin {each!r}")
        kind, maker = self._runtime.factories[name]
        factory: Callable[..., Plugin] = maker
        afs, route_types = None if af is None else (af,), None if route_type is None else (route_type,)
        walk = Walk(
            self._runtime.home,
            address,
            plugins=[name],
            phases=[kind.phase],
            afs=afs,
            route_types=route_types,
            factories={} if candidates is None else {name: partial(factory, candidates=candidates)},
            reach=None if candidates is None else self._reach_of(candidates, afs, route_types),
            ceiling=kind.timeout,
            early_data=early_data,
            dead_after=dead_after,
            on_event=on_event,
        )
        patience = kind.timeout + self._runtime.config.budgets.total if timeout is None else timeout
        pipe = await walk.run(deadline=asked_at + patience)
        self._runtime.note_reached(address)
        return pipe

    # -- the walk ----------------------------------------------------------------------------------------------------

    def _reach_of(
        self, plugins: tuple[str, ...], afs: tuple[int, ...] | None, route_types: tuple[RouteType, ...] | None
    ) -> Reach:
        """What later searches for the Link of such a race may use: these plugins, each in its phase."""
        own = {self._runtime.factories[name][0].phase for name in plugins}
        phases = tuple(phase for phase in (*PHASES, None) if phase in own)
        return Reach(plugins=plugins, phases=phases, afs=afs, route_types=route_types)

    async def _current_address(self, peer: PeerAddress | str, deadline: float) -> PeerAddress:
        """See `Finder.find`."""
        callee = self._runtime.finder.read(peer)
        with self._runtime.home.call():
            return await self._runtime.finder.find(callee, deadline)


@asynccontextmanager
async def open_node(
    config: NodeConfig | None = None,
    *,
    authorize: Authorize | None = None,
    identity: Identity | None = None,
    contacts: Contacts | None = None,
    plugins: Iterable[str | type[Plugin]] | None = None,
    strict_plugins: bool = False,
) -> AsyncGenerator[Node]:
    """Open a node: ``async with open_node(config, authorize=my_rule) as node:``.

    The node is usable at once; it connects to its signal servers in the background.  Leaving the block closes every
    Pipe: local calls raise `trio.ClosedResourceError`, and peers see the end of the stream.  Leaving it by an
    exception or a cancellation aborts every open Pipe.

    Args:
      config: a `NodeConfig`, as `warpgate_trio.load_config` returns it; None takes the defaults.
      authorize: an async function; ``await authorize(peer_id)`` decides whether that peer may open Pipes to this node.
        Without it the node can call but not be called.  `warpgate_trio.anyone` admits every peer.
      identity: the node's key, in place of the configuration's.
      contacts: peers that can be called by name; the node keeps their addresses up to date.
      plugins: names or classes; None takes every installed plugin.
      strict_plugins: let unexpected exceptions of a plugin reach the caller (for tests of plugins).

    Raises:
      ConfigError: the key file cannot be used, the port is taken, no plugin could be loaded, or `plugins` names one
        that does not exist.
      PluginError: a class in `plugins` breaks the plugin contract.
      RuntimeError: the caller does not run under Trio.
      TypeError: `authorize` is not an async function.
    """
    require_trio("open_node")
    check_authorize(authorize)
    config = NodeConfig() if config is None else config
    if identity is None:
        wanted = config.identity
        identity = (
            Identity.generate() if wanted.ephemeral else Identity.load_or_create(wanted.key_file or default_key_file())
        )
    loaded = load_plugins(plugins)
    try:
        sockets = await open_listening_sockets(config.listen.port)
    except OSError as error:
        raise ConfigError(f"listen.port = {config.listen.port}: {error.strerror or error}") from error
    try:
        runtime = NodeRuntime(
            identity=identity,
            config=config,
            host=choose_interfaces(machine.current(), config.interfaces),
            loaded=loaded,
            authorize=authorize,
            sockets=sockets,
            strict_plugins=strict_plugins,
            contacts=contacts,
        )
        async with runtime.run():
            yield Node(runtime)
    finally:
        for sock in sockets:
            sock.close()
