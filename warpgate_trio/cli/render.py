"""The display of a walk: a live table on a terminal, plain lines for a file or a pipe.

Everything goes to stderr.  A task of its own redraws the live table a few times a second, so that drawing does not
delay the walk.  A walk that ends sooner is drawn once, at its end.
"""

from __future__ import annotations

import textwrap
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from ..nurseries import open_background_nursery

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..report import ComboReport, ConnectReport, WalkEvent
    from .options import Settings

__all__ = [
    "console",
    "format_bytes",
    "format_combo",
    "hanging",
    "plain_table",
    "progress_bar",
    "rich_table",
    "show_report",
    "watching_walk",
    "without_address",
]

REDRAW: Final = 0.1
"""Seconds between two redraws: as fast as an eye can follow."""

COLUMNS: Final = ("phase", "plugin", "IP", "route", "target", "ms", "outcome")
_LONG: Final = frozenset({"target", "server", "outcome"})
_STYLES: Final = {
    "won": "bold green",
    "failed": "red",
    "timed_out": "red",
    "lost": "yellow",
    "not_started": "dim",
    "hopeless": "dim",
    "trying": "cyan",
}


def console() -> Console:
    """A rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def format_ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def format_bytes(count: int) -> str:
    """1000000 -> ``1,000,000 bytes``."""
    return f"{count:,} byte{'' if count == 1 else 's'}"


def format_combo(combo: ComboReport, *, trying: bool = False) -> tuple[str, ...]:
    """One row of the table of combos; `COLUMNS` names its cells."""
    return (
        combo.phase or "",
        combo.plugin,
        str(combo.af),
        combo.route,
        _socket_address(combo.target),
        format_ms(combo.ended_ms),
        "trying" if trying else combo.outcome.value.replace("_", " "),
    )


def format_errors(report: ConnectReport) -> list[str]:
    """The reasons for which combos failed, each once: most combos of a walk fail for the same reasons."""
    found: dict[tuple[str, str], int] = {}
    for combo in report.combos:
        if combo.error:
            key = (combo.plugin, without_address(combo.error))
            found[key] = found.get(key, 0) + 1
    return [f"{count} × {plugin}: {error}" for (plugin, error), count in found.items()]


def without_address(text: str) -> str:
    """An error message of the system, without errno and address, which the table has; other texts unchanged."""
    return text.rpartition(": ")[2].rpartition("] ")[2] if text.startswith("[Errno ") else text


def _socket_address(target: str) -> str:
    """The last word of ``nic tcp 192.0.2.2:4433``; other columns have the rest."""
    return target.rpartition(" ")[2]


def hanging(text: str, width: int) -> str:
    """A sentence in lines of at most `width` characters, all but the first indented by two more."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as plain text for files and pipes, with two spaces between the aligned columns."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """The same for a terminal, within its width; the last column, the outcome, determines the colour of the row."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    for name in columns:
        # On a narrow terminal, columns with long texts wrap; the others do not.
        long = name in _LONG
        table.add_column(name, justify="right" if name == "ms" else "left", no_wrap=not long, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row), style=_STYLES.get(row[-1].replace(" ", "_")))
    return table


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of `total` bytes, which stays when it is full.  The yielded function advances and draws it."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(bar_width=40), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)
        drawn_at, done = trio.current_time(), 0

        def advance(count: int) -> None:
            nonlocal drawn_at, done
            done += count
            now = trio.current_time()
            if now - drawn_at >= REDRAW / 2 or done >= total:
                drawn_at = now
                progress.update(task, completed=done, refresh=True)

        yield advance


def show_report(settings: Settings, report: ConnectReport) -> None:
    """Show every combo of a failed walk with its outcome, the reasons, and the notes."""
    rows = [format_combo(combo) for combo in report.combos]
    if settings.quiet:
        return
    if rows and settings.live:
        console().print(rich_table(COLUMNS, rows))
    elif rows:
        settings.say(plain_table(COLUMNS, rows))
    for line in format_errors(report):
        settings.say(line)
    for note in report.notes:
        settings.say(f"note: {note}")


OnEvent = Callable[["WalkEvent"], None]


@asynccontextmanager
async def watching_walk(settings: Settings) -> AsyncGenerator[OnEvent]:
    """Yields an `on_event` that shows a walk as the settings say."""
    if settings.quiet:
        yield lambda _event: None
    elif not (settings.live or settings.verbose or settings.debug):
        yield lambda _event: None  # only the result is shown, at the end
    elif settings.live:
        async with _Live().shown() as view:
            yield view.take
    else:
        yield _plain_lines(settings)


def _plain_lines(settings: Settings) -> OnEvent:
    def take(event: WalkEvent) -> None:
        if event.kind == "phase":
            settings.say(f"{event.at_ms:9.1f} ms  phase {event.phase}")
        elif event.kind == "note":
            settings.say(f"{event.at_ms:9.1f} ms  note: {event.text}")
        elif event.kind == "combo_ended" and event.combo is not None:
            _, plugin, af, route, target, _, outcome = format_combo(event.combo)
            settings.say(f"{event.at_ms:9.1f} ms  {plugin} IPv{af} {route} {target}: {outcome}")

    return take


@final
class _Live:
    """The table of a walk's combos, as they start and end."""

    def __init__(self) -> None:
        self._rows: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._phase = ""

    def take(self, event: WalkEvent) -> None:
        if event.kind == "phase":
            self._phase = event.phase or ""
        elif event.combo is not None:
            combo = event.combo
            key = (combo.phase, combo.plugin, combo.af, combo.route, combo.target)
            self._rows[key] = format_combo(combo, trying=event.kind == "combo_started")

    def picture(self) -> Table:
        return rich_table(COLUMNS, self._rows.values(), title=f"phase: {self._phase}")

    @asynccontextmanager
    async def shown(self) -> AsyncGenerator[_Live]:
        from rich.live import Live

        with Live(console=console(), auto_refresh=False, transient=True, redirect_stdout=False) as live:

            async def redraw() -> None:
                while True:
                    await trio.sleep(REDRAW)
                    live.update(self.picture(), refresh=True)

            async with open_background_nursery() as nursery:
                nursery.start_soon(redraw)
                yield self
