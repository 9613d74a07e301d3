"""What a node sends and receives by all of its signal channels together.

Theory of operation.  A `send` goes out by all connected channels at once, and on the Links with the receiver, and the
best answer counts.  Once a broker or a Link has taken a message, a server that hangs must not hold up its sender:
`send` returns then, and what it began goes on for a little while behind its back.  A message whose channels all broke
before they answered goes out by the next own channel that comes up, for as long as the caller waits.  So the tasks that
send are the hub's, not the caller's.

When the peer's own servers (*hints*) are not among ours, the hub connects to them (`signal.keeper`).  The caller
decides per send whether the peer may have that done, and to which addresses.

Of several processes that have the receiver's key, the caller may name one (its *instance*).  When no server has it,
those that have said so are asked for any: the process that was named has ended, and another may have taken its place.
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
"""Sends that go on after a broker has queued them; the oldest gives way."""
TRAILING_TIME: Final = 10.0
"""Seconds for which such a send goes on: as long as a connection to a server may take to come up."""
SEND_PATIENCE: Final = 2.0
"""Seconds for a server to answer a send, after which it is asked whether it is still there."""

ByLink = Callable[[bytes, bytes], bool]
"""Says a payload on the Links with a peer (its key); whether a path that is well takes it."""


def _no_link(_receiver_key: bytes, _payload: bytes) -> bool:
    return False


@final
# long: all that a node says and hears by its servers, and what it has to know of them
class SignalHub:
    """All signal channels of one node.

    Args:
      identity: whose mailbox is opened on every server.
      servers: the node's own servers; equal ones count once.
      ca_file: PEM file of certificates that are trusted for TLS in addition to the platform's.
      names: looks up the names of the node's own servers, and remembers them; has to be running while the hub is.
      proxies: by which of them the servers are reached; by none by default.
      is_worth_a_place: whether a payload that came in is to be queued, told at a glance.
      listens: whether the node can be called.
      relay_token: of the node's rendezvous servers, where it has one.

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
        """Whom TLS trusts: the platform's certificates, and `ca_file`'s."""
        return self._keeper.trust()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the channels up until cancelled.  Started means running, not connected: see `wait_connected`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._keeper.start(nursery)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it closes: somebody may send in that very moment
                    self._keeper.stop()
        finally:
            self._keeper.end()
            self._arrivals.end()
        raise AssertionError("unreachable")  # pragma: no cover

    async def receive(self) -> Incoming:
        """The next payload; the channels that have some take turns.  Cancelled: nothing is lost.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        return await self._arrivals.receive()

    def hear(self, payload: bytes) -> None:
        """A peer has said something on a Link of ours: it waits with the others, see `receive`."""
        self._arrivals.put(self._links, payload)

    @property
    def dropped(self) -> int:
        """Payloads that came in while 64 of their channel waited for `receive`."""
        return self._arrivals.dropped

    def call_when_leaving(self, on_leaving: Callable[[TransportAddress], object]) -> None:
        """Have somebody told when a server says that its circuits are to be left: the local address of our connection,
        at which they begin."""
        self._keeper.on_leaving = on_leaving

    def check_channels(self, *, moved: bool = False) -> None:
        """There is reason to doubt, as where the machine has `moved`: every connection is asked for, or tried again, at
        once."""
        self._keeper.check_channels(moved=moved)

    async def wait_connected(self) -> None:
        """Return once at least one of the node's own servers is connected; the caller bounds the time.

        Raises:
          SignalUnavailable: there is no server to wait for, or the hub has ended.
        """
        await self._keeper.wait_connected()

    @property
    def opened(self) -> int:
        """How often one of the node's own servers was connected to."""
        return self._keeper.opened

    async def wait_opened(self, before: int) -> int:
        """Return `opened` once it is no more what it was `before`.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        return await self._keeper.wait_opened(before)

    async def wait_tried(self) -> None:
        """Return once each of the node's own servers is connected, or has failed; the caller bounds the time."""
        await self._keeper.wait_tried()

    def dial_to(self, url: ServerUrl) -> Dial:
        """What opens further connections to one of the node's own servers."""
        return self._keeper.dial_to(url)

    async def measure_server(self, url: ServerUrl, *, timeout: float) -> float:
        """Connect to a signal server afresh, register, and close; seconds of a round trip to it.

        It registers a key that nobody else has: under our own it would be handed messages for us.

        Args:
          timeout: seconds to registration, after which it raises SignalUnavailable.

        Raises as `open_channel`.
        """
        return await _measure(self._keeper, url, timeout)

    def status(self) -> tuple[ServerStatus, ...]:
        """Every server, the node's own first, then those of peers that it is connected to now."""
        return tuple(slot.status() for slot in (*self._keeper.own, *self._keeper.peers_servers))

    def relays(self) -> dict[str, RelayingServer]:
        """The node's own servers that may carry circuits; see `calls.relays_of`."""
        return relays_of(self._keeper)

    async def circuit(self, server: str) -> Circuit:
        """A circuit to call a peer by, by one of the node's own servers; see `calls.circuit_by`."""
        return await circuit_by(self._keeper, server)

    @property
    def names(self) -> list[str]:
        """The names of the node's own servers, but for those that a proxy looks up."""
        return self._keeper.names

    @property
    def unresolved(self) -> dict[str, NameFailure]:
        """The names of the node's own servers that are not connected because they cannot be resolved, and why."""
        return self._keeper.unresolved

    @property
    def instance(self) -> bytes:
        """What this process is called among all that have its key: 8 bytes."""
        return self._keeper.registrant.instance

    @property
    def has_topic(self) -> bool:
        """Whether this process has a topic of its own at every broker that it is connected to, and there is one."""
        return _has_topic((*self._keeper.own, *self._keeper.peers_servers))

    async def wait_topic(self) -> None:
        """Return once each broker of ours that is connected has let us have such a topic, or refused it; one may never
        tell, so the caller bounds the time."""
        await _wait_topic(self._keeper.own)

    def publish_key_record(self, record: Callable[[], bytes]) -> None:
        """Have each of the node's own servers keep what `record` returns, now and whenever it is connected."""
        self._keeper.key_record = record
        publish(self._keeper.own, record)

    async def wait_key_record(self) -> None:
        """Return once each server that is connected has said what became of it; the caller bounds the time."""
        await wait_published(self._keeper.own)

    async def look_up(self, key: bytes, *, patience: float) -> list[Answer]:
        """What each of the node's own servers says of a key, within so many seconds."""
        return await look_up(self._keeper.own, key, patience=patience)

    @property
    def rtt(self) -> float | None:
        """Seconds to the nearest server of our own that we have a channel to, and back; None: to none."""
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
        """Send a sealed payload by every channel there is, and return the best that a server says about it.

        Returns at the first `Delivery.DELIVERED` or `Delivery.QUEUED`, else when all servers have answered.  After
        QUEUED, the other servers are still tried for up to ten seconds.  When no server is connected, or each one
        breaks before it answers, waits for the next that comes up; the caller bounds the time with its own scope.
        Cancelled: the payload may or may not have gone out.

        Args:
          receiver_key: the receiver's 32-byte Ed25519 key.
          payload: 1 to 16,384 bytes.
          instance: the process that is meant, of all that have the receiver's key; None: all of them.
          topic: the same for brokers, where a process may have another name (`instances.topic_of`).
          hints: URLs of the receiver's servers.  Those that are not ours are connected to as well, at once when we have
            a channel to none of them, else when those that we have one to have not delivered.  Useless hints are passed
            over, URLs with a login, a path or a query, and MQTT brokers by a node that has none itself.
          may_connect: whether a connection to an address may be opened for this receiver; without it none is.
          via: the channel that a request came in by (`Incoming.via`), for its reply; only one to a peer's server needs
            to be named.

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
            raise SignalUnavailable("; ".join(race.failures) or "there is no signal server to send by")
        return race.best

    def _let_go(self, race: Race) -> None:
        """The sender has what it wanted.  Only what a broker has queued is worth a further try elsewhere."""
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
        except BaseException:  # cancelled, one or a group of them, and not by the race's own scope
            race.failures.append("the signal hub has ended")
            raise
        finally:
            race.over.set()
            race.notify()

    async def _send_by(self, slot: Slot, letter: Letter, roll: Roll | None = None) -> Delivery:
        """To the instance that is meant; by a server that does not have it, when no other has: to any."""
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
        """By the next own channel that comes up; if it breaks, by the one after it."""
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
            raise SignalUnavailable(f"{slot.key} leads to {slot.address}, where this peer may not send us")
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
    """A server that lets a send wait may not be there any more."""
    await trio.sleep(SEND_PATIENCE)
    channel.check()


def _read(hints: Sequence[str]) -> list[ServerUrl]:
    """The hints that are URLs.  A peer wrote them: nothing in them may raise."""
    urls: list[ServerUrl] = []
    for hint in hints:
        with suppress(ConfigError):
            urls.append(ServerUrl.parse(hint))
    return urls
