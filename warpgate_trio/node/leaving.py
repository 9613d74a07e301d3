"""Moves a Link off relays that are about to shut down, while they still forward.

A relay server that is about to shut down announces it (`warpgate_trio.servers.relay_frames`,
`warpgate_trio.turn.client_core`), and `Link.leave` marks the carriers that go through it.

* Where the Link sends on such a carrier, it switches to another carrier that it has, else to one that a search finds,
  which may be another relay.
* Where such a carrier is the standby of a path without a relay, the initiator finds another relay as the standby.
* A carrier that was left is closed as soon as nothing arrives on it any more, so that the server need not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..errors import AttemptFailed, ConnectError
from ..link import Link

__all__ = ["keep_off"]

logger: logging.Logger = logging.getLogger(__name__)

PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each search, after one that found nothing; the last number holds for all further ones."""
RESPONDER_WAITS: Final = 1.0
"""Seconds that the responder waits before its search where the initiator knows of the shutdown, too."""


Search = Callable[[], Awaitable[object]]


async def keep_off(link: Link, search: Search, replace_standby: Search) -> None:
    """Leave relays that are about to shut down, until the Link ends.

    Args:
      search: finds another path and switches the Link to it.
      replace_standby: finds another relay as the standby.  Both raise `ConnectError` or `AttemptFailed` on failure.
    """
    try:
        await _keep_off(link, search, replace_standby)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        logger.debug("%r: the relay watch ended: %s", link, error)
    except Exception:
        logger.exception("%r: leaving a relay failed unexpectedly", link)


async def _keep_off(link: Link, search: Search, replace_standby: Search) -> None:
    tries = 0
    while True:
        await link.wait_leaving()
        if link.is_leaving and not link.protocol.initiator and link.both_know:
            with trio.move_on_after(RESPONDER_WAITS):
                await link.wait_left()
        while link.is_leaving and link.prefer_another():
            await link.wait_path_event()
        if not link.is_leaving:
            tries = 0
            if link.protocol.initiator and link.lacks_standby:
                try:
                    await replace_standby()
                except (AttemptFailed, ConnectError) as error:
                    logger.debug("%r: no other relay stands by: %s", link, error)
            await trio.sleep(link.close_left())
            continue
        logger.info("%r: the relay will be shut down; searching for another path", link)
        try:
            await search()
        except (AttemptFailed, ConnectError) as error:
            logger.debug("%r: no other path was found: %s", link, error)
            with trio.move_on_after(PAUSES[min(tries, len(PAUSES) - 1)]):  # pacing
                await link.wait_left()
            tries += 1
