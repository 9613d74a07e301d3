"""QUIC over a path of datagrams: the carrier of every UDP path, and of TURN relays.

Driving.  A QUIC connection needs its datagrams and timers handled even while nobody reads or writes: to acknowledge, to
retransmit, to give up.  There is no background task for that; the task that waits *drives*.  Both `receive` and `flush`
wait for the connection to advance.  The first that waits reads the path and keeps the timer.  The other one parks, and
takes over when the first one is done or is cancelled.

A driven Link always has its reader in `receive`, so its connection is always driven, by a task that exists anyway.  A
handshake is driven by the task that wants it.  Between two steps of a handshake, while a proven Link waits for its turn
to commit, nothing is driven: what arrives waits in the path and timers are late, but nothing is lost.

Sending.  `feed` hands plaintext to the connection; `flush` sends what congestion control and pacing allow.  Of the rest
it leaves up to `UNSENT_MAX` to the task in `receive`, and waits for what is beyond that.  Where no task is in
`receive`, it waits until everything has left, or until there is something to receive.  The connection itself takes care
of data in flight, and of what a cancelled `flush` did not send.

The end.  `receive` reports the peer's clean end once it was acknowledged and, if `feed_end` was called, once the peer
has acknowledged everything of ours.  So the Link may close the path after that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, final

import trio

from ..errors import CarrierError, WrongPeer
from ..ports.datagrams import BATCH, DatagramPath
from ..sockaddr import TransportAddress, show_address
from ._carrier import closing_on_error
from .quic_protocol import QuicProtocol

if TYPE_CHECKING:
    from ..identity import Identity
    from ._carrier import Buffer

__all__ = ["QuicCarrier"]

UNSENT_MAX: Final = 256 * 1024
"""Bytes that may wait unsent in the connection before a sender has to wait: enough that each acknowledgement finds data
to send, and few enough that another channel's frame does not wait for long."""
HELD_MAX: Final = 1024 * 1024
"""Bytes of unread plaintext from which on a `flush` reads the path no more.  The Link's reader never lets it come to
that, but a carrier without a reader must not fill memory."""
ACKNOWLEDGED_BY: Final = 0.03
"""Seconds within which the peer's end has been acknowledged: max_ack_delay is 25 ms (RFC 9000 §18.2)."""
IDLE_INTERVAL: Final = 25.0
"""Seconds of silence on UDP before a PING: RFC 4787 requires mappings to last two minutes, but real NATs keep them for
as little as 30 s."""


@final
class QuicCarrier:
    """One QUIC connection over a path, which the carrier owns; made by `dial` and `serve`."""

    name: Final = "quic"
    idle_interval: Final = IDLE_INTERVAL

    def __init__(self, path: DatagramPath, protocol: QuicProtocol, *, dialler: bool, server_key: bytes) -> None:
        self._path = path
        self._protocol = protocol
        self._sending = trio.Lock()
        self._driving = False
        self._reading = False
        self._changed: Final = trio.lowlevel.ParkingLot()
        self._alarm = trio.CancelScope()
        self._fed = False
        self._was_heard = False
        self._unsent_max = UNSENT_MAX
        self._leave_at = math.inf
        self._closed = False
        self.began: float = trio.current_time()
        self.dialler: Final = dialler
        self.server_key: Final = server_key
        self.local: Final[TransportAddress] = path.local
        self.remote: Final[TransportAddress] = path.remote

    @classmethod
    async def dial(cls, path: DatagramPath, *, peer_key: bytes, initial_rtt: float | None = None) -> QuicCarrier:
        """Be the QUIC client on a path and pin the other side's key.

        The path belongs to the carrier from the call on: it is closed if the handshake fails or is cancelled.  The end
        of the handshake is sent by the first `flush` or `receive`, together with the first plaintext.

        Args:
          path: the path to the other side.
          peer_key: the Ed25519 key (32 bytes) that the other side has to prove.
          initial_rtt: the path's round-trip time in seconds, if something is known about it; the first retransmissions
            depend on it.

        Raises:
          WrongPeer: the handshake succeeded, but the other side has another key.
          CarrierError: the handshake failed.
        """
        try:
            protocol = QuicProtocol.dialing(now=trio.current_time(), initial_rtt=initial_rtt)
        except CarrierError:
            path.close_nowait()
            raise
        carrier = cls(path, protocol, dialler=True, server_key=peer_key)
        with closing_on_error(carrier):
            await carrier._handshake()
            if protocol.peer_certificate_key != peer_key:
                raise WrongPeer(f"{show_address(carrier.remote)} answered with another node's key")
            carrier._fed = True  # the end of the handshake
        return carrier

    @classmethod
    async def serve(cls, path: DatagramPath, identity: Identity, *, initial_rtt: float | None = None) -> QuicCarrier:
        """Be the QUIC server on a path; the Link finds out who dialled.

        It waits without a limit.  Datagrams that begin no handshake, or one that fails, may be anybody's, so they say
        nothing about the peer.  Ownership and `initial_rtt` as in `dial`.

        Raises:
          CarrierError: the path broke.
        """
        protocol = QuicProtocol.serving(identity, initial_rtt=initial_rtt)
        carrier = cls(path, protocol, dialler=False, server_key=identity.public_key)
        with closing_on_error(carrier):
            await carrier._handshake()
        return carrier

    async def _handshake(self) -> None:
        protocol = self._protocol
        try:
            while not protocol.ready:
                self._raise_if_over()
                await self._transmit()
                await self._advance()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise CarrierError(f"no QUIC with {show_address(self.remote)}: {error}") from error

    # -- driving -----------------------------------------------------------------------------------------------------

    async def _advance(self, *, reading: bool = True) -> None:
        """Wait until something has happened to the connection: drive it, or park while another task does."""
        if self._driving or not (reading or self._protocol.held <= HELD_MAX):
            await self._changed.park()
            return
        self._driving = True
        try:
            await self._drive()
        finally:
            self._driving = False
            self._changed.unpark_all()

    async def _drive(self) -> None:
        """Wait for datagrams or for the timer, and have the connection handle them."""
        protocol = self._protocol
        batch: list[bytes] = []
        with trio.CancelScope(
            deadline=self._protocol.deadline
        ) as self._alarm:  # `_transmit` of another task may move it
            try:
                batch = await self._path.receive()
            except trio.BrokenResourceError as error:
                protocol.failure = protocol.failure or f"the path broke: {error}"
            except trio.ClosedResourceError:
                protocol.failure = protocol.failure or "the path was closed"
        now = trio.current_time()
        if batch:
            if not self._was_heard:
                self._was_heard = True
                self.began = self.began if self.dialler else now
            protocol.receive(batch, now)
        if self._protocol.deadline <= now:
            protocol.handle_timer(now)

    async def _transmit(self) -> bool:
        """Send what may be sent now.  Returns whether anything was sent, which is also whether it was a checkpoint."""
        sent = False
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            while datagrams := self._protocol.transmit(trio.current_time()):
                sent = True
                for start in range(0, len(datagrams), BATCH):
                    await self._path.send(datagrams[start : start + BATCH])
        except trio.BrokenResourceError as error:
            self._protocol.failure = self._protocol.failure or f"the path broke: {error}"
        except trio.ClosedResourceError:
            self._protocol.failure = self._protocol.failure or "the path was closed"
        finally:
            self._sending.release()
        # There was no checkpoint since the connection had nothing more to send.
        self._fed = False
        self._alarm.deadline = self._protocol.deadline
        return sent

    def _raise_if_over(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this carrier was closed")
        if self._protocol.failure is not None:
            raise trio.BrokenResourceError(self._protocol.failure)

    # -- the carrier -------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> bool:
        return self._fed or not self._sent_enough()

    def _sent_enough(self) -> bool:
        return self._protocol.backlog <= (self._unsent_max if self._reading or self._protocol.held else 0)

    def feed(self, *parts: Buffer) -> None:
        protocol = self._protocol
        if protocol.ending:
            raise trio.BrokenResourceError("this carrier's stream was already ended")
        self._fed = True
        for part in parts:
            if protocol.failure is not None:
                raise trio.BrokenResourceError(protocol.failure)
            if part:
                protocol.send(part)

    async def flush(self) -> None:
        waited = False
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            waited |= await self._transmit()
            self._raise_if_over()
            if self._sent_enough():
                break
            await self._advance(reading=False)
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def limit_unsent(self, size: int, /) -> None:
        # Twice as much as for a kernel's buffer, which is refilled when half of it has been sent.
        self._unsent_max = min(2 * size, UNSENT_MAX)

    async def receive(self) -> list[bytes]:
        protocol = self._protocol
        self._reading = True
        try:
            while True:
                await self._transmit()  # ACKs too: the peer may wait for one before it ends
                if pieces := protocol.take():
                    return pieces
                if protocol.ended and not self._closed and self._may_leave(trio.current_time()):
                    return []
                self._raise_if_over()
                await self._advance()
        finally:
            self._reading = False
            self._changed.unpark_all()  # a `flush` that left data to this task, or waited for it to read

    def _may_leave(self, now: float) -> bool:
        """Whether the path may be closed, after the peer's end, without the peer missing anything of ours."""
        protocol = self._protocol
        if protocol.failure is not None:
            return True
        if protocol.ending and not protocol.delivered:
            return False
        self._leave_at = min(self._leave_at, now + ACKNOWLEDGED_BY)
        return now >= self._leave_at or self._protocol.deadline > self._leave_at

    def feed_end(self) -> None:
        self._fed = True
        self._protocol.send_end()

    def close_nowait(self) -> None:
        if not self._closed:
            self._closed = True
            self._path.send_nowait(self._protocol.close(trio.current_time()))
            self._path.close_nowait()
            self._changed.unpark_all()
