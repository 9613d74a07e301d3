"""Sending and receiving signals by all signal channels of a node together.

Theory of operation.  `send` uses all connected channels at once, and the Links with the receiver.  The best answer
counts.  Once a broker or a Link has taken the message, a server that hangs must not hold up the caller: `send` returns,
and the remaining attempts go on in the background for a short time.  If all channels break before they answer, the
message goes out by the next of the node's own channels that comes up, for as long as the caller waits.  So the tasks
that send are the hub's, not the caller's.

When the peer's own servers (*hints*) are not among ours, the hub connects to them (`signal.keeper`).  For each send the
caller decides whether that may be done for the peer, and to which addresses.

Several processes may have the receiver's key.  The caller may name one of them, by its *instance*.  If no server has
that instance, the servers that have said so are asked for any process of the key: the named process has ended, and
another may have taken its place.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, final

import trio

from .. import host as machine
from ..config import Proxies, ServerUrl
from ..errors import ConfigError, SignalUnavailable
from ..identity import Identity
from ..names import NameFailure, Names
from ..nurseries import open_background_nursery
from ..servers.rendezvous_frames import INSTANCE_LENGTH, Registrant
from ..sockaddr import TransportAddress
from .arrivals import Arrivals, Incoming, Inlet
from .calls import RelayingServer, circuit_by, relays_of
from .channel import Delivery, Dial, SignalChannel
from .circuits import Circuit
from .keeper import NO_PROXIES, ChannelKeeper
from .key_records import Answer, look_up, publish, wait_published
from .message import MAX_SIGNAL
from .peers_servers import MayConnect
from .race import Letter, Race, Roll
from .slot import ServerStatus, Slot, place_of
from .transport import open_channel

__all__ = ["SignalHub"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_TRAILING: Final = 64
"""Sends that go on in the background after a broker has queued the message; beyond that the oldest is cancelled."""
TRAILING_TIME: Final = 10.0
"""Seconds for which a send goes on in the background: as long as a connection to a server may take to come up."""
SEND_PATIENCE: Final = 2.0
"""Seconds for a server to answer a send, after which its connection is checked."""

ByLink = Callable[[bytes, bytes], bool]
"""Sends a payload on the Links with a peer (its key), and returns whether a healthy path has taken it."""


def _no_link(_receiver_key: bytes, _payload: bytes) -> bool:
    return False


@final
# long: all that a node sends and receives by its servers, and what it has to know of them
class SignalHub:
    """All signal channels of one node.

    Args:
      identity: the key that is registered at every server.
      servers: the node's own servers; duplicates count once.
      ca_file: PEM file of certificates that are trusted for TLS in addition to the platform's.
      names: resolves and caches the host names of the node's own servers; has to be running while the hub is.
      proxies: the proxies that servers are reached by; none by default.
      is_worth_a_place: a cheap check of a received payload: whether it is to be queued.
      listens: whether the node can be called.
      relay_token: the relay token of the node's rendezvous servers, if it has one.

    Raises:
      ConfigError: there is no transport for a server, or `ca_file` or a server's proxy cannot be used.
    """

    def __init__(
        self,
        identity: Identity,
        servers: Sequence[ServerUrl],
        *,
        ca_file: Path | None = None,
        names: Names | None = None,
        proxies: Proxies = NO_PROXIES,
        is_worth_a_place: Callable[[bytes], bool] = lambda _: True,
        listens: bool = True,
        relay_token: str | None = None,
    ) -> None:
        us = Registrant(machine.current().entropy(INSTANCE_LENGTH), listens=listens, relay_token=relay_token)
        self._arrivals: Final = Arrivals(is_worth_a_place)
        self._keeper: Final = ChannelKeeper(
            identity, servers, self._arrivals, us, ca_file=ca_file, names=names, proxies=proxies
        )
        self.by_link: ByLink = _no_link
        self._links: Final = Inlet("links")
        self._trailing: list[Race] = []
        self._nursery: trio.Nursery | None = None

    # -- what the node does with it ------------------------------------------------------------------------------------

    def trust(self) -> ssl.SSLContext:
        """The TLS context, which trusts the platform's certificates and those of `ca_file`."""
        return self._keeper.trust()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the channels up until cancelled.  Started means running, not yet connected: see `wait_connected`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._keeper.start(nursery)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it closes: another task may call `send` at that moment
                    self._keeper.stop()
        finally:
            self._keeper.end()
            self._arrivals.end()
        raise AssertionError("unreachable")  # pragma: no cover

    async def receive(self) -> Incoming:
        """The next payload; channels with waiting payloads take turns.  Cancelled: nothing is lost.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        return await self._arrivals.receive()

    def hear(self, payload: bytes) -> None:
        """Queue a payload that a peer has sent on a Link; `receive` returns it in its turn."""
        self._arrivals.put(self._links, payload)

    @property
    def dropped(self) -> int:
        """Payloads that were dropped because 64 of their channel waited for `receive`."""
        return self._arrivals.dropped

    def call_when_leaving(self, on_leaving: Callable[[TransportAddress], object]) -> None:
        """Call `on_leaving` when a server announces that its circuits are to be left.

        Args:
          on_leaving: takes the local address of our connection to that server, which is that of its circuits.
        """
        self._keeper.on_leaving = on_leaving

    def check_channels(self, *, moved: bool = False) -> None:
        """Check every connection, and retry those that are down, at once.

        Args:
          moved: the host has changed its network; connection attempts that are under way start anew.
        """
        self._keeper.check_channels(moved=moved)

    async def wait_connected(self) -> None:
        """Return once at least one of the node's own servers is connected; the caller bounds the time.

        Raises:
          SignalUnavailable: there is no server to wait for, or the hub has ended.
        """
        await self._keeper.wait_connected()

    @property
    def opened(self) -> int:
        """How many times a connection to one of the node's own servers has come up."""
        return self._keeper.opened

    async def wait_opened(self, before: int) -> int:
        """Return `opened` once it differs from `before`.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        return await self._keeper.wait_opened(before)

    async def wait_tried(self) -> None:
        """Return once each of the node's own servers is connected, or has failed; the caller bounds the time."""
        await self._keeper.wait_tried()

    def dial_to(self, url: ServerUrl) -> Dial:
        """The function that opens further connections to one of the node's own servers."""
        return self._keeper.dial_to(url)

    async def measure_server(self, url: ServerUrl, *, timeout: float) -> float:
        """Connect to a signal server anew, register, and close; return the round-trip time in seconds.

        It registers a fresh key: under the node's own key, the connection would receive messages for the node.

        Args:
          timeout: seconds to registration, after which it raises SignalUnavailable.

        Raises as `open_channel`.
        """
        return await _measure(self._keeper, url, timeout)

    def status(self) -> tuple[ServerStatus, ...]:
        """The status of every server: the node's own first, then the present servers of peers."""
        return tuple(slot.status() for slot in (*self._keeper.own, *self._keeper.peers_servers))

    def relays(self) -> dict[str, RelayingServer]:
        """The node's own servers that may carry circuits; see `calls.relays_of`."""
        return relays_of(self._keeper)

    async def circuit(self, server: str) -> Circuit:
        """A new circuit to call a peer, relayed by one of the node's own servers; see `calls.circuit_by`."""
        return await circuit_by(self._keeper, server)

    @property
    def names(self) -> list[str]:
        """The host names of the node's own servers, except those that a proxy resolves."""
        return self._keeper.names

    @property
    def unresolved(self) -> dict[str, NameFailure]:
        """The names of the node's own servers that are not connected because they cannot be resolved, and why."""
        return self._keeper.unresolved

    @property
    def instance(self) -> bytes:
        """The instance of this process, 8 bytes: it tells processes with the same key apart."""
        return self._keeper.registrant.instance

    @property
    def has_topic(self) -> bool:
        """Whether the node is connected to a broker, and has a topic of its own at every broker it is connected to."""
        return _has_topic((*self._keeper.own, *self._keeper.peers_servers))

    async def wait_topic(self) -> None:
        """Return once it is known of each connected broker of the node's own whether the process has its own topic
        there.  A broker may never show it, so the caller bounds the time."""
        await _wait_topic(self._keeper.own)

    def publish_key_record(self, record: Callable[[], bytes]) -> None:
        """Publish what `record` returns at each of the node's own servers, now and whenever one connects."""
        self._keeper.key_record = record
        publish(self._keeper.own, record)

    async def wait_key_record(self) -> None:
        """Return once it is known of each connected server whether it keeps the record; the caller bounds the time."""
        await wait_published(self._keeper.own)

    async def look_up(self, key: bytes, *, patience: float) -> list[Answer]:
        """Ask each of the node's own servers for the record of a key; return their answers after `patience` seconds
        at most."""
        return await look_up(self._keeper.own, key, patience=patience)

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds to the nearest of the node's own servers that has a channel; None: no channel."""
        return self._keeper.rtt

    async def send(
        self,
        receiver_key: bytes,
        payload: bytes,
        *,
        instance: bytes | None = None,
        topic: bytes | None = None,
        hints: Sequence[str] = (),
        may_connect: MayConnect | None = None,
        via: str | None = None,
    ) -> Delivery:
        """Send a sealed payload by every channel there is, and return the best answer of a server.

        Returns at the first `Delivery.DELIVERED` or `Delivery.QUEUED`, else when all servers have answered.  After
        QUEUED, the other servers are still tried for up to ten seconds.  If no server is connected, or all connections
        break before an answer, it waits for the next one that comes up; the caller bounds the time with its own scope.
        Cancelled: the payload may or may not have gone out.

        Args:
          receiver_key: the receiver's 32-byte Ed25519 key.
          payload: 1 to 16,384 bytes.
          instance: the process that is meant, of all that have the receiver's key; None: all of them.
          topic: the same for brokers, where a process may have another name (`instances.topic_of`).
          hints: URLs of the receiver's servers.  Those that are not ours are connected to as well: at once if we have a
            channel to none of the hints, else if those channels have not delivered.  Ignored are URLs with a login, a
            path or a query, and, by a node that has no MQTT broker itself, MQTT brokers.
          may_connect: whether a connection to an address may be opened for this receiver; without it none is.
          via: the channel that the request came in by (`Incoming.via`), for a reply; needed only if that channel is to
            a peer's server.

        Raises:
          SignalUnavailable: there is no server, or none could take the payload.
          ValueError: a length is wrong.
        """
        if len(receiver_key) != 32:
            raise ValueError(f"a receiver's key has 32 bytes, not {len(receiver_key)}")
        if not 1 <= len(payload) <= MAX_SIGNAL:
            raise ValueError(f"a payload has 1 to {MAX_SIGNAL} bytes, not {len(payload)}")
        if self._nursery is None:
            await trio.lowlevel.checkpoint()
            raise SignalUnavailable("the signal hub is not running")
        race = Race()
        letter = Letter(receiver_key, payload, instance, topic)
        if self.by_link(receiver_key, payload):
            race.best = Delivery.QUEUED
        self._nursery.start_soon(self._run_race, race, letter, _read(hints), may_connect, via)
        try:
            await race.wait_answered()
        finally:
            self._let_go(race)
        if race.best is None:
            raise SignalUnavailable(
                "; ".join(race.failures) or "no signal server is configured, and none of the peer's can be used"
            )
        return race.best

    def _let_go(self, race: Race) -> None:
        """The caller of `send` has its answer.  Only after QUEUED are the remaining attempts worth going on."""
        if race.best is not Delivery.QUEUED:
            race.scope.cancel()
        elif not race.over.is_set():
            race.scope.deadline = trio.current_time() + TRAILING_TIME
            self._trailing = [each for each in self._trailing if not each.over.is_set()]
            if len(self._trailing) >= MAX_TRAILING:
                self._trailing.pop(0).scope.cancel()
            self._trailing.append(race)

    # -- parts of a send: each returns a Delivery or raises SignalUnavailable ------------------------------------------

    async def _run_race(
        self,
        race: Race,
        letter: Letter,
        urls: Sequence[ServerUrl],
        may_connect: MayConnect | None,
        via: str | None,
    ) -> None:
        usable = {} if may_connect is None else self._keeper.usable(urls)
        ready = [slot for slot in self._keeper.own if slot.channel is not None]
        known = any(slot.origin in {place_of(url)[:3] for url in urls} for slot in ready)
        for slot in self._keeper.peers_servers:
            asked = slot.place in usable and may_connect is not None and slot.leads_where(may_connect)
            if slot.channel is not None and (slot.key == via or asked):
                ready.append(slot)
                known = known or asked
        strange = [url for place, url in usable.items() if all(slot.place != place for slot in ready)]
        try:
            with race.scope:
                async with trio.open_nursery() as nursery:
                    roll = Roll(race, len(ready))
                    for slot in ready:
                        race.enter(nursery, partial(self._send_by, slot, letter, roll))
                    if self._keeper.own:
                        tried = [slot.channel for slot in ready]
                        race.enter(nursery, partial(self._send_by_next, tried, letter), late=True)
                    if known:
                        await race.wait_over()
                    if race.best is not Delivery.DELIVERED:
                        for url in strange:
                            assert may_connect is not None
                            race.enter(nursery, partial(self._send_by_peers_server, url, may_connect, letter))
                        await race.wait_over()
                    nursery.cancel_scope.cancel()
        except BaseException:  # one Cancelled or a group of them, not from the race's own scope
            race.failures.append("the signal hub has ended")
            raise
        finally:
            race.over.set()
            race.notify()

    async def _send_by(self, slot: Slot, letter: Letter, roll: Roll | None = None) -> Delivery:
        """Send to the instance that is meant; if neither this server nor any other has it, to any instance."""
        try:
            answer = await _hand_over(slot, letter, letter.topic if slot.is_broker else letter.instance)
        finally:
            if roll is not None:
                roll.note()
        if answer is not Delivery.NOBODY_HOME or letter.instance is None:
            return answer
        if roll is not None and not await roll.is_missing():
            return answer
        return await _hand_over(slot, letter, None)

    async def _send_by_next(self, tried: list[SignalChannel | None], letter: Letter) -> Delivery:
        """Send by the next own channel that comes up; if it breaks, by the one after it."""
        while True:
            for slot in self._keeper.own:
                if slot.channel is not None and slot.channel not in tried:
                    tried.append(slot.channel)
                    try:
                        return await self._send_by(slot, letter)
                    except SignalUnavailable as exc:
                        logger.debug("not sent: %s", exc)
            await self._keeper.wait_changed()

    async def _send_by_peers_server(self, url: ServerUrl, may_connect: MayConnect, letter: Letter) -> Delivery:
        slot = next((slot for slot in self._keeper.peers_servers if slot.place == place_of(url)), None)
        slot = slot or self._keeper.connect_to(url, may_connect)
        while slot.channel is None and not slot.ended:
            await self._keeper.wait_changed()
        if not slot.leads_where(may_connect):  # it was opened for another peer
            raise SignalUnavailable(
                f"{slot.key} resolves to {slot.address}, and this node does not connect there for this peer"
            )
        return await self._send_by(slot, letter)


async def _hand_over(slot: Slot, letter: Letter, instance: bytes | None) -> Delivery:
    channel = slot.channel
    if channel is None:
        raise SignalUnavailable(f"{slot.key}: {slot.last_error or 'not connected'}")
    slot.touch()
    slot.sending += 1
    try:
        async with open_background_nursery() as nursery:
            nursery.start_soon(_doubt, channel)
            return await channel.send(letter.receiver_key, letter.payload, instance=instance)
        raise AssertionError("unreachable")  # for mypy, to which `async with` may swallow exceptions
    finally:
        slot.sending -= 1
        slot.touch()


async def _measure(keeper: ChannelKeeper, url: ServerUrl, timeout: float) -> float:
    started = trio.current_time()
    context = keeper.trust() if url.tls else None
    identity = Identity.generate()
    dial = keeper.dial_to(url)
    with trio.move_on_after(timeout):
        async with open_channel(url, identity, ssl_context=context, registrant=keeper.registrant, dial=dial) as channel:
            opened = trio.current_time() - started
            return opened if channel.rtt is None else channel.rtt
    raise SignalUnavailable(f"no answer within {timeout:g} s{dial.silence}")


def _has_topic(slots: Iterable[Slot]) -> bool:
    brokers = [slot.channel for slot in slots if slot.is_broker and slot.channel is not None]
    return bool(brokers) and all(channel.tells_apart for channel in brokers)


async def _wait_topic(slots: Iterable[Slot]) -> None:
    await trio.lowlevel.checkpoint()
    for channel in [slot.channel for slot in slots if slot.is_broker]:
        if channel is not None:
            await channel.wait_tells_apart()


async def _doubt(channel: SignalChannel) -> None:
    """Check the channel when a send takes long: the server may be gone."""
    await trio.sleep(SEND_PATIENCE)
    channel.check()


def _read(hints: Sequence[str]) -> list[ServerUrl]:
    """The hints that are URLs.  A peer wrote them: nothing in them may raise."""
    urls: list[ServerUrl] = []
    for hint in hints:
        with suppress(ConfigError):
            urls.append(ServerUrl.parse(hint))
    return urls
