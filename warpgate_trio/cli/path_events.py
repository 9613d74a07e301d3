"""Reports changes of a Pipe's path as they happen: in words, or with ``--path-events`` as lines of JSON.

With ``--json`` the JSON lines go to stdout.  Otherwise stdout carries the stream, and they go to stderr, as messages in
words always do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from ..nurseries import open_background_nursery
from .events import PathChanged, Searched, encode
from .render import console

if TYPE_CHECKING:
    from ..link import PathChange, Pipe
    from ..report import ConnectReport, PathReport, WalkEvent
    from .events import Event
    from .options import Settings
    from .stdio import StandardOutput

__all__ = ["PathTeller", "change_line"]

MAX_UNTOLD: Final = 16
"""Reports of searches that may wait to be shown; searches are seconds apart."""


@final
class PathTeller:
    """Reports the changes of one Pipe's path.

    Args:
      called_at: when the call began; None if the peer has called.
    """

    def __init__(self, settings: Settings, output: StandardOutput, *, called_at: float | None = None) -> None:
        self._settings: Final = settings
        self._output: Final = output
        self._called_at: Final = called_at
        self._searches_in, self._searches_out = trio.open_memory_channel["ConnectReport"](MAX_UNTOLD)
        self._has_told_why = False

    def take(self, event: WalkEvent) -> None:
        """Process an event of the call; for its `on_event`."""
        if event.kind == "search" and event.report is not None:
            with suppress(trio.WouldBlock):
                self._searches_in.send_nowait(event.report)

    @asynccontextmanager
    async def telling(self, pipe: Pipe) -> AsyncGenerator[None]:
        """Report changes during the body."""
        changes = pipe.path_changes()

        async def tell_changes() -> None:
            async for change in changes:
                await self._tell_change(pipe, change)

        async def tell_searches() -> None:
            async for report in self._searches_out:
                await self._tell_search(pipe, report)

        async with open_background_nursery() as nursery:
            nursery.start_soon(tell_changes)
            nursery.start_soon(tell_searches)
            yield

    async def _tell_change(self, pipe: Pipe, change: PathChange) -> None:
        if not self._settings.path_events:
            if (line := change_line(change, called_at=self._called_at)) is not None:
                self._settings.say(line)
            return
        report = change.as_report()
        await self._print(
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

    async def _tell_search(self, pipe: Pipe, report: ConnectReport) -> None:
        if self._settings.path_events:
            await self._print(Searched(peer=pipe.peer_id, report=msgspec.to_builtins(report)))
        elif report.winner is None and pipe.path.phase == "relay" and not self._has_told_why:
            self._has_told_why = True  # further searches, minutes apart, usually have the same result
            self._explain(pipe, report)

    def _explain(self, pipe: Pipe, report: ConnectReport) -> None:
        from .failures import failure_lines, show_failure

        settings = self._settings
        after = report.began_ms + report.elapsed_ms
        settings.say(f"no better path was found, {after:.1f} ms after the call; the Pipe stays on {pipe.path.plugin}")
        if settings.verbose or settings.debug:
            show_failure(settings, report)
            return
        for line in failure_lines(report, console().width if settings.live else None):
            settings.say(f"  {line}")

    async def _print(self, event: Event) -> None:
        line = encode(event)
        if self._settings.json:
            await self._output.write(line)
        else:
            self._settings.say(line.decode().rstrip("\n"), always=True)


def change_line(change: PathChange, *, called_at: float | None = None) -> str | None:
    """A change in words; None for a change of the state only, which may be a false alarm."""
    if change.new is None:
        return f"the path is lost{f' ({change.detail})' if change.detail else ''}; looking for another one"
    if not change.switched:
        return None
    path = change.new
    after = "" if called_at is None else f", {1000 * (change.at - called_at):.1f} ms after the call"
    silence = f"; silent for {change.silence:.1f} s" if change.silence >= 0.1 else ""
    return (
        f"goes on by {path.plugin}, IPv{path.af} {path.route_type}, at {path.remote[0]} port {path.remote[1]}"
        f"{after}{silence}"
    )


def _path(pipe: Pipe, report: PathReport | None) -> dict[str, str | int | None] | None:
    """A path with the keys of the event `pipe`, and its state."""
    return None if report is None else {"peer": pipe.peer_id, **msgspec.to_builtins(report)}
