"""Transfers over several Pipes: what a break costs is the time until there is another Pipe.

The sender's side calls again, with pauses that grow, for as long as its caller wants.  The receiver's side takes what
Pipes come, one at a time of a peer: a new one takes the place of that before it, which may not know yet that it is
dead.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import trio

from ..errors import (
    AddressError,
    ConnectError,
    PeerNotFound,
    PeerRefused,
    RemoteProtocolError,
    TransferFailed,
    TransferRefused,
)
from ..link import Pipe
from ..nurseries import open_background_nursery
from .progress import OnProgress, Progress
from .receiving import Inbox, Received
from .sending import send_outgoing
from .sources import Outgoing, look_at
from .wire import Reason

__all__ = ["keep_sending", "looking_again", "serve_inbox"]

logger: logging.Logger = logging.getLogger(__name__)

PAUSES: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between calls to a peer that files were sent to; the last one is for all further ones."""
MAX_CHANGES: Final = 3
"""How often changed files are looked at again and sent: who writes all the time is not waited for."""
_PASSING: Final = frozenset({Reason.BUSY, Reason.DAMAGED})


async def keep_sending(
    open_pipe: Callable[[], Awaitable[Pipe]],
    outgoing: Outgoing,
    *,
    patience: float,
    look_again: Callable[[], Outgoing] | None = None,
    on_break: Callable[[Exception, float], object] | None = None,
    on_progress: OnProgress | None = None,
) -> Outgoing:
    """Send what was looked at until it has come, over as many Pipes as it takes.

    Args:
      open_pipe: calls the receiver; what it raises the first time is raised.
      patience: seconds without a byte that is over after which it is given up.
      look_again: where a file has changed: looks at all again, and what it returns is sent; None: that is the end.  It
        is the end, too, where it raises OSError or ValueError, as `look_at` does of a path that is gone.
      on_break: told why a Pipe or a call has ended, and in how many seconds the next call is.
      on_progress: as for `send_files`.

    Returns:
      What was sent at last.

    Raises:
      TransferRefused, TransferFailed, RemoteProtocolError: as `send_files`, where another try would end the same way.
      trio.BrokenResourceError, ConnectError, PeerNotFound, PeerRefused, AddressError: the last reason, when the
        patience was at its end.
    """
    tell = on_break or (lambda error, pause: logger.info("calling again in %g s: %s", pause, error))
    most, since, tries, changes = -1, trio.current_time(), 0, 0
    connected = False

    def watch(progress: Progress) -> None:
        nonlocal most, since, tries
        if progress.done > most and progress.stage != "offered":
            most, since, tries = progress.done, trio.current_time(), 0
        if on_progress is not None:
            on_progress(progress)

    while True:
        try:
            async with await open_pipe() as pipe:
                connected = True
                await send_outgoing(pipe, outgoing, on_progress=watch)
                return outgoing
        except (AddressError, ConnectError, PeerNotFound, PeerRefused, trio.BrokenResourceError) as error:
            if not connected:
                raise
            problem: Exception = error
        except (TransferRefused, TransferFailed) as error:
            if (
                error.reason == Reason.CHANGED
                and not error.by_peer
                and look_again is not None
                and changes < MAX_CHANGES
            ):
                changes += 1
                try:
                    outgoing = await trio.to_thread.run_sync(look_again)
                except (OSError, ValueError) as gone:
                    raise error from gone
                most = -1
            elif error.reason not in _PASSING:
                raise
            problem = error
        pause = PAUSES[min(tries, len(PAUSES) - 1)]
        if trio.current_time() + pause - since > patience:
            raise problem
        tries += 1
        tell(problem, pause)
        await trio.sleep(pause)  # pacing


def looking_again(paths: Iterable[str | Path], outgoing: Outgoing) -> Callable[[], Outgoing]:
    """A `look_again` for `keep_sending`: the same paths, as the same sender."""
    return partial(look_at, list(paths), run=outgoing.offer.run)


async def serve_inbox(
    accept: Callable[[], Awaitable[Pipe]],
    inbox: Inbox,
    *,
    on_received: Callable[[Pipe, Received], object],
    on_problem: Callable[[Pipe, Exception], object] | None = None,
    on_progress: Callable[[Pipe, Progress], object] | None = None,
) -> NoReturn:
    """Receive from all peers that call, until cancelled.

    Args:
      accept: the next Pipe, as ``node.listener.accept`` has it.
      on_received: told of each transfer that is over, when its Pipe is closed.
      on_problem: told why a Pipe ended before; None: it is logged.  What has come is kept.
      on_progress: as for `receive_files`.
    """
    tell = on_problem or (lambda pipe, error: logger.info("%r: %s", pipe, error))
    running: dict[str, tuple[trio.CancelScope, trio.Event]] = {}

    async def serve(pipe: Pipe) -> None:
        before = running.get(pipe.peer_id)
        mine = running[pipe.peer_id] = trio.CancelScope(), trio.Event()
        scope, over = mine
        show = None if on_progress is None else partial(on_progress, pipe)
        try:
            if before is not None:
                before[0].cancel()
                await before[1].wait()
            with scope:
                async with pipe:
                    received = await inbox.receive(pipe, on_progress=show)
                on_received(pipe, received)
        except (TransferRefused, TransferFailed, RemoteProtocolError, trio.BrokenResourceError) as error:
            tell(pipe, error)
        except Exception as error:
            logger.exception("receiving failed in a way that nobody foresaw")
            tell(pipe, error)
        finally:
            if running.get(pipe.peer_id) is mine:
                del running[pipe.peer_id]
            over.set()

    async with open_background_nursery() as nursery:
        while True:
            nursery.start_soon(serve, await accept())
