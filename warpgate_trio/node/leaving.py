"""Gets a Link off relays that will be gone before long: another path takes over while they still carry.

A relay's server that is about to be shut down says so (`warpgate_trio.servers.relay_frames`,
`warpgate_trio.turn.client_core`), and `Link.leave` notes which carriers go by it.  Where the Link speaks on one of
these, it changes over to another carrier that it has, else to one that a search finds, by other relays too.  Where one
of these stands by for a path that goes by no relay, the side that called has another relay stand by.  What was left is
closed as soon as nothing comes there any more, so that the server has not to wait.
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
"""Seconds after a search that has found nothing; the last ones are for all further ones."""
RESPONDER_WAITS: Final = 1.0
"""Seconds by which the side that was called searches later where the other one has been told, too."""


Search = Callable[[], Awaitable[object]]


async def keep_off(link: Link, search: Search, replace_standby: Search) -> None:
    """Leave what is to be left, until the Link is over.

    Args:
      search: has the Link change over to another path.
      replace_standby: has another relay stand by.  Both raise `ConnectError` or `AttemptFailed` where there is none.
    """
    try:
        await _keep_off(link, search, replace_standby)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        logger.debug("%r: nothing is left any more: %s", link, error)
    except Exception:
        logger.exception("%r: leaving a relay failed in a way that nobody foresaw", link)


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
