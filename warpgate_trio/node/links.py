"""Drives accepted Links until they end, and the last messages (goodbyes) of attempts.

Both outlast what began them: a Link its walk, a goodbye its attempt.  They run in one nursery of the node.  Each is
shielded, with a deadline that starts when the node closes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Final, final

import trio

from ..address import OwnAddresses
from ..config import PathsConfig
from ..errors import panics_as_errors
from ..host import Host
from ..identity import peer_id_from_key
from ..limits import BoundedMap
from ..link import Link, PathCause, PathChange, Terms
from ..link.quiet import Uplinks
from ..link.replay import ReplayMemory
from ..link.standbys import Standbys
from ..link.states import LinkState
from ..nurseries import open_background_nursery
from ..sockaddr import TransportAddress, parse_ip
from ..walk.session import Reach
from .admission import Admission
from .peers import PeerStatus, status_of_link

__all__ = ["Links"]

logger: logging.Logger = logging.getLogger(__name__)

TRUST: Final = 60.0
"""Seconds for which a Link may be without a path before `authorize` is asked again.  The answer is as old as the Link,
and the cause of the outage may also have changed the answer."""
MAX_TOLD: Final = 3
"""Links with a peer on which one signal is sent, at most: with hundreds of Links it would arrive hundreds of times."""
MAX_LAPSED: Final = 1024
"""Peers that are remembered after a Link with them was given up."""
LAPSE_MEMORY: Final = 24 * 3600.0
"""Seconds for which these peers are remembered: one that slept overnight can still learn that its Link is gone."""
MAX_LEAVING: Final = 64
"""Local addresses that are remembered because the relay of the paths from there is about to shut down."""
LEAVING_MEMORY: Final = 60.0
"""Seconds for which these addresses are remembered: an attempt under way may take that long to make a Link."""
MAX_WAITING: Final = 256
"""Links of a node that wait for a path, or for the acknowledgement of what was sent before their last Pipe was closed:
what a node keeps for peers that may never return.  With one more, the oldest breaks."""
MAX_WAITING_PER_PEER: Final = 16
"""Of those, with one peer.  A peer that needs more Pipes opens them on one Link."""

Task = Callable[[], Awaitable[object]]
Keep = Callable[[Link, Reach | None], Awaitable[None]]


async def _keep_nothing(_link: Link, _reach: Reach | None) -> None:
    """The default of `Links.keep`: no further carriers are searched for."""


def _hear_nothing(_payload: bytes) -> None:
    """The default of `Links.on_news`: signals on Links are ignored."""


@final
class Links:
    """See the module's docstring.

    Args:
      admission: asked when a peer opens further Pipes.
      paths: how Links watch their paths.
      goodbye: seconds that a Link has for its last messages when the node closes.
      host: this host.
      instance: names this process among those with the same key.

    Attributes:
      keep: finds further carriers for a Link, until the Link ends.
      on_news: receives the signals that arrive on Links.
      switches: how often a Link changed to another path.
      false_alarms: how often a suspect path turned out to be live.
    """

    def __init__(
        self, admission: Admission, paths: PathsConfig, *, goodbye: float, host: Host, instance: bytes
    ) -> None:
        self._admission: Final = admission
        self._paths: Final = paths
        self._host: Final = host
        self._instance: Final = instance
        self._goodbye_time: Final = goodbye
        self._links: dict[Link, float] = {}  # Link -> when it was adopted
        self._replay: Final = ReplayMemory()
        self._uplinks: Final = Uplinks()
        self._standbys: Final = Standbys()
        self._lapsed: BoundedMap[bytes, float] = BoundedMap(MAX_LAPSED)
        self._leaving: BoundedMap[TransportAddress, float] = BoundedMap(MAX_LEAVING)
        self._waiting: dict[Link, float] = {}  # Link without a path or a Pipe -> since when; the oldest first
        self.keep: Keep = _keep_nothing
        self.on_news: Callable[[bytes], object] = _hear_nothing
        self.switches: int = 0
        self.false_alarms: int = 0
        self._nursery: trio.Nursery | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._links)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The scope in which Links are driven.  At its end all are cancelled, except for what each has shielded."""
        async with open_background_nursery() as self._nursery:
            yield

    def status(self) -> tuple[PeerStatus, ...]:
        """See `Node.peers`."""
        found = [status_of_link(link, peer_id_from_key(link.peer_key), at) for link, at in self._links.items()]
        return tuple(each for each in found if each is not None)

    def terms(self) -> Terms | None:
        """The terms that we offer for a new Link; None where Links are to end with their path."""
        timeout = math.ceil(self._paths.resume_timeout)
        if not timeout:
            return None
        return Terms(resume_timeout=timeout, secret=self._host.entropy(16), instance=self._instance)

    def find(self, peer_key: bytes, link_id: bytes) -> Link | None:
        """The peer's Link with this id, if it may have further carriers."""
        return next((link for link in self._of(peer_key) if link.link_id == link_id), None)

    def has_movable(self, peer_key: bytes) -> bool:
        """Whether a peer has a Link with us that may have further carriers, as far as the peer knows.

        A Link that we have given up counts for `LAPSE_MEMORY`: the peer searches for it until it learns of its end.
        """
        lapsed = self._lapsed.get(peer_key)
        return any(self._of(peer_key)) or (lapsed is not None and trio.current_time() - lapsed < LAPSE_MEMORY)

    def replace(self, peer_key: bytes, terms: Terms | None) -> list[Link]:
        """End the Links without a path that an earlier process of a calling peer made, and return them."""
        if terms is None:
            return []
        return [link for link in list(self._of(peer_key)) if link.replace_nowait(terms.instance)]

    def say_news(self, peer_key: bytes, payload: bytes) -> bool:
        """Send a sealed signal on Links with a peer, up to the first one whose path is live, `MAX_TOLD` at most.

        Returns whether there was one with a live path.
        """
        return any(link.say_news(payload) for link in islice(self._of(peer_key), MAX_TOLD))

    def _of(self, peer_key: bytes) -> Iterator[Link]:
        return (link for link in self._links if link.peer_key == peer_key and link.movable)

    def adopt(
        self, link: Link, tasks: Sequence[Task], *, dead_after: float | None = None, reach: Reach | None = None
    ) -> None:
        """Drive an accepted Link and its tasks.  Synchronous.

        Args:
          dead_after: seconds within which a dead path is to be detected; None takes the configuration's.
          reach: what searches for further carriers may use; None for a Link by a peer's call, which does not tell.
        """
        assert self._nursery is not None
        if self._closing:  # the node was closed meanwhile: nobody is left to take the Pipe
            link.close_nowait()
            return
        link.on_news = self.on_news
        link.keep_within(self._replay)
        link.share(self._uplinks)
        if self._paths.standby_relay:
            link.keep_relays(self._standbys)
        link.set_dead_after(self._paths.dead_after if dead_after is None else dead_after)
        link.path_log.watchers.append(partial(self._note, link))
        if link.path_log.began is None:
            link.path_log.began = trio.current_time()
        link.on_wait = self._bound_waiting
        self._links[link] = trio.current_time()
        self._leave_what_goes(link)
        self._nursery.start_soon(self._drive, link, tasks, reach)

    def revoke(self, peer_key: bytes) -> int:
        """End every Link with a peer; returns how many there were."""
        links = [link for link in self._links if link.peer_key == peer_key]
        for link in links:
            link.revoke_nowait()
        self._lapsed.pop(peer_key)
        return len(links)

    def _note(self, link: Link, change: PathChange) -> None:
        logger.info("%r: %s", link, change)
        self.false_alarms += change.cause is PathCause.FORGIVEN
        self.switches += change.switched
        self._leave_what_goes(link)
        log = link.path_log.changes
        if change.old is None and len(log) > 1 and change.at - log[-2].at > TRUST and not link.protocol.initiator:
            assert self._nursery is not None
            self._nursery.start_soon(self._ask_again, link)

    async def _ask_again(self, link: Link) -> None:
        """Ask `authorize` again while the Link goes on, and revoke the Link if the peer is not admitted any more."""
        if not await self._admission.readmit(link):
            logger.info("%r: the peer is no longer admitted", link)
            link.revoke_nowait()

    def _bound_waiting(self, link: Link) -> None:
        """Note whether a Link waits, and evict the oldest waiting ones above the bound of its peer, else of all."""
        if self._closing:  # all have only their goodbye time anyway
            return
        if self._waiting.get(link) != link.waits_since:
            self._waiting.pop(link, None)
            self._waiting[link] = link.waits_since
        for each in [each for each, since in self._waiting.items() if each.waits_since != since or not each.movable]:
            del self._waiting[each]
        counted = [each for each in self._waiting if not self._says_goodbye(each)]
        of_peer = [each for each in counted if each.peer_key == link.peer_key]
        excess = of_peer[: max(len(of_peer) - MAX_WAITING_PER_PEER, 0)]
        excess = excess or counted[: max(len(counted) - MAX_WAITING, 0)]
        for each in excess:
            del self._waiting[each]
            logger.info("%r is closed: too many Links wait for a path", each)
            each.evict_nowait()

    def _says_goodbye(self, link: Link) -> bool:
        """Whether a Link still has a carrier and is within the goodbye time, which does not count as waiting."""
        return link.has_lanes and trio.current_time() - link.waits_since < self._goodbye_time

    def hint(self, local: TransportAddress) -> None:
        """Probe the paths from a local address, which something may have killed; see `Link.hint`."""
        for link in list(self._links):
            if local == link.carrier.local:
                link.hint()

    def leave(self, local: TransportAddress) -> None:
        """Leave the paths from a local address, whose relay is about to shut down; see `Link.leave`."""
        self._leaving.put(local, trio.current_time())
        for link in list(self._links):
            link.leave(local)

    def _leave_what_goes(self, link: Link) -> None:
        """Leave the Link's path if its relay announced its shutdown while the path was being made."""
        local = link.carrier.local
        since = self._leaving.get(local)
        if since is not None and trio.current_time() - since < LEAVING_MEMORY:
            link.leave(local)

    def check(self) -> None:
        """Probe all paths, since the host may have moved or slept.  Carriers from addresses that the host no longer has
        are closed where the Link outlives them.
        """
        self._uplinks.forget()
        ours = OwnAddresses(self._host)
        for link in list(self._links):
            link.hint(lambda local: parse_ip(local[0]) not in ours)

    def say_goodbye(self, task: Task) -> None:
        """Run a task for at most ``budgets.goodbye``, even while the node closes."""
        assert self._nursery is not None
        try:
            self._nursery.start_soon(self._goodbye, task)
        except RuntimeError:  # Trio's error for a nursery that has ended; the node has waited for as long as it may
            logger.debug("a goodbye task was dropped: the node has closed")

    def close_nowait(self, *, abort: bool) -> None:
        """Adopt no more Links, and end the present ones, orderly or by an abort; they have their goodbye time."""
        self._closing = True
        for link in list(self._links):
            link.end_nowait(abort=abort)

    async def _drive(self, link: Link, tasks: Sequence[Task], reach: Reach | None) -> None:
        """Run the Link and its path keeper."""
        try:
            async with open_background_nursery() as nursery:
                nursery.cancel_scope.shield = True  # `drive` bounds itself, and cancels the other when it ends
                if link.protocol.is_lasting or link.protocol.state is LinkState.COMMITTED:
                    nursery.start_soon(self.keep, link, reach)
                await link.drive(
                    on_open=self._admission.take_opened,
                    admit=self._admission.admit,
                    tasks=tasks,
                    goodbye=self._goodbye_time,
                )
        finally:
            self._links.pop(link, None)
            if link.lapsed:
                self._lapsed.put(link.peer_key, trio.current_time())
            self._waiting.pop(link, None)

    async def _goodbye(self, task: Task) -> None:
        with trio.move_on_after(self._goodbye_time, shield=True):
            try:
                with panics_as_errors():
                    await task()
            except Exception:
                logger.exception("a goodbye task failed")
