"""Records the last changes of a Link's path and the last search for another one, and notifies those who wait for them.

The Link calls `PathLog.look` whenever the carrier that it speaks on, or the state of that, has changed; the log derives
the cause.  It keeps the previous carrier itself, so that the entry of the change has its latest round-trip time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar, final

import msgspec
import trio

from ..errors import printable
from .life import Life
from .path import PathCause, PathChange, PathInfo, PathState

if TYPE_CHECKING:
    from ..report import ConnectReport
    from .lane_driver import LaneDriver
    from .protocol import LinkProtocol

__all__ = ["MAX_CHANGES", "PathChanges", "PathLog"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_CHANGES: Final = 64
"""Changes of its path that a Link remembers: an hour's worth for a path that changes each minute."""

MAX_DETAIL: Final = 200
"""Characters of an error that are remembered with a change: the text of a carrier's error may come from the peer."""


@final
class PathLog:
    """The last changes of a Link's path.

    Attributes:
      changes: the last changes, the oldest first.
      count: how many changes there were in all.
      told: wakes tasks that wait for a change on behalf of the Link.
      told_pipes: wakes tasks that wait for a change on behalf of a Pipe, which may be closed meanwhile.
      watchers: called with each change, at once; they must not block.
      began: when the call that made the Link began; at the responder, when the Link was made.
      search: the last search for another path that has ended.
      search_watchers: called with each such search.
    """

    def __init__(self) -> None:
        self.changes: Final[deque[PathChange]] = deque(maxlen=MAX_CHANGES)
        self.count: int = 0
        self.told: Final = trio.lowlevel.ParkingLot()
        self.told_pipes: Final = trio.lowlevel.ParkingLot()
        self.watchers: Final[list[Callable[[PathChange], object]]] = []
        self.began: float | None = None
        self.search: ConnectReport | None = None
        self.search_watchers: Final[list[Callable[[ConnectReport], object]]] = []
        self._lane: LaneDriver | None = None
        self._state: PathState | None = None  # None: nothing was seen yet
        self._silent_since: float | None = None  # while the path is not live

    def look(self, lane: LaneDriver | None, protocol: LinkProtocol, *, lost_by: Exception | None) -> None:
        """Note how the Link travels now.  To be called at once when that has changed, before a new carrier sends.

        Args:
          lane: the carrier that the Link speaks on.
          protocol: the Link's protocol.
          lost_by: the error by which it lost the last carrier.
        """
        now, before, was = trio.current_time(), self._lane, self._state
        state = PathState.SUSPENDED
        if lane is not None:
            state = PathState.LIVE if lane.protocol.life.life is Life.WELL else PathState.SUSPECT
        self._lane, self._state = lane, state
        if was is not None and (lane is not before or state is not was):
            cause = _cause(before, was, lane, followed=protocol.lanes.followed)
            says_again = lane is not None and lane is not before and not _brings_the_rest(before, protocol)
            kept = protocol.outgoing if says_again else None
            self._note(
                PathChange(
                    at=now,
                    old=_info(before, was),
                    new=_info(lane, state),
                    cause=cause,
                    detail=printable(str(lost_by or ""), MAX_DETAIL) if cause is PathCause.LOST else "",
                    silence=self._silence(before, now),
                    replayed=0 if kept is None else kept.payload,
                )
            )
        if state is PathState.LIVE:
            self._silent_since = None
        self.tell()

    def tell(self) -> None:
        """Wake all tasks that wait for a change."""
        self.told.unpark_all()
        self.told_pipes.unpark_all()

    def _silence(self, lane: LaneDriver | None, now: float) -> float:
        if self._silent_since is None:
            self._silent_since = now - (0.0 if lane is None else lane.protocol.life.unanswered(now))
        return now - self._silent_since

    def _note(self, change: PathChange) -> None:
        self.changes.append(change)
        self.count += 1
        _tell(self.watchers, change)

    def since(self, count: int) -> list[PathChange]:
        """The changes after the first `count`, as far as they are remembered."""
        missing = min(self.count - count, len(self.changes))
        return list(self.changes)[len(self.changes) - missing :]

    def note_search(self, report: ConnectReport, *, began: float) -> None:
        """A search for another path, which began at `began`, has ended."""
        since = began if self.began is None else self.began
        self.search = msgspec.structs.replace(report, began_ms=round((began - since) * 1000, 3))
        _tell(self.search_watchers, self.search)


def _tell(watchers: Sequence[Callable[[T], object]], what: T) -> None:
    for watcher in watchers:
        try:
            watcher(what)
        except Exception:
            logger.exception("a watcher of path changes or searches failed")


def _info(lane: LaneDriver | None, state: PathState) -> PathInfo | None:
    if lane is None or lane.path is None:
        return None
    return replace(lane.path, rtt=lane.protocol.life.rtt, state=state)


def _cause(before: LaneDriver | None, was: PathState, lane: LaneDriver | None, *, followed: bool) -> PathCause:
    if lane is None:
        return PathCause.LOST
    if lane is before:
        return PathCause.FORGIVEN if was is PathState.SUSPECT else PathCause.SUSPECTED
    if before is None:
        return PathCause.FOUND
    if before.gone:
        return PathCause.LOST
    if followed:
        return PathCause.FOLLOWED
    if before.protocol.is_well:
        return PathCause.BETTER
    found = lane.protocol.joined_at >= before.protocol.life.suspect_at
    return PathCause.FOUND if found else PathCause.SUSPECTED


def _brings_the_rest(lane: LaneDriver | None, protocol: LinkProtocol) -> bool:
    """Whether a carrier that was left still delivers what was sent there."""
    return lane is not None and protocol.carries_a_tail(lane.protocol)


@final
class PathChanges:
    """Iterates over the changes of a path from now on, until `is_over`; see `Pipe.path_changes`."""

    def __init__(self, log: PathLog, is_over: Callable[[], bool]) -> None:
        self._log: Final = log
        self._is_over: Final = is_over
        self._seen = log.count

    def __aiter__(self) -> PathChanges:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> PathChange:
        await trio.lowlevel.checkpoint()
        log = self._log
        while True:
            if missing := log.since(self._seen):
                self._seen = log.count - len(missing) + 1
                return missing[0]
            if self._is_over():
                raise StopAsyncIteration
            await log.told_pipes.park()
