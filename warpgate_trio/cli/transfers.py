"""The display of a transfer: a live line on a terminal, otherwise a sentence at its start and its end.

With ``--json`` there is a line each second, for programs that display it themselves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, final

import trio

from ..errors import printable
from ..nurseries import open_background_nursery
from .events import Transferring, encode
from .render import REDRAW, console
from .stdio import StandardOutput

if TYPE_CHECKING:
    from rich.progress import Progress as Picture

    from ..files import Progress
    from .options import Settings

__all__ = ["TransferView", "count_files", "in_words", "of_size"]

PACE: Final = 1.0
"""Seconds between two JSON lines about one transfer."""
MAX_SHOWN: Final = 40
"""Characters of a file's name on a terminal's line."""
_UNITS: Final = ("kB", "MB", "GB", "TB")


def of_size(size: float) -> str:
    """1234567 -> ``1.2 MB``."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = 1
    while power < len(_UNITS) and size >= 999.95 * 1000**power:
        power += 1
    return f"{size / 1000**power:.1f} {_UNITS[power - 1]}"


def count_files(count: int) -> str:
    """``one file``, ``12 files``."""
    return "one file" if count == 1 else f"{count:,} files"


def in_words(size: int, there: int, seconds: float) -> str:
    """``1.2 GB in 3.4 s, 350.0 MB/s``; mentions bytes that had been there before."""
    moved = size - there
    rate = f", {moved / 1e6 / seconds:.1f} MB/s" if moved and seconds > 0 else ""
    before = f" ({of_size(there)} had come before)" if there else ""
    return f"{of_size(moved)}{before} in {seconds:.1f} s{rate}"


@final
class TransferView:
    """Shows one transfer after the other; made by `shown`."""

    def __init__(self, settings: Settings, *, sending: bool) -> None:
        self._settings = settings
        self._sending = sending
        self._now: Progress | None = None
        self._peer = ""
        self._changed = trio.Event()
        self._began = trio.current_time()
        self._output = StandardOutput()

    def take(self, peer: str, progress: Progress) -> None:
        """Show the present state of a transfer."""
        if self._now is None or self._peer != peer or progress.stage == "offered":
            self._began = trio.current_time()
        self._now, self._peer = progress, peer
        if progress.stage == "moving" and not self._changed.is_set():
            self._changed.set()

    def clear(self) -> None:
        """Show no transfer."""
        self._now = None
        self._changed = trio.Event()

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the displayed transfer."""
        return trio.current_time() - self._began

    @classmethod
    @asynccontextmanager
    async def shown(cls, settings: Settings, *, sending: bool) -> AsyncGenerator[TransferView]:
        """Show transfers during the body."""
        view = cls(settings, sending=sending)
        async with open_background_nursery() as nursery:
            if settings.json:
                nursery.start_soon(view._tell)
            elif settings.live:
                nursery.start_soon(view._draw)
            yield view

    async def _tell(self) -> None:
        last: Progress | None = None
        while True:
            await trio.sleep(PACE)
            now = self._now
            if now is None or now is last or now.stage == "offered":
                continue
            last = now
            await self._output.write(
                encode(
                    Transferring(
                        peer=self._peer,
                        sending=self._sending,
                        stage=now.stage,
                        size=now.size,
                        done=now.done,
                        there=now.there,
                        files=now.files,
                        name=now.name,
                    )
                )
            )

    async def _draw(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        while True:
            await self._changed.wait()
            with Progress(*columns, console=console(), auto_refresh=False, transient=True) as picture:
                await self._draw_one(picture)

    async def _draw_one(self, picture: Picture) -> None:
        task = picture.add_task("", total=None)
        while (now := self._now) is not None:
            name = printable(now.name.rpartition("/")[2], MAX_SHOWN) if now.stage == "moving" else "checking"
            with suppress(OSError):
                picture.update(task, description=name, total=now.size, completed=now.done, refresh=True)
            await trio.sleep(REDRAW)
