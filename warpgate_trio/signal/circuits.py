"""Relayed circuits at a client: byte streams to peers, on the connection to a rendezvous server that is open anyway.

`servers.relay_frames` has the frames.  A `Circuit` is what a carrier needs of a socket: `send`, `recv`, `close`.  What
is sent waits for the server's credit, and for its turn behind the signals; what comes in is bounded by what was granted
to the server, which is renewed as it is read.  So the connection's reader never waits for a circuit.
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
"""Credit is renewed when a fourth of the window has been read; for the first time when half of what is granted without
a word has been, since what a call says first is not to wait for it."""
MAX_CIRCUITS: Final = 64
"""Circuits of one connection, as many as a server allows (`servers.relay_core.RelayLimits`)."""
MAX_SIGNALS: Final = 16
"""Signals that wait to be written; more wait with their senders."""
MAX_CONTROL: Final = 1024
"""Short frames of circuits that wait to be written: eight for each that there may be at once, and their ends.  A server
that has us say more than it reads is left."""
PIECE: Final = 16 * 1024
"""Bytes that are worth a RELAY of their own where credit is short: with less than that, more is waited for."""
FIRST_PIECE: Final = 4 * 1024
"""The same while little was sent, and no more then: a server passes on no RELAY before its last byte is there, and TCP
sends no more than `FIRST_FLIGHT` at once on a connection that was silent (`warpgate_trio.carrier.records`)."""


class CircuitRefused(AttemptFailed):
    """There is no circuit: the server or the peer said no.

    Attributes:
      reason: an `EndReason`, or a code that this release does not know; None: the connection to the server ended.
      try_again: the peer has told its time, by which another call will be stamped.
      too_early: it was called before this node was registered with the server, which may be why: that connection never
        came to be, or what the peer said of our clock found nobody.
    """

    def __init__(self, url: str, reason: int | None, why: str) -> None:
        super().__init__(f"no circuit by {url}: {why}")
        self.reason = reason
        self.try_again: bool = False
        self.too_early: bool = False


@final
class Outbox:
    """What waits to be written to a server: signals go before relayed bytes, of which one message waits at most."""

    def __init__(self) -> None:
        self._signals: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._closed = False
        self._writer: Final = trio.lowlevel.ParkingLot()
        self._senders: Final = trio.lowlevel.ParkingLot()
        self._relaying: Final = trio.lowlevel.ParkingLot()

    async def put(self, frame: bytes) -> None:
        """Queue a signal.  Cancelled: it was not.

        Raises:
          trio.ClosedResourceError: nothing is written any more.
        """
        await self.wait_signal()
        self.put_nowait(frame)

    async def wait_signal(self) -> None:
        """Return when there is room for a signal, which may be queued at once.

        Raises:
          trio.ClosedResourceError: nothing is written any more.
        """
        await trio.lowlevel.checkpoint()
        while len(self._signals) >= MAX_SIGNALS and not self._closed:
            await self._senders.park()
        if self._closed:
            raise trio.ClosedResourceError

    def put_nowait(self, frame: bytes) -> None:
        """Queue a short frame, of which there can be but a few for each circuit."""
        self._signals.append(frame)
        self._writer.unpark()

    @property
    def is_overfull(self) -> bool:
        """Whether more waits than any server that reads lets come together."""
        return len(self._signals) + len(self._bulk) > MAX_CONTROL

    @property
    def has_room(self) -> bool:
        """Whether there is room for relayed bytes."""
        return not self._bulk or self._closed

    async def wait_bulk(self) -> None:
        """Return when there is room for relayed bytes, or nothing is written any more."""
        while self._bulk and not self._closed:
            await self._relaying.park()

    def put_bulk_nowait(self, frame: bytes) -> None:
        """Queue relayed bytes, or what must not overtake them."""
        self._bulk.append(frame)
        self._writer.unpark()

    def take_signal_nowait(self, size: int) -> bytes:
        """The signal that waits first; nothing where there is none, or it has more bytes than that."""
        if not self._signals or len(self._signals[0]) > size:
            return b""
        self._senders.unpark()
        return self._signals.popleft()

    def put_back(self, frame: bytes) -> None:
        """A signal that was taken has not been written."""
        self._signals.appendleft(frame)

    def clear(self) -> None:
        """What waits is not written."""
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
        """Nothing more is taken; what waits may still be written."""
        self._closed = True
        for lot in (self._writer, self._senders, self._relaying):
            lot.unpark_all()


class Judge(Protocol):
    """Hears what one call says of its server."""

    def worked(self) -> None:
        """Something of the peer has come by the circuit."""

    def failed(self) -> None:
        """The server makes no circuits, or it ended this one before anything came."""

    def gave_up(self, waited: float) -> None:
        """The caller has not waited for longer than that for an answer."""


_SERVERS_FAULT: Final = (EndReason.TOO_MANY_OF_ADDRESS, EndReason.TOO_MANY_IN_ALL, EndReason.SHUTTING_DOWN)
"""Ends of a call that are about the server, and not about the peer or these two."""


@final
class Circuit:
    """One end of a circuit, made by `Circuits`; `warpgate_trio.carrier.tls.ByteSocket` for a carrier.

    Attributes:
      url: of the server, without a password.
      local, remote: of the connection to it; nothing yet where it is being opened.
      answered: both sides have it.
      claimed: somebody sees to it that it is answered or closed; else whoever hears of the call closes it.
      judge: of the server, where we call.
    """

    def __init__(self, owner: Circuits, number: int) -> None:
        self._owner = owner
        self._number = number
        self._changed: Final = trio.lowlevel.ParkingLot()
        self._limit = self._granted = INITIAL_CREDIT
        self._sent = self._received = self._read = 0
        self._left = 0  # bytes that go in small pieces
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
        """Have the server call whoever has this key, or one process of it; it is `answered` later, or ends.

        While the connection is being opened, the first call goes with the request for it, and others wait.

        Raises:
          CircuitRefused: the connection has ended, or the server makes no circuits.
        """
        self._called_at = trio.current_time()
        await self._say(Call(self._number, receiver_key, instance, payload))

    async def wait_answered(self) -> None:
        """Return once the peer has answered.

        Raises:
          CircuitRefused: it will not, and why.
        """
        await trio.lowlevel.checkpoint()
        while not self.answered:
            if self._end is not None or self._closed:
                raise self._refused()
            await self._changed.park()

    async def answer(self, payload: bytes) -> None:
        """Take a call: bytes may be sent from here on.

        Raises:
          CircuitRefused: it was taken back, or the connection has ended.
        """
        await self._say(Answer(self._number, payload))
        self._open()

    async def _say(self, frame: Call | Answer) -> None:
        """Queue it, unless the circuit ends before there is room."""
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
        """Send the first bytes of it, as many as there is room for, and return how many.  Cancelled: none.

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
        """The next bytes, at most so many; ``b""`` once the other side has closed.  Cancelled: nothing is lost.

        Raises:
          OSError: the circuit has ended otherwise.
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
        """End the circuit; who waits in it is woken.  What was sent goes out before.  Idempotent."""
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
        unread = self._granted - self._read  # what it may send until it hears from us
        enough = WINDOW * (RENEWAL - 1) // RENEWAL if self._granted > INITIAL_CREDIT else INITIAL_CREDIT // 2
        if self.answered and self._end is None and unread <= enough:
            self._granted = self._read + WINDOW
            self._owner.outbox.put_nowait(RelayCredit(self._number, self._granted).encode())

    # -- what the channel's reader hears -------------------------------------------------------------------------------

    def hear(self, frame: Answer | Relay | RelayCredit | RelayEnd) -> None:
        """A frame of the server's.  One that sends more than it may loses the circuit."""
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
        """Nothing more comes; what has come can still be read."""
        if self._end is None:
            self._end, self._reason = why, reason
            if self.judge is not None and not self._received and (self.answered or reason in _SERVERS_FAULT):
                self.judge.failed()
        self._changed.unpark_all()


@final
class Ringing:
    """A peer calls: a sealed signal, and the circuit to answer by."""

    __slots__ = ("circuit", "payload")

    def __init__(self, payload: bytes, circuit: Circuit) -> None:
        self.payload: Final = payload
        self.circuit: Final = circuit


@final
class Leaving(msgspec.Struct, frozen=True):
    """The server will be shut down before long: circuits on the connection that begins at `local` are to be left."""

    local: TransportAddress


class Incoming(msgspec.Struct, frozen=True):
    """A payload that came in, still sealed; `via` names the channel, for the reply's `SignalHub.send`.

    Where a peer calls, `circuit` is to be answered or closed.
    """

    payload: bytes
    via: str
    circuit: Circuit | None = None


@final
class Circuits:
    """The circuits of one connection to a server, which may still be being opened.

    Args:
      url: of the server, for people.

    Attributes:
      outbox: what waits to be written to the server.
      local, remote: the ends of the connection.
      opened_at: when it came to be; infinite before.
      leaving: the server will be shut down before long, and makes no circuits any more.
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
        self._told = False  # that all are to be left

    def __len__(self) -> int:
        return len(self._open)

    @property
    def opened(self) -> bool:
        """Whether the connection has come to be."""
        return self.opened_at < math.inf

    def open(
        self,
        local: TransportAddress,
        remote: TransportAddress,
        on_arrival: Callable[[bytes | Ringing | Leaving], bool],
        now: float,
    ) -> None:
        """The connection is there.

        Args:
          on_arrival: takes a call, the payload of an answer, or that the server leaves; False: there is no room for it.
        """
        self.local, self.remote = local, remote
        self._on_arrival = on_arrival
        self.opened_at = now

    def make(self) -> Circuit:
        """A circuit to call by.

        Raises:
          CircuitRefused: there are as many as one connection may have.
        """
        if len(self._open) >= MAX_CIRCUITS:
            raise CircuitRefused(self.url, EndReason.TOO_MANY_HERE, EndReason.TOO_MANY_HERE.words)
        self._made = (self._made + 2) % 2**32
        return self._add(self._made)

    def _add(self, number: int) -> Circuit:
        circuit = self._open[number] = Circuit(self, number)
        return circuit

    def hear(self, frame: Ring | Answer | Relay | RelayCredit | RelayEnd) -> None:
        """A frame of the server's; those for circuits that have ended are ignored."""
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
        """It makes no circuits any more; `all_of_them` are to be left, where there are any."""
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
        """A circuit has ended; `reason`: what the server is to be told."""
        if self._open.pop(number, None) is not None and reason is not None:
            self.outbox.put_bulk_nowait(RelayEnd(number, reason).encode())  # behind what was sent

    def refuse(self, why: str) -> None:
        """The server knows of no circuits: those that were made before it said so end, and it hears nothing of them."""
        self._end_all(why)
        self.outbox.clear()

    def end(self, why: str) -> None:
        """The connection has ended, or will not come to be."""
        self.outbox.close()
        self._end_all(why)

    def _end_all(self, why: str) -> None:
        circuits, self._open = self._open, {}
        for circuit in circuits.values():
            circuit.end(None, why)
