"""A signal channel to our rendezvous server (`warpgate_trio.servers.rendezvous_frames` has the protocol).

Three tasks serve an open channel: one reads and dispatches frames, one writes (so that a cancelled `send` never cuts a
frame in half), one pings.  When one of them finds the connection dead, the channel ends: pending sends and receives
raise `SignalUnavailable`.

Frames may go out right behind the registration, without waiting a round trip for the server's answer to it: a server
processes the frames of a connection in order.  The first call on a connection that is being opened goes out even
earlier, with the WebSocket request, which saves one more round trip.  If the server does not read the call there, it is
sent again behind the registration.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeVar, final

import trio

from .. import host as machine
from ..address import OwnAddresses
from ..config import ServerUrl
from ..errors import RemoteProtocolError, SignalUnavailable
from ..identity import Identity
from ..nurseries import open_background_nursery
from ..servers import rendezvous_frames as wire
from ..servers.key_record_frames import Found, Published
from ..servers.relay_frames import Answer, Relay, RelayCredit, RelayEnd, Ring
from ..sockaddr import parse_ip
from ..websocket import MAX_AHEAD, WebSocket, WebSocketError, open_websocket
from .channel import Delivery, Dial, Relays
from .circuits import Circuit, CircuitRefused, Circuits, Leaving, Ringing
from .keepalive import KeepAlive
from .record_client import RecordClient

__all__ = ["WebSocketChannel", "new_registrant", "open_websocket_channel"]

PING_INTERVAL = 30.0
"""Seconds between pings: a third of the silence that the server allows, and under the minute of the shortest TCP timers
of middleboxes that matter."""
PONG_TIMEOUT = 10.0
"""Seconds without a pong after which the server counts as gone: TCP alone would notice after a quarter of an hour."""
WRITE_OUT = 0.2
"""Seconds that a closing channel may take to write what its circuits have sent: it may be a Pipe's last bytes."""
_INBOX = 64


@final
class WebSocketChannel:
    """A connection to a rendezvous server, registered or about to be: a `warpgate_trio.signal.SignalChannel`."""

    def __init__(
        self, websocket: WebSocket, url: str, rtt: float, circuits: Circuits, *, has_token: bool = False
    ) -> None:
        self._websocket = websocket
        self._url = url
        self._rtt = rtt
        self._keep_alive = KeepAlive(lambda: websocket.last_heard)
        self._answered = False
        self._failure: str | None = None
        self._registered = False
        self._has_token = has_token
        self._decided = trio.Event()  # the server has answered our registration, or the channel has ended
        self._next_id = 0
        self._waiting: dict[int, _Waiter] = {}
        self._outbox = circuits.outbox
        self._writing = trio.CancelScope(shield=True)  # `_close` ends it
        self._arrived, self._incoming = trio.open_memory_channel[bytes | Ringing | Leaving](_INBOX)
        local, remote = websocket.ends or (("", 0), ("", 0))
        self._host = machine.current()
        self._from = local[0]
        self._circuits = circuits
        circuits.open(local, remote, self._arrive, trio.current_time())
        self.dropped: int = 0
        """Payloads that were dropped because 64 waited to be received."""
        self._capabilities = 0
        self._records = RecordClient(self._outbox)

    def __repr__(self) -> str:
        return f"<WebSocketChannel to {self._url}>"

    @property
    def url(self) -> str:
        return self._url

    @property
    def rtt(self) -> float:
        return self._rtt

    @property
    def answered(self) -> bool:
        return self._answered

    @property
    def tells_apart(self) -> bool:
        return self._websocket.subprotocol in wire.SUBPROTOCOLS

    async def wait_tells_apart(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_registered(self) -> None:
        await self._decided.wait()
        if not self._registered:
            raise SignalUnavailable(self._failure or f"{self._url}: the channel is closed")

    async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
        if len(receiver_key) != 32:
            raise ValueError(f"a receiver's key has 32 bytes, not {len(receiver_key)}")
        if not 1 <= len(payload) <= wire.MAX_PAYLOAD:
            raise ValueError(f"a payload has 1 to {wire.MAX_PAYLOAD} bytes, not {len(payload)}")
        if self._failure is not None:
            await trio.lowlevel.checkpoint()
            raise SignalUnavailable(self._failure)
        number = self._next_id
        self._next_id = (number + 1) % 2**32
        waiter = self._waiting[number] = _Waiter()
        try:
            if instance is not None and self.tells_apart:
                frame = wire.Send2(number, receiver_key, instance, payload).encode()
            else:
                frame = wire.Send(number, receiver_key, payload).encode()
            await self._outbox.put(frame)
            await waiter.done.wait()
        except trio.ClosedResourceError:
            pass
        finally:
            del self._waiting[number]
        if waiter.count is None:
            raise SignalUnavailable(self._failure or f"{self._url}: the channel is closed")
        if waiter.count == wire.QUEUE_FULL:
            return Delivery.FULL
        return Delivery.DELIVERED if waiter.count else Delivery.NOBODY_HOME

    @property
    def relays(self) -> Relays | None:
        if not self._registered:
            return Relays.US if self._has_token else None  # a CALL may follow the registration at once
        if self._circuits.leaving or not self._capabilities & wire.Capability.RELAY:
            return Relays.NOBODY
        return Relays.US if self._capabilities & wire.Capability.MAY_RELAY else Relays.WHO_HAS_ITS_TOKEN

    def circuit(self) -> Circuit:
        if self.relays in (None, Relays.NOBODY):
            raise CircuitRefused(self._url, None, self._failure or "the server does not relay")
        return self._circuits.make()

    @property
    def records(self) -> RecordClient:
        return self._records

    @property
    def circuits(self) -> int:
        """The number of open circuits."""
        return len(self._circuits)

    async def receive(self) -> bytes | Ringing | Leaving:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel:
            raise SignalUnavailable(self._failure or f"{self._url}: the channel is closed") from None

    def check(self) -> bool:
        if self._from and parse_ip(self._from) not in OwnAddresses(self._host):
            self._writing.cancel()
            self._websocket.abandon()
            self._fail(f"this machine no longer has the address {self._from}")
            return False
        self._keep_alive.check()
        return True

    # --- tasks ---

    async def _read(self, since: float) -> None:
        """Read and dispatch frames; `since`: when the registration was sent."""
        try:
            await self._hear_registered()
            # The WebSocket upgrade was a round trip too; the smaller of the two measurements is the better estimate.
            self._rtt = min(self._rtt, trio.current_time() - since)
            while True:
                frame = wire.decode_from_server(await self._websocket.receive())
                self._answered = True
                if isinstance(frame, wire.Message):
                    self._arrive(frame.payload)
                elif isinstance(frame, wire.Sent):
                    self._answer(frame)
                elif isinstance(frame, Ring | Answer | Relay | RelayCredit | RelayEnd):
                    self._circuits.hear(frame)
                    if self._outbox.is_overfull:
                        raise RemoteProtocolError("the server requests answers but does not read them")
                elif isinstance(frame, Found | Published):
                    self._records.hear(frame)
                elif isinstance(frame, wire.Error):
                    raise RemoteProtocolError(f"the server closed the connection: {frame.text} (code {frame.code})")
                else:
                    raise RemoteProtocolError(f"the server sent an unexpected {type(frame).__name__}")
        except (WebSocketError, RemoteProtocolError) as exc:
            self._fail(str(exc))

    def _arrive(self, payload: bytes | Ringing | Leaving) -> bool:
        """Queue a payload for `receive`; returns False if there is no room for it."""
        try:
            self._arrived.send_nowait(payload)
        except trio.WouldBlock:
            self.dropped += 1
            return False
        except trio.ClosedResourceError:
            return False  # the channel was closed meanwhile
        return True

    async def _hear_registered(self) -> None:
        while True:
            frame = wire.decode_from_server(await self._websocket.receive())
            if isinstance(frame, wire.Sent):
                self._answer(frame)  # a server's task that writes REGISTERED may be later than the one that writes SENT
            elif isinstance(frame, RelayEnd):
                self._circuits.hear(frame)
            else:
                break
        self._capabilities = _expect(wire.Registered, frame).capabilities or 0
        self._records.registered(self._capabilities)
        self._registered = True
        self._decided.set()

    async def _write(self, registration: bytes) -> None:
        try:
            with self._writing:
                await self._websocket.send(registration)
                while (frame := await self._outbox.take()) is not None:
                    await self._websocket.send(frame)
        except WebSocketError as exc:
            self._fail(str(exc))

    async def _ping(self) -> None:
        await self._decided.wait()
        try:
            await self._keep_alive.run(
                self._websocket.ping, self._measured, interval=PING_INTERVAL, timeout=PONG_TIMEOUT
            )
        except trio.TooSlowError as exc:
            self._fail(f"no pong {exc}")
        except WebSocketError as exc:
            self._fail(str(exc))

    def _answer(self, frame: wire.Sent) -> None:
        waiter = self._waiting.get(frame.id)  # None: the `send` was cancelled
        if waiter is not None:
            waiter.count = frame.count
            waiter.done.set()

    def _measured(self, sample: float) -> None:
        self._answered = True
        self._rtt += (sample - self._rtt) / 8  # RFC 6298's alpha

    def _fail(self, why: str) -> None:
        """The connection is dead: wake all tasks that wait for it."""
        if self._failure is None:
            self._failure = f"{self._url}: {why}"
        self._close()

    def _close(self) -> None:
        self._writing.deadline = min(self._writing.deadline, trio.current_time() + WRITE_OUT)
        # Close the sending ends: `receive` still returns what has arrived, then raises.
        self._outbox.close()
        self._arrived.close()
        self._circuits.end(self._failure or "the connection to the server was closed")
        self._records.end()
        self._decided.set()
        for waiter in self._waiting.values():
            waiter.done.set()


@final
class _Waiter:
    __slots__ = ("count", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.count: int | None = None


@asynccontextmanager
async def open_websocket_channel(
    url: ServerUrl,
    identity: Identity,
    *,
    ssl_context: ssl.SSLContext | None = None,
    registrant: wire.Registrant | None = None,
    dial: Dial = trio.open_tcp_stream,
    at_once: bool = False,
    circuits: Circuits | None = None,
) -> AsyncGenerator[WebSocketChannel]:
    """Open a channel to the rendezvous server at `url`; contract and errors as `warpgate_trio.signal.open_channel`."""
    opened = False
    circuits = Circuits(url.redacted) if circuits is None else circuits
    ahead = b""

    def first_call() -> bytes:
        nonlocal ahead
        ahead = circuits.outbox.take_signal_nowait(MAX_AHEAD)
        return ahead

    try:
        async with open_websocket(
            url,
            ssl_context=ssl_context,
            subprotocols=list(wire.SUBPROTOCOLS),
            max_message=wire.MAX_FRAME,
            dial=dial,
            ahead=first_call,
        ) as websocket:
            challenge = _expect(wire.Challenge, wire.decode_from_server(await websocket.receive()))
            name = wire.server_name(url.host, url.port)
            registrant = registrant or new_registrant()
            registration = registrant.answer(identity, challenge, name).encode()
            assert websocket.upgrade is not None, "a server's end"
            has_token = registrant.has_token and challenge.version >= wire.CIRCUITS_SINCE
            if challenge.version < wire.CIRCUITS_SINCE:
                circuits.refuse("the server does not relay")
            elif ahead != websocket.ahead:
                circuits.outbox.put_back(ahead)
            channel = WebSocketChannel(websocket, url.redacted, websocket.upgrade, circuits, has_token=has_token)
            async with open_background_nursery() as nursery:
                nursery.start_soon(channel._read, trio.current_time())
                nursery.start_soon(channel._write, registration)
                nursery.start_soon(channel._ping)
                try:
                    if not at_once:
                        await channel.wait_registered()
                    opened = True
                    yield channel
                finally:
                    channel._close()
    except (WebSocketError, RemoteProtocolError) as exc:
        if opened:
            raise  # the body has raised it
        raise SignalUnavailable(f"{url.redacted}: {exc}") from exc


def new_registrant() -> wire.Registrant:
    """A registrant with a fresh instance, for one process, or for a channel that does not belong to a node."""
    return wire.Registrant(machine.current().entropy(wire.INSTANCE_LENGTH))


_Frame = TypeVar("_Frame", wire.Challenge, wire.Registered)


def _expect(kind: type[_Frame], frame: wire.FromServer) -> _Frame:
    if isinstance(frame, wire.Error):
        raise RemoteProtocolError(f"the server refused: {frame.text} (code {frame.code})")
    if not isinstance(frame, kind):
        raise RemoteProtocolError(f"the server sent {type(frame).__name__} instead of {kind.__name__}")
    return frame
