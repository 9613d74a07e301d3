"""The parts of a node, and the owner of its nurseries.  `Node` is the interface for applications.

Three nurseries are nested; an inner one ends earlier:

    keepers    the signal hub: goodbyes still need it
      links      Link drivers and goodbyes: each shields itself, under a deadline that starts when the node closes
        (the contexts of plugins' `setup`: left when no attempt is under way any more)
        services   accept loops, dispatch, attempts on behalf of peers: cancelled as soon as the body is left
          (the body of ``async with open_node()``)

No scope that spans the body is shielded, so the body can be cancelled as usual.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, final

import trio

from ..address import PeerAddress
from ..carrier import TlsContexts
from ..clock.corrected import CorrectedClock, keep_measured
from ..combos import Route, relaying
from ..config import NodeConfig, Proxies, Servers
from ..contacts import Callee, Contacts
from ..errors import AttemptFailed, ConfigError
from ..host import Host
from ..identity import Identity
from ..names import Names
from ..nat.service import NatService
from ..nurseries import open_background_nursery
from ..plugin import LoadedPlugins, Plugin, PluginStatus
from ..portmap.service import PortMaps
from ..ports.udp import UdpPorts
from ..signal import SignalHub
from ..signal.first_look import FirstLook
from ..signal.instances import HAS_TOPIC
from ..signal.presence import Presence
from ..signal.router import SignalRouter
from ..signal.sender import SignalSender
from ..turn.relays import Relays
from ..walk.attempt import Factory
from ..walk.calling import CallingAttempt
from ..walk.recorder import Recorder
from ..walk.session import Session
from .address_book import AddressBook
from .admission import REFUSED, Admission, Authorize
from .contact_keeper import ContactKeeper
from .finding import NTP_TIMEOUT, Finder
from .home import Home
from .inbound import Inbound
from .key_finder import KeyFinder
from .links import Links
from .listener import PipeListener
from .network_watch import NetworkWatch
from .own_address import OwnAddress
from .own_key_record import OwnKeyRecord
from .pairing import Pairing
from .path_keeper import PathKeeper
from .peer_work import PeerWork
from .planning import Planning, may_connect
from .responder import Responder
from .sockets import ports_of
from .stats import NodeStats
from .view import View

__all__ = ["NodeRuntime"]

logger: logging.Logger = logging.getLogger(__name__)

ROUTER_PATIENCE: Final = 1.0
"""Seconds for which `Node.wait_published` waits for a router to open our port.  Routers with NAT-PMP or PCP have done
so by then, and most of those without port mapping never answer."""
BROKER_PATIENCE: Final = 1.0
"""Seconds for which `Node.wait_published` waits for an MQTT broker to grant us a topic of our own, which takes two
round trips.  A broker whose rules forbid it may drop messages to that topic without telling."""


SERVER_PATIENCE: Final = 1.0
"""Seconds for which `Node.wait_published` waits for a rendezvous server to store our key record: one round trip."""

_NONCE_CONTEXT: Final = b"warpgate-trio pcp nonce v1"


@final
# long: a node's parts, each built from those above it, and the nurseries that they run in
class NodeRuntime:
    """Everything behind a `Node`; each part is built from those above it.

    Attributes:
      factories: plugin name -> its class and the factory of its instances, once `run` was entered.
      problems: plugins whose `setup` failed.
    """

    def __init__(  # long: a node's parts one by one, each made of those above it
        self,
        *,
        identity: Identity,
        config: NodeConfig,
        host: Host,
        loaded: LoadedPlugins,
        authorize: Authorize | None,
        sockets: Sequence[trio.socket.SocketType],
        strict_plugins: bool,
        contacts: Contacts | None = None,
    ) -> None:
        self.config: Final = config
        self.host: Final = host
        self.identity: Final = identity
        self.loaded: Final = loaded
        self.problems: Final[list[PluginStatus]] = []
        self.factories: Final[dict[str, tuple[type[Plugin], Factory]]] = {}
        self._sockets: Final = sockets
        self._services: trio.Nursery | None = None
        budgets, servers, listening = config.budgets, config.servers, authorize is not None

        # Connections to servers.
        self.names: Final = Names()
        self.proxies: Final = Proxies(config.network.proxy, host.environment())
        self.clock: Final = CorrectedClock(host)
        self.udp_ports: Final = UdpPorts(on_unreachable=lambda local: self.links.hint(local))
        first_look = FirstLook()
        self.hub: Final = SignalHub(
            identity,
            servers.signal,
            ca_file=servers.ca_file,
            names=self.names,
            proxies=self.proxies,
            is_worth_a_place=first_look.passes,
            listens=listening,
            relay_token=servers.relay_token,
        )
        hub = self.hub
        self.nat: Final = NatService(
            self.udp_ports, servers.stun, host, names=self.names, is_online=lambda: hub.rtt is not None
        )
        nat = self.nat
        self.portmaps: Final = PortMaps(
            host,
            ports_of(sockets),
            protocols=config.portmap.protocols if config.portmap.enabled else (),
            goodbye=budgets.goodbye,
            sign=partial(identity.sign, _NONCE_CONTEXT),
        )
        portmaps = self.portmaps
        self.relays: Final = Relays(servers.turn, names=self.names, trust=hub.trust, proxies=self.proxies)

        # Our address, and those of peers.
        self.book: Final = AddressBook()
        self.own: Final = OwnAddress(
            identity,
            host,
            self.clock,
            ports=ports_of(sockets),
            signals=[str(url.published) for url in servers.signal],
            nat=lambda: nat.profiles,
            mapped=lambda: portmaps.mapped,
            instance=hub.instance,
            listening=listening,
            capabilities=partial(_capabilities, servers, loaded, hub, listening=listening),
        )

        # Outgoing signals, and plans of calls.
        self._first_look: Final = first_look
        self.sender: Final = SignalSender(
            identity=identity,
            host=host,
            hub=hub,
            clock=self.clock,
            own_address=self.own.current,
            hints_of=self.book.hints,
            may_connect=partial(may_connect, host, self.own),
        )
        self.planning: Final = Planning(
            host,
            self.own,
            self.book,
            self.clock,
            self.factories,
            peer_time=self.sender.time_at,
            relays=hub.relays,
        )

        self.contact_keeper: Final = ContactKeeper(contacts) if contacts is not None else None
        if self.contact_keeper is not None:
            self.book.on_heard = self.contact_keeper.hear
        self.by_key: Final = KeyFinder(
            host,
            hub,
            self.sender,
            self.clock,
            self.book,
            self.factories,
            contacts=contacts,
            note_seen=self._note_seen,
        )
        self.finder: Final = Finder(
            identity,
            config,
            book=self.book,
            planning=self.planning,
            clock=self.clock,
            by_key=self.by_key,
            ask=self._present_address,
            contacts=contacts,
        )
        self.key_record: Final = (
            OwnKeyRecord(identity, self.own, self.clock, hub, asks_time=bool(servers.ntp))
            if listening and config.listen.findable
            else None
        )
        if self.key_record is not None:
            hub.publish_key_record(self.key_record.current)

        # Links and calls.
        self.listener: Final = PipeListener()
        self.admission: Final = Admission(authorize, budgets, self.listener)
        self.links: Final = Links(
            self.admission, config.paths, goodbye=budgets.goodbye, host=host, instance=hub.instance
        )
        hub.by_link = self.links.say_news
        hub.call_when_leaving(self.links.leave)
        self.relays.call_when_leaving(self.links.leave)
        self.links.on_news = hub.hear
        contexts = TlsContexts(identity)
        self.view: Final = View(
            identity=identity,
            own=self.own,
            book=self.book,
            hub=hub,
            host=host,
            tls=contexts,
            budgets=budgets,
            clock=self.clock,
            udp_ports=self.udp_ports,
            nat=nat,
            relays=self.relays,
        )
        self.home: Final = Home(
            identity=identity,
            view=self.view,
            servers=servers,
            hub=hub,
            nat=nat,
            signals=self.sender,
            book=self.book,
            links=self.links,
            planning=self.planning,
            factories=self.factories,
            strict=strict_plugins,
        )

        self.path_keeper: Final = PathKeeper(
            self.home,
            plugins=self._makes_paths,
            refresh=self._present_address,
            distrust=self._distrust,
            wait_opened=lambda: hub.wait_opened(hub.opened),
            upgrade=config.paths.upgrade,
        )
        self.links.keep = self.path_keeper.keep

        self.pairing: Final = Pairing(self.home, servers.signal, hub, self.own, host)

        # Requests of peers.
        self.peer_work: Final = PeerWork()
        self.inbound: Final = Inbound(
            contexts=contexts,
            budgets=budgets,
            admission=self.admission,
            links=self.links,
            take_link=self.home.take_link,
            on_accepted=self.peer_work.cancel,
        )
        self.responder: Final = Responder(
            self.home,
            admission=self.admission,
            inbound=self.inbound,
            work=self.peer_work,
            factories=self.factories,
            ours=self._route,
            is_linked=self.links.has_movable,
            start=self._start_service,
        )
        self.presence: Final = Presence(
            identity=identity,
            host=host,
            hub=hub,
            clock=self.clock,
            first_look=first_look,
            own_address=self.own.current,
            listening=listening,
        )
        self.router: Final = SignalRouter(
            identity=identity,
            hub=hub,
            sender=self.sender,
            presence=self.presence,
            messages={name: kind for name, (_, kind) in loaded.messages.items()},
            on_request=self.responder.take,
            on_cancel=self.peer_work.cancel,
            on_address=self.book.hear,
            on_reply_wanted=self.responder.tell,
            knows=self._knows,
            is_linked=self.links.has_movable,
        )

    def _distrust(self, *, moved: bool = False) -> None:
        """Probe the connections to servers and the NATs: they may have changed."""
        self.hub.check_channels(moved=moved)
        self.nat.check()
        self.pairing.check()

    def _makes_paths(self, phases: Sequence[str]) -> Sequence[str]:
        """The plugins of some phases."""
        return [name for name, (kind, _) in self.factories.items() if kind.phase in phases]

    async def _present_address(self, peer: PeerAddress) -> PeerAddress:
        """Ask a peer for its present address; `AttemptFailed` where there is no plugin for it."""
        if "get_addr" not in self.factories:
            raise AttemptFailed("the plugin get_addr, which asks peers for their address, is not enabled")
        address = await self.ask(peer, "get_addr")
        assert isinstance(address, PeerAddress)
        return address

    def _knows(self, peer_key: bytes) -> bool:
        """Whether the node knows a peer: it has a first-hand address of it, or has admitted it."""
        return self.book.heard(peer_key) is not None or self.responder.has_let_in(peer_key)

    def _route(self) -> Route:
        """This side of a pair, by which the paths that peers request are judged."""
        address, own = self.own.look_around()
        return Route(interfaces=address.interfaces, own=own)

    def _note_seen(self, peer_id: str, issued_ms: int) -> None:
        if self.contact_keeper is not None:
            self.contact_keeper.note_seen(peer_id, issued_ms)

    def note_reached(self, address: PeerAddress) -> None:
        """Store the address that a peer was reached by; a first-hand one, where there is any, may be newer."""
        if self.contact_keeper is not None:
            self.contact_keeper.hear(self.book.called(address.public_key) or address)

    def revoke(self, peer_key: bytes) -> int:
        """See `Node.revoke`."""
        self.admission.forget(peer_key)
        self.responder.forget(peer_key)
        return self.links.revoke(peer_key)

    def stats(self) -> NodeStats:
        """See `Node.stats`."""
        counters = self.admission.counters
        return NodeStats(
            walks=dict(self.home.walks),
            pipes_made=self.home.walks["connected"],
            pipes_accepted=counters["accepted"],
            refused={k.removeprefix(REFUSED): n for k, n in counters.items() if k.startswith(REFUSED)},
            handshakes_failed=self.inbound.failed,
            links=len(self.links),
            switches=self.links.switches,
            searches=self.path_keeper.searches,
            false_alarms=self.links.false_alarms,
            attempts=self.home.attempts,
            handshakes=self.inbound.handshakes,
            waiting_pipes=self.listener.waiting,
            signals=dict(self._first_look.counters + self.sender.counters + self.router.counters),
            signals_dropped=self.hub.dropped,
            gateways=sum(bool(gateway.protocols) for gateway in self.portmaps.gateways),
            mapped_ports=len(self.portmaps.mapped),
        )

    async def wait_published(self) -> None:
        """See `Node.wait_published`."""
        with self.home.call():
            if self.config.servers.signal:
                await self.hub.wait_connected()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait, self.portmaps.wait_settled, ROUTER_PATIENCE)
                nursery.start_soon(_wait, self.hub.wait_topic, BROKER_PATIENCE)
                if self.key_record is not None:
                    nursery.start_soon(_wait, self.hub.wait_key_record, SERVER_PATIENCE)
                await self.nat.wait_measured()

    async def refresh(self, callee: Callee) -> PeerAddress:
        """See `Node.refresh_address`."""
        with self.home.call():
            self._check_has("get_addr")
            if callee.address is None:
                return await self.by_key.find(callee.public_key, patience=self.config.budgets.signal)
            fresh = await self.ask(callee.address, "get_addr")
        assert isinstance(fresh, PeerAddress)
        return fresh

    async def announce(self, callee: Callee) -> None:
        """See `Node.announce_address`."""
        with self.home.call():
            address = callee.address
            if address is None:
                address = await self.by_key.find(callee.public_key, patience=self.config.budgets.signal)
            await self.ask(address, "return_addr")

    async def ask(self, peer: PeerAddress, plugin: str) -> object:
        """Run an auxiliary plugin towards a peer; errors come out bare."""
        self._check_has(plugin)
        recorder = Recorder(peer=peer.peer_id, now=trio.current_time())
        session = Session(peer, self.host.entropy(16), recorder)
        attempt = CallingAttempt(self.home, session, plugin=plugin, phase=None, path=None)
        with self.home.call():
            return await attempt.ask(self.factories[plugin][1])

    def _check_has(self, plugin: str) -> None:
        if plugin not in self.factories:
            raise ConfigError(f"this node has no plugin {plugin!r}")

    # -- tasks ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """The nurseries around the body of `open_node`; see the module's docstring."""
        async with AsyncExitStack() as stack:
            keepers = await stack.enter_async_context(open_background_nursery())
            hub_scope = trio.CancelScope(shield=True)
            stack.callback(hub_scope.cancel)
            await stack.enter_async_context(self.udp_ports.running(keepers))
            await stack.enter_async_context(self.names.running())
            await stack.enter_async_context(self.relays.running(keepers))
            with trio.CancelScope(shield=True):  # a cancelled `start` waits for its child, which is shielded from that
                await keepers.start(_run_shielded, hub_scope, self.hub)
            await stack.enter_async_context(self.links.running())
            for name, plugin in self.loaded.plugins.items():
                await self._set_up(stack, name, plugin)
            stack.push_async_callback(self.home.wait_calls)
            self._services = await stack.enter_async_context(open_background_nursery())
            stack.push(self._leave)
            for sock in self._sockets:
                self._services.start_soon(self.inbound.serve_socket, sock)
            watch = NetworkWatch(self.host, on_change=self.network_changed, on_look=self.portmaps.look)
            for service in (self.sender, self.presence, self.router, self.nat, self.portmaps, watch):
                self._services.start_soon(service.run)
            # The names of relays and signal servers: when they are needed, there is no time to look them up.
            self._services.start_soon(self.names.keep_fresh, [*self.hub.names, *self.relays.names])
            if self.config.servers.ntp:
                self._services.start_soon(self._keep_time)
            if self.key_record is not None:
                self._services.start_soon(self.key_record.run)
            if self.contact_keeper is not None:
                self._services.start_soon(self.contact_keeper.run)
            yield

    def network_changed(self) -> None:
        """See `Node.network_changed`."""
        self.links.check()
        self._distrust(moved=True)
        self.names.refresh()
        self.own.look()

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
            if self.home.strict:
                raise
            logger.warning("plugin %s is disabled: its setup failed", name, exc_info=True)
            problem = f"setup failed: {type(error).__name__}: {error}"
            self.problems.append(PluginStatus(name=name, phase=plugin.phase, problem=problem))
        else:
            self.factories[name] = (plugin, factory)

    def _start_service(self, task: Callable[[], Awaitable[object]]) -> None:
        if self._services is not None and not self.home.closing:
            self._services.start_soon(task)

    def _leave(self, kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
        self.close_nowait(abort=kind is not None)

    def close_nowait(self, *, abort: bool = False) -> None:
        """Begin nothing new from now on; present Links and calls have their goodbye time."""
        for sock in self._sockets:
            sock.close()
        self.listener.close_nowait()
        self.home.end_calls()
        self.links.close_nowait(abort=abort)


def _capabilities(servers: Servers, loaded: LoadedPlugins, hub: SignalHub, *, listening: bool) -> list[str]:
    """The capabilities in a node's address, as they are now; some are named after the plugin that provides them."""
    can = {relaying.TAKES_CALLS: listening and bool(servers.websocket), relaying.HAS_TURN: bool(servers.turn)}
    plugins = [name for name, has in can.items() if has and name in loaded.plugins]
    return [*plugins, HAS_TOPIC] if hub.has_topic else plugins


async def _wait(until: Callable[[], Awaitable[object]], patience: float) -> None:
    with trio.move_on_after(patience):
        await until()


async def _run_shielded(scope: trio.CancelScope, hub: SignalHub, *, task_status: trio.TaskStatus[None]) -> None:
    """Run the hub until `scope` is cancelled: goodbyes go through it while the node is being cancelled."""
    with scope:
        await hub.run(task_status=task_status)
