"""Links that stand, driven until they end, and what attempts still have to say over the network.

Both outlast whoever began them: a Link its walk, a goodbye its attempt.  They run in one nursery of the node, each in a
shield with a deadline that starts when the node closes.
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
"""Seconds for which a Link may be without a path before `authorize` is asked again: its answer is as old as the Link,
and what has changed it may have been what took the path."""
MAX_TOLD: Final = 3
"""Links with a peer on which a signal to it is said, at most: hundreds of them would say each hundreds of times."""
MAX_LAPSED: Final = 1024
"""Peers that are remembered because a Link with them was given up."""
LAPSE_MEMORY: Final = 24 * 3600.0
"""Seconds for which they are: a machine that has slept over night is told by then."""
MAX_LEAVING: Final = 64
"""Addresses of ours that are remembered, at which paths begin whose relay will be gone before long."""
LEAVING_MEMORY: Final = 60.0
"""Seconds for which they are: what an attempt that was under way then may take to make a Link."""
MAX_WAITING: Final = 256
"""Links of a node that wait for a path, or for the acknowledgement of what was said before their last Pipe was closed:
what a node keeps for peers that may never come back.  One more, and the oldest breaks."""
MAX_WAITING_PER_PEER: Final = 16
"""Of those, with one peer: it has more Pipes by opening them on one Link."""

Task = Callable[[], Awaitable[object]]
Keep = Callable[[Link, Reach | None], Awaitable[None]]


async def _keep_nothing(_link: Link, _reach: Reach | None) -> None:
    """A node without anybody who finds further carriers."""


def _hear_nothing(_payload: bytes) -> None:
    """A node without anybody who opens signals."""


@final
class Links:
    """See the module's page.

    Args:
      admission: asked when a peer opens further Pipes.
      paths: how they watch theirs.
      goodbye: seconds for what is left to say when the node closes.
      host, instance: the machine, and what names our process on it.

    Attributes:
      keep: finds further carriers for a Link, until it ends.
      on_news: takes the signals that come on Links.
      switches: times that one has gone on by another path.
      false_alarms: times that a path was suspected and carried again.
    """

    def __init__(
        self, admission: Admission, paths: PathsConfig, *, goodbye: float, host: Host, instance: bytes
    ) -> None:
        self._admission: Final = admission
        self._paths: Final = paths
        self._host: Final = host
        self._instance: Final = instance
        self._goodbye_time: Final = goodbye
        self._links: dict[Link, float] = {}  # and since when
        self._replay: Final = ReplayMemory()
        self._uplinks: Final = Uplinks()
        self._standbys: Final = Standbys()
        self._lapsed: BoundedMap[bytes, float] = BoundedMap(MAX_LAPSED)
        self._leaving: BoundedMap[TransportAddress, float] = BoundedMap(MAX_LEAVING)
        self._waiting: dict[Link, float] = {}  # without a path or a Pipe, and since when; the oldest first
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
        """The time in which Links are driven; at its end all are cancelled, but for what each has shielded."""
        async with open_background_nursery() as self._nursery:
            yield

    def status(self) -> tuple[PeerStatus, ...]:
        """See `Node.peers`."""
        found = [status_of_link(link, peer_id_from_key(link.peer_key), at) for link, at in self._links.items()]
        return tuple(each for each in found if each is not None)

    def terms(self) -> Terms | None:
        """What we offer for one more Link; None where it is to end with its path."""
        timeout = math.ceil(self._paths.resume_timeout)
        if not timeout:
            return None
        return Terms(resume_timeout=timeout, secret=self._host.entropy(16), instance=self._instance)

    def find(self, peer_key: bytes, link_id: bytes) -> Link | None:
        """The Link with a peer that its side calls so, where it may have further carriers."""
        return next((link for link in self._of(peer_key) if link.link_id == link_id), None)

    def has_movable(self, peer_key: bytes) -> bool:
        """Whether there is a Link with a peer that may have further carriers, as far as the peer knows.

        It looks for one that we have given up until it hears so.
        """
        lapsed = self._lapsed.get(peer_key)
        return any(self._of(peer_key)) or (lapsed is not None and trio.current_time() - lapsed < LAPSE_MEMORY)

    def replace(self, peer_key: bytes, terms: Terms | None) -> list[Link]:
        """A peer calls: Links without a path that another process of it made are over; which these are."""
        if terms is None:
            return []
        return [link for link in list(self._of(peer_key)) if link.replace_nowait(terms.instance)]

    def say_news(self, peer_key: bytes, payload: bytes) -> bool:
        """Say a sealed signal to a peer on the first Link that has a path which is well, whether there is one; on a few
        others until then.
        """
        return any(link.say_news(payload) for link in islice(self._of(peer_key), MAX_TOLD))

    def _of(self, peer_key: bytes) -> Iterator[Link]:
        return (link for link in self._links if link.peer_key == peer_key and link.movable)

    def adopt(
        self, link: Link, tasks: Sequence[Task], *, dead_after: float | None = None, reach: Reach | None = None
    ) -> None:
        """Drive an accepted Link, and what belongs to it.  Synchronous.

        Args:
          dead_after: within how many seconds its path's death is to be noticed; None: the configuration's.
          reach: where further carriers may be sought for it; None: where the peer's call did not say.
        """
        assert self._nursery is not None
        if self._closing:  # a call that this end has overtaken: there is nobody any more to have the Pipe
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
        """End every Link with a peer; how many there were."""
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
        """Whether the peer is still let in, which goes on meanwhile."""
        if not await self._admission.readmit(link):
            logger.info("%r: the peer is not let in any more", link)
            link.revoke_nowait()

    def _bound_waiting(self, link: Link) -> None:
        """One more waits: the oldest give way, of its peer's and of all."""
        if self._closing:  # they have their goodbye time, and no more
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
            logger.info("%r is given up: too many wait", each)
            each.evict_nowait()

    def _says_goodbye(self, link: Link) -> bool:
        """Whether a Link without Pipes is in the time that any has for that."""
        return link.has_lanes and trio.current_time() - link.waits_since < self._goodbye_time

    def hint(self, local: TransportAddress) -> None:
        """Something may have killed the paths from an address of ours: they are asked, see `Link.hint`."""
        for link in list(self._links):
            if local == link.carrier.local:
                link.hint()

    def leave(self, local: TransportAddress) -> None:
        """A relay will be gone before long, paths by which begin at an address of ours; see `Link.leave`."""
        self._leaving.put(local, trio.current_time())
        for link in list(self._links):
            link.leave(local)

    def _leave_what_goes(self, link: Link) -> None:
        """What it speaks on may be a path that was found before its relay's end was said."""
        local = link.carrier.local
        since = self._leaving.get(local)
        if since is not None and trio.current_time() - since < LEAVING_MEMORY:
            link.leave(local)

    def check(self) -> None:
        """The machine may have moved, or slept: the paths are asked, and those from addresses that it has no more are
        closed where the Link outlives them.
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
        except RuntimeError:  # Trio's word for a nursery that has ended; the node has waited for as long as it may
            logger.debug("a goodbye came after the end of its node")

    def close_nowait(self, *, abort: bool) -> None:
        """No more Links from here on; those that stand are ended, well or aborted, and have their goodbye time."""
        self._closing = True
        for link in list(self._links):
            link.end_nowait(abort=abort)

    async def _drive(self, link: Link, tasks: Sequence[Task], reach: Reach | None) -> None:
        """The Link, and who finds further carriers for it."""
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
                logger.exception("a background task of a plugin failed")
