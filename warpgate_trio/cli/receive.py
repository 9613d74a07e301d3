"""``warpgate-trio receive``: be there for a peer that sends files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
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
    path_options,
)
from .pairing import accept_code_option
from .parameters import Size

if TYPE_CHECKING:
    import trio

    from ..config import NodeConfig
    from ..files import Progress, Received
    from ..link import Pipe
    from ..node import Node
    from .stdio import StandardOutput

__all__ = ["receive"]


@click.command(short_help="Wait for a peer that sends files, and take them.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIR",
    help="Where the files go; the current folder if not given.",
)
@node_options
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help="The TCP port; the system's choice if not given."
)
@allow_options
@accept_code_option
@click.option("--keep", is_flag=True, help="Receive until interrupted, not just one transfer.")
@click.option("--max-size", type=Size(), metavar="SIZE", help="Take no more than SIZE (10GB, 500MiB) at a time.")
@click.option("--hidden", is_flag=True, help="Accept hidden names too (.bashrc): programs may obey such files.")
@path_options
@json_option
@common_options
@pass_settings
def receive(
    settings: Settings,
    *,
    into: Path,
    node_options: NodeOptions,
    allowing: AllowOptions,
    code: str | None,
    save: str | None,
    keep: bool,
    max_size: int | None,
    hidden: bool,
) -> int:
    """Print this node's address, wait for a peer that runs `warpgate-trio send`, and take its files.

    Nothing is overwritten: if a name is taken, the file is stored as `name (1)`.  An interrupted transfer resumes when
    the same peer sends again, even if this command was restarted meanwhile.

    Say who may send: --allow with a peer id (`warpgate-trio id` prints it on the peer's machine) or a contact,
    --allow-contacts, --allow-any, or --code with the code that `send --code` has printed there.
    """
    from ..files import Inbox
    from .runner import run

    settings.start_logging()
    guests = allowing.guests(settings)
    inbox = Inbox(into, max_size=max_size, hidden=hidden)
    receiving = _Receiving(settings, inbox, guests=guests, code=code, save=save, keep=keep)
    return run(partial(receiving.run, node_options.load()), service=keep)


@final
class _Receiving:
    def __init__(
        self,
        settings: Settings,
        inbox: object,
        *,
        guests: Guests,
        code: str | None,
        save: str | None,
        keep: bool,
    ) -> None:
        from ..files import Inbox
        from .stdio import StandardOutput

        assert isinstance(inbox, Inbox)
        self._settings = settings
        self._inbox = inbox
        self._guests = guests
        self._code = code
        self._save = save
        self._paired: str | None = None
        self._pairing_over: trio.Event | None = None
        self._keep = keep
        self._only: str | None = None
        self._begun = False
        self._output: StandardOutput = StandardOutput()

    async def _authorize(self, peer_id: str) -> bool:
        if self._only in (None, peer_id):
            return await self._guests.authorize(peer_id)
        self._settings.say(f"refused {peer_id}: files of {self._only} are being received, and --keep is not given")
        return False

    def _check_turn(self, pipe: Pipe) -> None:
        """Without --keep, accept files only of the first peer whose offer is good.

        Raises:
          TransferRefused: the Pipe is of another peer, which was let in earlier.
        """
        from ..errors import TransferRefused
        from ..files import Reason

        if not self._keep:
            self._only = self._only or pipe.peer_id
            if pipe.peer_id != self._only:
                raise TransferRefused(
                    Reason.UNWANTED, "files of another peer are being received; try again later", by_peer=False
                )

    async def _is_paired(self, peer_id: str) -> bool:
        """The rule with --code: a peer that has just been paired may call before this side knows that it is paired."""
        assert self._pairing_over is not None
        await self._pairing_over.wait()
        return peer_id == self._paired

    async def run(self, config: NodeConfig) -> ExitCode:
        import trio

        from ..files import serve_inbox
        from .transfers import TransferView

        ends: list[Exception | None] = []
        async with (
            self._opened(config) as node,
            TransferView.shown(self._settings, sending=False) as view,
        ):
            with trio.CancelScope() as scope:

                def end(error: Exception | None) -> None:
                    if not self._keep:
                        ends.append(error)
                        scope.cancel()

                async def accept() -> Pipe:
                    pipe = await node.listener.accept()
                    path = pipe.path
                    self._settings.say(f"{pipe.peer_id} connected by {path.plugin}, IPv{path.af} {path.route_type}")
                    return pipe

                def on_progress(pipe: Pipe, progress: Progress) -> None:
                    self._check_turn(pipe)
                    self._begun = self._begun or progress.stage == "moving"
                    view.take(pipe.peer_id, progress)

                def on_received(pipe: Pipe, received: Received) -> None:
                    view.clear()
                    self._begun = False
                    self._tell(pipe, received, view.elapsed)
                    end(None)

                def on_problem(pipe: Pipe, error: Exception) -> None:
                    view.clear()
                    if (ended := self._explain(pipe, error)) is not None:
                        end(ended)

                try:
                    await serve_inbox(
                        accept, self._inbox, on_received=on_received, on_problem=on_problem, on_progress=on_progress
                    )
                finally:
                    if not ends and self._begun:  # interrupted
                        self._settings.say("the data so far is kept; run receive again to resume")
        if ends and ends[0] is not None:
            raise ends[0]
        return ExitCode.OK

    @asynccontextmanager
    async def _opened(self, config: NodeConfig) -> AsyncGenerator[Node]:
        """Open a node that senders find by its printed address, or by the code."""
        import trio

        from ..node import open_node
        from .pairing import paired_node
        from .peers import usable_contacts

        if self._code is None:
            contacts = usable_contacts(self._settings)
            async with open_node(config, authorize=self._authorize, contacts=contacts) as node:
                await self._announce(node, config)
                yield node
            return
        self._pairing_over = trio.Event()
        self._guests.add(self._is_paired)
        pairing = paired_node(self._settings, config, self._code, save=self._save, authorize=self._authorize)
        async with pairing as (node, peer):
            self._paired = peer.peer_id
            self._pairing_over.set()
            self._settings.say(f"receiving into {self._inbox.into.absolute()}")
            yield node

    def _explain(self, pipe: Pipe, error: Exception) -> CommandFailed | None:
        """Show why a Pipe has ended; returns the error that ends the command, if this side has the cause."""
        from ..errors import TransferError, TransferRefused
        from ..files import Reason

        who = f"{pipe.peer_id[:8]}…"
        ours = (Reason.NO_SPACE, Reason.CANNOT_WRITE, Reason.EXISTS)
        if self._only not in (None, pipe.peer_id):
            self._settings.say(f"{who}: {error}")
        elif isinstance(error, TransferError) and not error.by_peer and error.reason in ours:
            if not self._keep:
                return CommandFailed(ExitCode.BROKEN, f"{error}; the data so far is kept")
            self._settings.warn(f"{who}: {error}")
        elif isinstance(error, TransferRefused):
            self._settings.say(f"refused the files of {who}: {error}")
            self._only = None
        elif self._keep or self._only is not None:
            self._settings.say(f"{who}: {error}; the data so far is kept until the peer sends again")
        else:
            self._settings.say(f"{who}: {error}")
        return None

    def _tell(self, pipe: Pipe, received: Received, seconds: float) -> None:
        from ..errors import printable
        from .events import Transferred, encode
        from .transfers import count_files, in_words

        words = in_words(received.size, received.there, seconds)
        self._settings.say(f"received {count_files(received.files)} of {pipe.peer_id[:8]}…: {words}")
        for path in received.paths:
            self._settings.say(f"  {printable(str(path))}")
        if self._settings.json:
            event = Transferred(
                peer=pipe.peer_id,
                sending=False,
                files=received.files,
                size=received.size,
                there=received.there,
                elapsed_ms=round(1000 * seconds, 3),
                paths=[str(path) for path in received.paths],
            )
            self._settings.put(encode(event))

    async def _announce(self, node: Node, config: NodeConfig) -> None:
        """Print the address when peers can reach the node by it, and it has what they need to know."""
        from .events import ListenReady, encode

        signals = await wait_reachable(self._settings, node, config)
        address = str(node.address)
        if self._settings.json:
            await self._output.write(encode(ListenReady(address=address, peer=node.peer_id, signals=signals)))
        else:
            self._settings.say(f"receiving as {node.peer_id} into {self._inbox.into.absolute()}; on the other machine:")
            self._settings.say("warpgate-trio send PATH… --to")
            self._settings.say(address, always=True)
