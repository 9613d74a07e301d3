"""`open_node` and `Node`: one identity, its listener, its signals, its Links.  Owner of every nursery (DESIGN §4.4).

Three nurseries, one inside the other; what is further in ends earlier:

    keepers    the signal hub: goodbyes still need it
      links      Link drivers and goodbyes: each shields itself, under a deadline that starts when the node closes
        services   accept loops, dispatch, attempts on behalf of peers: cancelled as soon as the body is left
          (the body of ``async with open_node()``)

No scope that spans the body is shielded, so the body can be cancelled as always.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, final

import trio

from . import host as machine
from .address import PeerAddress, describe_interfaces
from .attempt import Attempt, Session
from .auto_connect import Factory, PlannedWalk, walk
from .carrier import TlsContexts
from .combos import Combo, Route, RouteType, plan_combos
from .config import Budgets, NodeConfig
from .dispatch import AttemptKey, Signals, WallClock
from .errors import ConfigError, ConnectError, SignalError
from .identity import Identity, default_key_file
from .inbound import Authorize, Inbound, PipeListener, open_listening_sockets
from .link import EARLY_DATA_LIMIT, Link, Pipe
from .nurseries import open_background_nursery
from .plugin import (
    PHASES,
    Clock,
    LoadedPlugins,
    NodeView,
    Phase,
    Plugin,
    PluginStatus,
    load_plugins,
    status_of,
    technique_of,
)
from .report import Recorder, WalkEvent
from .responder import Responder
from .signal import Cancel, ServerStatus, SignalHub
from .signal.core import OWNER

if TYPE_CHECKING:
    from .host import Host

__all__ = ["Node", "open_node"]

logger: logging.Logger = logging.getLogger(__name__)

ADDRESS_LIFETIME: Final = 7 * 24 * 3600
"""Seconds for which a published address is good: long enough to be pasted into a chat and used the next days."""
MAX_HINTS: Final = 4
"""Signal servers named in the address: each costs its length in a text that people copy."""
HOST_SALT: Final = 8
"""Bytes of salt in the host id (`warpgate_trio.host.host_id`)."""


@final
class _View(NodeView):
    """What plugins see; live."""

    def __init__(self, node: Node, host: Host, tls: TlsContexts, budgets: Budgets, hub: SignalHub) -> None:
        self._node = node
        self._hub = hub
        self.host = host
        self.tls = tls
        self.budgets = budgets
        self.clock: Clock = WallClock(host)

    @property
    def peer_id(self) -> str:  # type: ignore[override]  # read-only here, declared as plain attributes for plugins
        return self._node.peer_id

    @property
    def address(self) -> PeerAddress:  # type: ignore[override]
        return self._node.address

    @property
    def signal_rtt(self) -> float | None:  # type: ignore[override]
        rtt = self._hub.rtt
        return None if rtt is None else 2 * rtt  # to the server and from there to the peer, and back


@final
class Node:
    """A running node; made by `open_node`.

    Attributes:
      peer_id: this node's id, as peers see it.
      listener: the Pipes that peers open, a `trio.abc.Listener`.
      plugins: every plugin, and every one that was skipped with the reason.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        config: NodeConfig,
        host: Host,
        loaded: LoadedPlugins,
        authorize: Authorize | None,
        sockets: Sequence[trio.socket.SocketType],
        strict_plugins: bool,
    ) -> None:
        self._config = config
        self._host = host
        self._strict = strict_plugins
        self._loaded = loaded
        self._problems: list[PluginStatus] = []
        self._factories: dict[str, tuple[type[Plugin], Factory]] = {}
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._links: set[Link] = set()
        self._closing = False
        self._ports = _ports(sockets)
        self._sockets = sockets
        self._address: PeerAddress | None = None
        self._salt = host.entropy(HOST_SALT)
        self._hub = SignalHub(identity, config.servers.websocket, ca_file=config.servers.ca_file)
        contexts = TlsContexts(identity)
        self._inbound = Inbound(
            contexts=contexts,
            budgets=config.budgets,
            authorize=authorize,
            take_link=self._take_link,
            adopt=self.adopt_link,
            on_accepted=self._on_cancel,
        )
        self.identity: Final = identity
        self.view: Final = _View(self, host, contexts, config.budgets, self._hub)
        self.signals: Final = Signals(
            identity=identity,
            host=host,
            hub=self._hub,
            clock=self.view.clock,
            messages={name: kind for name, (_, kind) in loaded.messages.items()},
            own_address=lambda: self.address,
            on_request=lambda request: self._responder.take(request),
            on_cancel=self._on_cancel,
        )
        self._responder = Responder(
            self,
            self._inbound,
            factories=self._factories,
            ours=lambda: Route(interfaces=self.address.interfaces),
            start=self._start_service,
            listening=authorize is not None,
        )
        self._services: trio.Nursery | None = None
        self._link_nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Node {self.peer_id[:8]}… {'closed' if self._closing else 'open'}>"

    # -- what applications use ---------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id

    @property
    def listener(self) -> PipeListener:
        return self._inbound.listener

    @property
    def plugins(self) -> tuple[PluginStatus, ...]:
        return (*status_of(self._loaded), *self._problems)

    @property
    def address(self) -> PeerAddress:
        """The record that peers need to find this node; re-issued when the machine's addresses change, or when it ages.

        ``str(node.address)`` is the text form to pass on.
        """
        interfaces = describe_interfaces(
            self._host.interfaces(), port_v4=self._ports.get(4), port_v6=self._ports.get(6)
        )
        now = int(self.view.clock.now())
        known = self._address
        if (
            known is None
            or known.interfaces != interfaces
            or not known.issued_at <= now + 60  # the clock was set back
            or now > known.issued_at + ADDRESS_LIFETIME // 2
        ):
            hints = [url.redacted for url in self._config.servers.websocket][:MAX_HINTS]
            known = self._address = PeerAddress.issue(
                self.identity,
                seq=max(now, known.seq + 1 if known is not None else 0),
                issued_at=now,
                expires_at=now + ADDRESS_LIFETIME,
                host_salt=self._salt,
                host_id=machine.host_id(self._host.machine_fingerprint(), self._salt),
                signals=tuple(hints),
                interfaces=interfaces,
            )
        return known

    @property
    def signal_servers(self) -> tuple[ServerStatus, ...]:
        """Every signal server with its state, the configured ones first."""
        return self._hub.status()

    async def wait_signals(self) -> None:
        """Wait until one of the configured signal servers is connected, for as long as the caller's scope allows.

        Raises:
          SignalUnavailable: there is none to wait for.
        """
        await self._hub.wait_connected()

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
        on_event: Callable[[WalkEvent], None] | None = None,
    ) -> Pipe:
        """Connect to a peer by whatever works: the walk direct → punch → spray → relay (the seed; DESIGN §5, §8).

        Args:
          peer: its address, as an object or as text (``wg1…``).
          phases, plugins, afs, route_types: try only these; None tries all.
          early_data: at most 64 KiB that reach the peer's application with the Pipe and save a round trip.  It is
            encrypted to the peer, and sent again if the path breaks before the peer accepted.
          timeout: seconds for the whole walk; ``budgets.total`` when None.
          on_event: called with every step of the walk, for live views.

        Raises:
          AddressError: the address is malformed, forged, expired, or of an unknown version.
          ConnectError: there is no Pipe; ``error.report`` tells about every combo.
          ValueError: an option is out of its range, or the peer is this node.
        """
        address = self._checked_address(peer)
        chosen = [
            kind
            for name, (kind, _) in self._factories.items()
            if kind.phase is not None and (plugins is None or name in plugins)
        ]
        wanted = PHASES if phases is None else tuple(phases)
        for name in plugins or ():
            if name not in self._factories:
                raise ValueError(f"this node has no plugin {name!r}")
        for phase in wanted:
            if phase not in PHASES:
                raise ValueError(f"there is no phase {phase!r}; there are {', '.join(PHASES)}")
        combos = [c for c in self._combos(chosen, address, afs, route_types) if c.phase in wanted]
        return await self._walk(
            address,
            combos,
            phases=[phase for phase in PHASES if phase in wanted],
            timeout=self._config.budgets.total if timeout is None else timeout,
            early_data=early_data,
            on_event=on_event,
        )

    async def connect(
        self,
        peer: PeerAddress | str,
        *,
        plugin: str,
        af: int | None = None,
        route_type: RouteType | None = None,
        early_data: bytes = b"",
        timeout: float | None = None,
        on_event: Callable[[WalkEvent], None] | None = None,
    ) -> Pipe:
        """Connect with one named plugin, and nothing else (the seed's "Running a single named plugin").

        Args:
          af, route_type: pin these too; None tries what the pair has.
          timeout: seconds; the plugin's own ceiling when None.

        Raises as `auto_connect`.
        """
        address = self._checked_address(peer)
        if plugin not in self._factories:
            raise ValueError(f"this node has no plugin {plugin!r}")
        kind, _ = self._factories[plugin]
        combos = self._combos(
            [kind], address, None if af is None else [af], None if route_type is None else [route_type]
        )
        return await self._walk(
            address,
            combos,
            phases=[kind.phase],
            timeout=math.inf if timeout is None else timeout,
            ceiling=kind.timeout,
            early_data=early_data,
            on_event=on_event,
        )

    # -- the walk ----------------------------------------------------------------------------------------------------

    def _checked_address(self, peer: PeerAddress | str) -> PeerAddress:
        address = PeerAddress.from_text(peer) if isinstance(peer, str) else peer
        address.check_fresh(self.view.clock.now())
        if address.public_key == self.identity.public_key:
            raise ValueError("that is this node's own address")
        if self._closing:
            raise trio.ClosedResourceError("this node was closed")
        return address

    def _combos(
        self,
        plugins: Iterable[type[Plugin]],
        peer: PeerAddress,
        afs: Collection[int] | None,
        route_types: Collection[RouteType] | None,
    ) -> list[Combo]:
        reaches = frozenset(
            endpoint.address
            for _, endpoint in peer.endpoints()
            if self._host.source_address(ip_address(endpoint.address)) is not None
        )
        return plan_combos(
            [technique_of(plugin) for plugin in plugins],
            ours=Route(interfaces=self.address.interfaces, reaches=reaches),
            peers=Route(interfaces=peer.interfaces),
            same_host=peer.is_same_host(self._host),
            afs=afs,
            route_types=route_types,
        )

    async def _walk(
        self,
        peer: PeerAddress,
        combos: Sequence[Combo],
        *,
        phases: Sequence[str | None],
        timeout: float,
        ceiling: float | None = None,
        early_data: bytes,
        on_event: Callable[[WalkEvent], None] | None,
    ) -> Pipe:
        if len(early_data) > EARLY_DATA_LIMIT:
            raise ValueError(f"early_data is {len(early_data)} bytes; a commit carries at most {EARLY_DATA_LIMIT}")
        recorder = Recorder(peer=peer.peer_id, now=trio.current_time(), on_event=on_event)
        planned = PlannedWalk(
            self,
            factories={name: factory for name, (_, factory) in self._factories.items()},
            combos=combos,
            phases=phases,
            strict=self._strict,
            ceiling=ceiling,
        )
        deadline = trio.current_time() + timeout
        while True:
            session = Session(peer, self._host.entropy(16), recorder, early_data=early_data)
            try:
                return await walk(planned, session, timeout=deadline - trio.current_time())
            except ConnectError:
                # The peer's application has had its one Pipe of this session, on a carrier that died before we heard of
                # it.  That Pipe is broken there by now; a new session may give a new one.
                if not session.spent:
                    raise
                recorder.note("a path broke between the peer's accept and ours; tried again", trio.current_time())
            finally:
                if session.signalled and session.pipe is None:
                    self.say_goodbye(partial(self._send_cancel, session))

    async def _send_cancel(self, session: Session) -> None:
        try:
            await self.signals.send(session.peer, Cancel(), owner=OWNER, session=session.id, attempt=None, visit=False)
        except SignalError as error:
            logger.debug("the peer could not be told that the session is over: %s", error)

    # -- AttemptHome -------------------------------------------------------------------------------------------------

    def register_attempt(self, key: AttemptKey, attempt: Attempt) -> None:
        self._attempts[key] = attempt
        self.signals.attach(key, attempt)

    def forget_attempt(self, key: AttemptKey) -> None:
        self._attempts.pop(key, None)
        self.signals.detach(key)

    def adopt_link(self, link: Link, tasks: Sequence[Callable[[], Awaitable[object]]]) -> None:
        assert self._link_nursery is not None
        self._links.add(link)
        self._link_nursery.start_soon(self._drive, link, tasks)
        if self._closing:
            link.end_nowait()

    def say_goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        assert self._link_nursery is not None
        self._link_nursery.start_soon(self._goodbye, task)

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def _drive(self, link: Link, tasks: Sequence[Callable[[], Awaitable[object]]]) -> None:
        try:
            async with open_background_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(_logged, task)
                await link.drive(on_open=self._inbound.take_opened, goodbye=self._config.budgets.goodbye)
        finally:
            self._links.discard(link)

    async def _goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        with trio.move_on_after(self._config.budgets.goodbye, shield=True):
            await _logged(task)

    def _start_service(self, task: Callable[[], Awaitable[object]]) -> None:
        if self._services is not None and not self._closing:
            self._services.start_soon(task)

    def _take_link(self, link: Link) -> bool:
        attempt = self._attempts.get((link.peer_key, link.session_id, link.attempt_id))
        if attempt is None:
            return False
        link.become(initiator=not attempt.inbound)
        attempt.deliver(link)
        return True

    def _on_cancel(self, peer: bytes, session: bytes) -> None:
        self._responder.cancel(peer, session)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """The nurseries around the body of `open_node`; see the module's page."""
        async with AsyncExitStack() as stack:
            keepers = await stack.enter_async_context(open_background_nursery())
            hub_scope = trio.CancelScope(shield=True)
            await keepers.start(_run_shielded, hub_scope, self._hub)
            stack.callback(hub_scope.cancel)
            self._link_nursery = await stack.enter_async_context(open_background_nursery())
            self._services = await stack.enter_async_context(open_background_nursery())
            stack.callback(self._close_nowait)
            for name, plugin in self._loaded.plugins.items():
                await self._set_up(stack, name, plugin)
            for sock in self._sockets:
                self._services.start_soon(self._inbound.serve_socket, sock)
            self._services.start_soon(self.signals.run)
            yield

    async def _set_up(self, stack: AsyncExitStack, name: str, plugin: type[Plugin]) -> None:
        try:
            factory = await stack.enter_async_context(plugin.setup(self.view))
        except Exception as error:
            if self._strict:
                raise
            logger.warning("plugin %s is disabled: its setup failed", name, exc_info=True)
            problem = f"setup failed: {type(error).__name__}: {error}"
            self._problems.append(PluginStatus(name=name, phase=plugin.phase, problem=problem))
        else:
            self._factories[name] = (plugin, factory)

    def _close_nowait(self) -> None:
        """Nothing new from here on; what stands has its goodbye time."""
        self._closing = True
        for sock in self._sockets:
            sock.close()
        self._inbound.listener.close_nowait()
        for link in list(self._links):
            link.end_nowait()


async def _run_shielded(scope: trio.CancelScope, hub: SignalHub, *, task_status: trio.TaskStatus[None]) -> None:
    """The hub, until `scope` is cancelled: goodbyes go through it while the node is being cancelled."""
    with scope:
        await hub.run(task_status=task_status)


async def _logged(task: Callable[[], Awaitable[object]]) -> None:
    """A plugin's background task: what it raises is its own affair."""
    try:
        await task()
    except Exception:
        logger.exception("a background task of a plugin failed")


def _ports(sockets: Sequence[trio.socket.SocketType]) -> dict[int, int]:
    return {4 if sock.family == trio.socket.AF_INET else 6: sock.getsockname()[1] for sock in sockets}


@asynccontextmanager
async def open_node(
    config: NodeConfig | None = None,
    *,
    authorize: Authorize | None = None,
    identity: Identity | None = None,
    plugins: Iterable[str | type[Plugin]] | None = None,
    strict_plugins: bool = False,
) -> AsyncGenerator[Node]:
    """Open a node: ``async with open_node(config, authorize=my_rule) as node:``.

    It is usable at once; signal servers are connected to in the background.  Leaving the block closes every Pipe:
    local calls raise `trio.ClosedResourceError`, peers see the end of the stream.

    Args:
      config: what `warpgate_trio.load_config` or `NodeConfig` made; None takes the defaults.
      authorize: ``await authorize(peer_id)`` decides who may open Pipes to this node.  Without it the node can call
      but not
        be called.  `warpgate_trio.anyone` lets everybody in.
      identity: instead of the configuration's.
      plugins: names or classes; None takes every plugin that is installed.
      strict_plugins: let a plugin's unexpected exceptions reach the caller (for tests of plugins).

    Raises:
      ConfigError: the key file cannot be used, there is no plugin, or the port is taken.
    """
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
        node = Node(
            identity=identity,
            config=config,
            host=machine.current(),
            loaded=loaded,
            authorize=authorize,
            sockets=sockets,
            strict_plugins=strict_plugins,
        )
        async with node.run():
            yield node
    finally:
        for sock in sockets:
            sock.close()
