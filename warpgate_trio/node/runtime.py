"""What a node is made of, and the owner of its nurseries (DESIGN §4.4).  `Node` is the face that applications see.

Three nurseries, one inside the other; what is further in ends earlier:

    keepers    the signal hub: goodbyes still need it
      links      Link drivers and goodbyes: each shields itself, under a deadline that starts when the node closes
        (what plugins have set up: left when no attempt is under way any more)
        services   accept loops, dispatch, attempts on behalf of peers: cancelled as soon as the body is left
          (the body of ``async with open_node()``)

No scope that spans the body is shielded, so the body can be cancelled as always.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, final

import trio

from .. import host as machine
from ..address import AddressScope, OwnAddresses, PeerAddress, describe_interfaces, scope_of
from ..address.endpoint import Endpoint, EndpointKind, Transport
from ..carrier import TlsContexts
from ..carrier.quic import QuicCarrier
from ..clock.corrected import CorrectedClock, keep_measured
from ..combos import Combo, Likelihood, Pair, Route, RouteType, dialling, find_source, meeting, pathless_combo
from ..errors import AddressError, ConfigError, panics_as_errors
from ..link import Link
from ..names import Names
from ..nat.service import NatService
from ..nurseries import open_background_nursery
from ..plugin import Clock, LoadedPlugins, NodeView, Plugin, PluginStatus
from ..plugin.registry import technique_of
from ..ports.udp import UdpPorts
from ..signal import ServerState, SignalHub
from ..signal.router import AttemptKey, Signals
from ..sockaddr import unmapped
from ..walk.attempt import Attempt, Factory
from ..walk.calling import CallingAttempt
from ..walk.recorder import Recorder
from ..walk.session import Session
from ..walk.verdicts import ThisSide, Unresolved
from .address_book import AddressBook
from .inbound import REFUSED, Authorize, Inbound
from .responder import Responder
from .stats import NodeStats

if TYPE_CHECKING:
    from ..carrier import Carrier
    from ..config import Budgets, NodeConfig
    from ..host import Host, Interface
    from ..identity import Identity
    from ..ports.datagrams import DatagramPath
    from ..sockaddr import IpAddress

__all__ = ["NodeRuntime"]

logger: logging.Logger = logging.getLogger(__name__)

ADDRESS_LIFETIME: Final = 7 * 24 * 3600
"""Seconds for which a published address is good: long enough to be pasted into a chat and used the next days."""
MAX_HINTS: Final = 4
"""Signal servers named in the address: each costs its length in a text that people copy."""
NTP_TIMEOUT: Final = 5.0
"""Seconds for asking the time servers once: four samples of a server at the other end of a bad satellite link."""
MAX_TEXT: Final = 600
"""Characters of an address as people pass it on, above which what is not needed is left out."""
LOOK_INTERVAL: Final = 2.0
"""Seconds between looks at whether the machine's addresses have changed; one takes 0.3 ms."""
_RANKS: Final = tuple(Likelihood)
HOST_SALT: Final = 8
"""Bytes of salt in the host id (`warpgate_trio.host.host_id`)."""


@final
class _View(NodeView):
    """What plugins see; live."""

    def __init__(self, runtime: NodeRuntime, host: Host, tls: TlsContexts, budgets: Budgets, hub: SignalHub) -> None:
        self._runtime = runtime
        self._hub = hub
        self.host = host
        self.tls = tls
        self.budgets = budgets
        self.clock: Clock = runtime.clock
        self.udp_ports: UdpPorts = runtime.udp_ports
        self.nat: NatService = runtime.nat

    @property
    def peer_id(self) -> str:  # type: ignore[override]  # read-only here, declared as plain attributes for plugins
        return self._runtime.identity.peer_id

    @property
    def address(self) -> PeerAddress:  # type: ignore[override]
        return self._runtime.address

    def known_address(self, peer_key: bytes) -> PeerAddress | None:
        return self._runtime.known_address(peer_key)

    async def serve_quic(self, path: DatagramPath) -> Carrier:
        return await QuicCarrier.serve(path, self._runtime.identity)

    @property
    def signal_rtt(self) -> float | None:  # type: ignore[override]
        rtt = self._hub.rtt
        return None if rtt is None else 2 * rtt  # to the server and from there to the peer, and back


@final
class NodeRuntime:
    """Everything behind a `Node`; also the `AttemptHome` of its attempts.

    Attributes:
      factories: plugin name -> its class and the maker of its instances, once `run` was entered.
      problems: plugins whose `setup` failed.
      walks: how calls ended, by verdict.
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
        self.config: Final = config
        self.host: Final = host
        self.strict: Final = strict_plugins
        self.loaded: Final = loaded
        self.problems: Final[list[PluginStatus]] = []
        self.factories: Final[dict[str, tuple[type[Plugin], Factory]]] = {}
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._links: set[Link] = set()
        self._calls: set[trio.CancelScope] = set()
        self._calls_over = trio.Event()
        self.walks: Final[Counter[str]] = Counter()
        self.book: Final = AddressBook()
        self.closing: bool = False
        self._ports = _ports(sockets)
        self._sockets = sockets
        self._address: PeerAddress | None = None
        self._published_nat: bytes | None = None
        self._listening = authorize is not None
        self._salt = host.entropy(HOST_SALT)
        self.names: Final = Names()
        self.hub: Final = SignalHub(
            identity,
            config.servers.signal,
            ca_file=config.servers.ca_file,
            names=self.names,
            is_worth_a_place=lambda payload: self.signals.is_worth_a_place(payload),
        )
        contexts = TlsContexts(identity)
        self.inbound: Final = Inbound(
            contexts=contexts,
            budgets=config.budgets,
            authorize=authorize,
            take_link=self._take_link,
            adopt=self.adopt_link,
            on_accepted=self._on_cancel,
        )
        self.identity: Final = identity
        self.clock: Final = CorrectedClock(host)
        self.udp_ports: Final = UdpPorts()
        self.nat: Final = NatService(
            self.udp_ports,
            config.servers.stun,
            host,
            names=self.names,
            is_online=lambda: self.hub.rtt is not None,
        )
        self.view: Final = _View(self, host, contexts, config.budgets, self.hub)
        self.signals: Final = Signals(
            identity=identity,
            host=host,
            hub=self.hub,
            clock=self.view.clock,
            messages={name: kind for name, (_, kind) in loaded.messages.items()},
            own_address=lambda: self.address,
            on_request=lambda request: self._responder.take(request),
            on_cancel=self._on_cancel,
            on_address=self.book.hear,
            on_reply_wanted=lambda envelope, via, message: self._responder.tell(envelope, via, message),
            knows=lambda key: self.book.heard(key) is not None or self._responder.has_let_in(key),
            hints_of=self.book.hints,
            may_visit=self._may_visit,
            listening=self._listening,
        )
        self._responder = Responder(
            self,
            self.inbound,
            factories=self.factories,
            ours=lambda: Route(interfaces=self.address.interfaces, own=OwnAddresses(host)),
            start=self._start_service,
            listening=self._listening,
        )
        self._services: trio.Nursery | None = None
        self._link_nursery: trio.Nursery | None = None

    # -- addresses, ours and our peers' --------------------------------------------------------------------------------

    @property
    def address(self) -> PeerAddress:
        """What the node publishes now; re-issued when that has changed, or when it ages."""
        interfaces = describe_interfaces(self.host.interfaces(), port_v4=self._ports.get(4), port_v6=self._ports.get(6))
        profiles = self.nat.profiles
        nat = profiles.to_bytes(interfaces=len(interfaces), external=True)
        now = max(int(self.view.clock.now()), 0)
        known = self._address
        if (
            known is None
            or known.interfaces != interfaces
            or self._published_nat != nat
            or not known.issued_at <= now + 60  # the clock was set back
            or now > known.issued_at + ADDRESS_LIFETIME // 2
        ):
            hints = list(dict.fromkeys(str(url.published) for url in self.config.servers.signal))[:MAX_HINTS]
            self._published_nat = nat
            for external in (True, False):  # where peers would meet us is worth a few characters, and not a longer text
                known = PeerAddress.issue(
                    self.identity,
                    seq=max(now, self._address.seq + 1 if self._address is not None else 0),
                    issued_at=now,
                    expires_at=now + ADDRESS_LIFETIME,
                    host_salt=self._salt,
                    host_id=machine.host_id(self.host.machine_fingerprint(), self._salt, self.identity.public_key),
                    signals=tuple(hints),
                    interfaces=interfaces,
                    nat=profiles.to_bytes(interfaces=len(interfaces), external=external),
                    instance=self.hub.instance,
                    listens=self._listening,
                )
                if len(str(known)) <= MAX_TEXT:
                    break
            self._address = known
            assert known is not None
        return known

    def known_address(self, peer_key: bytes) -> PeerAddress | None:
        """What a peer said last of where it is: in its answers, or because it told us and is authorized."""
        return self.book.heard(peer_key)

    def learn_address(self, address: PeerAddress) -> None:
        """A peer that is authorized told us where it is."""
        self.book.hear(address)

    def usable_addresses(self, peer_key: bytes) -> list[PeerAddress]:
        """What is known of a peer and good at this time, by our clock or by the peer's; what it said itself first."""
        return [record for record in self.book.records(peer_key) if self._is_fresh(record)]

    def _is_fresh(self, record: PeerAddress) -> bool:
        """A record's times are on its issuer's clock, which may not agree with ours, and is known once it told us."""
        for now in (self.clock.now(), self.signals.time_at(record.public_key)):
            with suppress(AddressError):
                record.check_fresh(now)
                return True
        return False

    def _may_visit(self, peer: PeerAddress, ip: IpAddress) -> bool:
        """Whether a server that a peer names may be visited at an address: it is judged as a peer's endpoints are.

        Public addresses, those of our own networks, and on one machine with the peer loopback, which our own addresses
        lead to as well.
        """
        ip = unmapped(ip)
        if ip in OwnAddresses(self.host):
            return peer.is_same_host(self.host)
        scope = scope_of(ip)
        if scope in (AddressScope.NO_HOST, AddressScope.LINK_LOCAL):
            return False
        if scope is AddressScope.PUBLIC:
            return True
        target = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.NIC, ip=ip, port=1)
        return find_source(target, Route(interfaces=self.address.interfaces)) is not None

    def plan(
        self,
        peer: PeerAddress,
        plugins: Sequence[str],
        afs: Collection[int] | None = None,
        route_types: Collection[RouteType] | None = None,
    ) -> list[Combo]:
        """The valid combos of these plugins with a peer, on this machine's routes as they are now.

        Those with `peer` come first, then those that another address adds that is known of it.
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
        """The same with one address of the peer."""
        kinds = [self.factories[name][0] for name in plugins]
        reaches = frozenset(
            endpoint.address for _, endpoint in peer.endpoints() if self.host.source_address(endpoint.ip) is not None
        )
        techniques = [technique_of(kind) for kind in kinds if not kind.pathless]
        own = OwnAddresses(self.host)
        same_host = peer.is_same_host(self.host)
        address = self.address
        pair = Pair(
            ours=Route(interfaces=address.interfaces, reaches=reaches, own=own),
            peers=Route(interfaces=peer.interfaces, own=own if same_host else frozenset()),
            same_host=same_host,
            our_nat=address.nat_profiles,
            peer_nat=peer.nat_profiles,
        )
        combos = [
            combo
            for planner in (dialling, meeting)
            for combo in planner.plan(pair, techniques, afs=afs, route_types=route_types)
        ]
        return combos + [pathless_combo(kind.name, kind.phase) for kind in kinds if kind.pathless]

    def stats(self) -> NodeStats:
        counters = self.inbound.counters
        return NodeStats(
            walks=dict(self.walks),
            pipes_made=self.walks["connected"],
            pipes_accepted=counters["accepted"],
            refused={k.removeprefix(REFUSED): n for k, n in counters.items() if k.startswith(REFUSED)},
            handshakes_failed=counters["handshakes_failed"],
            links=len(self._links),
            attempts=len(self._attempts),
            handshakes=self.inbound.handshakes,
            waiting_pipes=self.inbound.listener.waiting,
            signals=dict(self.signals.counters),
            signals_dropped=self.hub.dropped,
        )

    def unresolved(self) -> Unresolved:
        """The names of servers that DNS does not resolve now."""
        servers = self.config.servers
        signal, stun = self.hub.unresolved, self.nat.unresolved
        gone = {name for name, failure in stun.items() if not failure.remembered}
        return Unresolved(
            names=signal | stun,
            no_signal=bool(servers.signal) and all(url.host in signal for url in servers.signal),
            no_stun=bool(stun) and all(url.host in gone for url in self.nat.servers),
        )

    def this_side(self) -> ThisSide:
        """What this side has of what a walk may need."""
        own = [server for server in self.hub.status() if not server.visiting]
        connected = any(server.state is ServerState.CONNECTED for server in own)
        return ThisSide(
            signal=bool(own),
            stun=bool(self.nat.servers),
            silent=() if connected else [f"{server.url}: {server.last_error or 'no answer yet'}" for server in own],
        )

    def has_signals(self) -> bool:
        """Whether a signal server is connected."""
        return any(server.state is ServerState.CONNECTED for server in self.hub.status())

    async def wait_signals(self) -> None:
        """See `Node.wait_signals`."""
        await self.hub.wait_connected()

    async def wait_published(self) -> None:
        """See `Node.wait_published`."""
        with self.call():
            if self.config.servers.signal:
                await self.hub.wait_connected()
            await self.nat.wait_measured()

    # -- AttemptHome -------------------------------------------------------------------------------------------------

    def factory(self, plugin: str) -> Factory:
        return self.factories[plugin][1]

    def register_attempt(self, key: AttemptKey, attempt: Attempt) -> None:
        self._attempts[key] = attempt
        self.signals.attach(key, attempt)

    def forget_attempt(self, key: AttemptKey) -> None:
        self._attempts.pop(key, None)
        self.signals.detach(key)

    def adopt_link(self, link: Link, tasks: Sequence[Callable[[], Awaitable[object]]]) -> None:
        assert self._link_nursery is not None
        if self.closing:  # a call that this end has overtaken: there is nobody any more to have the Pipe
            link.close_nowait()
            return
        self._links.add(link)
        self._link_nursery.start_soon(self._drive, link, tasks)

    def say_goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        assert self._link_nursery is not None
        try:
            self._link_nursery.start_soon(self._goodbye, task)
        except RuntimeError:  # Trio's word for a nursery that has ended; `_wait_calls` has waited for as long as it may
            logger.debug("a goodbye came after the end of its node")

    @contextmanager
    def call(self) -> Iterator[None]:
        """The time of one call of the application, which need not be made in the body: it ends with the node.

        Raises:
          trio.ClosedResourceError: the node was left, before or meanwhile.
        """
        if self.closing:
            raise trio.ClosedResourceError("this node was closed")
        with trio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                yield
            finally:
                self._calls.discard(scope)
                if self.closing and not self._calls:
                    self._calls_over.set()
        if scope.cancelled_caught:
            raise trio.ClosedResourceError("this node was closed")

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def _drive(self, link: Link, tasks: Sequence[Callable[[], Awaitable[object]]]) -> None:
        """The Link and what carries it, a plugin's tasks: shielded together, since its goodbyes go through them."""
        try:
            async with open_background_nursery() as nursery:
                nursery.cancel_scope.shield = True  # `drive` bounds itself, and cancels the others when it ends
                for task in tasks:
                    nursery.start_soon(_carry, task, link)
                await link.drive(
                    on_open=self.inbound.take_opened,
                    admit=self.inbound.admit,
                    goodbye=self.config.budgets.goodbye,
                )
        finally:
            self._links.discard(link)

    async def _wait_calls(self) -> None:
        """Calls that were cancelled by this end still use their plugins, and may have goodbyes to say."""
        if self._calls:
            with trio.move_on_after(self.config.budgets.goodbye, shield=True):
                await self._calls_over.wait()

    async def _goodbye(self, task: Callable[[], Awaitable[object]]) -> None:
        with trio.move_on_after(self.config.budgets.goodbye, shield=True):
            await _logged(task)

    def _start_service(self, task: Callable[[], Awaitable[object]]) -> None:
        if self._services is not None and not self.closing:
            self._services.start_soon(task)

    def _take_link(self, link: Link) -> bool:
        attempt = self._attempts.get((link.peer_key, link.session_id, link.attempt_id))
        if attempt is None:
            return False
        link.become(initiator=not attempt.inbound)
        attempt.deliver(link)
        return True

    def _on_cancel(self, peer: bytes, session: bytes, attempt: bytes | None = None) -> None:
        self._responder.cancel(peer, session, attempt)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """The nurseries around the body of `open_node`; see the module's page."""
        async with AsyncExitStack() as stack:
            keepers = await stack.enter_async_context(open_background_nursery())
            hub_scope = trio.CancelScope(shield=True)
            stack.callback(hub_scope.cancel)
            await stack.enter_async_context(self.udp_ports.running(keepers))
            await stack.enter_async_context(self.names.running())
            with trio.CancelScope(
                shield=True
            ):  # a cancelled `start` would wait for its child, which does not hear of it
                await keepers.start(_run_shielded, hub_scope, self.hub)
            self._link_nursery = await stack.enter_async_context(open_background_nursery())
            for name, plugin in self.loaded.plugins.items():
                await self._set_up(stack, name, plugin)
            stack.push_async_callback(self._wait_calls)
            self._services = await stack.enter_async_context(open_background_nursery())
            stack.push(self._leave)
            for sock in self._sockets:
                self._services.start_soon(self.inbound.serve_socket, sock)
            self._services.start_soon(self.signals.run)
            self._services.start_soon(self.nat.run)
            self._services.start_soon(self._watch_addresses)
            if self.config.servers.ntp:
                self._services.start_soon(self._keep_time)
            yield

    async def _watch_addresses(self) -> None:
        """A machine that moves leaves connections behind that nobody tells of their end: have them asked for."""
        before: tuple[Interface, ...] | None = None
        while True:
            try:
                now = self.host.interfaces()
            except Exception as error:  # a machine that does not say moves unnoticed
                logger.debug("the machine's addresses cannot be told: %s", error)
                return
            if before not in (None, now):
                logger.info("the machine's addresses have changed")
                self.hub.check_channels()
            before = now
            await trio.sleep(LOOK_INTERVAL)  # nobody tells, on no system in the same way: one has to look

    async def _keep_time(self) -> None:
        await keep_measured(
            self.clock,
            self.config.servers.ntp,
            timeout=NTP_TIMEOUT,
            host=self.host,
            names=self.names,
        )

    async def _set_up(self, stack: AsyncExitStack, name: str, plugin: type[Plugin]) -> None:
        try:
            factory = await stack.enter_async_context(plugin.setup(self.view))
        except Exception as error:
            if self.strict:
                raise
            logger.warning("plugin %s is disabled: its setup failed", name, exc_info=True)
            problem = f"setup failed: {type(error).__name__}: {error}"
            self.problems.append(PluginStatus(name=name, phase=plugin.phase, problem=problem))
        else:
            self.factories[name] = (plugin, factory)

    def _leave(self, kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
        self._close_nowait(abort=kind is not None)

    def _close_nowait(self, *, abort: bool = False) -> None:
        """Nothing new from here on; what stands has its goodbye time."""
        self.closing = True
        for sock in self._sockets:
            sock.close()
        self.inbound.listener.close_nowait()
        for scope in list(self._calls):
            scope.cancel(reason="the node was left")
        for link in list(self._links):
            link.end_nowait(abort=abort)

    async def ask(self, peer: PeerAddress, plugin: str) -> object:
        """Run an auxiliary plugin towards a peer; errors come out bare."""
        if plugin not in self.factories:
            raise ConfigError(f"this node has no plugin {plugin!r}")
        session = Session(peer, self.host.entropy(16), Recorder(peer=peer.peer_id, now=trio.current_time()))
        attempt = CallingAttempt(self, session, plugin=plugin, phase=None, path=None)
        with self.call():
            return await attempt.ask(self.factories[plugin][1])


async def _run_shielded(scope: trio.CancelScope, hub: SignalHub, *, task_status: trio.TaskStatus[None]) -> None:
    """The hub, until `scope` is cancelled: goodbyes go through it while the node is being cancelled."""
    with scope:
        await hub.run(task_status=task_status)


async def _carry(task: Callable[[], Awaitable[object]], link: Link) -> None:
    """What a plugin has work for a Link: a failure is the Link's, as that of its own driver."""
    try:
        with panics_as_errors():
            await task()
    except Exception:
        logger.exception("a task that carries %r failed", link)
        link.close_nowait()


async def _logged(task: Callable[[], Awaitable[object]]) -> None:
    """A plugin's background task: what it raises is its own affair."""
    try:
        with panics_as_errors():
            await task()
    except Exception:
        logger.exception("a background task of a plugin failed")


def _ports(sockets: Sequence[trio.socket.SocketType]) -> dict[int, int]:
    return {4 if sock.family == trio.socket.AF_INET else 6: sock.getsockname()[1] for sock in sockets}
