"""``warpgate-trio send``: files and folders to a peer that receives."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

import click

from .completion import complete_contacts
from .exits import CommandFailed, ExitCode, UsageProblem
from .options import (
    NodeOptions,
    Settings,
    common_options,
    json_option,
    node_options,
    pass_settings,
    path_options,
    walk_options,
)
from .pairing import offer_code_option, save_called_option

if TYPE_CHECKING:
    from ..config import NodeConfig
    from ..contacts import Callee, Contacts
    from ..files import Outgoing
    from ..link import Pipe
    from ..node import Node
    from ..plugin import Phase
    from .pairing import CodePairing
    from .peers import SavedAs
    from .transfers import TransferView

__all__ = ["send"]

RETRY: Final = 3600.0
"""Seconds for which a peer that has gone is called again: a machine that sleeps over lunch is back by then."""
MAX_TOLD: Final = 10
"""Files left out of the transfer that are shown by name."""


@click.command(short_help="Send files and folders to a peer that receives.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…", type=click.Path())
@click.option(
    "--to",
    "peer",
    metavar="PEER",
    shell_complete=complete_contacts,
    help="Who receives: a contact, a peer id, or the text wg1… that `receive` prints.",
)
@offer_code_option
@save_called_option
@node_options
@click.option(
    "--retry",
    type=click.FloatRange(min=0),
    default=RETRY,
    metavar="S",
    help=f"After a break call again for S seconds (default {RETRY:.0f}); 0: end with it.",
)
@walk_options
@path_options
@json_option
@common_options
@pass_settings
def send(
    settings: Settings,
    *,
    paths: tuple[str, ...],
    peer: str | None,
    code: bool,
    save: str | None,
    node_options: NodeOptions,
    phases: tuple[Phase, ...] | None,
    timeout: float | None,
    retry: float,
) -> int:
    """Send files and folders to PEER, who runs `warpgate-trio receive`, and end when all of them are stored there.

    With --code, this prints a pairing code, and whoever enters it is the receiver: `warpgate-trio receive --code CODE`.

    An interrupted transfer resumes where it was: by itself while this command runs, else when you run it again.
    Symbolic links inside folders, and special files, are left out.
    """
    if (peer is None) != code:
        raise click.UsageError("name the receiver: --to PEER, or --code to print a pairing code")
    from .runner import run

    settings.start_logging()
    sending = _Sending(settings, paths=paths, peer=peer, save=save, phases=phases, timeout=timeout, retry=retry)
    return run(partial(sending.run, node_options.load()))


@final
class _Sending:
    def __init__(
        self,
        settings: Settings,
        *,
        paths: tuple[str, ...],
        peer: str | None,
        save: str | None,
        phases: tuple[Phase, ...] | None,
        timeout: float | None,
        retry: float,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._peer = peer
        self._save = save
        self._saved: SavedAs | None = None
        self._phases = phases
        self._timeout = timeout
        self._retry = retry
        self._reached = False

    async def run(self, config: NodeConfig) -> ExitCode:
        from .transfers import TransferView

        opened = self._opened(config)
        outgoing = await self._look()
        async with (
            opened as (node, peer),
            TransferView.shown(self._settings, sending=True) as view,
        ):
            self._settings.say(f"calling {peer.peer_id} as {node.peer_id}…")
            await self._send(node, peer, config, outgoing, view)
        return ExitCode.OK

    def _opened(self, config: NodeConfig) -> AbstractAsyncContextManager[tuple[Node, Callee]]:
        """A node, and the peer to call: the named one, or the one that types the code.

        Raises as `find_peer`, `SavedAs` and `CodePairing`, before the context is entered.
        """
        from .pairing import CodePairing
        from .peers import SavedAs, find_peer

        if self._peer is None:
            return self._opened_by_code(config, CodePairing(self._settings, self._save, command="receive"))
        peer, contacts = find_peer(self._settings, self._peer)
        if self._save is not None:
            self._saved = SavedAs(self._save, peer, contacts)
        return self._opened_for(config, peer, contacts)

    @asynccontextmanager
    async def _opened_for(
        self, config: NodeConfig, peer: Callee, contacts: Contacts | None
    ) -> AsyncGenerator[tuple[Node, Callee]]:
        from ..node import open_node
        from .caller import caller_identity

        async with open_node(config, identity=caller_identity(config, peer), contacts=contacts) as node:
            yield node, peer

    @asynccontextmanager
    async def _opened_by_code(self, config: NodeConfig, pairing: CodePairing) -> AsyncGenerator[tuple[Node, Callee]]:
        from ..contacts import find_callee
        from ..node import open_node
        from .peers import usable_contacts
        from .stdio import StandardOutput

        contacts = usable_contacts(self._settings)
        async with open_node(config, contacts=contacts) as node:
            paired = await pairing.wait(node, StandardOutput())
            yield node, find_callee(str(paired.address), contacts)

    async def _look(self) -> Outgoing:
        """Look at the files to send, before the call."""
        import trio

        from ..errors import printable
        from ..files import look_at
        from .transfers import count_files, of_size

        try:
            outgoing = await trio.to_thread.run_sync(look_at, self._paths)
        except ValueError as error:
            raise UsageProblem(str(error)) from error
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename}: "
            raise UsageProblem(f"{where}{error.strerror or error}") from error
        for each in outgoing.skipped[:MAX_TOLD]:
            self._settings.warn(printable(f"left out: {each.path} {each.why}"))
        if len(outgoing.skipped) > MAX_TOLD:
            self._settings.warn(f"left out: {len(outgoing.skipped) - MAX_TOLD:,} more")
        self._settings.say(f"{count_files(outgoing.files)}, {of_size(outgoing.size)}")
        return outgoing

    async def _send(self, node: Node, peer: Callee, config: NodeConfig, outgoing: Outgoing, view: TransferView) -> None:
        import trio

        from ..errors import (
            AddressError,
            ConnectError,
            PeerNotFound,
            PeerRefused,
            RemoteProtocolError,
            TransferFailed,
            TransferRefused,
        )
        from ..files import keep_sending, looking_again

        def on_break(error: Exception, pause: float) -> None:
            view.clear()
            self._settings.say(f"interrupted: {error}; calling again in {pause:g} s")

        there = 0

        def on_progress(progress: object) -> None:
            nonlocal there
            there = progress.there  # type: ignore[attr-defined]
            view.take(peer.peer_id, progress)  # type: ignore[arg-type]

        try:
            outgoing = await keep_sending(
                partial(self._call, node, peer, config),
                outgoing,
                patience=self._retry,
                look_again=looking_again(self._paths, outgoing),
                on_break=on_break,
                on_progress=on_progress,
            )
        except TransferRefused as error:
            raise CommandFailed(ExitCode.REFUSED, f"the peer refuses the files: {error}") from error
        except (TransferFailed, RemoteProtocolError) as error:
            whose = "the peer says: " if isinstance(error, TransferFailed) and error.by_peer else ""
            raise CommandFailed(ExitCode.BROKEN, f"{whose}{error}; run the same command again to resume") from error
        except (AddressError, ConnectError, PeerNotFound, PeerRefused, trio.BrokenResourceError) as error:
            if not self._reached and isinstance(error, AddressError | ConnectError | PeerNotFound):
                raise
            raise CommandFailed(ExitCode.BROKEN, f"{error}; run the same command again to resume") from error
        finally:
            view.clear()
            if trio.current_effective_deadline() == -math.inf:  # interrupted
                self._settings.say("run the same command again to resume")
        await self._tell(peer, outgoing, there, view.elapsed)

    async def _tell(self, peer: Callee, outgoing: Outgoing, there: int, seconds: float) -> None:
        """Report the completed transfer."""
        from .events import Transferred, encode
        from .stdio import StandardOutput
        from .transfers import count_files, in_words

        if self._settings.json:
            event = Transferred(
                peer=peer.peer_id,
                sending=True,
                files=outgoing.files,
                size=outgoing.size,
                there=there,
                elapsed_ms=round(1000 * seconds, 3),
                skipped=[str(each.path) for each in outgoing.skipped],
            )
            await StandardOutput().write(encode(event))
        words = in_words(outgoing.size, there, seconds)
        self._settings.say(f"sent {count_files(outgoing.files)} to {peer.peer_id[:8]}…: {words}")

    async def _call(self, node: Node, peer: Callee, config: NodeConfig) -> Pipe:
        from .caller import call_peer
        from .peers import present_address

        pipe = await call_peer(self._settings, node, config, peer, phases=self._phases, timeout=self._timeout)
        self._reached = True
        if self._saved is not None:
            try:
                address = await present_address(node, peer)
            except BaseException:
                pipe.abort()
                raise
            self._saved.save(self._settings, address)
            self._saved = None  # further calls are to the same peer, which is saved now
        return pipe
