"""Announces to other processes of our key that this one listens, and receives their announcements.

`signal.instances` says why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final, NoReturn, final

import trio

from ..address import PeerAddress
from ..clock.wall import Clock
from ..errors import SignalError
from ..host import Host
from ..identity import Identity
from .core import OWNER, Here
from .first_look import FirstLook
from .hub import SignalHub
from .instances import HERE_INTERVAL, Siblings
from .message import MAX_TIME_MS, seal_message, wire_name

__all__ = ["HERE", "Presence"]

logger: logging.Logger = logging.getLogger(__name__)

HERE: Final = wire_name(OWNER, Here)
SEND_PATIENCE: Final = 5.0
"""Seconds for sending one `Here`, at most."""


@final
class Presence:
    """This process among the listening processes of its key; a process that does not listen sends nothing.

    Args:
      first_look: learns our own `Here`, to discard it when it comes back to us.
      own_address: returns the address that the process publishes now.
      listening: whether the node can be called.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        host: Host,
        hub: SignalHub,
        clock: Clock,
        first_look: FirstLook,
        own_address: Callable[[], PeerAddress],
        listening: bool,
    ) -> None:
        self._identity = identity
        self._host = host
        self._hub = hub
        self._clock = clock
        self._first_look = first_look
        self._own_address = own_address
        self._listening = listening
        self._siblings: Final = Siblings(hub.instance)
        self._news = trio.Event()
        self._warned = False

    def is_there(self, instance: bytes | None) -> bool:
        """Whether an instance is another process of our key that listens."""
        return self._siblings.is_there(instance, trio.current_time())

    def hear(self, instance: bytes | None) -> None:
        """Another process of our key has sent `Here`.  The first one logs a warning."""
        if instance is None or not self._listening or not self._siblings.hear(instance, trio.current_time()):
            return
        self._news.set()
        if not self._warned:
            self._warned = True
            logger.warning(
                "another process listens with this key, %s: peers that have a current address reach the process that "
                "published it, all others either of the two; give each process a key of its own",
                self._identity.peer_id,
            )

    async def run(self) -> None:
        """Send `Here` when a server connects, when another process is heard for the first time, and every
        `HERE_INTERVAL` while there is one."""
        if not self._listening:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_servers)
            nursery.start_soon(self._say_here)

    async def _watch_servers(self) -> NoReturn:
        opened = 0
        while True:
            opened = await self._hub.wait_opened(opened)
            self._news.set()

    async def _say_here(self) -> NoReturn:
        while True:
            pause = HERE_INTERVAL if self._siblings.any_there(trio.current_time()) else math.inf
            with trio.move_on_after(pause):
                await self._news.wait()
            self._news = trio.Event()
            ours = self._own_address()
            self._first_look.ours = blob = seal_message(
                self._identity,
                ours,
                ours,
                wire_name=HERE,
                payload=Here(),
                message_id=self._host.entropy(16),
                session=bytes(16),
                time_ms=min(max(int(self._clock.now() * 1000), 0), MAX_TIME_MS),
            )
            with trio.move_on_after(SEND_PATIENCE):
                try:
                    await self._hub.send(ours.public_key, blob)
                except SignalError as error:
                    logger.debug("this process could not be announced to others of its key: %s", error)
