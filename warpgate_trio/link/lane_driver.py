"""Drives one carrier of a Link: reads it, writes on it (one task at a time), and runs its timers.

A sender encrypts and flushes DATA in its own task, under the lane's lock, so that a bulk transfer costs no task switch.
Everything else (credit, FIN, RESET, PING, the rest of a cancelled sender's record, retransmissions) is sent by `write`,
in a task of the Link's driver, when it is poked.  The reader never writes, so two peers that only send cannot deadlock.

A sender can be blocked by a carrier that is dead or slow.  Once the Link speaks on another carrier, the sender's call
continues there, since the Link keeps what it has sent.

* A slow carrier (`Pace.is_slow`) stays: the sender is released by cancellation, and the writer sends the rest of its
  record.  The carrier may be the only one that carries after all.
* A fast one is closed to release the sender.  Only a dead one blocks, and a cancel scope for each chunk would cost a
  twentieth of its throughput.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, final

import trio

from .frame_codec import data_header

if TYPE_CHECKING:
    from ..carrier import Carrier
    from .channel import Channel
    from .lane import LaneProtocol
    from .path import PathInfo
    from .protocol import LinkProtocol
    from .quiet import Uplinks

__all__ = ["LaneDriver"]


@final
class _Turn:
    """The right to write on a carrier: a lock whose waiters are served in order.

    `trio.Lock` also checks that no owner ends without a release, which costs ten calls for each record.
    """

    def __init__(self) -> None:
        self.is_taken: bool = False
        self._waiting = trio.lowlevel.ParkingLot()

    def take_nowait(self) -> bool:
        taken, self.is_taken = self.is_taken, True
        return not taken

    async def wait(self) -> None:
        """Wait until the owner passes the lock on to this task."""
        await self._waiting.park()

    def pass_on(self) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self.is_taken = False

    async def __aenter__(self) -> None:
        if not self.take_nowait():
            await self.wait()

    async def __aexit__(self, *_: object) -> None:
        self.pass_on()


@final
class LaneDriver:
    """A carrier and its lane.

    Args:
      carrier: the carrier.
      protocol: its lane.
      link: the protocol that the lane belongs to.
      on_broken: called with the error when a sender finds the carrier broken; the Link keeps the sender's data.

    Attributes:
      path: how the carrier was made.
      tasks: tasks that the carrier needs; they end with the lane.
      gone: the carrier was closed.
      scope: the cancel scope of its tasks.
    """

    def __init__(
        self,
        carrier: Carrier,
        protocol: LaneProtocol,
        link: LinkProtocol,
        on_broken: Callable[[LaneDriver, Exception], None],
    ) -> None:
        self.carrier: Final = carrier
        self.protocol: Final = protocol
        self.path: PathInfo | None = None
        self.tasks: Sequence[Callable[[], Awaitable[object]]] = ()
        self.gone: bool = False
        self.scope: Final = trio.CancelScope()
        self._link = link
        self._on_broken = on_broken
        carrier.limit_unsent(protocol.pace.size)
        self._turn: Final = _Turn()
        self._poked = trio.Event()
        self._held: Final[set[trio.CancelScope]] = set()  # scopes of the senders that `release` cancels
        self._alarm = trio.CancelScope(deadline=-math.inf)  # ends `wait_timer`

    def move(self, link: LinkProtocol, on_broken: Callable[[LaneDriver, Exception], None]) -> None:
        """Make the lane part of another Link."""
        self._link = link
        self._on_broken = on_broken

    @property
    def is_relayed(self) -> bool:
        """Whether the carrier goes by a relay."""
        return self.path is not None and self.path.phase == "relay"

    def share(self, uplinks: Uplinks) -> None:
        """Share what is learnt about NATs with other paths.  Only over UDP: mappings of TCP last for long enough."""
        if self.carrier.name == "quic":
            self.protocol.life.uplink = uplinks.get(self.carrier.local[0], self.carrier.remote[0])

    def close_nowait(self) -> None:
        """Close the carrier, which wakes every task that waits for it.  Idempotent."""
        self.gone = True
        self.carrier.close_nowait()

    # -- writing -----------------------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Wake `write`: there is something to send."""
        self._poked.set()

    @property
    def holds_a_sender(self) -> bool:
        """Whether a task is writing, and perhaps waits for the carrier to accept data."""
        return self._turn.is_taken

    def release(self) -> bool:
        """Let the senders that wait for this carrier continue on another one, which we speak on now.

        Returns whether none is blocked any more; otherwise only closing this carrier releases them.
        """
        for scope in self._held:
            scope.cancel()
        return self.protocol.pace.is_slow or not self.holds_a_sender

    def feed_outbox(self) -> None:
        """Encrypt the frames that the protocol has for this lane."""
        if self._link.has_outbox(self.protocol):
            self.carrier.feed(self._link.transmit(self.protocol, trio.current_time()))

    async def flush(self) -> None:
        """Send the protocol's frames inline: only in the handshake, where no other task writes."""
        self.feed_outbox()
        if self.carrier.owed:
            await self.carrier.flush()

    async def send_data(self, channel: Channel, data: memoryview) -> bool:
        """Put one DATA frame on the carrier; a checkpoint always.  The caller has checked the credit.

        Returns False if nothing was sent because we do not speak on this carrier any more.

        Raises:
          trio.ClosedResourceError: the channel ended while we waited for the lock; the Link is well.
          trio.BrokenResourceError: the path is gone, and the data with it.
        """
        if not self._turn.take_nowait():
            await self._turn.wait()
        link, lane, kept = self._link, self.protocol, False
        try:
            if len(data) > channel.sendable:
                raise trio.ClosedResourceError("this channel ended")
            if self.gone or link.lanes.active is not lane:
                await trio.lowlevel.checkpoint()
                return False
            try:
                if link.has_outbox(lane):
                    self.feed_outbox()
                began = trio.current_time()
                begins = link.note_data_sent(lane, channel, data, began)
                kept = True
                if begins:
                    self.carrier.feed(data_header(channel.id, len(data)), data)
                else:
                    self.poke()  # it comes behind what is sent again
                self.set_alarm()
                await self.carrier.flush()
                if lane.pace.handed(len(data), began, trio.current_time()):
                    self.carrier.limit_unsent(lane.pace.size)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if not link.movable:
                    raise
                self._on_broken(self, error)
                await trio.lowlevel.checkpoint()  # a carrier that was closed raises without one
                return kept
        except (trio.Cancelled, KeyboardInterrupt):
            self.poke()  # the rest of the record goes out without us
            raise
        finally:
            self._turn.pass_on()
        return True

    async def send_slowly(self, channel: Channel, data: memoryview) -> bool:
        """The same on a slow carrier; `release` ends the call."""
        before = channel.sent
        with trio.CancelScope() as scope:
            self._held.add(scope)
            try:
                return await self.send_data(channel, data)
            finally:
                self._held.discard(scope)
        return channel.sent > before  # then the Link keeps it, see `release`

    async def write(self, is_ending: Callable[[], bool]) -> None:
        """Send the protocol's frames whenever poked; once the Link is ending, its last frames and the carrier's end."""
        self.poke()
        link, lane = self._link, self.protocol
        while True:
            await self._poked.wait()
            self._poked = trio.Event()
            async with self._turn:
                ending = is_ending()  # asked once: it may become true while we wait for the socket
                if ending:
                    link.send_go_away()
                self.feed_outbox()
                if link.has_outbox(lane):
                    self.poke()  # more is to be sent again; meanwhile others have their turn
                elif ending:
                    self.carrier.feed_end()
                self.set_alarm()
                if self.carrier.owed:
                    await self.carrier.flush()
            if ending and not self._poked.is_set():
                return

    # -- reading -----------------------------------------------------------------------------------------------------

    async def pump(self) -> None:
        """Read once, unless something was left unread, and give it to the protocol.  A checkpoint always."""
        lane = self.protocol
        if lane.is_ahead and (pause := lane.pause(trio.current_time())):
            await trio.sleep(pause)  # pacing: flow control stops the peer meanwhile
        pieces: list[bytes] = []
        if lane.has_unread:
            await trio.lowlevel.checkpoint()
        else:
            pieces = await self.carrier.receive()
            if not pieces:
                raise trio.BrokenResourceError("the peer closed the connection")
        self._link.receive(lane, pieces, trio.current_time())

    async def drain(self) -> None:
        """Read until the peer has closed too: closing first could lose our last frames."""
        while await self.carrier.receive():
            pass

    # -- timers ------------------------------------------------------------------------------------------------------

    async def wait_timer(self) -> None:
        """Wait until a timer of the lane is due, and have the protocol handle it."""
        with trio.CancelScope(deadline=self._link.deadline(self.protocol)) as self._alarm:
            await trio.sleep_forever()
        self._link.handle_timer(self.protocol, trio.current_time())

    def set_alarm(self) -> None:
        """Advance the alarm if a timer was started.  A stopped timer needs nothing: at the alarm nothing is due."""
        life, incoming = self.protocol.life, self._link.incoming
        if not life.timer_began and (incoming is None or not incoming.timer_began):
            return
        life.timer_began = False
        if incoming is not None and self._link.lanes.active is self.protocol:
            incoming.timer_began = False
        deadline = self._link.deadline(self.protocol)
        if deadline < self._alarm.deadline:
            self._alarm.deadline = deadline
