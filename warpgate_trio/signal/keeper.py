"""The signal channels of a node: connecting to servers, receiving, and connecting again.

Theory of operation.  One task per configured server connects, registers, receives, and reconnects after a jittered
back-off, for as long as the hub runs.  A server that is down costs a connection attempt now and then, in its own task,
and delays nobody else.

The keeper may also connect to a server of a peer.  That channel is registered under our key like any other, so that
replies come in by it; it is closed when it has been idle for a minute.  A peer chooses its servers, and so chooses
where such connections lead.  The caller therefore says each time whether one may be opened, and to which addresses
(`signal.peers_servers`).

A channel pings its server twice a minute, and so notices that a connection is dead.  Where there is reason to doubt a
connection (the host's addresses have changed, a send hangs), the channel pings at once.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, final

import trio

from .. import host as machine
from ..config import Proxies, ServerUrl
from ..errors import ConfigError, SignalUnavailable, WarpgateError, panics_as_errors, printable
from ..identity import Identity
from ..names import NameFailure, Names
from ..nurseries import reason_of
from ..ports.server_dial import ServerDial
from ..servers.rendezvous_frames import Registrant
from ..sockaddr import TransportAddress
from ..standing import Standings
from .arrivals import Arrivals
from .channel import Dial
from .circuits import Leaving
from .key_records import publish
from .peers_servers import JudgedDial, MayConnect, is_plain
from .slot import Place, ServerState, Slot, place_of
from .transport import check_supported, loads_asyncio, open_channel, supports

__all__ = ["NO_PROXIES", "ChannelKeeper"]

logger: logging.Logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds for TCP, TLS, WebSocket and registration together: eight round trips of a bad satellite link."""
BACKOFF_FIRST = 0.2
"""Seconds of the first back-off; it doubles, less up to half at random, lest a server's nodes reconnect in step."""
BACKOFF_LIMIT = 30.0
"""Seconds of the longest back-off."""
DOUBTED = 3.0
"""Seconds after `check_channels` in which a connection that ends is reopened once without a back-off: it has most
likely failed that check."""
STABLE = 10.0
"""Seconds that a connection has to hold, with its server not silent, to reset the back-off.  A server that registers us
and then falls silent is given up after about as long, which does not count as success."""
MAX_PEERS_SERVERS = 4
"""Channels to servers of peers that are open at a time."""
NO_PROXIES: Final = Proxies("none", {})


@final
# long: the channels of a node, and what opens, checks and ends each
class ChannelKeeper:
    """All signal channels of one node.

    Args:
      identity, servers, ca_file, names, proxies: as for `SignalHub`.
      arrivals: takes what the channels receive.
      registrant: what the node registers as.

    Raises:
      ConfigError: there is no transport for a server, or `ca_file` or a server's proxy cannot be used.

    Attributes:
      own: one slot for each of the node's own servers.
      peers_servers: the slots for servers of peers.
      registrant: as it was given.
      on_leaving: called when a server announces that its circuits are to be left, with the local address of the
        connection to it.
      key_record: returns the key record that is published at each of our own servers; None: nothing is published.
      standings: which of the node's own servers failed to relay lately, by their slots' keys.
      opened: how many times a connection to one of the node's own servers has come up.
      ended: no channel will come up any more.
    """

    def __init__(
        self,
        identity: Identity,
        servers: Sequence[ServerUrl],
        arrivals: Arrivals,
        registrant: Registrant,
        *,
        ca_file: Path | None,
        names: Names | None,
        proxies: Proxies,
    ) -> None:
        for url in servers:
            check_supported(url)
        self._asyncio: Final = any(loads_asyncio(url) for url in servers)
        self._identity = identity
        self.registrant: Final = registrant
        self._ca_file = ca_file
        self._ssl_context: ssl.SSLContext | None = None
        if ca_file is not None or any(url.tls for url in servers):
            self.trust()  # so that a bad file is found now, not at the first connection
        distinct = {(place_of(url), url.params): url for url in servers}
        self._proxies = proxies
        self._open_stream: Dial = trio.open_tcp_stream if names is None else names.open_tcp_stream
        self.own: list[Slot] = [Slot(url, ServerDial(proxies.to(url), self._open_stream)) for url in distinct.values()]
        for number, slot in enumerate(self.own):
            if slot.by_proxy:
                logger.info("signal server %s: by %s", slot.key, slot.dial)
            if any(slot.key == other.key for other in self.own[:number]):
                slot.key += f"#{number}"  # its URL differs from an earlier one only in what redaction hides
        self._names = names
        self.peers_servers: list[Slot] = []
        self._arrivals: Final = arrivals
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        self._network_changed = trio.Event()
        self._checked_at = -math.inf
        self.on_leaving: Callable[[TransportAddress], object] = lambda _: None
        self.key_record: Callable[[], bytes] | None = None
        self.standings: Final = Standings[str]()
        self.opened: int = 0
        self.ended: bool = False

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """Start the tasks that keep the channels to the node's own servers up."""
        self._nursery = nursery
        for slot in self.own:
            nursery.start_soon(self._keep_connected, slot)

    def stop(self) -> None:
        """The nursery is about to close: connect to no further server of a peer."""
        self._nursery = None

    def end(self) -> None:
        """All channels have ended: wake the tasks that wait for one."""
        self.ended = True
        self._notify()

    # -- what others see of it -----------------------------------------------------------------------------------------

    async def wait_changed(self) -> None:
        """Wait until a channel comes up or ends."""
        await self._changed.wait()

    async def wait_opened(self, before: int) -> int:
        """Return `opened` once it differs from `before`.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        while self.opened == before:
            if self.ended:
                raise SignalUnavailable("the signal hub has ended")
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self.opened

    async def wait_tried(self) -> None:
        """Return once each of the node's own servers is connected, or has failed; the caller bounds the time."""
        while not self.ended and any(not slot.connected and slot.last_error is None for slot in self.own):
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def check_channels(self, *, moved: bool = False) -> None:
        """Check every connection, and end every back-off, at once.

        Args:
          moved: the host has changed its network; connection attempts to our own servers start anew.
        """
        self._checked_at = trio.current_time()
        for slot in (*self.own, *self.peers_servers):
            if slot.channel is not None:
                if not slot.channel.check():
                    slot.state = ServerState.WAITING  # the channel is gone: what is sent goes by the next one
            elif moved and not slot.of_peer and slot.scope is not None:
                slot.scope.cancel()
        self._network_changed.set()
        self._network_changed = trio.Event()

    @property
    def names(self) -> list[str]:
        """The host names of the node's own servers, except those that a proxy resolves."""
        return [slot.url.host for slot in self.own if not slot.by_proxy]

    @property
    def unresolved(self) -> dict[str, NameFailure]:
        """The names of the node's own servers that are not connected because they cannot be resolved, and why."""
        found = {
            slot.url.host: NameFailure(why=slot.last_error or "", remembered=False)
            for slot in self.own
            if slot.unresolved
        }
        if self._names is not None:  # it also knows of look-ups that hang
            direct = (slot for slot in self.own if slot.channel is None and not slot.by_proxy)
            waiting = self._names.failures(slot.url.host for slot in direct)
            found.update((name, failure) for name, failure in waiting.items() if not failure.remembered)
        return found

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds to the nearest of the node's own servers that has a channel; None: no channel."""
        return min(
            (slot.channel.rtt for slot in self.own if slot.channel and slot.channel.rtt is not None), default=None
        )

    async def wait_connected(self) -> None:
        """Return once at least one of the node's own servers is connected; the caller bounds the time.

        Raises:
          SignalUnavailable: there is no server to wait for, or the hub has ended.
        """
        if not self.own:
            await trio.lowlevel.checkpoint()
            raise SignalUnavailable("no signal server is configured")
        while not self.ended:
            if any(slot.connected for slot in self.own):
                await trio.lowlevel.checkpoint()
                return
            await self._changed.wait()
        raise SignalUnavailable("the signal hub has ended")

    def usable(self, urls: Sequence[ServerUrl]) -> dict[Place, ServerUrl]:
        """The first `MAX_PEERS_SERVERS` URLs of a peer that may be connected to, without those of our own servers (the
        same scheme, host and port)."""
        ours = {slot.origin for slot in self.own}
        found: dict[Place, ServerUrl] = {}
        for url in urls:
            place = place_of(url)
            if place[:3] in ours or not is_plain(url) or len(found) >= MAX_PEERS_SERVERS:
                continue
            if (self._asyncio or not loads_asyncio(url)) and supports(url):
                found[place] = url
        return found

    def trust(self) -> ssl.SSLContext:
        """The TLS context, which trusts the platform's certificates and those of `ca_file`."""
        if self._ssl_context is None:
            context = ssl.create_default_context()
            if self._ca_file is not None:
                try:
                    context.load_verify_locations(cafile=self._ca_file)
                except OSError as exc:  # ssl.SSLError is one
                    raise ConfigError(
                        f"servers.ca_file = {str(self._ca_file)!r}: cannot read certificates from it: {exc}"
                    ) from exc
            self._ssl_context = context
        return self._ssl_context

    def dial_to(self, url: ServerUrl) -> ServerDial:
        """The function that opens a connection to one of the node's own servers, and resolves its name anew."""
        return ServerDial(self._proxies.to(url))

    # -- channels ------------------------------------------------------------------------------------------------------

    def connect_to(self, url: ServerUrl, may_connect: MayConnect) -> Slot:
        """Start connecting to a server of a peer, and return its slot.

        Raises:
          SignalUnavailable: all channels to servers of peers are in use, or the hub has ended.
        """
        if self._nursery is None:
            raise SignalUnavailable("the signal hub has ended")
        if len(self.peers_servers) >= MAX_PEERS_SERVERS:
            idle = [slot for slot in self.peers_servers if slot.channel is not None and not slot.sending]
            if not idle:
                raise SignalUnavailable(
                    f"{url.redacted}: {MAX_PEERS_SERVERS} servers of peers are in use already, the maximum"
                )
            self._leave(min(idle, key=lambda slot: slot.last_used))
        dial = JudgedDial(url, may_connect, proxies=self._proxies, open_stream=self._open_stream)
        slot = Slot(url, dial)
        self.peers_servers.append(slot)
        self._nursery.start_soon(self._hold_peers_server, slot)
        return slot

    async def _hold_peers_server(self, slot: Slot) -> None:
        try:
            await self._hold(slot)
        finally:
            self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        slot.ended = True
        slot.channel = None
        if slot in self.peers_servers:
            self.peers_servers.remove(slot)
        if slot.scope is not None:
            slot.scope.cancel()
        self._notify()

    async def _keep_connected(self, slot: Slot) -> None:
        pause = BACKOFF_FIRST
        while True:
            began = trio.current_time()
            if await self._hold(slot):
                pause = BACKOFF_FIRST
            slot.state = ServerState.WAITING
            doubted = max(began, trio.current_time() - DOUBTED) < self._checked_at
            with trio.move_on_after(0 if doubted else pause * (1 - machine.current().random.random() / 2)):
                await self._network_changed.wait()
            pause = min(2 * pause, BACKOFF_LIMIT)

    async def _hold(self, slot: Slot) -> bool:
        """One connection, from its opening to its end.  Returns whether it lasted long enough to reset the back-off."""
        since, late = math.inf, trio.current_time() + CONNECT_TIMEOUT
        answered = False
        circuits = slot.begin()
        self._notify()
        try:
            with panics_as_errors(), trio.CancelScope(deadline=late) as slot.scope:
                context = self.trust() if slot.url.tls else None
                async with open_channel(
                    slot.url,
                    self._identity,
                    ssl_context=context,
                    registrant=self.registrant,
                    dial=slot.dial,
                    at_once=True,
                    findable=self.key_record is not None and not slot.of_peer,
                    circuits=circuits,
                ) as channel:
                    slot.channel, slot.opening = channel, None
                    self._notify()
                    try:
                        await channel.wait_registered()
                        slot.scope.deadline = math.inf
                        slot.state = ServerState.CONNECTED
                        slot.last_error, slot.unresolved = None, False
                        since = trio.current_time()
                        slot.touch()
                        self._notify()
                        self._say_connected(slot)
                        if not slot.of_peer:
                            publish([slot], self.key_record)
                        while True:
                            arrival = await channel.receive()
                            if isinstance(arrival, Leaving):
                                logger.info("signal server %s: it is about to shut down", slot.key)
                                self.on_leaving(arrival.local)
                            else:
                                self._arrivals.put(slot, arrival)
                    finally:
                        slot.channel = None
                        answered = channel.answered
            if since == math.inf and trio.current_time() < late:  # `check_channels` cancelled it: the host has moved
                return False
            slot.last_error, slot.unresolved = "idle", False
            if since == math.inf:
                self._say_late(slot)
        except (OSError, WarpgateError) as exc:
            slot.unresolved = isinstance(exc, trio.socket.gaierror)
            slot.last_error = printable(reason_of(exc))
        except Exception as exc:  # caused by a server, whatever its class: it ends this connection and nothing else
            slot.last_error, slot.unresolved = f"unexpected {type(exc).__name__}", False
            logger.exception("the signal channel to %s failed", slot.key)
        finally:
            slot.scope = slot.opening = None
            circuits.end(slot.last_error or "the connection was given up")
            self._notify()
        self._say_lost(slot, was_connected=since != math.inf)
        return answered and trio.current_time() - since >= STABLE

    def _say_late(self, slot: Slot) -> None:
        """Note why a connection did not come up in time: the server did not answer, or its name was not resolved."""
        slot.last_error = f"no answer within {CONNECT_TIMEOUT:.0f} s{slot.dial.silence}"
        failure = None if slot.of_peer else self.unresolved.get(slot.url.host)
        if failure is not None:
            slot.last_error, slot.unresolved = f"the name cannot be resolved: {failure.why}", True

    def _say_connected(self, slot: Slot) -> None:
        """Log a connection: at info level if it was lost or failed before, else at debug level."""
        back = slot.lost or slot.broke
        logger.log(logging.INFO if back else logging.DEBUG, "signal server %s: connected", slot.key)
        slot.lost = slot.broke = False
        self.opened += not slot.of_peer

    def _say_lost(self, slot: Slot, *, was_connected: bool) -> None:
        """Warn once, not at each attempt, that a server of ours cannot be reached, and say why."""
        # A connection that broke is no reason for a warning yet: the next one may come up at once.
        tell = not (was_connected or slot.lost or slot.of_peer)
        slot.broke = (was_connected and not slot.of_peer) or slot.broke
        level = logging.WARNING if tell else logging.INFO if was_connected and slot.broke else logging.DEBUG
        what = "connection lost" if was_connected else "not connected"
        logger.log(level, "signal server %s: %s: %s", slot.key, what, slot.last_error)
        slot.lost = slot.lost or tell

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
