"""The owner of all signal channels of a node.

Theory of operation.  One task per configured server connects, registers, receives, and reconnects after a jittered
back-off, for as long as the hub runs; a server that is down costs its own task a connection attempt now and then, and
nobody else anything.  What arrives goes into a bounded queue of its channel's own, and the channels take turns in
`receive`: whoever floods one takes nothing from the others.  De-duplication is not done here: the same message comes in
by several servers as different or equal bytes, and only its id, inside the seal, tells (`warpgate_trio.signal.Inbox`).

A `send` goes out by all connected channels at once, and the best answer counts.  Once a broker has taken a message, a
server that hangs must not hold up its sender: `send` returns then, and what it began goes on for a little while behind
its back.  A message whose channels all broke before they answered goes out by the next own channel that comes up, for
as long as the caller waits.  So the tasks that send are the hub's, not the caller's.

When the peer's own servers (*hints*) are not among ours, the hub *visits* them: a channel, registered under our key
like any other so that replies come in by it, which is closed when it has been idle for a minute.  A peer chooses its
hints, so visiting means to open connections where a peer says; the caller decides per send whether the peer may, and to
which addresses (`warpgate_trio.signal.visits`).

Of several processes that have the receiver's key, the caller may name one (its *instance*).  When no server has it,
those that have said so are asked for any: the process that was named has ended, and another may have taken its place.

A connection that leads nowhere any more is noticed by the pings of its channel, twice a minute.  Where there is reason
to doubt it (the machine's addresses have changed, a send hangs), the channel is asked at once.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, final

import trio

from .. import host as machine
from ..config import ServerUrl
from ..errors import ConfigError, SignalUnavailable, WarpgateError, panics_as_errors, printable
from ..identity import Identity
from ..names import NameFailure, Names
from ..nurseries import open_background_nursery, reason_of
from ..servers.rendezvous_frames import INSTANCE_LENGTH, Registrant
from ..sockaddr import parse_ip
from .channel import Delivery, SignalChannel
from .message import MAX_SIGNAL
from .race import Letter, Race, Roll
from .slot import Place, ServerState, ServerStatus, Slot, place_of
from .transport import check_supported, loads_asyncio, open_channel, supports
from .visits import MayVisit, is_plain, open_judged_stream

__all__ = ["Incoming", "ServerState", "ServerStatus", "SignalHub"]

logger: logging.Logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds for TCP, TLS, WebSocket and registration together: eight round trips of a bad satellite link."""
BACKOFF_FIRST = 0.2
"""Seconds to the first new connection; doubles, less up to half at random, lest a server's nodes come back in step."""
BACKOFF_LIMIT = 30.0
"""Seconds of the longest such pause."""
STABLE = 10.0
"""Seconds that a connection has to hold to start the next back-off afresh, and its server has to have said something in
them: one that registers us and then falls silent is given up after as long a time, and was no success."""
MAX_VISITS = 4
"""Channels to servers of peers that are open at a time."""
_MAX_TRAILING = 64  # Sends that go on after a broker has queued them; the oldest gives way.
SEND_PATIENCE = 2.0
"""Seconds for a server to answer a send, after which it is asked whether it is still there."""
_INBOX = 64  # Payloads of one channel that wait for `receive`; 1 MiB at most.


@dataclass(frozen=True, slots=True)
class Incoming:
    """A payload that came in, still sealed; `via` names the channel, for the reply's `SignalHub.send`."""

    payload: bytes
    via: str


@final
class SignalHub:
    """All signal channels of one node.

    Args:
      identity: whose mailbox is opened on every server.
      servers: the node's own servers; equal ones count once.
      ca_file: PEM file of certificates that are trusted for TLS in addition to the platform's.
      names: looks up the names of the node's own servers, and remembers them; has to be running while the hub is.
      is_worth_a_place: whether a payload that came in is to be queued, told at a glance.

    Raises:
      ConfigError: there is no transport for a server, or `ca_file` cannot be used.
    """

    def __init__(
        self,
        identity: Identity,
        servers: Sequence[ServerUrl],
        *,
        ca_file: Path | None = None,
        names: Names | None = None,
        is_worth_a_place: Callable[[bytes], bool] = lambda _: True,
    ) -> None:
        for url in servers:
            check_supported(url)
        self._asyncio = any(loads_asyncio(url) for url in servers)
        self._identity = identity
        self._registrant = Registrant(machine.current().entropy(INSTANCE_LENGTH))
        self._ca_file = ca_file
        self._is_worth_a_place = is_worth_a_place
        self._ssl_context: ssl.SSLContext | None = None
        if ca_file is not None or any(url.tls for url in servers):
            self._trust()  # so that a bad file is found now, not at the first connection
        distinct = {(place_of(url), url.params): url for url in servers}
        self._own = [Slot(url, visiting=False) for url in distinct.values()]
        for number, slot in enumerate(self._own):
            if any(slot.key == other.key for other in self._own[:number]):
                slot.key += f"#{number}"  # differs from an earlier one only in what redaction hides
        self._names = names
        if names is not None:
            for slot in self._own:
                slot.dial = names.open_tcp_stream
        self._visits: list[Slot] = []
        self._trailing: list[Race] = []
        self.opened: int = 0
        """How often one of the node's own servers was connected to."""
        self._nursery: trio.Nursery | None = None
        self._ended = False
        self._changed = trio.Event()
        self._network_changed = trio.Event()
        self._turns: deque[Slot] = deque()  # those with payloads, each once
        self._arrived = trio.Event()
        self.dropped: int = 0
        """Payloads that came in while 64 of their channel waited for `receive`."""

    # --- what the node does with it ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the channels up until cancelled.  Started means running, not connected: see `wait_connected`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for slot in self._own:
                    nursery.start_soon(self._keep_connected, slot)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it closes: somebody may send in that very moment
        finally:
            self._ended = True
            self._notify()
            self._arrived.set()
        raise AssertionError("unreachable")  # pragma: no cover

    async def receive(self) -> Incoming:
        """The next payload; the channels that have some take turns.  Cancelled: nothing is lost.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        await trio.lowlevel.checkpoint()
        while not self._turns:
            if self._ended:
                raise SignalUnavailable("the signal hub has ended")
            await self._arrived.wait()
        slot = self._turns.popleft()
        payload = slot.waiting.popleft()
        if slot.waiting:
            self._turns.append(slot)
        elif not self._turns and not self._ended:
            self._arrived = trio.Event()
        return Incoming(payload, slot.key)

    def check_channels(self) -> None:
        """The machine's addresses have changed: every connection is asked for at once, and what waits to be tried again
        is tried now."""
        for slot in (*self._own, *self._visits):
            if slot.channel is not None:
                slot.channel.check()
        self._network_changed.set()
        self._network_changed = trio.Event()

    async def wait_connected(self) -> None:
        """Return once at least one of the node's own servers is connected; the caller bounds the time.

        Raises:
          SignalUnavailable: there is no server to wait for, or the hub has ended.
        """
        await self._first_connected()

    async def wait_opened(self, before: int) -> int:
        """Return `opened` once it is no more what it was `before`.

        Raises:
          SignalUnavailable: the hub has ended.
        """
        while self.opened == before:
            if self._ended:
                raise SignalUnavailable("the signal hub has ended")
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self.opened

    async def wait_tried(self) -> None:
        """Return once each of the node's own servers is connected, or has failed; the caller bounds the time."""
        while not self._ended and any(not slot.connected and slot.last_error is None for slot in self._own):
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def measure_server(self, url: ServerUrl) -> float:
        """Connect to a signal server afresh, register, and close; seconds of a round trip to it.

        It registers a key that nobody else has: under our own it would be handed messages for us.  The caller bounds
        the time.

        Raises as `open_channel`.
        """
        started = trio.current_time()
        context = self._trust() if url.tls else None
        identity = Identity.generate()
        async with open_channel(url, identity, ssl_context=context, registrant=self._registrant) as channel:
            opened = trio.current_time() - started
            return opened if channel.rtt is None else channel.rtt
        raise AssertionError("unreachable")  # for mypy, to which `async with` may swallow exceptions

    def status(self) -> tuple[ServerStatus, ...]:
        """Every server, the node's own first, then those visited now."""
        return tuple(slot.status() for slot in (*self._own, *self._visits))

    @property
    def unresolved(self) -> dict[str, NameFailure]:
        """The names of the node's own servers that are not connected because they cannot be resolved, and why."""
        found = {
            slot.url.host: NameFailure(why=slot.last_error or "", remembered=False)
            for slot in self._own
            if slot.unresolved
        }
        if self._names is not None:  # which knows of those that hang, too
            waiting = self._names.failures(slot.url.host for slot in self._own if slot.channel is None)
            found.update((name, failure) for name, failure in waiting.items() if not failure.remembered)
        return found

    @property
    def instance(self) -> bytes:
        """What this process is called among all that have its key: 8 bytes."""
        return self._registrant.instance

    @property
    def rtt(self) -> float | None:
        """Seconds to the nearest server of our own that we have a channel to, and back; None: to none."""
        return min(
            (slot.channel.rtt for slot in self._own if slot.channel and slot.channel.rtt is not None), default=None
        )

    async def send(
        self,
        receiver_key: bytes,
        payload: bytes,
        *,
        instance: bytes | None = None,
        hints: Sequence[str] = (),
        may_visit: MayVisit | None = None,
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
          hints: URLs of the receiver's servers.  Those that are not ours are visited, at once when we are connected to
            none of them, else when those that we are connected to have not delivered.  Useless hints are passed over,
            URLs with a login, a path or a query, and MQTT brokers by a node that has none itself.
          may_visit: whether a connection to an address may be opened for this receiver; without it none is.
          via: the channel that a request came in by (`Incoming.via`), for its reply; only a visited one needs to be
            named.

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
        letter = Letter(receiver_key, payload, instance)
        self._nursery.start_soon(self._run_race, race, letter, _read(hints), may_visit, via)
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
            race.scope.deadline = trio.current_time() + CONNECT_TIMEOUT
            self._trailing = [each for each in self._trailing if not each.over.is_set()]
            if len(self._trailing) >= _MAX_TRAILING:
                self._trailing.pop(0).scope.cancel()
            self._trailing.append(race)

    # --- parts of a send: each returns a Delivery or raises SignalUnavailable ---

    async def _run_race(
        self,
        race: Race,
        letter: Letter,
        urls: Sequence[ServerUrl],
        may_visit: MayVisit | None,
        via: str | None,
    ) -> None:
        visits = {} if may_visit is None else self._visitable(urls)
        ready = [slot for slot in self._own if slot.channel is not None]
        known = any(slot.origin in {place_of(url)[:3] for url in urls} for slot in ready)
        for slot in self._visits:
            asked = slot.place in visits and may_visit is not None and slot.leads_where(may_visit)
            if slot.channel is not None and (slot.key == via or asked):
                ready.append(slot)
                known = known or asked
        strange = [url for place, url in visits.items() if all(slot.place != place for slot in ready)]
        try:
            with race.scope:
                async with trio.open_nursery() as nursery:
                    roll = Roll(race, len(ready))
                    for slot in ready:
                        race.enter(nursery, partial(self._send_by, slot, letter, roll))
                    if self._own:
                        tried = [slot.channel for slot in ready]
                        race.enter(nursery, partial(self._send_by_next, tried, letter), late=True)
                    if known:
                        await race.wait_over()
                    if race.best is not Delivery.DELIVERED:
                        for url in strange:
                            assert may_visit is not None
                            race.enter(nursery, partial(self._send_by_visit, url, may_visit, letter))
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
            answer = await self._hand_over(slot, letter, letter.instance)
        finally:
            if roll is not None:
                roll.note()
        if answer is not Delivery.NOBODY_HOME or letter.instance is None:
            return answer
        if roll is not None and not await roll.is_missing():
            return answer
        return await self._hand_over(slot, letter, None)

    async def _hand_over(self, slot: Slot, letter: Letter, instance: bytes | None) -> Delivery:
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

    async def _send_by_next(self, tried: list[SignalChannel | None], letter: Letter) -> Delivery:
        """By the next own channel that comes up; if it breaks, by the one after it."""
        while True:
            for slot in self._own:
                if slot.channel is not None and slot.channel not in tried:
                    tried.append(slot.channel)
                    try:
                        return await self._send_by(slot, letter)
                    except SignalUnavailable as exc:
                        logger.debug("not sent: %s", exc)
            await self._changed.wait()

    async def _send_by_visit(self, url: ServerUrl, may_visit: MayVisit, letter: Letter) -> Delivery:
        slot = next((slot for slot in self._visits if slot.place == place_of(url)), None)
        slot = slot or self._start_visit(url, may_visit)
        while slot.channel is None and not slot.ended:
            await self._changed.wait()
        if not slot.leads_where(may_visit):  # it was opened for another peer
            raise SignalUnavailable(f"{slot.key} leads to {slot.address}, where this peer may not send us")
        return await self._send_by(slot, letter)

    async def _first_connected(self) -> None:
        if not self._own:
            await trio.lowlevel.checkpoint()
            raise SignalUnavailable("no signal server is configured")
        while not self._ended:
            if any(slot.connected for slot in self._own):
                await trio.lowlevel.checkpoint()
                return
            await self._changed.wait()
        raise SignalUnavailable("the signal hub has ended")

    # --- channels ---

    def _start_visit(self, url: ServerUrl, may_visit: MayVisit) -> Slot:
        if self._nursery is None:
            raise SignalUnavailable("the signal hub has ended")
        if len(self._visits) >= MAX_VISITS:
            idle = [slot for slot in self._visits if slot.channel is not None and not slot.sending]
            if not idle:
                raise SignalUnavailable(f"{url.redacted}: {MAX_VISITS} servers of peers are being visited already")
            self._leave(min(idle, key=lambda slot: slot.last_used))
        slot = Slot(url, visiting=True)

        async def dial(host: str, port: int) -> trio.abc.Stream:
            stream = await open_judged_stream(host, port, may_visit=may_visit)
            slot.address = parse_ip(stream.socket.getpeername()[0])
            return stream

        slot.dial = dial
        self._visits.append(slot)
        self._nursery.start_soon(self._visit, slot)
        return slot

    async def _visit(self, slot: Slot) -> None:
        try:
            await self._hold(slot)
        finally:
            self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        slot.ended = True
        slot.channel = None
        if slot in self._visits:
            self._visits.remove(slot)
        if slot.scope is not None:
            slot.scope.cancel()
        self._notify()

    async def _keep_connected(self, slot: Slot) -> None:
        pause = BACKOFF_FIRST
        while True:
            if await self._hold(slot):
                pause = BACKOFF_FIRST
            slot.state = ServerState.WAITING
            with trio.move_on_after(pause * (1 - machine.current().random.random() / 2)):
                await self._network_changed.wait()
            pause = min(2 * pause, BACKOFF_LIMIT)

    async def _hold(self, slot: Slot) -> bool:
        """One connection, from its opening to its end, whatever ends it.  Returns whether it was a success."""
        since = math.inf
        answered = False
        slot.state = ServerState.CONNECTING
        try:
            with (
                panics_as_errors(),
                trio.CancelScope(deadline=trio.current_time() + CONNECT_TIMEOUT) as slot.scope,
            ):
                context = self._trust() if slot.url.tls else None
                async with open_channel(
                    slot.url,
                    self._identity,
                    ssl_context=context,
                    registrant=self._registrant,
                    dial=slot.dial,
                    at_once=True,
                ) as channel:
                    slot.channel = channel
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
                        while True:
                            self._take(slot, await channel.receive())
                    finally:
                        slot.channel = None
                        answered = channel.answered
            slot.last_error, slot.unresolved = "idle", False
            if since == math.inf:
                self._say_late(slot)
        except (OSError, WarpgateError) as exc:
            slot.unresolved = isinstance(exc, trio.socket.gaierror)
            slot.last_error = printable(reason_of(exc))
        except Exception as exc:  # a server's doing, whatever its class: it ends this connection and nothing else
            slot.last_error, slot.unresolved = f"unexpected {type(exc).__name__}", False
            logger.exception("the signal channel to %s failed", slot.key)
        finally:
            slot.scope = None
            self._notify()
        self._say_lost(slot, was_connected=since != math.inf)
        return answered and trio.current_time() - since >= STABLE

    def _say_late(self, slot: Slot) -> None:
        """It was not connected in time: the server did not answer, or nobody told where it is."""
        slot.last_error = f"no answer within {CONNECT_TIMEOUT:.0f} s"
        failure = None if slot.visiting else self.unresolved.get(slot.url.host)
        if failure is not None:
            slot.last_error, slot.unresolved = f"the name cannot be resolved: {failure.why}", True

    def _say_connected(self, slot: Slot) -> None:
        """That a server is there at once is no news; that one is back is."""
        back = slot.lost or slot.broke
        logger.log(logging.INFO if back else logging.DEBUG, "signal server %s: connected", slot.key)
        slot.lost = slot.broke = False
        self.opened += not slot.visiting

    def _say_lost(self, slot: Slot, *, was_connected: bool) -> None:
        """Tell people once that a server of ours cannot be reached, and why: not at each attempt."""
        # A connection that broke is nothing to warn of yet: the next one may come up at once.
        tell = not (was_connected or slot.lost or slot.visiting)
        slot.broke = (was_connected and not slot.visiting) or slot.broke
        level = logging.WARNING if tell else logging.INFO if was_connected and slot.broke else logging.DEBUG
        what = "connection lost" if was_connected else "not connected"
        logger.log(level, "signal server %s: %s: %s", slot.key, what, slot.last_error)
        slot.lost = slot.lost or tell

    def _take(self, slot: Slot, payload: bytes) -> None:
        slot.touch()
        if not self._is_worth_a_place(payload):
            return
        if len(slot.waiting) >= _INBOX:
            self.dropped += 1
            return
        slot.waiting.append(payload)
        if len(slot.waiting) == 1:
            self._turns.append(slot)
            self._arrived.set()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _visitable(self, urls: Sequence[ServerUrl]) -> dict[Place, ServerUrl]:
        """The first few URLs of a peer that we would visit; what is ours, by scheme, host and port, is none of them."""
        ours = {slot.origin for slot in self._own}
        found: dict[Place, ServerUrl] = {}
        for url in urls:
            place = place_of(url)
            if place[:3] in ours or not is_plain(url) or len(found) >= MAX_VISITS:
                continue
            if (self._asyncio or not loads_asyncio(url)) and supports(url):
                found[place] = url
        return found

    def _trust(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            context = ssl.create_default_context()
            if self._ca_file is not None:
                try:
                    context.load_verify_locations(cafile=self._ca_file)
                except OSError as exc:  # ssl.SSLError is one
                    raise ConfigError(
                        f"servers.ca_file = {str(self._ca_file)!r}: no certificates to be read: {exc}"
                    ) from exc
            self._ssl_context = context
        return self._ssl_context


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
