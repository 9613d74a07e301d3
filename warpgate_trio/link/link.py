"""The Trio shell of a Link: it owns its carriers, and turns channels into Pipes.

Life.  The handshake (`warpgate_trio.link.handshake`) runs inline, in the task of the attempt that wants the Link.  From
ACCEPT on, `drive` runs in a nursery of the node (docs/architecture.md).  It shields itself from cancellation, and ends

* when the last Pipe was closed here and the peer has received everything;
* when the peer is gone, or there was no path for too long;
* within the goodbye time after `end_nowait`, which the node calls when it is closed.

Carriers.  Each is a lane with tasks of its own, which end with it: a reader, a writer, a watch, and the tasks that its
plugin runs for it.  Where the last carrier is lost, calls wait for another one, for as long as both sides have agreed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from ..errors import PeerRefused, ProtocolError, panics_as_errors
from ..identity import peer_id_from_key
from .ends import GoAwayCode
from .frames import MAX_LABEL, RefuseReason
from .handshake import Handshake, Task
from .lane import LaneProtocol
from .lane_driver import LaneDriver
from .life import DEATH, Life
from .openings import OpenHandler, Openings
from .pipe import Pipe
from .states import LinkState
from .travelling import Travelling

if TYPE_CHECKING:
    from ..carrier import Carrier
    from ..sockaddr import TransportAddress
    from .channel import Channel

__all__ = ["Link"]

logger: logging.Logger = logging.getLogger(__name__)

Admit = Callable[["Link"], Awaitable[bool]]
"""Decides whether a peer that this side called may open Pipes, at the peer's first OPEN; no means UNAUTHORIZED."""


@final
# long: a session has one owner until its GOAWAY: its carriers, its Pipes and its end
class Link(Travelling):
    """One side of the session between two peers.  See `Travelling` and `Handshake` for more of its attributes.

    Attributes:
      on_wait: called when the Link has lost its last path, or its last Pipe was closed while something is left to send;
        for the owner to set.
      waits_since: when that happened; infinity while the Link has both a path and a Pipe.
    """

    def __init__(self, carrier: Carrier, *, peer_key: bytes, session_id: bytes, initiator: bool | None) -> None:
        super().__init__(carrier, peer_key=peer_key, session_id=session_id, initiator=initiator)
        self._lanes: dict[LaneProtocol, LaneDriver] = {self._first.protocol: self._first}
        self._last = self._first  # the carrier that we spoke on last
        self._told: tuple[LaneProtocol | None, Life, bool] | None = None  # the `_sight` that was last reported
        self._pipes: set[Channel] = set()
        self._scope: Final = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._over: Final = trio.Event()
        self._patience: Final = trio.CancelScope()  # its deadline ends the wait for another carrier
        self._lost_by: Exception | None = None
        self._goodbye: float | None = None  # None: not driven yet
        self.on_wait: Callable[[Link], object] | None = None
        self.waits_since: float = math.inf
        self._openings: Final = Openings(self.protocol, make=self._pipe, drop=self._pipes.discard)

    @property
    def movable(self) -> bool:
        """Whether the Link may have further carriers, and outlive those that it has."""
        state = self.protocol.state
        standing = state is LinkState.CLOSING or (state is LinkState.OPEN and not self._ending)
        return standing and self.protocol.movable

    @property
    def carrier(self) -> Carrier:
        """The carrier that we speak on, or spoke on last."""
        return self._speaking.carrier

    @property
    def _drivers(self) -> list[LaneDriver]:
        return list(self._lanes.values())

    @property
    def _speaking(self) -> LaneDriver:
        active = self.protocol.lanes.active
        if active is not None and active in self._lanes:
            self._last = self._lanes[active]
        return self._last

    def __repr__(self) -> str:
        return f"<Link to {peer_id_from_key(self.peer_key)[:8]}… {self.protocol.state.value}>"

    # -- the driver, in the node's nursery ---------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def drive(
        self, *, on_open: OpenHandler, admit: Admit | None = None, tasks: Sequence[Task] = (), goodbye: float
    ) -> None:
        """Run the Link until it ends.  Never raises, and is not cancelled from outside: see `end_nowait`.

        Args:
          on_open: gets the Pipes that the peer opens.
          admit: asked before the first of them where this side called the peer, so that nobody has decided about the
            peer yet; None admits it.
          tasks: the tasks that the first carrier needs; they end with it.
          goodbye: seconds for the last frames once the Link ends here.
        """
        self._first.tasks = tasks
        self._openings.take = on_open
        self._goodbye = goodbye
        self._openings.admitted = self._admitted or (None if admit is not None else True)
        self._scope.shield = True
        with self._scope:
            if self._ending:  # every Pipe was closed before the driver had its first turn
                self._bound_goodbye()
            self._first.protocol.send_ping(trio.current_time())  # measures the round trip, for credit and `Pipe.path`
            async with trio.open_nursery() as self._nursery:
                for lane in list(self._lanes.values()):
                    self._nursery.start_soon(self._drive_lane, lane)
                if admit is not None and not self._admitted:
                    self._nursery.start_soon(self._guard, partial(self._decide_admission, admit))
                self._nursery.start_soon(self._keep)
                self._openings.answer()  # the peer may have opened a Pipe right behind its ACCEPT
                await self._over.wait()
                self._nursery.cancel_scope.cancel()
        self._fail(trio.BrokenResourceError("the link ended"))

    @trio.lowlevel.enable_ki_protection  # the peer would take a record that Ctrl-C cuts off for a forged one
    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of the Link; its failure breaks the Link."""
        try:
            with panics_as_errors():
                await task()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
            logger.debug("%r: %s", self, error)
            self._fail(error)
        except Exception as error:
            logger.exception("%r: an unexpected error ends the link", self)
            self._fail(error)

    # -- carriers ----------------------------------------------------------------------------------------------------

    def _give_to(self, link: Handshake, tasks: Sequence[Task]) -> None:
        """Give our carrier to another Link, as a lane; nothing is left here."""
        self._first.tasks = tasks
        self.protocol.lanes.lose(self._first.protocol)
        self._lanes.clear()
        assert isinstance(link, Link)
        link._adopt(self._first)

    def _adopt(self, lane: LaneDriver) -> None:
        """Take a proven carrier as a lane of this Link; the protocol has it already."""
        lane.move(self.protocol, self._lose)
        self._share(lane)
        self._lanes[lane.protocol] = lane
        if self.protocol.state is not LinkState.CLOSING:
            self.waits_since = math.inf
        if self._nursery is not None:
            self._nursery.start_soon(self._drive_lane, lane)
        self._settle()

    async def _drive_lane(self, lane: LaneDriver) -> None:
        """Run all tasks of one carrier; they end with it."""
        with lane.scope:
            async with trio.open_nursery() as nursery:
                for loop in (self._write, self._watch, self._read):
                    nursery.start_soon(self._guard_lane, lane, loop)
                for task in lane.tasks:
                    nursery.start_soon(self._carry, lane, task)

    @trio.lowlevel.enable_ki_protection
    async def _guard_lane(self, lane: LaneDriver, loop: Callable[[LaneDriver], Awaitable[None]]) -> None:
        """Run a task of a carrier.  A broken carrier is lost (`_lose`); any other failure ends the Link."""
        try:
            with panics_as_errors():
                await loop(lane)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%r: %s", self, error)
            self._lose(lane, error)
        except ProtocolError as error:
            logger.debug("%r: %s", self, error)
            self._fail(error)
        except Exception as error:
            logger.exception("%r: an unexpected error ends the link", self)
            self._fail(error)

    async def _carry(self, lane: LaneDriver, task: Task) -> None:
        """Run a plugin's task for a carrier; if it fails, the carrier is lost."""
        try:
            with panics_as_errors():
                await task()
        except Exception as error:
            logger.exception("a plugin's task for a carrier of %r failed", self)
            self._lose(lane, error)

    async def _write(self, lane: LaneDriver) -> None:
        await lane.write(lambda: self._is_last_word(lane))
        if self.protocol.is_acknowledged:
            self._over.set()  # closing first can lose no data now

    def _is_last_word(self, lane: LaneDriver) -> bool:
        """Whether what is written on a carrier now is the last that it carries."""
        state = self.protocol.state
        if not self._ending or state in (LinkState.CLOSING, LinkState.COMMITTED):
            return False
        return state is LinkState.ENDED or self._speaking is lane

    async def _read(self, lane: LaneDriver) -> None:
        while self.protocol.state is not LinkState.ENDED:
            await self._pump(lane)
        if lane.protocol.refusal is not None:
            self._fail(self.refused(lane.protocol.refusal))
        self._bound_goodbye()
        for each in self._lanes.values():
            each.poke()
        await lane.drain()
        self._over.set()

    async def _watch(self, lane: LaneDriver) -> None:
        """Run the lane's timers.  A task of its own, since a peer that does not read blocks the writer."""
        while True:
            await lane.wait_timer()
            life = lane.protocol.life
            if self.protocol.is_spare(lane.protocol, trio.current_time()) and not self._may_stand_by(lane):
                raise trio.BrokenResourceError("the path is no longer needed")
            self._settle()
            if life.life is Life.DEAD:
                silence = life.silence(trio.current_time())
                raise trio.BrokenResourceError(f"the path is dead: the peer was not heard for {silence:.0f} s")

    def _may_stand_by(self, lane: LaneDriver) -> bool:
        """Whether a lane that was left is kept in case the other one fails: only the newest one by a relay is."""
        relays = [each for each in self._lanes.values() if each.is_relayed and not each.protocol.leaving]
        close = partial(self._lose, lane, trio.BrokenResourceError("too many relayed paths stand by on this node"))
        lane.protocol.life.rests = lane in relays[-1:] and self._standbys.keep(lane, close)
        return lane.protocol.life.rests

    async def _keep(self) -> None:
        """End the Link if the ACCEPT does not come in time, or later if it has no usable path for too long."""
        with trio.move_on_after(self._accept_within):
            await self.wait_accepted()
        if self.protocol.state is LinkState.COMMITTED:
            self._fail(trio.BrokenResourceError(f"the peer did not accept within {self._accept_within:g} s"))
        if self._ending and self.protocol.state is LinkState.OPEN:  # every Pipe was closed meanwhile
            self._ending = False
            self._end()
        if not self.protocol.is_lasting:
            return
        with self._patience:
            await trio.sleep_forever()
        self.lapsed = True
        cause = self._lost_by or "the peer has acknowledged nothing"
        why = f"no usable path for {self.protocol.resume_timeout:g} s: {cause}"
        error = trio.BrokenResourceError(why)
        error.__cause__ = self._lost_by
        self._fail(error)

    def say_news(self, payload: bytes) -> bool:
        """Send the peer a sealed signal of at most 16 KiB.  Returns whether a path that is well takes it."""
        took = self.protocol.say_news(payload)
        self._settle()
        return took

    def hint(self, is_gone: Callable[[TransportAddress], bool] = lambda _: False) -> None:
        """Something has happened that may have killed the path: it is asked at once, see `LifeJudge.hint`.

        Args:
          is_gone: whether the host no longer has a local address.  Direct carriers from there are closed; relayed ones
            are not, since their local address may be the relay's.
        """
        for lane in list(self._lanes.values()):
            if self.movable and not lane.is_relayed and is_gone(lane.carrier.local):
                self._lose(lane, trio.BrokenResourceError(f"the local address {lane.carrier.local[0]} is gone"))
        self.protocol.hint(trio.current_time())
        self._settle()
        self._note_hint()

    def _lose(self, lane: LaneDriver, error: Exception) -> None:
        """Remove a carrier that is gone.  A Link that is not `movable` fails with it.  Idempotent."""
        if lane.gone:
            return
        lane.close_nowait()
        protocol = self.protocol
        if not self.movable:
            self._fail(error)
            return
        self._lost_by = error
        if lane.protocol.was_dropped and lane.path is not None:
            self._dropped.append(lane.path)
        protocol.lose(lane.protocol, trio.current_time())
        self._lanes.pop(lane.protocol, None)
        self._standbys.discard(lane)
        self.path_log.tell()
        lane.scope.cancel()
        if not self._lanes:
            self._wait_no_longer_than(protocol.resume_timeout)
            self._wait()
        self._settle()

    async def _pump(self, lane: LaneDriver) -> None:
        """Read a carrier once, and act on what came.  A checkpoint always."""
        await lane.pump()
        protocol = self.protocol
        for channel in protocol.take_touched():
            if channel.observer is not None:
                channel.observer.wake()
        if self._answers:
            self._answers.unpark_all()
        if protocol.news:
            for payload in protocol.take_news():
                self.on_news(payload)
        if protocol.channels.opened and self._goodbye is not None:
            self._openings.answer()
        if len(self._lanes) > 1 or self._told != self._sight:
            self._settle()
            return
        if protocol.has_outbox(lane.protocol):
            lane.poke()
        lane.set_alarm()

    @property
    def _sight(self) -> tuple[LaneProtocol | None, Life, bool]:
        """What is reported of the path to those that wait for a change of it."""
        active = self.protocol.lanes.active
        life = Life.DEAD if active is None else active.life.life
        return active, life, life is Life.SUSPECT and self.protocol.has_spare

    def _settle(self) -> None:
        """Act on a change: have pending frames sent and timers set, and report a change of the path."""
        for lane in list(self._lanes.values()):
            if self.protocol.has_outbox(lane.protocol):
                lane.poke()
            lane.set_alarm()
        if self._told != self._sight:
            self._told = self._sight
            active = None if self.protocol.lanes.active is None else self._speaking
            self._standbys.discard(active)
            self.path_log.look(active, self.protocol, lost_by=self._lost_by)
            self._answers.unpark_all()
        self._close_unwanted()
        self._be_patient()

    def _be_patient(self) -> None:
        """Bound how long the Link lives on a suspected lane: `DEATH` and the resume timeout, whatever arrives there."""
        active = self.protocol.lanes.active
        if active is None:
            return
        if active.life.life is Life.WELL:
            self._patience.deadline = math.inf
        else:
            self._wait_no_longer_than(DEATH + self.protocol.resume_timeout)

    def _wait_no_longer_than(self, seconds: float) -> None:
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + seconds)

    def _close_unwanted(self) -> None:
        """Close lanes that were dropped, and lanes that we have left but that still block a sender.

        The blocked sender goes on over another lane.
        """
        active = self.protocol.lanes.active
        for lane in list(self._lanes.values()):
            life, left = lane.protocol.life, active is not None and lane.protocol is not active
            held = left and not lane.release()
            if held and life.life is not Life.WELL:
                self._lose(lane, trio.BrokenResourceError("data sent on this path is not acknowledged"))
            elif (
                held and not life.asking and not self.protocol.carries_a_tail(lane.protocol)
            ):  # the peer may have noticed before us that it is dead, and no PING is due there
                lane.protocol.doubt(trio.current_time())
                lane.set_alarm()
            elif lane.protocol.is_over and self.protocol.is_up:
                self._lose(lane, trio.BrokenResourceError("the path was dropped, by this side or by the peer"))

    async def _decide_admission(self, admit: Admit) -> None:
        await self._openings.wait_first()
        self._openings.admitted = await admit(self)
        self._openings.answer()
        self._settle()

    def forget_nowait(self) -> None:
        """The peer does not know this Link: end it if it waits for a path.  A Link that has a path stays."""
        if not self._lanes:
            self._fail(trio.BrokenResourceError("the peer no longer has this link (it gave it up or was restarted)"))

    def replace_nowait(self, instance: bytes) -> bool:
        """The peer runs as another process now: end the Link if it belongs to the previous one and waits for a path.

        Returns whether the Link was ended.
        """
        if instance == self.protocol.peer_instance or self._lanes:
            return False
        self._fail(trio.BrokenResourceError("the peer was restarted"))
        return True

    def revoke_nowait(self) -> None:
        """The peer is not let in any more: every Pipe breaks here, and at the peer once the GOAWAY has arrived."""
        self.protocol.send_go_away(GoAwayCode.UNAUTHORIZED)
        failure = trio.BrokenResourceError("this node has revoked the peer's access")
        if self._lanes:
            self.protocol.break_all(failure)
            self._wake()
            self._end()
        else:
            self._fail(failure)

    def evict_nowait(self) -> None:
        """End the Link: too many wait for a path, and this one has waited for longest."""
        self._fail(trio.BrokenResourceError("too many links wait for a path; this one has waited longest"))

    def _wait(self) -> None:
        self.waits_since = min(self.waits_since, trio.current_time())
        if self.on_wait is not None:
            self.on_wait(self)

    @property
    def has_lanes(self) -> bool:
        """Whether the Link has a carrier, even one that is suspected."""
        return bool(self._lanes)

    def end_nowait(self, *, abort: bool = False) -> None:
        """Close or abort every Pipe; the driver ends the Link within its goodbye time from now."""
        self._hurried = True
        for channel in list(self._pipes):
            self.close_channel(channel, abort=abort)
        self._end()

    def _end(self) -> None:
        """The last Pipe is gone.  A `movable` Link goes on until the peer has acknowledged everything."""
        if self.movable and not self._ending:
            self.protocol.close()
            self._wait()
        self._ending = self._openings.over = True
        self.path_log.tell()
        self._speaking.poke()
        self._settle()
        self._bound_goodbye()

    def _bound_goodbye(self) -> None:
        waits = self.protocol.state is LinkState.COMMITTED and not self._hurried  # for the ACCEPT: `_keep` bounds that
        if self._goodbye is None or waits:
            return
        patience = self._goodbye
        if self.protocol.state is LinkState.CLOSING and not self._hurried:
            patience = max(patience, self.protocol.resume_timeout)
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + patience)

    def _fail(self, failure: Exception) -> None:
        """End the Link: break its Pipes, wake all waiters, close the carriers.  Idempotent."""
        self.protocol.break_all(failure)
        for lane in self._lanes.values():
            lane.close_nowait()
            self._standbys.discard(lane)
        self._over.set()
        self._wake()

    def _wake(self) -> None:
        """Wake all waiters."""
        self._answers.unpark_all()
        self.path_log.tell()
        for channel in self.protocol.take_touched():
            if channel.observer is not None:
                channel.observer.wake()

    # -- for the Pipes -----------------------------------------------------------------------------------------------

    def _pipe(self, channel: Channel) -> Pipe:
        self._pipes.add(channel)
        return Pipe(self, channel)

    @property
    def chunk_size(self) -> int:
        """Bytes of DATA that are handed to the carrier at once."""
        return self._last.protocol.pace.size

    async def send_data(self, channel: Channel, data: memoryview) -> None:
        """Send one chunk of DATA on the carrier that we speak on; a checkpoint always.

        Waits, without holding a lock, while too much is unacknowledged, and while there is no carrier.

        Raises:
          trio.ClosedResourceError: the channel ended meanwhile; the Link is well.
          trio.BrokenResourceError: the path is gone.
        """
        protocol = self.protocol
        while True:
            active, kept = protocol.lanes.active, protocol.outgoing
            if (active is None or (kept is not None and kept.full)) and channel.sendable:
                await self._answers.park()
                continue
            lane = self._last if self._last.protocol is active else self._speaking
            try:
                send = lane.send_slowly if lane.protocol.pace.is_slow else lane.send_data
                if await send(channel, data):
                    return
            except trio.BrokenResourceError as error:
                self._fail(error)
                raise

    def finish(self, channel: Channel) -> None:
        """Half-close a channel."""
        self.protocol.finish(channel)
        self._settle()

    def note_read(self, channel: Channel, size: int) -> None:
        """The application has read `size` bytes; credit follows."""
        self.protocol.note_read(channel, size, trio.current_time())
        if self.protocol.channels.credits:
            self._speaking.poke()

    def close_channel(self, channel: Channel, *, abort: bool = False) -> None:
        """Close or abort a channel here; the last one ends the Link."""
        self.protocol.close_channel(channel, abort=abort)
        if channel.observer is not None:
            channel.observer.wake()
        self._answers.unpark_all()
        self.path_log.told_pipes.unpark_all()
        self._pipes.discard(channel)
        if self._pipes:
            self._settle()
        else:
            self._end()

    def open_pipe_nowait(self, label: str) -> Pipe:
        """See `Pipe.open_pipe_nowait`."""
        if len(label.encode()) > MAX_LABEL:
            raise ValueError(f"a label is at most {MAX_LABEL} bytes of UTF-8")
        if self.protocol.state is not LinkState.OPEN:
            raise trio.BrokenResourceError(f"pipe broken: {self.protocol.failure}") from self.protocol.failure
        try:
            channel = self.protocol.open_channel(label, now=trio.current_time())
        except ProtocolError as error:
            raise PeerRefused(RefuseReason.BUSY, str(error)) from error
        pipe = self._pipe(channel)
        self._settle()
        return pipe
