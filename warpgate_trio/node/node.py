"""`open_node` and `Node`: one identity, its listener, its signals, its Links, as applications see them."""

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
# long: all that applications ask of a node, each handed on to what does it
class Node:
    """A running node; made by `open_node`.

    Attributes:
      peer_id: this node's id, as peers see it.
      listener: the Pipes that peers open, a `trio.abc.Listener`.
      plugins: every plugin, and every one that was skipped with the reason.
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
        """The record that peers need to find this node; re-issued when the machine's addresses or what is known of its
        NATs change, or when it ages.

        ``str(node.address)`` is the text form to pass on; a node that was just opened knows little of its NATs yet, see
        `wait_published`.
        """
        return self._runtime.own.look()

    async def refresh_address(self, peer: PeerAddress | str, *, timeout: float | None = None) -> PeerAddress:
        """Ask a peer over the signal channel where it is now (`get_addr`).  An expired address will do to ask by.

        Args:
          peer: as for `auto_connect`.
          timeout: seconds; ``budgets.signal`` when None.

        Raises:
          AddressError: the address is malformed, forged, or of an unknown version.
          ContactError, PeerIdError: that is nobody.
          PeerNotFound: where it may be asked cannot be found out.
          PeerRefused: the peer does not tell us.
          SignalUnavailable, AttemptFailed: it cannot be asked.
          trio.TooSlowError: it does not answer in time.
          ValueError: the peer is this node.
        """
        with trio.fail_after(self._runtime.config.budgets.signal if timeout is None else timeout):
            return await self._runtime.refresh(self._runtime.finder.read(peer))

    async def find_address(self, peer: PeerAddress | str, *, timeout: float | None = None) -> PeerAddress:
        """The address by which `auto_connect` would call a peer now; arguments and errors as there."""
        patience = self._runtime.config.budgets.total if timeout is None else timeout
        return await self._current_address(peer, trio.current_time() + patience)

    async def announce_address(self, peer: PeerAddress | str, *, timeout: float | None = None) -> None:
        """Tell a peer over the signal channel where this node is now (`return_addr`).

        Arguments and errors as for `refresh_address`.
        """
        with trio.fail_after(self._runtime.config.budgets.signal if timeout is None else timeout):
            await self._runtime.announce(self._runtime.finder.read(peer))

    def network_changed(self) -> None:
        """Tell the node that the network may have changed, as a system's own notifications say.

        The peers of all Links and the signal servers are asked at once, and a path is suspected where nothing comes
        back within a round trip and half a second (docs/live_links.md); `address` follows.  The node looks by itself
        every two seconds whether the machine has other addresses, or has slept.  On a network that has not changed it
        costs a PING on each Link.  Synchronous.
        """
        self._runtime.network_changed()

    async def revoke(self, peer_id: str) -> int:
        """End every Link with a peer, whichever side has called, and return how many there were.

        Their Pipes break with `trio.BrokenResourceError` here at once, and there as soon as the peer hears of it; its
        cause there is a `PeerRefused` whose reason is ``UNAUTHORIZED``.  The peer can attach no path to what was ended,
        and nobody searches for one.  Nothing is kept of it: what `authorize` has said of the peer so far is forgotten,
        and the peer's next call is asked about as ever, so change the rule first.  Calls that this node makes to the
        peer go on.  A peer that there is no Link with is no error.  It is done also where the call is cancelled.

        Raises:
          PeerIdError: that is no peer id.
        """
        ended = self._runtime.revoke(key_from_peer_id(peer_id))
        await trio.lowlevel.checkpoint()
        return ended

    def stats(self) -> NodeStats:
        """The node's counters as they are now."""
        return self._runtime.stats()

    def peers(self) -> tuple[PeerStatus, ...]:
        """The peers that this node has Pipes with, one entry for each Link, the oldest first: a snapshot."""
        return self._runtime.links.status()

    @property
    def signal_servers(self) -> tuple[ServerStatus, ...]:
        """Every signal server with its state, the configured ones first."""
        return self._runtime.hub.status()

    async def wait_signals(self) -> None:
        """Wait until one of the configured signal servers is connected, for as long as the caller's scope allows.

        Raises:
          SignalUnavailable: there is none to wait for.
        """
        await self._runtime.home.wait_signals()

    async def wait_published(self) -> None:
        """Wait until `address` is whole, for as long as the caller's scope allows: then is the time to pass it on.

        It is once one of the configured signal servers is connected, and the NATs have been measured as far as the
        configured STUN servers answer; that none does is an answer too, after some seconds.  Beside that a router has a
        second to open our port, an MQTT broker to let us have a topic of our own, and a rendezvous server to keep our
        key record.  What is not configured is not
        waited for.  An address that was passed on earlier works, but peers have to ask for the present one first.

        Raises:
          trio.ClosedResourceError: the node was closed, before or meanwhile.
        """
        await self._runtime.wait_published()

    async def netcheck(self, *, servers: bool = False, timeout: float = NETCHECK_TIMEOUT) -> NetcheckReport:
        """Find out what this machine's network is like: NATs, addresses, servers, the clock; what works and what not.

        Everything is measured afresh.  A bad network is a report, never an exception.

        Args:
          servers: test every configured server by itself: signal servers by a connection of its own, STUN over TCP too,
            TURN servers by an address that they give.  Without it they are as the node sees them.
          timeout: seconds; what is not known by then stays unknown, and the report says that it is not complete.

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
        """Offer a code, as ``7-guitar-orbit``, by which a peer and this node come to know each other (docs/pairing.md).

        ``async with node.offer_code() as offer:`` is entered once a signal server has taken it: print `CodeOffer.code`,
        and ``await offer.wait_paired()``.  It is good for one peer, until its lifetime is over, three tries were wrong,
        or the body is left.  Pairing lets nobody in: that stays with `authorize` (`PairedPeers` is such a rule).

        Args:
          lifetime: seconds, 300 at most.
          on_paired: called with the peer before it hears that it is paired.  It must not block.

        Raises (when it is entered):
          PairingUnavailable: no server takes it: none is configured, can be reached within ten seconds, or can pair.
          ValueError: the lifetime is out of its range.
          trio.ClosedResourceError: the node was closed, before or meanwhile.
        """
        return self._runtime.pairing.offer(lifetime=lifetime, on_paired=on_paired)

    async def accept_code(self, text: str, *, timeout: float = ACCEPT_TIMEOUT) -> Paired:
        """Pair with the peer that offers this code; returns who it is, proven, and its present address.

        Args:
          text: the code as it was typed, in any case, with spaces or without hyphens.
          timeout: seconds for all of it.

        Raises:
          CodeMalformed: that cannot be a code.
          CodeRefused: it is wrong, used, void or unknown, may not be tried now (``retry_after``), or nobody answered.
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
        """Connect to a peer by whatever works: the walk direct → punch → spray → relay (docs/walk.md).

        Args:
          peer: its address, as an object or as text (``wg1…``); its peer id; or the name of a contact.  Who is known by
            key alone is looked up at our servers, and then tells where it is (docs/contacts.md).
          phases, plugins, afs, route_types: try only these; None tries all.
          early_data: at most 64 KiB that reach the peer's application with the Pipe and save a round trip.  It is
            encrypted to the peer, and sent again if the path breaks before the peer accepted.
          timeout: seconds for the whole walk; ``budgets.total`` when None.
          dead_after: seconds within which the death of the Pipe's path is to be noticed, also while nobody says
            anything: the peer is then asked so often, once a second at most; 0: not asked for; ``paths.dead_after``
            when None (docs/live_links.md).
          relay_first: take a relay's path, which any pair has after a few round trips, and change over to a better one
            once that is found, without a pause; ``paths.relay_first`` when None.  It costs the relay what passes until
            then.  Nothing where `phases` has no relay, neither side has one, or Pipes stay on their paths
            (``paths.upgrade``, ``paths.resume_timeout``, on either side).  The Pipe may be there before the peer
            has accepted what it has promised to; where it does not, or the relay breaks by then, the Pipe breaks.
          on_event: called with every step of the walk, for live views, and then with every change of the path, for as
            long as there is one of the Pipes that the walk led to.  It must not block; what it raises after the walk is
            logged.  A Pipe that a peer has opened tells by `Pipe.path_changes`.

        Raises:
          AddressError: the address is malformed, forged, expired, or of an unknown version.
          ContactError, PeerIdError: that is nobody.
          PeerNotFound: where it is cannot be found out.
          ConnectError: there is no Pipe; ``error.report`` tells about every combo.
          ValueError: an option is out of its range, or the peer is this node.
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
        """Connect with one named plugin, or with several, and nothing else.

        Args:
          plugin: its name; or several names, which are raced by `fan_out`.
          af, route_type: pin these too, for each of the plugins; None tries what the pair has.
          timeout: seconds; None stands for the plugin's own ceiling, and ``budgets.total`` more for the peer's answer.

        Raises as `auto_connect`.
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
        """What a race of these may be searched for by later: each in its phase."""
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

    It is usable at once; signal servers are connected to in the background.  Leaving the block closes every Pipe:
    local calls raise `trio.ClosedResourceError`, peers see the end of the stream.  Leaving it by an exception, or
    cancelled, aborts every Pipe that is open.

    Args:
      config: what `warpgate_trio.load_config` or `NodeConfig` made; None takes the defaults.
      authorize: an async function; ``await authorize(peer_id)`` decides who may open Pipes to this node.  Without it
        the node can call but not be called.  `warpgate_trio.anyone` lets everybody in.
      identity: instead of the configuration's.
      contacts: peers that can be called by their names; where they are now is kept in them.
      plugins: names or classes; None takes every plugin that is installed.
      strict_plugins: let a plugin's unexpected exceptions reach the caller (for tests of plugins).

    Raises:
      ConfigError: the key file cannot be used, there is no plugin, or the port is taken.
      RuntimeError: this is not Trio.
      TypeError: `authorize` is no async function.
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
