"""Relayed circuits at a client: byte streams to peers, on the connection to a rendezvous server that is open anyway.

`servers.relay_frames` has the frames.  A `Circuit` is what a carrier needs of a socket: `send`, `recv`, `close`.  Sent
bytes wait for the server's credit, and behind signals.  Received bytes are bounded by the credit that was granted to
the server, which is renewed as they are read.  So the connection's reader never waits for a circuit.
"""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

import msgspec
import trio

from ..carrier.records import FIRST_FLIGHT, IDLE
from ..errors import AttemptFailed
from ..servers.relay_frames import (
    ALL_CIRCUITS,
    INITIAL_CREDIT,
    MAX_RELAY,
    Answer,
    Call,
    EndReason,
    Relay,
    RelayCredit,
    RelayEnd,
    Ring,
    keep,
)
from ..sockaddr import TransportAddress

__all__ = ["Circuit", "CircuitRefused", "Circuits", "Incoming", "Judge", "Leaving", "Outbox", "Ringing"]

WINDOW: Final = 256 * 1024
"""Bytes of one circuit that the server may send before they are read here."""
RENEWAL: Final = 4
"""Credit is renewed when a fourth of the window has been read.  The first renewal comes when half of the initial credit
has been read, so that the first bytes after a call do not wait for it."""
MAX_CIRCUITS: Final = 64
"""Circuits of one connection, as many as a server allows (`servers.relay_core.RelayLimits`)."""
MAX_SIGNALS: Final = 16
"""Signals that wait to be written; beyond that, senders wait."""
MAX_CONTROL: Final = 1024
"""Short frames of circuits that wait to be written: eight for each possible circuit, and their RELAY_ENDs.  A server
that makes us queue more without reading it is disconnected."""
PIECE: Final = 16 * 1024
"""Bytes of the smallest RELAY that is sent when credit is short; below that, `send` waits for more credit."""
FIRST_PIECE: Final = 4 * 1024
"""Bytes of each RELAY after a silence, until `FIRST_FLIGHT` bytes were sent.  A server passes on a RELAY only once its
last byte is there, and TCP sends no more than `FIRST_FLIGHT` at once on a connection that was silent
(`warpgate_trio.carrier.records`)."""


class CircuitRefused(AttemptFailed):
    """There is no circuit: the server or the peer refused it.

    Attributes:
      reason: an `EndReason`, or a code that this release does not know; None: the server sent no reason, as where the
        connection to it ended or it relays nothing.
      try_again: the peer has sent a `Clock` reply; another call will be stamped by the peer's clock.
      too_early: the call was made before the connection to the server was open.  That may be the cause: the connection
        never came up, or the peer's `Clock` reply could not reach this node, which was not registered yet.
    """

    def __init__(self, url: str, reason: int | None, why: str) -> None:
        super().__init__(f"no circuit by {url}: {why}")
        self.reason = reason
        self.try_again: bool = False
        self.too_early: bool = False


@final
class Outbox:
    """The queue of frames for a server: signals go before relayed bytes, of which one frame waits at most."""

    def __init__(self) -> None:
        self._signals: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._closed = False
        self._writer: Final = trio.lowlevel.ParkingLot()
        self._senders: Final = trio.lowlevel.ParkingLot()
        self._relaying: Final = trio.lowlevel.ParkingLot()

    async def put(self, frame: bytes) -> None:
        """Queue a signal.  Cancelled: it was not queued.

        Raises:
          trio.ClosedResourceError: nothing is written any more.
        """
        await self.wait_signal()
        self.put_nowait(frame)

    async def wait_signal(self) -> None:
        """Return when there is room for a signal; the caller may then use `put_nowait` at once.

        Raises:
          trio.ClosedResourceError: nothing is written any more.
        """
        await trio.lowlevel.checkpoint()
        while len(self._signals) >= MAX_SIGNALS and not self._closed:
            await self._senders.park()
        if self._closed:
            raise trio.ClosedResourceError

    def put_nowait(self, frame: bytes) -> None:
        """Queue a short frame, of a kind that occurs only a few times for each circuit."""
        self._signals.append(frame)
        self._writer.unpark()

    @property
    def is_overfull(self) -> bool:
        """Whether more frames wait than can accumulate while the server reads."""
        return len(self._signals) + len(self._bulk) > MAX_CONTROL

    @property
    def has_room(self) -> bool:
        """Whether there is room for relayed bytes."""
        return not self._bulk or self._closed

    async def wait_bulk(self) -> None:
        """Return when there is room for relayed bytes, or the outbox is closed."""
        while self._bulk and not self._closed:
            await self._relaying.park()

    def put_bulk_nowait(self, frame: bytes) -> None:
        """Queue relayed bytes, or a frame that must not overtake them."""
        self._bulk.append(frame)
        self._writer.unpark()

    def take_signal_nowait(self, size: int) -> bytes:
        """Take the first waiting signal; ``b""`` if none waits, or it has more than `size` bytes."""
        if not self._signals or len(self._signals[0]) > size:
            return b""
        self._senders.unpark()
        return self._signals.popleft()

    def put_back(self, frame: bytes) -> None:
        """Put a signal back that was taken but not written."""
        self._signals.appendleft(frame)

    def clear(self) -> None:
        """Discard everything that waits."""
        self._signals.clear()
        self._bulk.clear()
        self._senders.unpark_all()
        self._relaying.unpark_all()

    async def take(self) -> bytes | None:
        """The next frame to write; None at the end."""
        while not self._signals and not self._bulk:
            if self._closed:
                return None
            await self._writer.park()
        if self._signals:
            frame = self._signals.popleft()
            self._senders.unpark()
        else:
            frame = self._bulk.popleft()
            self._relaying.unpark()
        return frame

    def close(self) -> None:
        """Accept no more frames; those that wait may still be written."""
        self._closed = True
        for lot in (self._writer, self._senders, self._relaying):
            lot.unpark_all()


class Judge(Protocol):
    """Learns from one call how well its server relays."""

    def worked(self) -> None:
        """Bytes of the peer have come by the circuit."""

    def failed(self) -> None:
        """The server makes no circuits, or it ended this one before any bytes came."""

    def gave_up(self, waited: float) -> None:
        """The call was given up before an answer, after `waited` seconds."""


_SERVERS_FAULT: Final = (EndReason.TOO_MANY_OF_ADDRESS, EndReason.TOO_MANY_IN_ALL, EndReason.SHUTTING_DOWN)
"""Reasons for the end of a call that lie with the server, not with the peer or this pair of nodes."""


@final
class Circuit:
    """One end of a circuit, made by `Circuits`; a `warpgate_trio.carrier.tls.ByteSocket` for a carrier.

    Attributes:
      url: the server's, without a password.
      local, remote: the addresses of the connection to the server; ``("", 0)`` while it is being opened.
      answered: the call was answered; both sides have the circuit.
      claimed: some code has taken charge of answering or closing the circuit; otherwise the router closes it once it
        has handled the call.
      judge: is told how the server performs, if this side is the caller.
    """

    def __init__(self, owner: Circuits, number: int) -> None:
        self._owner = owner
        self._number = number
        self._changed: Final = trio.lowlevel.ParkingLot()
        self._limit = self._granted = INITIAL_CREDIT
        self._sent = self._received = self._read = 0
        self._left = 0  # bytes that are still to go in RELAYs of FIRST_PIECE
        self._sent_at = -math.inf
        self._waiting: deque[bytes] = deque()
        self._end: str | None = None
        self._reason: int | None = None
        self._closed = False
        self.answered: bool = False
        self.claimed: bool = False
        self.judge: Judge | None = None
        self._called_at = math.inf
        self.url: Final = owner.url

    def __repr__(self) -> str:
        return f"<Circuit {self._number} by {self.url}>"

    @property
    def local(self) -> TransportAddress:
        return self._owner.local

    @property
    def remote(self) -> TransportAddress:
        return self._owner.remote

    @property
    def called_ahead(self) -> bool:
        """Whether the call was made while the connection was being opened."""
        return self._called_at < self._owner.opened_at

    # -- making one ----------------------------------------------------------------------------------------------------

    async def call(self, receiver_key: bytes, instance: bytes, payload: bytes) -> None:
        """Have the server call a key, or one process of it.  The circuit is `answered` later, or ends.

        While the connection is being opened, the first call goes along with the WebSocket request; others wait.

        Raises:
          CircuitRefused: the connection has ended, or the server makes no circuits.
        """
        self._called_at = trio.current_time()
        await self._say(Call(self._number, receiver_key, instance, payload))

    async def wait_answered(self) -> None:
        """Return once the peer has answered.

        Raises:
          CircuitRefused: the circuit has ended without an answer; the text says why.
        """
        await trio.lowlevel.checkpoint()
        while not self.answered:
            if self._end is not None or self._closed:
                raise self._refused()
            await self._changed.park()

    async def answer(self, payload: bytes) -> None:
        """Take a call: bytes may be sent from here on.

        Raises:
          CircuitRefused: the caller has ended the circuit, or the connection has ended.
        """
        await self._say(Answer(self._number, payload))
        self._open()

    async def _say(self, frame: Call | Answer) -> None:
        """Queue a frame, unless the circuit ends before there is room."""
        try:
            await self._owner.outbox.wait_signal()
        except trio.ClosedResourceError:
            raise self._refused() from None
        if self._end is not None or self._closed:
            raise self._refused()
        self._owner.outbox.put_nowait(frame.encode())

    def _refused(self) -> CircuitRefused:
        refused = CircuitRefused(self.url, self._reason, self._end or "it was closed here")
        refused.too_early = not self._owner.opened
        return refused

    def _open(self) -> None:
        self.answered = True
        self._changed.unpark_all()

    # -- the stream ----------------------------------------------------------------------------------------------------

    async def send(self, data: memoryview) -> int:
        """Send the first bytes of `data`, as many as fit now, and return how many.  Cancelled: none were sent.

        Raises:
          OSError: the circuit has ended.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._is_silent():
                self._left = FIRST_FLIGHT
            least, most = (FIRST_PIECE, FIRST_PIECE) if self._left > 0 else (PIECE, MAX_RELAY)
            room = min(self._limit - self._sent, most)
            if room < min(len(data), least):
                await self._changed.park()
                continue
            if not self._owner.outbox.has_room:
                await self._owner.outbox.wait_bulk()
                continue
            piece = bytes(data[:room])
            self._sent += len(piece)
            self._left -= len(piece)
            self._sent_at = trio.current_time()
            self._owner.outbox.put_bulk_nowait(Relay(self._number, piece).encode())
            return len(piece)

    def _is_silent(self) -> bool:
        return trio.current_time() - self._sent_at >= IDLE

    async def recv(self, size: int) -> bytes:
        """The next bytes, `size` at most; ``b""`` once the other side has closed.  Cancelled: nothing is lost.

        Raises:
          OSError: the circuit has ended in another way.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._reason == EndReason.CLOSED and not self._closed:
                return b""
            self._check_open()
            await self._changed.park()
        data = self._waiting.popleft()
        if len(data) > size:
            self._waiting.appendleft(data[size:])
            data = data[:size]
        self._read += len(data)
        self._renew()
        return data

    def close(self) -> None:
        """End the circuit, and wake tasks that wait in it.  Bytes that were sent go out before.  Idempotent."""
        if not self._closed:
            self._closed = True
            if self.judge is not None and self._end is None and not self.answered:
                self.judge.gave_up(trio.current_time() - max(self._called_at, self._owner.opened_at))
            self._waiting.clear()
            self._owner.forget(self._number, EndReason.CLOSED if self.answered else EndReason.REFUSED)
            self._changed.unpark_all()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "the circuit was closed here")
        if self._end is not None:
            raise OSError(errno.ECONNRESET, f"the circuit by {self.url} has ended: {self._end}")

    def _renew(self) -> None:
        unread = self._granted - self._read  # credit that is left, and received bytes that are not read yet
        enough = WINDOW * (RENEWAL - 1) // RENEWAL if self._granted > INITIAL_CREDIT else INITIAL_CREDIT // 2
        if self.answered and self._end is None and unread <= enough:
            self._granted = self._read + WINDOW
            self._owner.outbox.put_nowait(RelayCredit(self._number, self._granted).encode())

    # -- what the channel's reader hears -------------------------------------------------------------------------------

    def hear(self, frame: Answer | Relay | RelayCredit | RelayEnd) -> None:
        """Take a frame from the server.  If it sends beyond its credit, the circuit ends."""
        if isinstance(frame, RelayCredit):
            self._limit = max(self._limit, frame.limit)
        elif isinstance(frame, Relay):
            if self.judge is not None and not self._received:
                self.judge.worked()
            self._received += len(frame.data)
            if self._received > self._granted or not self.answered:
                self.end(EndReason.OVERRUN, EndReason.OVERRUN.words)
                self._owner.forget(self._number, EndReason.CLOSED)
            else:
                keep(self._waiting, frame.data)
        elif isinstance(frame, Answer):
            if not self.answered:
                self._open()
        else:
            known = frame.reason in EndReason.__members__.values()
            self.end(frame.reason, EndReason(frame.reason).words if known else f"reason {frame.reason}")
            self._owner.forget(self._number, None)
        self._changed.unpark_all()

    def end(self, reason: int | None, why: str) -> None:
        """No more bytes will come; those that have come can still be read."""
        if self._end is None:
            self._end, self._reason = why, reason
            if self.judge is not None and not self._received and (self.answered or reason in _SERVERS_FAULT):
                self.judge.failed()
        self._changed.unpark_all()


@final
class Ringing:
    """A peer's call: a sealed signal, and the circuit to answer by."""

    __slots__ = ("circuit", "payload")

    def __init__(self, payload: bytes, circuit: Circuit) -> None:
        self.payload: Final = payload
        self.circuit: Final = circuit


@final
class Leaving(msgspec.Struct, frozen=True):
    """The server will be shut down soon: circuits on the connection with the local address `local` are to be left."""

    local: TransportAddress


class Incoming(msgspec.Struct, frozen=True):
    """A received payload, still sealed.  `via` names its channel, for `SignalHub.send` of the reply.

    If it is a peer's call, `circuit` is to be answered or closed.
    """

    payload: bytes
    via: str
    circuit: Circuit | None = None


@final
class Circuits:
    """The circuits of one connection to a server; the connection may still be being opened.

    Args:
      url: the server's, for messages.

    Attributes:
      outbox: the frames that wait to be written to the server.
      local, remote: the addresses of the connection.
      opened_at: when the connection was opened (`trio.current_time`); infinity before.
      leaving: the server will be shut down soon, and makes no more circuits.
    """

    def __init__(self, url: str) -> None:
        self.url: Final = url
        self.outbox: Final = Outbox()
        self.local: TransportAddress = ("", 0)
        self.remote: TransportAddress = ("", 0)
        self._on_arrival: Callable[[bytes | Ringing | Leaving], bool] = lambda _: False
        self.opened_at: float = math.inf
        self._open: dict[int, Circuit] = {}
        self._made = -1
        self.leaving: bool = False
        self._told = False  # `on_arrival` has taken that all circuits are to be left

    def __len__(self) -> int:
        return len(self._open)

    @property
    def opened(self) -> bool:
        """Whether the connection has been opened."""
        return self.opened_at < math.inf

    def open(
        self,
        local: TransportAddress,
        remote: TransportAddress,
        on_arrival: Callable[[bytes | Ringing | Leaving], bool],
        now: float,
    ) -> None:
        """The connection has been opened.

        Args:
          on_arrival: takes a call, the payload of an answer, or a `Leaving`; returns False if it has no room for it.
        """
        self.local, self.remote = local, remote
        self._on_arrival = on_arrival
        self.opened_at = now

    def make(self) -> Circuit:
        """A new circuit to call by.

        Raises:
          CircuitRefused: the connection has `MAX_CIRCUITS` already.
        """
        if len(self._open) >= MAX_CIRCUITS:
            raise CircuitRefused(self.url, EndReason.TOO_MANY_HERE, EndReason.TOO_MANY_HERE.words)
        self._made = (self._made + 2) % 2**32
        return self._add(self._made)

    def _add(self, number: int) -> Circuit:
        circuit = self._open[number] = Circuit(self, number)
        return circuit

    def hear(self, frame: Ring | Answer | Relay | RelayCredit | RelayEnd) -> None:
        """Take a frame from the server; frames for circuits that have ended are ignored."""
        circuit = self._open.get(frame.circuit)
        if isinstance(frame, RelayEnd) and frame.reason == EndReason.SHUTTING_DOWN:
            self._leave(all_of_them=frame.circuit == ALL_CIRCUITS)
        if isinstance(frame, Ring):
            self._ring(frame)
        elif circuit is not None:
            if isinstance(frame, Answer) and not circuit.answered and not self._on_arrival(frame.payload):
                circuit.close()
                return
            circuit.hear(frame)

    def _leave(self, *, all_of_them: bool) -> None:
        """The server makes no more circuits; `all_of_them`: existing circuits are to be left as well."""
        self.leaving = True
        if all_of_them and not self._told:
            self._told = self._on_arrival(Leaving(self.local))

    def _ring(self, frame: Ring) -> None:
        if frame.circuit in self._open or frame.circuit % 2 or frame.circuit == ALL_CIRCUITS:
            return
        if len(self._open) >= MAX_CIRCUITS:
            self.outbox.put_nowait(RelayEnd(frame.circuit, EndReason.REFUSED).encode())
            return
        circuit = self._add(frame.circuit)
        if not self._on_arrival(Ringing(frame.payload, circuit)):
            circuit.close()

    def forget(self, number: int, reason: EndReason | None) -> None:
        """A circuit has ended; `reason` goes to the server in a RELAY_END; None: no frame is sent."""
        if self._open.pop(number, None) is not None and reason is not None:
            self.outbox.put_bulk_nowait(RelayEnd(number, reason).encode())  # behind the bytes that were sent

    def refuse(self, why: str) -> None:
        """The server does not relay: end the circuits that were made before that was known, and send it none of their
        frames."""
        self._end_all(why)
        self.outbox.clear()

    def end(self, why: str) -> None:
        """The connection has ended, or will never be opened."""
        self.outbox.close()
        self._end_all(why)

    def _end_all(self, why: str) -> None:
        circuits, self._open = self._open, {}
        for circuit in circuits.values():
            circuit.end(None, why)
