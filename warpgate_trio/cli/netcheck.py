"""``warpgate-trio netcheck``: what this machine's network is like, and what works in it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .exits import ExitCode
from .options import NodeOptions, Settings, common_options, json_option, pass_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import NodeConfig
    from ..netcheck import ClockCheck, GatewayCheck, NetcheckReport, PathCheck, ServerCheck

__all__ = ["netcheck"]

SERVERS: Final = ("server", "over", "ms", "outcome")
TOLD_BY_THE_TABLE: Final = ("warpgate_trio.signal.keeper", "warpgate_trio.clock.corrected")
"""Loggers whose warnings about unreachable servers are left out: the table has these servers, with the reason."""


@click.command(short_help="What is this network like: NATs, servers, clock; what works in it?")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="F", help="Configuration file.")
@click.option("--servers", is_flag=True, help="Test every configured server by itself, over each transport.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    metavar="S",
    help="Report what is known after S seconds.",
)
@json_option
@common_options
@pass_settings
def netcheck(settings: Settings, *, config_file: Path | None, servers: bool, timeout: float) -> int:
    """Measure the NATs between this machine and the internet, by the servers that are configured.

    Exits with 0 when at least one server was reached, with 1 when none was.
    """
    from .runner import run

    settings.start_logging(told_otherwise=TOLD_BY_THE_TABLE)
    # A new identity: with the node's key, `netcheck` would receive the calls to a `listen` that runs at the same time.
    config = NodeOptions(config_file=config_file, key_file=None, ephemeral=True, port=0).load()
    return run(partial(_netcheck, settings, config, servers, timeout))


async def _netcheck(settings: Settings, config: NodeConfig, servers: bool, timeout: float) -> ExitCode:
    from ..node import open_node

    async with open_node(config) as node:
        settings.say(f"checking, for at most {timeout:g} s …")
        report = await node.netcheck(servers=servers, timeout=timeout)
    if settings.json:
        import msgspec

        from .events import NetChecked, encode

        settings.put(encode(NetChecked(**msgspec.to_builtins(report))))
    elif sys.stdout is not None and sys.stdout.isatty():
        settings.put(_styled(report).encode())
    else:
        settings.put(_plain(report).encode())
    return ExitCode.OK if report.online else ExitCode.NO_PATH


def _plain(report: NetcheckReport) -> str:
    from .render import plain_table

    blocks = ["\n".join(_path_lines(path)) for path in report.paths]
    if report.servers:
        blocks.append(plain_table(SERVERS, _server_rows(report.servers)))
    return "\n\n".join([*blocks, "\n".join(f"{key}: {text}" for key, text in _lines(report))]) + "\n"


def _styled(report: NetcheckReport) -> str:
    """The same in colour, and wrapped to the terminal's width."""
    from rich.console import Console
    from rich.text import Text

    from .render import hanging, rich_table

    console = Console(highlight=False)
    with console.capture() as captured:
        for path in report.paths:
            head, *rest = _path_lines(path)
            console.print(Text(hanging(head, console.width), style="bold"))
            for line in rest:
                console.print(Text(hanging(line, console.width)))
        if report.servers:
            console.print(rich_table(SERVERS, _server_rows(report.servers)))
        for key, text in _lines(report):
            style = {"can": "green", "cannot": "red", "unknown": "yellow"}.get(key, "")
            console.print(Text(hanging(f"{key}: {text}", console.width), style=style))
    return captured.get()


def _path_lines(path: PathCheck) -> list[str]:
    """The NATs between an interface and the internet: a line about the addresses, and one for each transport."""
    seen = ", ".join(dict.fromkeys((*path.udp.external, *path.tcp.external)))
    return [
        f"{path.interface}, IPv{path.af}: {path.address}" + (f", seen as {seen}" if seen else ""),
        f"  UDP: {path.udp.words}",
        f"  TCP: {path.tcp.words}",
    ]


def _server_rows(servers: Sequence[ServerCheck]) -> list[tuple[str, ...]]:
    from .render import format_ms

    return [
        (
            each.url,
            each.transport,
            format_ms(each.latency_ms),
            "reached" if each.reachable else each.error or "not reached",
        )
        for each in servers
    ]


def _lines(report: NetcheckReport) -> list[tuple[str, str]]:
    """The conclusions: each a word and a sentence."""
    lines = [("clock", _clock(report.clock))]
    lines += [("router", _gateway(each)) for each in report.gateways]
    for key in ("can", "cannot", "unknown"):
        lines += [(key, each) for each in getattr(report, key)]
    if not report.complete:
        lines.append(("note", f"not all has been asked: the time was up after {report.elapsed_ms / 1000:.1f} s"))
    return lines


def _gateway(gateway: GatewayCheck) -> str:
    who = f"{gateway.address}, by {gateway.interface}"
    if gateway.mapped:
        return f"{who}: has opened our port, {', '.join(gateway.mapped)} ({', '.join(gateway.protocols)})"
    return f"{who}: opens no port: {'; '.join(gateway.problems) or 'no answer yet'}"


def _clock(clock: ClockCheck) -> str:
    if clock.offset_s is None or clock.uncertainty_s is None:
        return "nobody tells"
    way = "behind" if clock.offset_s > 0 else "ahead"
    text = f"{abs(clock.offset_s):.3f} s {way}, give or take {clock.uncertainty_s:.3f} s"
    return f"{text}; outvoted: {', '.join(clock.outvoted)}" if clock.outvoted else text
