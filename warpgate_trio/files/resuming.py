"""Transfers that continue over several Pipes.

The sender calls the receiver again after a break, with growing pauses, until its patience is at an end.  The receiver
accepts Pipes of all peers, but one at a time from each peer: a new Pipe replaces the previous one, whose break this
side may not have detected yet.
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
"""Seconds before each further call after a break; the last value repeats."""
MAX_CHANGES: Final = 3
"""How often the files are looked at and sent again after one has changed."""
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
    """Send what `look_at` returned until the receiver has it, over as many Pipes as that takes.

    Args:
      open_pipe: opens a Pipe to the receiver.  Its errors are raised until it has succeeded once, and are breaks
        afterwards.
      patience: seconds without progress after which the transfer is given up.
      look_again: called in a thread after a file has changed; looks at all files again and returns what is sent next.
        If it is None, or raises OSError or ValueError as `look_at` does for a missing path, the change is raised.
      on_break: called with the reason for which a Pipe or call ended, and the seconds until the next call; None: the
        break is logged.
      on_progress: as for `send_files`.

    Returns:
      What was sent in the end.

    Raises:
      TransferRefused, TransferFailed, RemoteProtocolError: as `send_files`, where another try would end the same way.
      trio.BrokenResourceError, ConnectError, PeerNotFound, PeerRefused, AddressError: the reason for the last break,
        when the patience is at an end.
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
    """A `look_again` for `keep_sending`: looks at the same paths, for an offer with the same `run`."""
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
      accept: returns the next Pipe, as ``node.listener.accept`` does.
      inbox: where the files go.
      on_received: called after each complete transfer, when its Pipe is closed.
      on_problem: called with the reason for which a Pipe ended early; None: the reason is logged.  The data so far is
        kept.
      on_progress: as for `receive_files`, with the Pipe before the progress.
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
            logger.exception("receiving failed unexpectedly")
            tell(pipe, error)
        finally:
            if running.get(pipe.peer_id) is mine:
                del running[pipe.peer_id]
            over.set()

    async with open_background_nursery() as nursery:
        while True:
            nursery.start_soon(serve, await accept())
