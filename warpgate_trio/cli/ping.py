"""``warpgate-trio ping``: is there a path to a peer, of what kind, and how long is it?"""

from __future__ import annotations

import statistics
from contextlib import suppress
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import click

from .completion import complete_contacts
from .exits import CommandFailed
from .netcheck import TOLD_BY_THE_TABLE
from .options import NodeOptions, Settings, common_options, json_option, node_options, pass_settings

if TYPE_CHECKING:
    from ..config import NodeConfig
    from ..link import Pipe

__all__ = ["PathKind", "ping"]


class PathKind(IntEnum):
    """The exit codes of `ping`, which tell scripts the kind of path."""

    DIRECT = 0
    RELAYED = 1
    NONE = 2


@click.command(short_help="Is there a path to a peer, direct or relayed, and how long is it?")
@click.argument("peer", shell_complete=complete_contacts)
@node_options
@click.option("--count", type=click.IntRange(min=1), default=4, show_default=True, help="Round trips to measure.")
@click.option(
    "--interval", type=click.FloatRange(min=0), default=0.2, show_default=True, metavar="S", help="Seconds between two."
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Give up after S seconds.")
@click.option(
    "--explain", is_flag=True, help="Say what was done step by step on each side, what failed, and what would help."
)
@json_option
@common_options
@pass_settings
def ping(
    settings: Settings,
    *,
    peer: str,
    node_options: NodeOptions,
    count: int,
    interval: float,
    timeout: float | None,
    explain: bool,
) -> int:
    """Connect to PEER, measure the round trip on the path that was found, and close.

    PEER is a contact's name, a peer id, or the text wg1… that its `listen` has printed.

    Exits with 0 when the path is direct, with 1 when it is relayed, with 2 when there is none.  With --explain it goes
    through the steps of the call, on each side, and has one piece of advice for each that failed; then also through
    those that would have made a relayed path direct.
    """
    from ..errors import ConnectError, PeerNotFound
    from .failures import show_failure
    from .runner import run

    settings.start_logging(told_otherwise=TOLD_BY_THE_TABLE if explain else ())
    try:
        return run(partial(_ping, settings, node_options.load(), peer, count, interval, timeout, explaining=explain))
    except PeerNotFound as error:
        raise CommandFailed(PathKind.NONE, f"no path: {error}") from error
    except ConnectError as error:
        if not explain:
            show_failure(settings, error.report)
        raise CommandFailed(
            PathKind.NONE,
            f"no path to {error.report.peer[:8]}… ({error.verdict.value}). {error.advice}",
        ) from error


async def _ping(
    settings: Settings,
    config: NodeConfig,
    text: str,
    count: int,
    interval: float,
    timeout: float | None,
    *,
    explaining: bool = False,
) -> PathKind:
    import trio

    from ..errors import ConnectError
    from ..node import open_node
    from .caller import caller_identity
    from .explaining import explain_call
    from .peers import find_peer

    callee, contacts = find_peer(settings, text)
    async with open_node(config, identity=caller_identity(config, callee), contacts=contacts) as node:
        peer = await node.find_address(callee.address or callee.peer_id, timeout=timeout)
        try:
            pipe = await node.auto_connect(peer, timeout=timeout, relay_first=False)
        except ConnectError as error:
            if explaining:
                await explain_call(settings, node, peer, error.report, kind=PathKind.NONE.name.lower())
            raise
        async with pipe:
            times: list[float] = []
            try:
                for number in range(count):
                    if number:
                        await trio.sleep(interval)  # --interval
                    times.append(1000 * await pipe.ping())
                    await _print(settings, pipe, number + 1, times[-1])
            except trio.BrokenResourceError as error:
                raise CommandFailed(PathKind.NONE, f"the path broke: {error}") from error
            with suppress(statistics.StatisticsError):
                settings.say(f"{count} round trips, median {statistics.median(times):.2f} ms")
            kind = PathKind.RELAYED if pipe.path.phase == "relay" else PathKind.DIRECT
            search = pipe.search_report
            found_by = pipe.report if search is None or search.winner is None else search  # the path may have changed
            if explaining and found_by is not None:
                await explain_call(settings, node, peer, found_by, kind=kind.name.lower())
            return kind


async def _print(settings: Settings, pipe: Pipe, number: int, rtt_ms: float) -> None:
    from .events import Pong, encode
    from .stdio import StandardOutput

    path = pipe.path
    if settings.json:
        event = Pong(
            peer=pipe.peer_id,
            phase=path.phase,
            plugin=path.plugin,
            af=path.af,
            route=path.route_type,
            number=number,
            rtt_ms=round(rtt_ms, 3),
        )
        await StandardOutput().write(encode(event))
    else:
        settings.say(
            f"{pipe.peer_id[:8]}… by {path.plugin}, IPv{path.af} {path.route_type}, "
            f"at {path.remote[0]} port {path.remote[1]}: {rtt_ms:.2f} ms"
        )
