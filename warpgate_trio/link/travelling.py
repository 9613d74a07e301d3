"""The paths of a Link, as the holders of its Pipes and the searches for other paths see them."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from ..errors import AttemptFailed
from .handshake import Handshake
from .life import Life
from .path import PathChange, PathInfo, PathState
from .path_log import PathChanges, PathLog
from .standbys import Standbys
from .states import LinkState

if TYPE_CHECKING:
    from ..carrier import Carrier
    from ..sockaddr import TransportAddress
    from .channel import Channel
    from .lane import LaneProtocol
    from .lane_driver import LaneDriver
    from .quiet import Uplinks
    from .replay import ReplayMemory

__all__ = ["Travelling"]

Migrate = Callable[[Sequence[str] | None, float | None], Awaitable[PathInfo]]
"""Looks for a better path, or for any path by the given phases, within so many seconds."""


def _ignore(_payload: bytes) -> None:
    """Ignore signals on a Link that nobody drives yet."""


LEFT_FOR: Final = 0.5
"""Seconds for which a carrier by a relay that will shut down is kept once both sides have left it and all its data has
come.  The peer receives our ACK meanwhile, without which it would send that data again."""
LEFT_TRIPS: Final = 3
"""Round trips of silence, and `LEFT_FOR` at least, after which a carrier by such a relay is closed although the peer
still speaks on it.  Two of them are for the peer to change over, which may have sent nothing meanwhile."""
LOOK: Final = 0.1
"""Seconds between two checks of a carrier by such a relay: a fifth of the time that its server waits."""
MAX_DROPPED: Final = 16
"""Dropped paths that are remembered for the search for better ones, if there is any."""


class Travelling(Handshake):
    """The part of a Link that concerns its paths.

    Attributes, for reading; see `Handshake` for more of them:
      path_log: how its path has changed.
      hints, hinted_at: how many hints there were, and when the last one came: something on this side may have killed
        the path, or made a better one possible.
      lapsed: the Link was given up, as there was no path for too long; the peer may not know.
      migrator: finds a better path; None where nobody does.
      on_news: called with each signal that the peer sends on the Link.
    """

    def __init__(self, carrier: Carrier, *, peer_key: bytes, session_id: bytes, initiator: bool | None) -> None:
        super().__init__(carrier, peer_key=peer_key, session_id=session_id, initiator=initiator)
        self.path_log: Final = PathLog()
        self.hints: int = 0
        self.hinted_at: float = -math.inf
        self.lapsed: bool = False
        self.migrator: Migrate | None = None
        self.on_news: Callable[[bytes], object] = _ignore
        self._dropped: Final[deque[PathInfo]] = deque(maxlen=MAX_DROPPED)
        self._uplinks: Uplinks | None = None
        self._standbys = Standbys(most=0)
        self._answers: Final = trio.lowlevel.ParkingLot()  # waits for an answer, or until the path accepts data
        self._ending = False  # no Pipe is left
        self._hurried = False  # its node is closed

    @property
    @abstractmethod
    def _drivers(self) -> list[LaneDriver]:
        """The carriers."""

    @abstractmethod
    def _lose(self, lane: LaneDriver, error: Exception) -> None:
        """Remove a carrier that is gone, or is to be closed."""

    @property
    @abstractmethod
    def _speaking(self) -> LaneDriver:
        """The carrier that we speak on, or spoke on last."""

    @abstractmethod
    def _settle(self) -> None:
        """Act on a change: have pending frames sent and timers set, and report a change of the path."""

    @property
    @abstractmethod
    def movable(self) -> bool:
        """Whether the Link may have further carriers, and outlive those that it has."""

    @property
    def path(self) -> PathInfo | None:
        """The path of the carrier that we speak on; set by the attempt that made it."""
        return self._speaking.path

    @path.setter
    def path(self, path: PathInfo | None) -> None:
        self._first.path = path

    def share(self, uplinks: Uplinks) -> None:
        """Share what is learnt about NATs with the node's other Links.  To be called before `drive`."""
        self._uplinks = uplinks
        self._share(self._first)

    def _share(self, lane: LaneDriver) -> None:
        if self._uplinks is not None:
            lane.share(self._uplinks)

    def set_dead_after(self, seconds: float) -> None:
        """Set within how many seconds a path's death is to be noticed, 0: at the usual interval.  Before `drive`."""
        self.protocol.set_notice_within(seconds or math.inf)

    def keep_relays(self, standbys: Standbys) -> None:
        """Keep relayed paths that were left as standbys of the node.  To be called before `drive`."""
        self._standbys = standbys

    def keep_within(self, memory: ReplayMemory) -> None:
        """Count unacknowledged data together with that of the node's other Links.  To be called before `drive`."""
        if self.protocol.outgoing is not None:
            self.protocol.outgoing.share(memory)

    async def wait_accepted(self) -> None:
        """Wait until the peer has accepted the COMMIT, or the Link is over; no checkpoint where that is so already."""
        while self.protocol.state is LinkState.COMMITTED:
            await self._answers.park()

    async def wait_path(self, *, well: bool) -> None:
        """Wait until the path is live or another one is at hand (`well`), or until neither is the case.

        Raises `trio.BrokenResourceError` once the Link is over.
        """
        while self._wants_a_path:
            if (self.live_path().state is PathState.LIVE or self.protocol.has_spare) is well:
                return
            await self.path_log.told.park()
        raise trio.BrokenResourceError("the link is over")

    @property
    def _wants_a_path(self) -> bool:
        """Whether the Link has Pipes, or has something left to send and time to look for a path."""
        state = self.protocol.state
        return (state is LinkState.CLOSING and not self._hurried) or (state is not LinkState.ENDED and not self._ending)

    async def migrate(self, phases: Sequence[str] | None, timeout: float | None, channel: Channel) -> PathInfo:
        """See `Pipe.migrate`."""
        if channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        if self.protocol.failure is not None:
            raise trio.BrokenResourceError(f"pipe broken: {self.protocol.failure}") from self.protocol.failure
        await self.wait_accepted()
        if self.migrator is None or not self.protocol.movable:
            raise AttemptFailed(
                "this pipe cannot change its path and ends with it: one side keeps no link without a path"
                " (resume_timeout = 0, or an older release)"
            )
        return await self.migrator(phases, timeout)

    async def wait_path_event(self) -> None:
        """Wait until something has happened to the paths.  Raises `trio.BrokenResourceError` once the Link is over."""
        if self._ending or self.protocol.state is LinkState.ENDED:
            raise trio.BrokenResourceError("the link is over")
        await self.path_log.told.park()

    async def wait_trial(self, link: Handshake) -> bool:
        """Wait for the trial of the carrier that `link` was attached with.

        Returns True once this Link speaks on it, False if the carrier is gone.
        """
        lane = link._first.protocol  # a lane of this Link by now
        while lane in self.protocol.lanes and not lane.is_over:
            if lane is self.protocol.lanes.active:
                return True
            await self.path_log.told.park()
        return False

    # -- relays that will be gone before long (`warpgate_trio.node.leaving`) -------------------------------------------

    def leave(self, local: TransportAddress) -> None:
        """A relay will shut down before long: mark the relayed carriers that use the local address `local`."""
        for lane in self._drivers:
            if lane.is_relayed and lane.carrier.local == local:
                lane.protocol.leaving = True
        self.path_log.tell()

    @property
    def is_leaving(self) -> bool:
        """Whether the carrier that we speak on goes by such a relay."""
        active = self.protocol.lanes.active
        return active is not None and active.leaving

    @property
    def both_know(self) -> bool:
        """Whether the peer was told, too: a rendezvous server tells both sides, a TURN server only its own client."""
        return self._speaking.carrier.name == "tls"

    async def wait_leaving(self) -> None:
        """Wait until a carrier is to be left.  Raises `trio.BrokenResourceError` once the Link is over."""
        while self._ending or not any(lane.protocol.leaving for lane in self._drivers):
            await self.wait_path_event()

    async def wait_left(self) -> None:
        """Wait until we speak on no such carrier.  Raises `trio.BrokenResourceError` once the Link is over."""
        while self.is_leaving:
            await self.wait_path_event()

    @property
    def lacks_standby(self) -> bool:
        """Whether we speak on a direct carrier, and all relayed ones that could stand by for it are to be left."""
        relays = [lane for lane in self._drivers if lane.is_relayed]
        wants = self._standbys.keeps_any and not self._speaking.is_relayed
        return wants and bool(relays) and all(lane.protocol.leaving for lane in relays)

    def prefer_another(self) -> bool:
        """Change over to another carrier that is well and may stay, once it has carried bulk; whether there is one."""
        lane = self.protocol.lanes.another()
        if lane is None or lane.leaving or not self.movable:
            return False
        self.protocol.prefer(lane, trio.current_time())
        self._settle()
        return True

    def close_left(self) -> float:
        """Close carriers of such relays that were left and deliver nothing more.

        Returns the seconds after which to call this again, or 0 if there was no such carrier.
        """
        now, pause = trio.current_time(), 0.0
        for lane in self._drivers:
            protocol = lane.protocol
            if not protocol.leaving or protocol is self.protocol.lanes.active:
                continue
            pause = LOOK
            if self.protocol.carries_a_tail(protocol):
                continue
            has_left = self.protocol.has_left(protocol)
            protocol.left_at = min(protocol.left_at, now) if has_left else math.inf
            if has_left and now >= protocol.left_at + LEFT_FOR:
                self._lose(lane, trio.BrokenResourceError("the path's relay will be shut down"))
            elif not has_left and protocol.life.silence(now) >= max(LEFT_FOR, LEFT_TRIPS * (self.rtt or 0.0)):
                self.protocol.give_way(protocol)
                self._lose(lane, trio.BrokenResourceError("the path's relay will be shut down"))
        return pause

    def _note_hint(self) -> None:
        self.hints += 1
        self.hinted_at = trio.current_time()
        self.path_log.tell()

    async def wait_hint(self) -> None:
        """Wait for the next hint, for as long as it takes."""
        hints = self.hints
        while self.hints == hints:
            await self.path_log.told.park()

    def take_dropped(self) -> list[PathInfo]:
        """Paths that were dropped since the last call because they did not carry."""
        dropped = list(self._dropped)
        self._dropped.clear()
        return dropped

    @property
    def is_busy(self) -> bool:
        """Whether something is unacknowledged, or somebody waits to send something."""
        outgoing = self.protocol.outgoing
        return len(self._answers) > 0 or (outgoing is not None and outgoing.end > outgoing.acknowledged)

    @property
    def moved(self) -> int:
        """Units that were sent and received on all Pipes."""
        outgoing, incoming = self.protocol.outgoing, self.protocol.incoming
        return (0 if outgoing is None else outgoing.end) + (0 if incoming is None else incoming.received)

    async def wait_path_change(self, known: PathInfo, channel: Channel) -> PathInfo:
        """See `Pipe.wait_path_change`."""
        while (path := self.live_path()).same_as(known):
            if channel.closed_here:
                raise trio.ClosedResourceError("this pipe was closed")
            if self.protocol.failure is not None:
                raise trio.BrokenResourceError(f"pipe broken: {self.protocol.failure}") from self.protocol.failure
            await self.path_log.told_pipes.park()
        return path

    def path_changes(self, channel: Channel) -> AsyncIterator[PathChange]:
        """See `Pipe.path_changes`."""
        protocol = self.protocol
        return PathChanges(self.path_log, lambda: channel.closed_here or protocol.failure is not None)

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds; None before it was measured."""
        return self.protocol.life.rtt

    def live_path(self) -> PathInfo:
        """`path` with its present round-trip time and state."""
        assert self.path is not None, "the attempt sets the path before anybody gets a Pipe"
        state = PathState.LIVE if self.protocol.life.life is Life.WELL else PathState.SUSPECT
        if self.protocol.lanes.active is None:
            state = PathState.SUSPENDED
        return dataclasses.replace(self.path, rtt=self.rtt, state=state)

    async def ping(self, channel: Channel) -> float:
        """See `Pipe.ping`."""
        protocol = self.protocol
        await self.wait_accepted()
        if protocol.state is LinkState.OPEN and not channel.closed_here:
            began = trio.current_time()
            lane: LaneProtocol | None = None
            token = 0
            while protocol.state is LinkState.OPEN and not channel.closed_here:
                if lane is not protocol.lanes.active:  # a PING on the previous lane may never be answered
                    lane = protocol.lanes.active
                    if lane is not None:
                        token = lane.ask(trio.current_time())
                        self._settle()
                if lane is not None and lane.life.answered >= token:
                    break
                await self._answers.park()
            if lane is not None and lane.life.answered >= token:
                return trio.current_time() - began
        if channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        failure = channel.failure or protocol.failure
        raise trio.BrokenResourceError(f"pipe broken: {failure}") from failure
