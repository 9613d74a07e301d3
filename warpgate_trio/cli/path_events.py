"""``--path-events``: a line of JSON for each change of a Pipe's path.

The lines go where this run's JSON lines go, which is stdout with ``--json``.  Else stdout is the stream's, and they go
to stderr.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from ..nurseries import open_background_nursery
from .events import PathChanged, encode

if TYPE_CHECKING:
    from ..link import Pipe
    from ..report import PathReport
    from .options import Settings
    from .stdio import StandardOutput

__all__ = ["telling_path_changes"]


@asynccontextmanager
async def telling_path_changes(settings: Settings, pipe: Pipe, output: StandardOutput) -> AsyncGenerator[None]:
    """The time in which the changes of a Pipe's path are printed, where the user has asked for it."""
    if not settings.path_events:
        yield
        return
    async with open_background_nursery() as nursery:
        nursery.start_soon(_tell, settings, pipe, output)
        yield


async def _tell(settings: Settings, pipe: Pipe, output: StandardOutput) -> None:
    async for change in pipe.path_changes():
        report = change.as_report()
        line = encode(
            PathChanged(
                peer=pipe.peer_id,
                old=_path(pipe, report.old),
                new=_path(pipe, report.new),
                cause=report.cause,
                detail=report.detail,
                silence_ms=report.silence_ms,
                replayed=report.replayed,
            )
        )
        if settings.json:
            await output.write(line)
        else:
            settings.say(line.decode().rstrip("\n"), always=True)


def _path(pipe: Pipe, report: PathReport | None) -> dict[str, str | int | None] | None:
    """The keys of the event `pipe`, and the state."""
    return None if report is None else {"peer": pipe.peer_id, **msgspec.to_builtins(report)}
