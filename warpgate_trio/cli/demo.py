"""``warpgate-trio demo``: everything at once on one machine, over loopback and a simulated network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import click

from .exits import CommandFailed, ExitCode
from .options import Settings, common_options, pass_settings

if TYPE_CHECKING:
    from ..link import PathInfo, Pipe
    from ..node import Node
    from ..report import ConnectReport

__all__ = ["demo"]

TRANSFER: Final = 64 * 1024 * 1024
SIMULATED_TRANSFER: Final = 4 * 1024 * 1024
"""Bytes of the simulated transfer; simulating its packets takes half a second of processor time."""
RTT: Final = 0.05
"""Round-trip time in seconds between any two hosts of the simulated network: the size of a continent."""
PATIENCE: Final = 10.0
"""Timeout of each step in seconds; a step takes milliseconds."""
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

    Then the same between two homes behind NATs, in a simulated network: the Pipe begins by a relay, and becomes direct
    while bytes move.  All else is on loopback; no key file is made, no configuration is read, no other machine is
    talked to.
    """
    from .runner import run

    settings.start_logging()
    stage = _Stage(settings)
    reports: list[ConnectReport | None] = []
    run(partial(_on_loopback, stage, reports))
    reports.append(_between_homes(stage))
    titles = (
        "the first walk: everything at once, the first Pipe wins",
        "the second: one plugin, pinned",
        "the search behind the third Pipe, for a better path than the relay's",
    )
    for title, report in zip(titles, reports, strict=True):
        stage.show(title, report)
    stage.done()
    return ExitCode.OK


async def _on_loopback(stage: _Stage, reports: list[ConnectReport | None]) -> None:
    """Run two walks, whose reports are added to `reports`, and a transfer."""
    from ..combos import RouteType
    from ..config import IdentityConfig, NodeConfig, Servers
    from ..node import open_node
    from ..node.admission import anyone
    from ..servers.rendezvous import open_rendezvous

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
                reports.append(pipe.report)
            dial = partial(
                alice.connect, address, plugin="reverse_connect", route_type=RouteType.LOOPBACK_BIND, timeout=PATIENCE
            )
            async with _answered(bob, dial) as (pipe, far_end):
                stage.step("alice signals bob to dial her", _path(pipe))
                reports.append(pipe.report)
                with stage.progress(TRANSFER) as advance:
                    moved = await _transfer(far_end, pipe, TRANSFER, advance)
                stage.step(
                    f"{TRANSFER // 2**20} MiB from bob to alice",
                    f"{TRANSFER / moved.seconds / 1e6:.0f} MB/s in one process, each byte compared",
                )


def _between_homes(stage: _Stage) -> ConnectReport | None:
    """Open a Pipe between two homes that begins by a relay; returns the report of the search for a better path."""
    from ..sim import simulate

    return simulate(partial(_upgrade, stage), seed=0)


async def _upgrade(stage: _Stage) -> ConnectReport | None:
    from dataclasses import replace

    import trio

    from ..nurseries import open_background_nursery
    from ..servers.rendezvous import RelayRules, open_rendezvous
    from ..sim import presets
    from ..testing import simulated_hosts
    from ..testing.walks import RENDEZVOUS, STUN, STUN2, open_nodes
    from ..testing.worlds import PeerPair

    pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT)
    relays = RelayRules(open_to_all=True)
    server = replace(
        RENDEZVOUS, open=lambda _host: open_rendezvous(host=None, port=443, public_urls=[RENDEZVOUS.url], relay=relays)
    )
    async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=(server, STUN, STUN2)) as nodes:
        stage.step("two homes behind NATs", f"simulated, {1000 * RTT:.0f} ms from each other and from the servers")
        called_at = trio.current_time()
        dial = partial(nodes.alice.auto_connect, nodes.bob.address, relay_first=True)
        async with _answered(nodes.bob, dial) as (pipe, far_end), open_background_nursery() as nursery:
            changes = pipe.path_changes()
            received = 0

            def count(size: int) -> None:
                nonlocal received
                if not received:
                    stage.step("the first bytes from bob", f"by {pipe.path.plugin}, {_ms_since(called_at)}")
                received += size

            async def tell() -> None:
                async for change in changes:
                    if change.new is not None and change.switched:
                        here = f"{received / 2**20:.1f} MiB were here by then"
                        stage.step("the pipe becomes direct", f"{_ends(change.new)}, {_ms_since(called_at)}; {here}")

            stage.step("alice begins by a relay", _path(pipe))
            nursery.start_soon(tell)
            moved = await _transfer(far_end, pipe, SIMULATED_TRANSFER, count)
            stage.step(
                f"{SIMULATED_TRANSFER // 2**20} MiB from bob to alice",
                f"each byte compared, {_ms_since(called_at)}; no pause over {1000 * moved.pause:.0f} ms",
            )
            return pipe.search_report
    raise AssertionError("unreachable")  # for mypy, to which `async with` may swallow exceptions


def _ms_since(moment: float) -> str:
    import trio

    return f"{1000 * (trio.current_time() - moment):.1f} ms"


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
    """Both ends of a Pipe: the dialled one, and the one from bob's listener."""
    async with await dial() as near, await bob.listener.accept() as far:
        yield near, far


@dataclass(frozen=True, slots=True)
class _Moved:
    """A transfer: its duration and its longest pause, in seconds."""

    seconds: float
    pause: float


async def _transfer(source: Pipe, sink: Pipe, total: int, advance: Callable[[int], object]) -> _Moved:
    """Move and compare `total` bytes; `advance` is called with the number of bytes that have arrived."""
    import trio

    from .echo_test import EchoFailed, Numbered, NumberedCheck
    from .runner import run_both

    data = Numbered()
    check = NumberedCheck(data, total)
    started = finished = trio.current_time()
    pause = 0.0

    async def send() -> None:
        position = 0
        while position < total:
            part = data.part(position, total - position)
            await source.send_all(part)
            position += len(part)
        await source.send_eof()

    async def receive() -> None:
        nonlocal finished, pause
        async for piece in sink:
            now = trio.current_time()
            if check.received:
                pause = max(pause, now - finished)
            finished = now
            check.feed(piece)
            advance(len(piece))

    try:
        await run_both(send, receive)
    except (EchoFailed, trio.BrokenResourceError) as error:
        raise CommandFailed(ExitCode.BROKEN, f"the transfer failed: {error}") from error
    if check.received != total:
        raise CommandFailed(ExitCode.BROKEN, f"the transfer ended after {check.received} of {total} bytes")
    return _Moved(finished - started, pause)


def _path(pipe: Pipe) -> str:
    assert pipe.report is not None
    return f"{_ends(pipe.path)}, {pipe.report.elapsed_ms:.1f} ms"


def _ends(path: PathInfo) -> str:
    return f"{path.plugin}, IPv{path.af}, {path.local[0]}:{path.local[1]} ↔ {path.remote[0]}:{path.remote[1]}"


@final
class _Stage:
    """Shows the steps: in colour on a terminal, otherwise as plain lines."""

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
        """A progress bar during the body; yields the function that advances it."""
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
        self._settings.say("\nAll of it was encrypted, and nothing left this machine.  Between two machines:")
        for line in RECIPE:
            self._settings.say(f"  {line}")
