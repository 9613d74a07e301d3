"""Finds further carriers for a Link: when its path fails, and when a better path may exist.

Each Link that may have further carriers has one task for this.

Recovery.  When the path is suspect or lost, the connections to the signal servers are probed, since they may have
failed with it.  Then a walk searches for the peer as in a call, by what the call allowed.  The first carrier that a
search makes is attached.  Searches end when the path is live again for whatever reason, and with the Link.  The
initiator searches at once, the responder a second later, so that mostly only one side does.  For a Link that was on a
relay, or whose call began on one, relays are tried at once, beside everything else.

Upgrades.  While the path is live, the initiator now and then searches for a better one (`node.upgrade_schedule`), by
combos that may lead to a better class of path (`link.path.PathClass`).  Where the call began on a relay, it searches at
once.  `migrate` does so on the application's request.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final, final

import trio

from ..address import PeerAddress
from ..combos import Combo
from ..errors import AttemptFailed, ConnectError, SignalError, panics_as_errors
from ..identity import peer_id_from_key
from ..link import Link, PathInfo
from ..link.path import PathCause, path_class
from ..link.states import LinkState
from ..nurseries import open_background_nursery, open_bare_nursery
from ..plugin import PHASES as ALL_PHASES
from ..report import Verdict
from ..signal.core import OWNER, AddressUpdate
from ..walk.attempt import EXPECTED
from ..walk.home import WalkHome
from ..walk.recorder import Recorder
from ..walk.session import Reach
from ..walk.walk import Walk
from .leaving import keep_off
from .search_turns import SearchTurns
from .upgrade_schedule import UpgradeSchedule

__all__ = ["PathKeeper"]

logger: logging.Logger = logging.getLogger(__name__)

PAUSES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each search for a path, after the previous one; the last number holds for all further ones."""
STEADY: Final = 10.0
"""Seconds for which a path has to be live for the pauses to start afresh: a flapping path causes few searches."""
ASK_INTERVAL: Final = 0.5
"""Seconds until a peer that did not answer a question for its address is asked again; they double each time."""
ASK_PATIENCE: Final = 1.0
"""Seconds to wait for a peer's answer, at least.  It may be lost with the peer's connection to a server; the peer is
then asked again."""
ASK_TRIPS: Final = 3
"""Signal round-trip times to wait for the answer, where that is longer."""
RESPONDER_WAITS: Final = 1.0
"""Seconds that the responder waits before its search: by then a search of the initiator has found a path."""
HINT_LASTS: Final = 3.0
"""Seconds after a hint in which a failure of the path is attributed to it.  The cause is then on this side, and the
peer has not noticed yet, so a responder searches at once."""
HINT_INTERVAL: Final = 0.5
"""Seconds that a search lasts at least before the next hint restarts it."""
PHASES: Final = ("direct", "punch", "spray")
"""Phases of the responder's searches, as it does not know what the call allowed.  Relays are left out, since they cost
somebody, except for a Link that is on a relay."""
MAX_RECOVERIES: Final = 32
"""Concurrent searches of a node for Links whose path is lost; one network change may cause that many at once."""
MAX_FIRST_UPGRADES: Final = 32
"""Concurrent searches of a node for a better path than the relay that a call began on: as many as recoveries."""
MAX_UPGRADES: Final = 4
"""Concurrent searches of a node for a better path that nobody waits for."""


@final
class PathKeeper:
    """What searches need of a node.

    Args:
      home: what walks need.
      plugins: the names of the plugins of some phases.
      refresh: asks the peer for its present address.
      distrust: probes the connections to the signal servers.
      wait_opened: returns when a signal server is newly connected.
      upgrade: whether to search for better paths.

    Attributes:
      searches: the number of searches begun.
    """

    def __init__(
        self,
        home: WalkHome,
        *,
        plugins: Callable[[Sequence[str]], Sequence[str]],
        refresh: Callable[[PeerAddress], Awaitable[PeerAddress]],
        distrust: Callable[[], object],
        wait_opened: Callable[[], Awaitable[object]],
        upgrade: bool,
    ) -> None:
        self.home: Final = home
        self.plugins: Final = plugins
        self.refresh: Final = refresh
        self.distrust: Final = distrust
        self.wait_opened: Final = wait_opened
        self.upgrade: Final = upgrade
        self.recoveries: Final = SearchTurns(MAX_RECOVERIES, uniform=home.view.host.random.uniform)
        self.first_upgrades: Final = trio.CapacityLimiter(MAX_FIRST_UPGRADES)
        self.upgrades: Final = trio.CapacityLimiter(MAX_UPGRADES)
        self.searches: int = 0

    async def keep(self, link: Link, reach: Reach | None) -> None:
        """Keep a Link on a path until the Link ends."""
        kept = _Kept(self, link, reach)
        link.migrator = kept.migrate
        try:
            await kept.keep()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%r: searches for a path ended: %s", link, error)
        except Exception:
            logger.exception("%r: a search failed unexpectedly", link)

    async def ask(self, peer: PeerAddress) -> PeerAddress:
        """Ask a peer for its present address, once a signal server is connected."""
        await self.home.wait_signals()
        with trio.fail_after(max(ASK_PATIENCE, ASK_TRIPS * (self.home.view.signal_rtt or 0.0))):
            return await self.refresh(peer)

    async def find_out(self, peer: PeerAddress) -> None:
        """Ask a peer for its present address, and wait for a short time; failures are logged."""
        with trio.move_on_after(max(ASK_PATIENCE, ASK_TRIPS * (self.home.view.signal_rtt or 0.0))):
            try:
                await self.refresh(peer)
            except EXPECTED as error:
                logger.debug("%s… did not answer with its address: %s", peer.peer_id[:8], error)

    async def wait_back(self, peer: PeerAddress) -> None:
        """Wait until a peer that did not answer signals does."""
        pause = ASK_INTERVAL
        while True:
            await trio.sleep(pause)
            pause *= 2  # the peer limits our requests in a minute, and requests for paths have to pass, too
            try:
                await self.ask(peer)
                return
            except EXPECTED as error:
                logger.debug("%s… did not answer with its address: %s", peer.peer_id[:8], error)


@final
class _Kept:
    """One Link and its searches."""

    def __init__(self, keeper: PathKeeper, link: Link, reach: Reach | None) -> None:
        self._keeper: Final = keeper
        self._home: Final = keeper.home
        self._link: Final = link
        self._reach: Final = reach
        self._wanted = self._is_relayed and self._takes_relays_first  # a better path is wanted at once
        self._schedule: Final = UpgradeSchedule(
            trio.current_time(), uniform=self._home.view.host.random.uniform, at_once=self._wanted
        )
        self._hints = link.hints
        self._changes = link.path_log.count
        self._moved = link.moved
        self._searching: Final = trio.Lock()  # held by a search for a better path
        self._background = trio.CancelScope()  # of a scheduled search for a better path, not of `migrate`
        self._walk: Walk | None = None  # the search for any path

    @property
    def _is_relayed(self) -> bool:
        path = self._link.path
        return path is not None and path.phase == "relay"

    @property
    def _takes_relays_first(self) -> bool:
        return self._reach is not None and self._reach.relay_first

    async def keep(self) -> None:
        """See `PathKeeper.keep`."""
        link, tries, well_since = self._link, 0, trio.current_time()
        self._tell_where_we_are()
        while True:
            async with open_background_nursery() as nursery:
                if self._keeper.upgrade and link.protocol.initiator:
                    nursery.start_soon(self._look_for_better_ones)
                nursery.start_soon(keep_off, link, self._leave, self._replace_standby)
                await link.wait_path(well=False)
            if trio.current_time() - well_since >= STEADY:
                tries = 0
            logger.info("%r: the path is %s; searching for another one", link, link.live_path().state.value)
            with panics_as_errors():
                tries = await self._recover(tries)
            well_since = trio.current_time()

    def _tell_where_we_are(self) -> None:
        """Send our address on the Link to a peer that was dialled without a signal, and so has not received it."""
        link, reach = self._link, self._reach
        if reach is None or reach.peer is None or reach.signalled:
            return
        try:
            update = self._home.signals.seal(
                reach.peer, AddressUpdate(), owner=OWNER, session=link.session_id, attempt=None
            )
        except SignalError as error:
            logger.debug("%r: our address could not be sent to the peer: %s", link, error)
            return
        link.say_news(update)

    # -- recovery ------------------------------------------------------------------------------------------------------

    async def _recover(self, tries: int) -> int:
        """Search until the path is live; returns `tries` plus the number of searches."""
        link = self._link
        async with open_bare_nursery() as nursery:
            nursery.start_soon(self._call_off, nursery.cancel_scope, partial(_wait_well, link))
            self._keeper.distrust()
            pause = PAUSES[min(tries, len(PAUSES) - 1)]
            if not link.protocol.initiator and trio.current_time() - link.hinted_at > HINT_LASTS:
                pause += RESPONDER_WAITS
            while True:
                with trio.CancelScope() as outdated:
                    async with open_bare_nursery() as search:
                        search.start_soon(self._call_off, outdated, partial(_wait_hint, link))
                        with trio.move_on_after(pause):  # pacing
                            await self._keeper.wait_opened()
                        tries += 1
                        async with self._keeper.recoveries.turn(lambda: link.is_busy):
                            await self._search_anew(search, outdated)
                        search.cancel_scope.cancel()
                pause = 0.0 if outdated.cancelled_caught else PAUSES[min(tries, len(PAUSES) - 1)]
        return tries

    async def _search_anew(self, nursery: trio.Nursery, outdated: trio.CancelScope) -> None:
        """One search for any path; tasks in the nursery cancel `outdated` when a new search should begin at once."""
        peer = self._find_peer()
        if peer is None:
            logger.debug("%r: no address of the peer is known", self._link)
            return
        silent = False

        async def refresh(peer: PeerAddress) -> PeerAddress:
            nonlocal silent
            try:
                return await self._keeper.ask(peer)
            except EXPECTED:
                if not silent:  # signals do not reach it: search again once they do
                    nursery.start_soon(self._call_off, outdated, partial(self._keeper.wait_back, peer))
                silent = True
                raise

        if self._home.has_signals():  # a connection may be dead and lose signals; without any, signals wait for one
            nursery.start_soon(self._call_off, outdated, self._keeper.wait_opened)
        self._walk = self._plan_walk(
            peer, self._what_is_allowed(), refresh=refresh, relay_first=self._takes_relays_first or self._is_relayed
        )
        try:
            await self._walk.search(deadline=trio.current_time() + self._home.view.budgets.total)
        except ConnectError as error:
            logger.debug("%r: no path was found: %s", self._link, error)
        finally:
            self._walk = None

    async def _call_off(self, search: trio.CancelScope, when: Callable[[], Awaitable[object]]) -> None:
        """Cancel a search when `when` returns.  It first waits for the answer to a commit under way: the peer may have
        accepted that path, and have ended its own search for it.
        """
        await when()
        if self._walk is None:
            search.cancel()
            return
        async with self._walk.committing:
            search.cancel()

    # -- something better ----------------------------------------------------------------------------------------------

    async def _look_for_better_ones(self) -> None:
        """Search for a better path now and then, while the path is live."""
        link, schedule = self._link, self._schedule
        try:
            while True:
                self._note_what_happened()
                now = trio.current_time()
                if now < schedule.next_at:
                    with trio.move_on_at(schedule.next_at):
                        await link.wait_path_event()
                    continue
                hinted, self._hints = link.hints > self._hints, link.hints
                said, self._moved = link.moved > self._moved, link.moved
                wanted, self._wanted = self._wanted, False
                if not (hinted or said or wanted):
                    schedule.postpone(now)
                    continue
                if not self._may_be_bettered(wanted=wanted):
                    if wanted or not self._is_relayed:
                        schedule.postpone(now)
                        continue
                    if not await self._has_peer_moved():
                        schedule.held_up(trio.current_time())
                        continue
                try:
                    with trio.CancelScope() as self._background:
                        async with self._keeper.first_upgrades if wanted else self._keeper.upgrades:
                            await self._search_better(self._what_is_allowed(), self._is_better)
                except ConnectError as error:
                    logger.debug("%r: no better path was found: %s", link, error)
                schedule.searched(trio.current_time())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%r: searches for a better path ended: %s", link, error)
        except Exception:
            logger.exception("%r: a search for a better path failed unexpectedly", link)

    async def _has_peer_moved(self) -> bool:
        """Ask the peer for its address, since it may have moved without telling; whether the relay may now be left."""
        if (peer := self._find_peer()) is not None:
            await self._keeper.find_out(peer)
        return self._may_be_bettered(wanted=False)

    def _note_what_happened(self) -> None:
        now, link = trio.current_time(), self._link
        for path in link.take_dropped():
            self._schedule.failed((path.plugin, path.af, path.route_type), now)
        for change in link.path_log.since(self._changes):
            if change.switched:
                found, upgraded = (change.cause is each for each in (PathCause.FOUND, PathCause.BETTER))
                self._schedule.changed(change.at, upgraded=upgraded, found=found)
        self._changes = link.path_log.count
        if link.hints > self._hints:
            self._schedule.hint(now)

    def _is_better(self, combo: Combo) -> bool:
        """Whether a combo is worth trying for a better path; a private address in another network mostly is silent."""
        path, now = self._link.path, trio.current_time()
        if path is None or combo.hopeless or combo.elsewhere or not self._is_allowed_to_better(combo):
            return False
        rests = combo.phase == "spray" and not self._schedule.may_spray(now)
        return not rests and not self._schedule.sits_out((combo.plugin, combo.af, combo.route_type.name), now)

    def _is_allowed_to_better(self, combo: Combo) -> bool:
        path = self._link.path
        assert path is not None
        found = path_class(combo.phase, combo.route_type.name)
        return combo.phase != "relay" and found < path_class(path.phase, path.route_type)

    def _may_be_bettered(self, *, wanted: bool) -> bool:
        """Whether a search may find a better path; one that is wanted also runs where its report says why none does."""
        peer, allowed = self._find_peer(), self._what_is_allowed()
        if peer is None or not (self._link.movable or self._link.protocol.state is LinkState.COMMITTED):
            return False
        plan = self._home.plan(peer, allowed.plugins, allowed.afs, allowed.route_types)
        return any(map(self._is_allowed_to_better if wanted else self._is_better, plan))

    async def migrate(self, phases: Sequence[str] | None, timeout: float | None) -> PathInfo:
        """See `Pipe.migrate`."""
        for phase in phases or ():
            if phase not in ALL_PHASES:
                raise ValueError(f"there is no phase {phase!r}; there are {', '.join(ALL_PHASES)}")

        def is_wanted(combo: Combo) -> bool:
            return self._is_allowed_to_better(combo) if phases is None else combo.phase in phases

        allowed = self._what_is_allowed()
        wanted = tuple(phase for phase in allowed.phases if phases is None or phase in phases)
        self._background.cancel()
        await self._search_better(replace(allowed, phases=wanted), is_wanted, timeout)
        return self._link.live_path()

    async def _leave(self) -> None:
        """Move to another path, which may be another relay's; `ConnectError` where there is none."""

        def is_another(combo: Combo) -> bool:
            return (combo.phase == "relay" and not combo.hopeless) or self._is_better(combo)

        self._background.cancel()
        await self._search_better(self._what_is_allowed(), is_another, relay_first=True)

    async def _replace_standby(self) -> None:
        """Attach another relay's path as the standby, on which the Link does not send; errors as for `_leave`."""
        peer, allowed = self._find_peer(), self._what_is_allowed()
        if peer is None or "relay" not in allowed.phases:
            raise AttemptFailed("there is no other relay, or none is allowed")
        async with self._searching:
            with panics_as_errors():
                walk = self._plan_walk(peer, replace(allowed, phases=("relay",)), refresh=self._keeper.refresh)
                await walk.search(deadline=trio.current_time() + self._home.view.budgets.total, noted=False)

    async def _search_better(
        self, allowed: Reach, only: Callable[[Combo], bool], timeout: float | None = None, *, relay_first: bool = False
    ) -> None:
        """Search for a path and switch the Link to it; `ConnectError` where none is found in time."""
        seconds = self._home.view.budgets.total if timeout is None else timeout
        deadline = trio.current_time() + seconds
        async with _turn(self._searching, self._link, deadline):
            peer = self._find_peer()
            if peer is None:
                raise AttemptFailed("no address of the peer is known")
            with panics_as_errors():
                walk = self._plan_walk(
                    peer,
                    allowed,
                    refresh=self._keeper.refresh,
                    only=only,
                    mentioned=self._is_allowed_to_better,
                    preferred=True,
                    relay_first=relay_first,
                )
                await walk.search(deadline=deadline)

    # -- both ----------------------------------------------------------------------------------------------------------

    def _find_peer(self) -> PeerAddress | None:
        known = self._home.view.known_address(self._link.peer_key)
        return known or (None if self._reach is None else self._reach.peer)

    def _what_is_allowed(self) -> Reach:
        """What the call allows.  Where the peer called, everything but relays; relays too where the Link is on one."""
        if self._reach is not None:
            return self._reach
        phases = (*PHASES, "relay") if self._is_relayed else PHASES
        return Reach(plugins=tuple(self._keeper.plugins(phases)), phases=phases)

    def _plan_walk(
        self,
        peer: PeerAddress,
        allowed: Reach,
        *,
        refresh: Callable[[PeerAddress], Awaitable[PeerAddress]],
        only: Callable[[Combo], bool] | None = None,
        mentioned: Callable[[Combo], bool] | None = None,
        preferred: bool = False,
        relay_first: bool = False,
    ) -> Walk:
        self._keeper.searches += 1
        return Walk(
            self._home,
            peer,
            plugins=allowed.plugins,
            phases=allowed.phases,
            afs=allowed.afs,
            route_types=allowed.route_types,
            refresh=refresh,
            link=self._link,
            only=only,
            mentioned=mentioned,
            preferred=preferred,
            relay_first=relay_first,
            on_event=lambda event: logger.debug("%r: search: %s", self._link, event),
        )


@asynccontextmanager
async def _turn(searching: trio.Lock, link: Link, deadline: float) -> AsyncGenerator[None]:
    """Scope of a Link's only search for a better path; `ConnectError` where another one lasts until the deadline."""
    recorder = Recorder(peer=peer_id_from_key(link.peer_key), now=trio.current_time())
    with trio.move_on_at(deadline) as waiting:
        await searching.acquire()
    if waiting.cancelled_caught:
        recorder.note("another search for a better path was under way", trio.current_time())
        raise ConnectError(recorder.finish(Verdict.TIMED_OUT, trio.current_time(), session_id=b""))
    try:
        yield
    finally:
        searching.release()


async def _wait_well(link: Link) -> None:
    with suppress(trio.BrokenResourceError):  # the Link is over; the task that waits for trouble gets the error too
        await link.wait_path(well=True)


async def _wait_hint(link: Link) -> None:
    """Wait for a hint that the network has changed, which makes a search under way outdated."""
    began = trio.current_time()
    await link.wait_hint()
    await trio.sleep_until(began + HINT_INTERVAL)  # frequent hints do not keep a search from getting anywhere
