"""``warpgate-trio connect``: call a peer, and join stdin and stdout to the Pipe, or test it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import click

from .completion import complete_contacts
from .exits import CommandFailed, ExitCode, OutputClosed, UsageProblem
from .options import (
    NodeOptions,
    Settings,
    common_options,
    json_option,
    node_options,
    pass_settings,
    path_events_option,
    path_options,
    walk_options,
)
from .pairing import accept_code_option, paired_node, save_called_option
from .parameters import PluginOption, Size, check_plugin, read_route

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..combos import RouteType
    from ..config import NodeConfig
    from ..contacts import Callee
    from ..errors import ConnectError
    from ..link import Pipe
    from ..node import Node
    from ..plugin import Phase
    from ..report import WalkEvent
    from .echo_test import EchoTest
    from .path_events import PathTeller
    from .peers import SavedAs

__all__ = ["connect"]

EARLY_DATA: Final = 8192
"""Bytes of stdin that are sent with the call: as many as any socket accepts without waiting, and as fit into a first
flight beside the COMMIT.  More would save no time, and would delay the COMMIT on a path that drops large packets."""


@click.command(short_help="Connect to a peer; join stdin and stdout to it, or test the path.")
@click.argument("peer", required=False, shell_complete=complete_contacts)
@accept_code_option
@node_options
@save_called_option
@click.option(
    "--echo-test", type=Size(), metavar="SIZE", help="Send SIZE bytes (10MB, 16KiB) to a peer that echoes; compare."
)
@json_option
@click.option("--plugin", cls=PluginOption, metavar="P", help="Use this plugin and nothing else.")
@click.option("--af", type=click.Choice(("4", "6")), help="Use IPv4 only, or IPv6 only.")
@click.option(
    "--route", callback=read_route, metavar="R", help="Use routes of one kind only: nic, ext or loopback (NIC_BIND, …)."
)
@walk_options
@path_options
@path_events_option
@common_options
@pass_settings
def connect(
    settings: Settings,
    *,
    peer: str | None,
    code: str | None,
    node_options: NodeOptions,
    save: str | None,
    echo_test: int | None,
    plugin: str | None,
    af: str | None,
    route: RouteType | None,
    phases: tuple[Phase, ...] | None,
    timeout: float | None,
) -> int:
    """Connect to PEER: a contact's name, a peer id, or the text wg1… that its `listen` has printed; or by --code.

    stdin and stdout are joined to the Pipe.  The end of stdin ends the sending direction; receiving goes on.  With
    --echo-test the Pipe is measured instead.  With --json, one line on stdout has the outcome.
    """
    if plugin is not None and phases is not None:
        raise click.UsageError("--plugin names one technique, --phases chooses among many: give one of them")
    if (peer is None) == (code is None):
        raise click.UsageError("give either PEER or --code CODE")
    from ..errors import AddressError, ConfigError, ContactError, PairingError, PeerIdError, PeerNotFound
    from .runner import run

    settings.start_logging()
    call = _Call(
        settings,
        peer=peer,
        code=code,
        save=save,
        echo_test=echo_test,
        plugin=plugin,
        af=None if af is None else int(af),
        route=route,
        phases=phases,
        timeout=timeout,
    )
    try:
        return run(partial(call.run, node_options.load()))
    except (AddressError, ConfigError, ContactError, PairingError, PeerIdError, PeerNotFound, UsageProblem) as error:
        call.print_unusable(error)
        raise


@final
class _Call:
    def __init__(
        self,
        settings: Settings,
        *,
        peer: str | None,
        code: str | None = None,
        save: str | None,
        echo_test: int | None,
        plugin: str | None,
        af: int | None,
        route: RouteType | None,
        phases: tuple[Phase, ...] | None,
        timeout: float | None,
    ) -> None:
        self._settings = settings
        self._text = peer
        self._code = code
        self._save = save
        self._echo_test = echo_test
        self._plugin = plugin
        self._af = af
        self._route = route
        self._phases = phases
        self._timeout = timeout

    async def run(self, config: NodeConfig) -> ExitCode:
        import trio

        from ..errors import ConnectError
        from . import render as render  # here, so that its import is not part of the measured time
        from .echo_test import EchoTest
        from .path_events import PathTeller
        from .peers import present_address
        from .stdio import StandardOutput, look_ahead, skip

        check_plugin(self._plugin)
        test = None if self._echo_test is None else EchoTest(self._echo_test, early=EARLY_DATA)
        early_data = b"" if self._settings.json else look_ahead(EARLY_DATA)
        async with self._opened(config) as (node, peer, saved):
            self._settings.say(f"calling {peer.peer_id} as {node.peer_id[:8]}…")
            called_at = trio.current_time()
            teller = PathTeller(self._settings, StandardOutput(), called_at=called_at)
            try:
                first = early_data if test is None else test.early_data
                relay_first = config.paths.relay_first is not False
                pipe = await self._dial(
                    node, peer.address or peer.peer_id, first, relay_first=relay_first, teller=teller
                )
            except ConnectError as error:
                await self._print_failed(error)
                raise
            async with pipe, teller.telling(pipe):
                connect_ms = _ms(trio.current_time() - called_at)
                if saved is not None:
                    saved.save(self._settings, await present_address(node, peer))
                path = pipe.path
                self._settings.say(
                    f"connected in {connect_ms:.1f} ms by {path.plugin}, IPv{path.af} {path.route_type}, "
                    f"to {path.remote[0]} port {path.remote[1]}"
                )
                if test is not None and self._echo_test is not None:
                    await self._run_echo_test(test, pipe, self._echo_test, called_at, connect_ms)
                elif self._settings.json:
                    await self._print_connected(pipe, connect_ms)
                else:
                    skip(len(early_data))
                    await _join(pipe)
        return ExitCode.OK

    @asynccontextmanager
    async def _opened(self, config: NodeConfig) -> AsyncGenerator[tuple[Node, Callee, SavedAs | None]]:
        """A node, the peer to call, and the contact to save it as once it is connected."""
        from ..node import open_node
        from .caller import caller_identity
        from .peers import SavedAs, find_peer

        if self._text is None:
            assert self._code is not None
            async with paired_node(self._settings, config, self._code, save=self._save) as (node, peer):
                yield node, peer, None
            return
        peer, contacts = find_peer(self._settings, self._text)  # before anything is opened for it
        saved = None if self._save is None else SavedAs(self._save, peer, contacts)
        async with open_node(config, identity=caller_identity(config, peer), contacts=contacts) as node:
            yield node, peer, saved

    async def _dial(
        self, node: Node, peer: PeerAddress | str, early_data: bytes, *, relay_first: bool, teller: PathTeller
    ) -> Pipe:
        from .caller import own_address_is_misuse
        from .render import watching_walk

        async with watching_walk(self._settings) as show:

            def on_event(event: WalkEvent) -> None:
                show(event)
                teller.take(event)

            with own_address_is_misuse():
                if self._plugin is not None:
                    return await node.connect(
                        peer,
                        plugin=self._plugin,
                        af=self._af,
                        route_type=self._route,
                        timeout=self._timeout,
                        early_data=early_data,
                        on_event=on_event,
                    )
                return await node.auto_connect(
                    peer,
                    phases=self._phases,
                    afs=None if self._af is None else [self._af],
                    route_types=None if self._route is None else [self._route],
                    timeout=self._timeout,
                    early_data=early_data,
                    relay_first=relay_first,
                    on_event=on_event,
                )

    async def _run_echo_test(self, test: EchoTest, pipe: Pipe, total: int, called_at: float, connect_ms: float) -> None:
        import trio

        from .echo_test import EchoFailed
        from .render import format_bytes

        problem: str | None = None
        try:
            await test.run(pipe)
        except EchoFailed as error:
            problem = f"echo test failed: {error}"
        except trio.BrokenResourceError as error:
            problem = f"echo test failed: {error}"
        first = None if test.first_byte_at is None else _ms(test.first_byte_at - called_at)
        rate = None if test.mb_per_s is None or problem is not None else round(test.mb_per_s, 3)
        if self._settings.json:
            await self._print_connected(
                pipe, connect_ms, first_byte_ms=first, echo_ok=problem is None, mb_per_s=rate, error=problem
            )
        if problem is not None:
            raise CommandFailed(ExitCode.BROKEN, problem)
        self._settings.say(
            f"{format_bytes(total)} came back unchanged at {rate:.1f} MB/s, the first after {first:.1f} ms"
        )

    async def _print_connected(
        self,
        pipe: Pipe,
        connect_ms: float,
        *,
        first_byte_ms: float | None = None,
        echo_ok: bool | None = None,
        mb_per_s: float | None = None,
        error: str | None = None,
    ) -> None:
        import msgspec

        from .events import Connected, encode
        from .stdio import StandardOutput

        path = pipe.path
        event = Connected(
            peer=pipe.peer_id,
            phase=path.phase,
            plugin=path.plugin,
            af=path.af,
            route=path.route_type,
            connect_ms=connect_ms,
            first_byte_ms=first_byte_ms,
            echo_ok=echo_ok,
            mb_per_s=mb_per_s,
            report=msgspec.to_builtins(pipe.report),
            search=msgspec.to_builtins(pipe.search_report),
            error=error,
        )
        await StandardOutput().write(encode(event))

    async def _print_failed(self, error: ConnectError) -> None:
        from .failures import show_failure

        show_failure(self._settings, error.report)
        if self._settings.json:
            import msgspec

            from .events import Failed, encode
            from .exits import explain
            from .stdio import StandardOutput

            event = Failed(
                verdict=error.verdict.value,
                advice=error.advice,
                report=msgspec.to_builtins(error.report),
                error=explain(error)[1],
            )
            await StandardOutput().write(encode(event))

    def print_unusable(self, error: Exception) -> None:
        """Print the line of --json for a call that could not be tried."""
        if not self._settings.json:
            return
        from ..errors import AddressError, AddressNotYetValid, ContactError, PairingError, PeerIdError, PeerNotFound
        from .events import Failed, encode
        from .exits import explain

        if isinstance(error, PeerNotFound):
            verdict, advice = "peer_not_found", "Ask the peer for its address wg1…, or name a server that it uses."
        elif isinstance(error, ContactError | PeerIdError):
            verdict, advice = "bad_peer", "Name a contact (`warpgate-trio contacts list`), a peer id or an address."
        elif isinstance(error, AddressError):
            verdict, advice = "bad_address", "Ask the peer for its current address, and copy it whole."
            if isinstance(error, AddressNotYetValid):
                advice = "Set the clock of this machine: by it, the address was issued in the future."
        elif isinstance(error, PairingError):
            verdict, advice = "bad_code", "Ask the peer for a new code, and type it as it is shown."
        elif isinstance(error, UsageProblem):
            verdict, advice = "bad_usage", "Call it differently: see `warpgate-trio connect --help`."
        else:
            verdict, advice = "bad_configuration", "Mend the configuration: see `warpgate-trio config --show`."
        line = encode(Failed(verdict=verdict, advice=advice, report=None, error=explain(error)[1]))
        with suppress(OutputClosed):  # then only the exit code shows it
            self._settings.put(line)


async def _join(pipe: Pipe) -> None:
    import trio

    from .stdio import StandardOutput, join, open_standard_input, wait_delivered

    async with open_standard_input() as source:
        try:
            await join(pipe, source, StandardOutput())
            await wait_delivered(pipe)
        except trio.BrokenResourceError as error:
            raise CommandFailed(ExitCode.BROKEN, str(error)) from error


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
