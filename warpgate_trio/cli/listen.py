"""``warpgate-trio listen``: be there for peers that call."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, final

import click

from .called import AllowOptions, Guests, allow_options, wait_reachable
from .exits import CommandFailed, ExitCode
from .options import (
    NodeOptions,
    Settings,
    common_options,
    json_option,
    node_options,
    pass_settings,
    path_events_option,
    path_options,
)
from .pairing import CodePairing, offer_code_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import NodeConfig
    from ..link import Pipe
    from ..node import Node
    from .exposing import Exposing
    from .stdio import StandardInput

__all__ = ["listen"]


@click.command(short_help="Wait for a peer; join stdin and stdout to it, or echo.")
@node_options
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help="The TCP port; the system's choice if not given."
)
@allow_options
@offer_code_option
@click.option("--echo", is_flag=True, help="Send back what comes, instead of joining stdin and stdout.")
@click.option("--keep-open", is_flag=True, help="Serve peers until interrupted, not just the first one.")
@click.option(
    "--expose",
    multiple=True,
    metavar="[HOST:]PORT",
    help="Let peers forward connections to this target, until interrupted: a name, an address or NETWORK/BITS, and a "
    "port or *.",
)
@click.option(
    "--bind",
    multiple=True,
    metavar="[HOST:]PORT",
    help="Let peers listen on this port by `forward --reverse`; a port or *.",
)
@path_options
@path_events_option
@json_option
@common_options
@pass_settings
def listen(
    settings: Settings,
    *,
    node_options: NodeOptions,
    allowing: AllowOptions,
    code: bool,
    save: str | None,
    echo: bool,
    keep_open: bool,
    expose: tuple[str, ...],
    bind: tuple[str, ...],
) -> int:
    """Print this node's address, wait for a peer, and join stdin and stdout to its Pipe.

    Say who may call: --allow with a peer id (`warpgate-trio id` prints it on the peer's machine) or a contact,
    --allow-contacts, --allow-any, or --code, which prints a pairing code for one peer.

    With --expose or --bind, stdin and stdout are not used: peers forward connections.
    """
    if echo and (expose or bind):
        raise click.UsageError("--echo goes with neither --expose nor --bind")
    from .files import raise_file_limit
    from .runner import run

    settings.start_logging()
    guests = allowing.guests(settings)
    raise_file_limit()  # strangers may occupy some hundred descriptors, and a spray needs as many
    exposing = None
    if expose or bind:
        from .exposing import Exposing

        exposing, keep_open = Exposing(settings, expose, bind), True
    listening = _Listening(
        settings,
        guests=guests,
        pairing=CodePairing(settings, save) if code else None,
        echo=echo,
        keep_open=keep_open,
        exposing=exposing,
    )
    return run(partial(listening.run, node_options.load()), service=keep_open)


@final
class _Listening:
    def __init__(
        self,
        settings: Settings,
        *,
        guests: Guests,
        pairing: CodePairing | None = None,
        echo: bool,
        keep_open: bool,
        exposing: Exposing | None = None,
    ) -> None:
        from .stdio import StandardOutput

        self._settings = settings
        self._guests = guests
        self._pairing = pairing
        if pairing is not None:
            guests.add(pairing.friends)
        self._echo = echo
        self._keep_open = keep_open
        self._exposing = exposing
        self._output = StandardOutput()

    async def run(self, config: NodeConfig) -> ExitCode:
        from ..node import open_node
        from . import echo_test as echo_test  # imported now, since later a peer would wait for it
        from . import path_events as path_events
        from . import render as render
        from .peers import usable_contacts
        from .stdio import open_standard_input

        contacts = usable_contacts(self._settings)
        async with (
            open_node(config, authorize=self._guests.authorize, contacts=contacts) as node,
            open_standard_input() as source,
        ):
            await self._announce(node, config)
            if self._pairing is not None:
                await self._pairing.wait(node, self._output)
            if self._keep_open:
                await self._serve_all(node, source)
            else:
                await self._serve_one(node, source)
        return ExitCode.OK

    async def _announce(self, node: Node, config: NodeConfig) -> None:
        """Print the address when peers can reach the node by it, and it has what they need to know."""
        from .events import ListenReady, encode

        connected = await wait_reachable(self._settings, node, config)
        address = str(node.address)
        if self._settings.json:
            await self._output.write(encode(ListenReady(address=address, peer=node.peer_id, signals=connected)))
        else:
            many = "peers until interrupted" if self._keep_open else "one peer"
            shown = "; the address for `warpgate-trio connect`:" if self._pairing is None else ""
            self._settings.say(f"listening as {node.peer_id} for {many}{shown}")
            if self._pairing is None:
                self._settings.say(address, always=True)
        if not config.servers.signal and self._pairing is None:
            self._settings.say(
                "no signal server is configured: only peers that can dial this machine directly will get through"
            )

    async def _accept(self, node: Node) -> Pipe:
        from .events import PipeOpened, encode

        pipe = await node.listener.accept()
        if self._exposing is not None and self._exposing.is_forward(pipe):
            return pipe  # of which there are many
        try:
            if not self._keep_open:
                node.listener.keep_nowait(pipe)
            path = pipe.path
            self._settings.say(
                f"pipe from {pipe.peer_id} by {path.plugin}, IPv{path.af} {path.route_type}, "
                f"from {path.remote[0]} port {path.remote[1]}"
            )
            if self._settings.json:
                event = PipeOpened(
                    peer=pipe.peer_id, phase=path.phase, plugin=path.plugin, af=path.af, route=path.route_type
                )
                await self._output.write(encode(event))
        except BaseException:
            pipe.abort()
            raise
        return pipe

    async def _serve_one(self, node: Node, source: StandardInput) -> None:
        """Serve one peer, and no other.  If its program was restarted, its new Pipe replaces the previous one, unless
        bytes of that have passed through stdin or stdout: two streams would look like one there.
        """
        from ..link import RefuseReason

        def close() -> None:
            node.listener.close_nowait(RefuseReason.TAKEN)  # the reason that further callers receive

        while True:
            pipe = await self._accept(node)
            try:
                await self._serve(pipe, source, on_data=close)
            except CommandFailed:
                if not node.listener.waiting:
                    raise
                self._settings.say(f"{pipe.peer_id[:8]}… was started again: going on with its new pipe")
            else:
                return

    async def _serve_all(self, node: Node, source: StandardInput) -> None:
        """Serve all peers: with --echo concurrently; stdin and stdout are joined to one at a time, the next waits."""
        from ..nurseries import open_background_nursery

        async with open_background_nursery() as nursery:
            while True:
                pipe = await self._accept(node)
                if self._exposing is not None:
                    nursery.start_soon(self._exposing.serve, pipe)
                elif self._echo or self._settings.json:
                    nursery.start_soon(self._serve_one_of_many, pipe, source)
                else:
                    await self._serve_one_of_many(pipe, source)

    async def _serve_one_of_many(self, pipe: Pipe, source: StandardInput) -> None:
        try:
            await self._serve(pipe, source)
        except CommandFailed as error:
            self._settings.say(f"{pipe.peer_id[:8]}…: {error}")

    async def _serve(self, pipe: Pipe, source: StandardInput, *, on_data: Callable[[], object] = lambda: None) -> None:
        """Serve a Pipe until the peer has ended.  `on_data` is called when bytes pass through stdin or stdout."""
        import trio

        from .echo_test import echo
        from .path_events import PathTeller
        from .render import format_bytes
        from .stdio import join, wait_delivered

        async with pipe, PathTeller(self._settings, self._output).telling(pipe):
            try:
                if self._echo:
                    count = await echo(pipe)
                    self._settings.say(f"echoed {format_bytes(count)} to {pipe.peer_id[:8]}…")
                elif self._settings.json:
                    await _drain(pipe)
                else:
                    await join(pipe, source, self._output, on_data=on_data)
                    await wait_delivered(pipe)
            except trio.BrokenResourceError as error:
                raise CommandFailed(ExitCode.BROKEN, str(error)) from error


async def _drain(pipe: Pipe) -> None:
    """Read what the peer sends to its end, and drop it: with --json stdout is for events."""
    import trio

    async for _ in pipe:
        pass
    with suppress(trio.BrokenResourceError):  # the peer has closed the Pipe already
        await pipe.send_eof()
