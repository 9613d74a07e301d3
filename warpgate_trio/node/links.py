"""Links that stand, driven until they end, and what attempts still have to say over the network.

Both outlast whoever began them: a Link its walk, a goodbye its attempt.  They run in one nursery of the node, each in a
shield with a deadline that starts when the node closes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, final

import trio

from ..config import PathsConfig
from ..errors import panics_as_errors
from ..host import Host
from ..link import Link, Terms
from ..nurseries import open_background_nursery
from ..sockaddr import TransportAddress
from .admission import Admission

__all__ = ["Links"]

logger: logging.Logger = logging.getLogger(__name__)

Task = Callable[[], Awaitable[object]]


@final
class Links:
    """See the module's page.

    Args:
      admission: asked when a peer opens further Pipes.
      paths: how they watch theirs.
      goodbye: seconds for what is left to say when the node closes.
      host, instance: the machine, and what names our process on it.
    """

    def __init__(
        self, admission: Admission, paths: PathsConfig, *, goodbye: float, host: Host, instance: bytes
    ) -> None:
        self._admission: Final = admission
        self._paths: Final = paths
        self._host: Final = host
        self._instance: Final = instance
        self._goodbye_time: Final = goodbye
        self._links: set[Link] = set()
        self._nursery: trio.Nursery | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._links)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The time in which Links are driven; at its end all are cancelled, but for what each has shielded."""
        async with open_background_nursery() as self._nursery:
            yield

    def terms(self) -> Terms:
        """What we offer for one more Link; one without a path is not kept."""
        return Terms(resume_timeout=0, secret=self._host.entropy(16), instance=self._instance)

    def adopt(self, link: Link, tasks: Sequence[Task], *, dead_after: float | None = None) -> None:
        """Drive an accepted Link, and what belongs to it.  Synchronous.

        Args:
          dead_after: within how many seconds its path's death is to be noticed; None: the configuration's.
        """
        assert self._nursery is not None
        if self._closing:  # a call that this end has overtaken: there is nobody any more to have the Pipe
            link.close_nowait()
            return
        link.set_dead_after(self._paths.dead_after if dead_after is None else dead_after)
        self._links.add(link)
        self._nursery.start_soon(self._drive, link, tasks)

    def hint(self, local: TransportAddress | None = None) -> None:
        """Something has happened that may have killed paths, all or those from one address of ours: they are asked, see
        `Link.hint`.
        """
        for link in self._links:
            if local in (None, link.carrier.local):
                link.hint()

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

    async def _drive(self, link: Link, tasks: Sequence[Task]) -> None:
        """The Link and what carries it, a plugin's tasks: shielded together, since its goodbyes go through them."""
        try:
            async with open_background_nursery() as nursery:
                nursery.cancel_scope.shield = True  # `drive` bounds itself, and cancels the others when it ends
                for task in tasks:
                    nursery.start_soon(_carry, task, link)
                await link.drive(
                    on_open=self._admission.take_opened,
                    admit=self._admission.admit,
                    goodbye=self._goodbye_time,
                )
        finally:
            self._links.discard(link)

    async def _goodbye(self, task: Task) -> None:
        with trio.move_on_after(self._goodbye_time, shield=True):
            try:
                with panics_as_errors():
                    await task()
            except Exception:
                logger.exception("a background task of a plugin failed")


async def _carry(task: Task, link: Link) -> None:
    """What a plugin has work for a Link: a failure is the Link's, as that of its own driver."""
    try:
        with panics_as_errors():
            await task()
    except Exception:
        logger.exception("a task that carries %r failed", link)
        link.close_nowait()
