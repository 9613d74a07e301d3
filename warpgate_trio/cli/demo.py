"""``warpgate-trio demo``: everything at once on one machine, over loopback and nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

import click

from .exits import CommandFailed, ExitCode
from .options import Settings, common_options, pass_settings

if TYPE_CHECKING:
    from ..link import Pipe
    from ..node import Node
    from ..report import ConnectReport

__all__ = ["demo"]

TRANSFER: Final = 64 * 1024 * 1024
PATIENCE: Final = 10.0
"""Seconds for each step; it takes milliseconds."""
RECIPE: Final = (
    "warpgate-trio serve > warpgate.toml                      # where both can reach it; copy the file to both",
    "warpgate-trio listen --config warpgate.toml --allow-any  # on one",
    "warpgate-trio connect --config warpgate.toml wg1…        # on the other, with what `listen` has printed",
)


@click.command(short_help="Watch two nodes find each other and move bytes, on this machine alone.")
@common_options
@pass_settings
def demo(settings: Settings) -> int:
    """Start a rendezvous server and two nodes, connect them in two ways, and move 64 MiB through the second Pipe.

    Everything is on loopback; no key file is made, no configuration is read, no other machine is talked to.
    """
    from .runner import run

    settings.start_logging()
    return run(partial(_demo, settings))


async def _demo(settings: Settings) -> ExitCode:
    from ..combos import RouteType
    from ..config import IdentityConfig, NodeConfig, Servers
    from ..node import open_node
    from ..node.admission import anyone
    from ..servers.rendezvous import open_rendezvous

    stage = _Stage(settings)
    async with open_rendezvous(host="127.0.0.1", port=0) as server:
        stage.step("a rendezvous server", server.url)
        config = NodeConfig(servers=Servers(websocket=[server.url]), identity=IdentityConfig(ephemeral=True))
        async with open_node(config, authorize=anyone) as bob, open_node(config) as alice:
            stage.step("bob, who listens", f"{bob.peer_id[:12]}…")
            stage.step("alice, who calls", f"{alice.peer_id[:12]}…")
            address = str(bob.address)
            stage.step("bob's address, signed", f"{address[:16]}… ({len(address)} characters)")
            await _within("waiting for the rendezvous server", _both_signalling(alice, bob))

            only = [RouteType.LOOPBACK_BIND]
            async with _answered(bob, lambda: alice.auto_connect(address, route_types=only)) as (pipe, _):
                stage.step("alice dials bob", _path(pipe))
                reports = [pipe.report]
            dial = partial(
                alice.connect, address, plugin="reverse_connect", route_type=RouteType.LOOPBACK_BIND, timeout=PATIENCE
            )
            async with _answered(bob, dial) as (pipe, far_end):
                stage.step("alice signals bob to dial her", _path(pipe))
                reports.append(pipe.report)
                seconds = await _transfer(stage, far_end, pipe)
                stage.step(
                    f"{TRANSFER // 2**20} MiB from bob to alice",
                    f"{TRANSFER / seconds / 1e6:.0f} MB/s in one process, each byte compared",
                )
    stage.show("the first walk: everything at once, the first Pipe wins", reports[0])
    stage.show("the second: one plugin, pinned", reports[1])
    stage.done()
    return ExitCode.OK


async def _both_signalling(alice: Node, bob: Node) -> None:
    await alice.wait_signals()
    await bob.wait_signals()


async def _within(what: str, step: Awaitable[None]) -> None:
    import trio

    try:
        with trio.fail_after(PATIENCE):
            await step
    except trio.TooSlowError:
        raise CommandFailed(ExitCode.NO_PATH, f"{what} took more than {PATIENCE:g} s") from None


@asynccontextmanager
async def _answered(bob: Node, dial: Callable[[], Awaitable[Pipe]]) -> AsyncGenerator[tuple[Pipe, Pipe]]:
    """Both ends of a Pipe: the one that was called for, and the one that came out of the listener."""
    async with await dial() as near, await bob.listener.accept() as far:
        yield near, far


async def _transfer(stage: _Stage, source: Pipe, sink: Pipe) -> float:
    """Move and compare `TRANSFER` bytes; returns the seconds it took."""
    import trio

    from .echo_test import EchoFailed, Numbered, NumberedCheck
    from .runner import run_both

    data = Numbered()
    check = NumberedCheck(data, TRANSFER)
    started = trio.current_time()
    finished = started

    async def send() -> None:
        position = 0
        while position < TRANSFER:
            part = data.part(position, TRANSFER - position)
            await source.send_all(part)
            position += len(part)
        await source.send_eof()

    async def receive() -> None:
        nonlocal finished
        async for piece in sink:
            check.feed(piece)
            advance(len(piece))
        finished = trio.current_time()

    with stage.progress(TRANSFER) as advance:
        try:
            await run_both(send, receive)
        except (EchoFailed, trio.BrokenResourceError) as error:
            raise CommandFailed(ExitCode.BROKEN, f"the transfer failed: {error}") from error
    if check.received != TRANSFER:
        raise CommandFailed(ExitCode.BROKEN, f"the transfer ended after {check.received} of {TRANSFER} bytes")
    return finished - started


def _path(pipe: Pipe) -> str:
    assert pipe.report is not None
    path = pipe.path
    return (
        f"{path.plugin}, IPv{path.af}, {path.local[0]}:{path.local[1]} ↔ {path.remote[0]}:{path.remote[1]}, "
        f"{pipe.report.elapsed_ms:.1f} ms"
    )


@final
class _Stage:
    """Shows the steps, with colours on a terminal and as plain lines elsewhere."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._console = None
        if settings.live:
            from .render import console

            self._console = console()

    def step(self, what: str, detail: str) -> None:
        if self._console is not None:
            from rich.markup import escape

            self._console.print(f"[green]✓[/] {what:<30} [cyan]{escape(detail)}[/]", soft_wrap=True)
        else:
            self._settings.say(f"{what:<30} {detail}")

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for the time of the body; yields what advances it."""
        if self._console is None:
            yield lambda _count: None
            return
        from .render import progress_bar

        with progress_bar(self._console, total) as advance:
            yield advance

    def show(self, title: str, report: ConnectReport | None) -> None:
        from .render import COLUMNS, format_combo, plain_table, rich_table

        rows = [format_combo(combo) for combo in report.combos] if report is not None else []
        if self._console is not None:
            self._console.print(f"\n[bold]{title}[/]")
            self._console.print(rich_table(COLUMNS, rows))
        else:
            self._settings.say(f"\n{title}\n{plain_table(COLUMNS, rows)}")

    def done(self) -> None:
        self._settings.say("\nAll of it was encrypted end to end, and went over loopback only.  Between two machines:")
        for line in RECIPE:
            self._settings.say(f"  {line}")
