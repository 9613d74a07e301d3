"""Finds a further carrier for a Link whose path no longer carries what is sent.

One task a Link that may have further carriers.  It sleeps while the path is well.  When it is suspected or gone, the
signal servers are asked whether they are there, since what took the path may have taken those connections too, and then
the peer is searched for, as in a call, by what that call allowed.  The first carrier that a search makes is attached.
Searches end when the path is well again, whatever made it so, and with the Link.

The side that called searches at once, the other one a second later, so that mostly one of them does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, final

import trio

from ..address import PeerAddress
from ..errors import ConnectError, panics_as_errors
from ..link import Link
from ..nurseries import open_bare_nursery
from ..walk.attempt import EXPECTED
from ..walk.session import Reach
from ..walk.walk import Walk, WalkHome

__all__ = ["PathKeeper"]

logger: logging.Logger = logging.getLogger(__name__)

PAUSES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each search for a path, after the one before it; the last ones are for all further ones."""
STEADY: Final = 10.0
"""Seconds for which a path has to be well for the pauses to start afresh: one that comes and goes is not hunted for."""
ASK_INTERVAL: Final = 0.5
"""Seconds between questions to the peer where it is, while it is searched for; each answer doubles them."""
RESPONDER_WAITS: Final = 1.0
"""Seconds by which the side that was called searches later: a search of the other side has found a path by then."""
PHASES: Final = ("direct", "punch", "spray")
"""What the side that was called searches by, which does not know what the call allowed: a relay costs somebody."""


@final
class PathKeeper:
    """What searches need of a node.

    Args:
      home: what walks need.
      plugins: the names of those that make a path in one of the phases.
      refresh: asks the peer for its present address.
      distrust: has the signal servers asked whether they are there.
      opened: how often one of them was connected to.
    """

    def __init__(
        self,
        home: WalkHome,
        *,
        plugins: Callable[[Sequence[str]], Sequence[str]],
        refresh: Callable[[PeerAddress], Awaitable[PeerAddress]],
        distrust: Callable[[], object],
        opened: Callable[[], int],
    ) -> None:
        self._home: Final = home
        self._plugins: Final = plugins
        self._refresh: Final = refresh
        self._distrust: Final = distrust
        self._opened: Final = opened

    async def keep(self, link: Link, reach: Reach | None) -> None:
        """Keep a Link on a path, until it ends."""
        tries, well_since = 0, trio.current_time()
        try:
            while True:
                await link.wait_path(well=False)
                if trio.current_time() - well_since >= STEADY:
                    tries = 0
                logger.info("%r: the path is %s; searching for another one", link, link.live_path().state.value)
                with panics_as_errors():
                    tries = await self._recover(link, reach, tries)
                well_since = trio.current_time()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("%r: no more searches: %s", link, error)
        except Exception:
            logger.exception("%r: a search failed in a way that nobody foresaw", link)

    async def _recover(self, link: Link, reach: Reach | None, tries: int) -> int:
        """Search until the path is well; returns the number of searches, those before it included."""
        async with open_bare_nursery() as nursery:
            nursery.start_soon(_wait_well, link, nursery.cancel_scope)
            self._distrust()
            if not link.protocol.initiator:
                await trio.sleep(RESPONDER_WAITS)  # pacing, as are those below
            while True:
                await trio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
                tries += 1
                while await self._search(link, reach):
                    pass
        return tries

    async def _search(self, link: Link, reach: Reach | None) -> bool:
        """One search; whether there is reason for another one at once."""
        peer = self._home.view.known_address(link.peer_key) or (None if reach is None else reach.peer)
        if peer is None:
            logger.debug("%r: nothing is known of where the peer is", link)
            return False
        if reach is None:
            path = link.path
            phases = (*PHASES, "relay") if path is not None and path.phase == "relay" else PHASES
            reach = Reach(plugins=tuple(self._plugins(phases)), phases=phases)
        walk = Walk(
            self._home,
            peer,
            plugins=reach.plugins,
            phases=reach.phases,
            afs=reach.afs,
            route_types=reach.route_types,
            refresh=self._refresh,
            link=link,
            on_event=lambda event: logger.debug("%r: search: %s", link, event),
        )
        with trio.CancelScope() as outdated:
            async with open_bare_nursery() as nursery:
                nursery.start_soon(self._ask_where_it_is, peer, outdated)
                try:
                    await walk.search(deadline=trio.current_time() + self._home.view.budgets.total)
                except ConnectError as error:
                    logger.debug("%r: no path was found: %s", link, error)
                nursery.cancel_scope.cancel()
        return outdated.cancelled_caught

    async def _ask_where_it_is(self, peer: PeerAddress, search: trio.CancelScope) -> None:
        """Ends a search for where the peer was, or whose first signals went nowhere.

        A peer that has moved tells its new address once it has signals again; and we have them again where a connection
        to a server was made anew.
        """
        opened, pause = self._opened(), ASK_INTERVAL
        while True:
            await trio.sleep(pause)
            if self._opened() > opened:
                search.cancel()
                return
            try:
                with trio.fail_after(self._home.view.budgets.signal):
                    fresh = await self._refresh(peer)
            except EXPECTED as error:
                logger.debug("%s… does not say where it is: %s", peer.peer_id[:8], error)
                continue
            pause *= 2  # it bounds how much a peer may ask of it in a minute, and has to be asked for paths, too
            if fresh != peer:
                self._home.learn_address(fresh)
                search.cancel()
                return


async def _wait_well(link: Link, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):  # it is over, which whoever waits for trouble hears too
        await link.wait_path(well=True)
    scope.cancel()
