"""The Trio shell of a Link: it owns its carriers, and turns channels into Pipes.

Life.  The handshake (`warpgate_trio.link.handshake`) runs inline, in the task of the attempt that wants the Link.  From
ACCEPT on `drive` runs in a nursery of the node.  It shields itself and ends when the last Pipe was closed here and the
peer has all, when the peer is gone or there was no path for too long, or within the goodbye time after the node said
`end_nowait` (docs/architecture.md).

Carriers.  Each is a lane with tasks of its own, which end with it: a reader, a writer, a watch, and what its plugin has
work for it.  Where the last one is lost, calls wait for another one, for as long as both sides have agreed to.
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
"""Decides, at its first OPEN, whether a peer that was called here may open Pipes; no means UNAUTHORIZED."""


@final
# long: a session has one owner until its GOAWAY: its carriers, its Pipes and its end
class Link(Travelling):
    """One side of the session between two peers.  See `Travelling` and `Handshake` for more of its attributes.

    Attributes:
      on_wait: told when it has no path any more, or no Pipe and something left to say; for its owner to set.
      waits_since: when that was; infinity while it has both.
    """

    def __init__(self, carrier: Carrier, *, peer_key: bytes, session_id: bytes, initiator: bool | None) -> None:
        super().__init__(carrier, peer_key=peer_key, session_id=session_id, initiator=initiator)
        self._lanes: dict[LaneProtocol, LaneDriver] = {self._first.protocol: self._first}
        self._last = self._first  # that we spoke on
        self._told: tuple[LaneProtocol | None, Life, bool] | None = None  # to it
        self._pipes: set[Channel] = set()
        self._scope: Final = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._over: Final = trio.Event()
        self._patience: Final = trio.CancelScope()  # for a further carrier, where there is none
        self._lost_by: Exception | None = None
        self._goodbye: float | None = None  # None: not driven yet
        self.on_wait: Callable[[Link], object] | None = None
        self.waits_since: float = math.inf
        self._openings: Final = Openings(self.protocol, make=self._pipe, drop=self._pipes.discard)

    @property
    def movable(self) -> bool:
        """Whether it may have further carriers, and outlive those that it has."""
        state = self.protocol.state
        standing = state is LinkState.CLOSING or (state is LinkState.OPEN and not self._ending)
        return standing and self.protocol.movable

    @property
    def carrier(self) -> Carrier:
        """The one that we speak on, or spoke on last."""
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
          admit: asked before the first of them where the peer was called by us, so that nobody has decided about it
            yet; None lets it.
          tasks: what carries its first carrier; they end with that.
          goodbye: seconds for the last words once the Link ends here.
        """
        self._first.tasks = tasks
        self._openings.take = on_open
        self._goodbye = goodbye
        self._openings.admitted = self._admitted or (None if admit is not None else True)
        self._scope.shield = True
        with self._scope:
            if self._ending:  # everything was closed before the driver had its first turn
                self._bound_goodbye()
            self._first.protocol.send_ping(trio.current_time())  # the round trip, for credit and for `Pipe.path`
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

    @trio.lowlevel.enable_ki_protection  # a record that Ctrl-C cuts off would be one that somebody has forged
    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """What goes wrong in a task of the Link breaks the Link."""
        try:
            with panics_as_errors():
                await task()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
            logger.debug("%r: %s", self, error)
            self._fail(error)
        except Exception as error:
            logger.exception("%r: the driver failed", self)
            self._fail(error)

    # -- carriers ----------------------------------------------------------------------------------------------------

    def _give_to(self, link: Handshake, tasks: Sequence[Task]) -> None:
        """Our carrier is a lane of that Link, and nothing is left here."""
        self._first.tasks = tasks
        self.protocol.lanes.lose(self._first.protocol)
        self._lanes.clear()
        assert isinstance(link, Link)
        link._adopt(self._first)

    def _adopt(self, lane: LaneDriver) -> None:
        """A carrier of a proven Link is a lane of this one; the protocol has it already.  Synchronous."""
        lane.move(self.protocol, self._lose)
        self._share(lane)
        self._lanes[lane.protocol] = lane
        if self.protocol.state is not LinkState.CLOSING:
            self.waits_since = math.inf
        if self._nursery is not None:
            self._nursery.start_soon(self._drive_lane, lane)
        self._settle()

    async def _drive_lane(self, lane: LaneDriver) -> None:
        """All tasks of one carrier; they end with it."""
        with lane.scope:
            async with trio.open_nursery() as nursery:
                for loop in (self._write, self._watch, self._read):
                    nursery.start_soon(self._guard_lane, lane, loop)
                for task in lane.tasks:
                    nursery.start_soon(self._carry, lane, task)

    @trio.lowlevel.enable_ki_protection
    async def _guard_lane(self, lane: LaneDriver, loop: Callable[[LaneDriver], Awaitable[None]]) -> None:
        """What ends a carrier ends no more, where the Link outlives it; what the peer does wrong ends the Link."""
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
            logger.exception("%r: the driver failed", self)
            self._fail(error)

    async def _carry(self, lane: LaneDriver, task: Task) -> None:
        """What a plugin has work for a carrier: a failure is the carrier's."""
        try:
            with panics_as_errors():
                await task()
        except Exception as error:
            logger.exception("a task that carries %r failed", self)
            self._lose(lane, error)

    async def _write(self, lane: LaneDriver) -> None:
        await lane.write(lambda: self._is_last_word(lane))
        if self.protocol.is_acknowledged:
            self._over.set()  # there is nothing that closing first could eat

    def _is_last_word(self, lane: LaneDriver) -> bool:
        """Whether what is written on a carrier now ends it."""
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
        """Ask for signs of life.  A task of its own, since a peer that does not read holds the writer up."""
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
        """Whether a lane that was left is kept, in case the other one fails: the last one by a relay."""
        relays = [each for each in self._lanes.values() if each.is_relayed and not each.protocol.leaving]
        close = partial(self._lose, lane, trio.BrokenResourceError("too many relays stand by"))
        lane.protocol.life.rests = lane in relays[-1:] and self._standbys.keep(lane, close)
        return lane.protocol.life.rests

    async def _keep(self) -> None:
        """Wait for the ACCEPT, and then for a further carrier where there is none, neither of them for ever."""
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
        why = f"no path for {self.protocol.resume_timeout:g} s: {self._lost_by or 'the peer acknowledges nothing'}"
        error = trio.BrokenResourceError(why)
        error.__cause__ = self._lost_by
        self._fail(error)

    def say_news(self, payload: bytes) -> bool:
        """A sealed signal for the peer, of 16 KiB at most; whether a path that is well takes it."""
        took = self.protocol.say_news(payload)
        self._settle()
        return took

    def hint(self, is_gone: Callable[[TransportAddress], bool] = lambda _: False) -> None:
        """Something has happened that may have killed the path: it is asked at once, see `LifeJudge.hint`.

        Args:
          is_gone: whether the machine has a local address no more.  What was dialled or met from there is closed; a
            relay's address is none of the machine's.
        """
        for lane in list(self._lanes.values()):
            if self.movable and not lane.is_relayed and is_gone(lane.carrier.local):
                self._lose(lane, trio.BrokenResourceError(f"this machine is no longer at {lane.carrier.local[0]}"))
        self.protocol.hint(trio.current_time())
        self._settle()
        self._note_hint()

    def _lose(self, lane: LaneDriver, error: Exception) -> None:
        """A carrier is gone; so is the Link, where it was the last one and nothing is kept.  Idempotent."""
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
        """Let the protocol see what a carrier brings.  A checkpoint always."""
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
        """What those are told of the path who wait for it to change."""
        active = self.protocol.lanes.active
        life = Life.DEAD if active is None else active.life.life
        return active, life, life is Life.SUSPECT and self.protocol.has_spare

    def _settle(self) -> None:
        """Something has happened: have said what is to be said, and told what is to be told."""
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
        """What is suspected has the time of its death and that of a Link without a path, whatever comes from there."""
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
        """Close what the peer has dropped, and what we have left while it holds a sender up, who goes on elsewhere."""
        active = self.protocol.lanes.active
        for lane in list(self._lanes.values()):
            life, left = lane.protocol.life, active is not None and lane.protocol is not active
            held = left and not lane.release()
            if held and life.life is not Life.WELL:
                self._lose(lane, trio.BrokenResourceError("the path does not carry what is sent"))
            elif (
                held and not life.asking and not self.protocol.carries_a_tail(lane.protocol)
            ):  # the peer may have found out before us, and nothing else is due there
                lane.protocol.doubt(trio.current_time())
                lane.set_alarm()
            elif lane.protocol.is_over and self.protocol.is_up:
                self._lose(lane, trio.BrokenResourceError("the path was dropped: it is no good, here or at the peer"))

    async def _decide_admission(self, admit: Admit) -> None:
        await self._openings.wait_first()
        self._openings.admitted = await admit(self)
        self._openings.answer()
        self._settle()

    def forget_nowait(self) -> None:
        """The peer does not know this Link: what waits for a path waits in vain.  One that has a path is well."""
        if not self._lanes:
            self._fail(trio.BrokenResourceError("the peer does not know this link any more"))

    def replace_nowait(self, instance: bytes) -> bool:
        """The peer has begun anew, by another process: what waits for the one before it waits in vain, and ends.

        Returns whether it has.
        """
        if instance == self.protocol.peer_instance or self._lanes:
            return False
        self._fail(trio.BrokenResourceError("the peer was started again"))
        return True

    def revoke_nowait(self) -> None:
        """The peer is not let in any more: every Pipe breaks here, and there once it has heard of it."""
        self.protocol.send_go_away(GoAwayCode.UNAUTHORIZED)
        failure = trio.BrokenResourceError("this node does not let the peer in any more")
        if self._lanes:
            self.protocol.break_all(failure)
            self._wake()
            self._end()
        else:
            self._fail(failure)

    def evict_nowait(self) -> None:
        """It has waited for longer than the others, and there are too many that wait."""
        self._fail(trio.BrokenResourceError("too many links wait for a path, and this one has for longest"))

    def _wait(self) -> None:
        self.waits_since = min(self.waits_since, trio.current_time())
        if self.on_wait is not None:
            self.on_wait(self)

    @property
    def has_lanes(self) -> bool:
        """Whether it has a carrier, be it one that carries nothing."""
        return bool(self._lanes)

    def end_nowait(self, *, abort: bool = False) -> None:
        """Close or abort every Pipe of the Link, and let the driver say goodbye, within its goodbye time from now."""
        self._hurried = True
        for channel in list(self._pipes):
            self.close_channel(channel, abort=abort)
        self._end()

    def _end(self) -> None:
        """There is no Pipe any more.  Where the Link outlives its carriers it goes on until the peer has all."""
        if self.movable and not self._ending:
            self.protocol.close()
            self._wait()
        self._ending = self._openings.over = True
        self.path_log.tell()
        self._speaking.poke()
        self._settle()
        self._bound_goodbye()

    def _bound_goodbye(self) -> None:
        waits = self.protocol.state is LinkState.COMMITTED and not self._hurried  # for the ACCEPT, which has a bound
        if self._goodbye is None or waits:
            return
        patience = self._goodbye
        if self.protocol.state is LinkState.CLOSING and not self._hurried:
            patience = max(patience, self.protocol.resume_timeout)
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + patience)

    def _fail(self, failure: Exception) -> None:
        """The Link is over: break what is open, wake everybody, close the carriers.  Idempotent."""
        self.protocol.break_all(failure)
        for lane in self._lanes.values():
            lane.close_nowait()
            self._standbys.discard(lane)
        self._over.set()
        self._wake()

    def _wake(self) -> None:
        """Everybody's wait is over."""
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
        """Send one piece of DATA on the carrier that we speak on; a checkpoint always.

        Waits, without anybody's lock, for a peer that acknowledges nothing, and for a carrier where there is none.

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
        """The application read; credit follows."""
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
