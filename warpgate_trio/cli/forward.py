"""``warpgate-trio forward``: ports of this machine that lead to the peer's network, and the other way round."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, final

import click

from .completion import complete_contacts_with_port
from .exits import CommandFailed, ExitCode, UsageProblem
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

if TYPE_CHECKING:
    import trio

    from ..config import NodeConfig
    from ..contacts import Callee
    from ..errors import TargetRefused
    from ..forwarding import Target
    from ..link import Pipe
    from ..node import Node
    from ..plugin import Phase

__all__ = ["forward"]

PAUSES: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each further call to a peer that was connected and has gone; the last value repeats."""


@click.command(short_help="Ports here that lead to the peer's network, or the other way round.")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[[HOST:]PORT] PEER:[HOST:]PORT",
    shell_complete=complete_contacts_with_port,
)
@node_options
@click.option("--reverse", is_flag=True, help="The peer listens; its connections are led to [HOST:]PORT here.")
@click.option("--stdio", is_flag=True, help="Join stdin and stdout to the target, as ssh's ProxyCommand wants it.")
@walk_options
@path_options
@path_events_option
@json_option
@common_options
@pass_settings
def forward(
    settings: Settings,
    *,
    words: tuple[str, ...],
    node_options: NodeOptions,
    reverse: bool,
    stdio: bool,
    phases: tuple[Phase, ...] | None,
    timeout: float | None,
) -> int:
    """Forward connections from [HOST:]PORT of this machine to a host and port in PEER's network, until interrupted.

    PEER is a contact's name, a peer id, or the text wg1… that its `listen` has printed.  Either HOST is 127.0.0.1 if it
    is not given, so that only programs on this machine can use the port.  The peer decides which targets it allows:
    `listen --expose`, and `listen --bind` for --reverse.

    With --stdio there is one connection, and only PEER:[HOST:]PORT is given:
    ssh -o ProxyCommand='warpgate-trio forward --stdio wg1…:22' HOST
    """
    if reverse and stdio:
        raise click.UsageError("--reverse and --stdio exclude each other")
    wanted = 1 if stdio else 2
    if len(words) != wanted:
        raise click.UsageError("give PEER:[HOST:]PORT alone with --stdio, else [HOST:]PORT and PEER:[HOST:]PORT")
    from ..forwarding import Target
    from .files import raise_file_limit
    from .runner import run

    peer, colon, rest = words[-1].partition(":")
    try:
        if not colon:
            raise ValueError(f"{words[-1]!r} has no port; expected PEER:[HOST:]PORT")
        far = Target.parse(rest, least=0 if reverse else 1)
        near = None if stdio else Target.parse(words[0], least=1 if reverse else 0)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    settings.start_logging()
    raise_file_limit()  # each connection here takes one
    call = _Forwarding(settings, peer=peer, near=near, far=far, reverse=reverse, phases=phases, timeout=timeout)
    return run(partial(call.run, node_options.load()), service=not stdio)


@final
class _Forwarding:
    def __init__(
        self,
        settings: Settings,
        *,
        peer: str,
        near: Target | None,
        far: Target,
        reverse: bool,
        phases: tuple[Phase, ...] | None,
        timeout: float | None,
    ) -> None:
        self._settings = settings
        self._peer = peer
        self._near = near
        self._far = far
        self._reverse = reverse
        self._phases = phases
        self._timeout = timeout
        self._pipe: Pipe | None = None
        self._announced: list[str] = []

    async def run(self, config: NodeConfig) -> ExitCode:
        import trio

        from ..errors import TargetRefused
        from ..node import open_node
        from .caller import caller_identity
        from .peers import find_peer

        peer, contacts = find_peer(self._settings, self._peer)

        async def authorize(peer_id: str) -> bool:
            """With --reverse, the peer that listens for us may open Pipes; nobody else may."""
            await trio.lowlevel.checkpoint()
            return peer_id == peer.peer_id

        async with AsyncExitStack() as stack:
            listeners: list[trio.SocketListener] = []
            if self._near is not None and not self._reverse:
                listeners = await self._listen(self._near)
                for each in listeners:
                    await stack.enter_async_context(each)
            rule = authorize if self._reverse else None
            identity = caller_identity(config, peer)
            node = await stack.enter_async_context(
                open_node(config, identity=identity, authorize=rule, contacts=contacts)
            )
            try:
                pipe = await self._call(node, peer, config)
                if self._near is None:
                    await self._join(pipe)
                    return ExitCode.OK
                await self._serve(node, peer, config, pipe, listeners)
            except TargetRefused as error:
                raise CommandFailed(ExitCode.REFUSED, f"the peer says: {error}") from error
        return ExitCode.OK

    async def _listen(self, near: Target) -> list[trio.SocketListener]:
        import trio

        try:
            return await trio.open_tcp_listeners(near.port, host=near.host)
        except OSError as error:
            from ..nurseries import reason_of

            raise UsageProblem(f"cannot listen on {near}: {reason_of(error)}") from error

    async def _call(self, node: Node, peer: Callee, config: NodeConfig) -> Pipe:
        from .caller import call_peer

        self._settings.say(f"calling {peer.peer_id}…")
        return await call_peer(self._settings, node, config, peer, phases=self._phases, timeout=self._timeout)

    async def _join(self, pipe: Pipe) -> None:
        """Join one connection to stdin and stdout."""
        import trio

        from ..forwarding import open_target
        from .stdio import StandardOutput, join, open_standard_input, wait_delivered

        try:
            async with pipe, await open_target(pipe, self._far) as further, open_standard_input() as source:
                await join(further, source, StandardOutput())
                await wait_delivered(further)
        except trio.BrokenResourceError as error:
            raise CommandFailed(ExitCode.BROKEN, str(error)) from error

    async def _serve(
        self, node: Node, peer: Callee, config: NodeConfig, pipe: Pipe, listeners: list[trio.SocketListener]
    ) -> None:
        """Serve until interrupted.  If the peer goes away it is called again, while the local port stays open."""
        import trio

        from ..errors import PeerRefused, TargetRefused
        from ..forwarding import serve_forward
        from ..nurseries import open_background_nursery

        async with open_background_nursery() as nursery:
            self._pipe = pipe
            for each in listeners:
                nursery.start_soon(
                    partial(serve_forward, self._find_pipe, self._far, each, on_problem=self._tell_of_problem)
                )
            if self._reverse:
                nursery.start_soon(self._lead_all, node)
            tries = 0  # consecutive calls; reset by a long connection only, so an unstable peer is not called too often
            while True:
                reason, began = "the peer is gone", trio.current_time()
                try:
                    async with self._pipe as pipe:
                        await self._stay(pipe, listeners)
                except (trio.BrokenResourceError, PeerRefused) as error:
                    reason = f"{reason}: {error}"
                except TargetRefused as error:
                    if not self._may_pass(error):
                        raise
                    reason = f"the peer says: {error}"
                if trio.current_time() - began > PAUSES[-1]:
                    tries = 0
                self._settings.say(f"{reason}; calling it again")
                while True:
                    await trio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])  # pacing
                    tries += 1
                    if await self._called_again(node, peer, config):
                        break

    async def _called_again(self, node: Node, peer: Callee, config: NodeConfig) -> bool:
        """Call a peer again that was connected before; returns whether it is connected.  Shows why if it is not."""
        from ..errors import AddressError, ConnectError, PeerNotFound

        try:
            self._pipe = await self._call(node, peer, config)
        except ConnectError as error:
            self._settings.say(f"no pipe: {error.verdict.value}. {error.advice}")
        except (AddressError, PeerNotFound) as error:  # the address has expired, or servers are down
            self._settings.say(f"no pipe: {error}")
        else:
            return True
        return False

    def _may_pass(self, refused: TargetRefused) -> bool:
        """Whether a refusal to listen may be temporary: a peer that has listened for us before may detect the break of
        the old Link later than this side, and until then its port is taken by that Link.
        """
        from ..forwarding import Answer

        return bool(self._announced) and refused.answer in (Answer.UNREACHABLE, Answer.BUSY)

    def _find_pipe(self) -> Pipe:
        assert self._pipe is not None
        return self._pipe

    def _tell_of_problem(self, problem: Exception) -> None:
        self._settings.say(f"a connection to {self._near if self._reverse else self._far} ended: {problem}")

    async def _stay(self, pipe: Pipe, listeners: list[trio.SocketListener]) -> None:
        """Serve until the Pipe ends."""

        from ..forwarding import serve_reverse
        from ..nurseries import open_bare_nursery
        from ..sockaddr import show_address
        from .path_events import PathTeller
        from .stdio import StandardOutput

        async with PathTeller(self._settings, StandardOutput()).telling(pipe):
            if not self._reverse:
                await self._announce([show_address(each.socket.getsockname()[:2]) for each in listeners])
                async for _ in pipe:
                    pass
                return
            async with open_bare_nursery() as nursery:
                await self._announce([await nursery.start(serve_reverse, pipe, self._far)])

    async def _announce(self, where: list[str]) -> None:
        from .events import Forwarding, encode
        from .stdio import StandardOutput

        if where == self._announced:  # after a further call the peer may listen on another port
            return
        self._announced = where
        target = str(self._near if self._reverse else self._far)
        if self._settings.json:
            await StandardOutput().write(encode(Forwarding(listens=where, target=target, reverse=self._reverse)))
            return
        side = "the peer's machine" if self._reverse else "this machine"
        to = "this side" if self._reverse else "the peer's"
        self._settings.say(f"{' and '.join(where)} of {side} lead{'s' if len(where) == 1 else ''} to {target} on {to}")

    async def _lead_all(self, node: Node) -> None:
        """Forward the connections to the peer's port."""
        from ..forwarding import handle_bound
        from ..nurseries import open_background_nursery

        assert self._near is not None
        near = self._near

        async def lead(pipe: Pipe) -> None:
            try:
                async with pipe:
                    await handle_bound(pipe, near, on_problem=self._tell_of_problem)
            except Exception as error:
                self._tell_of_problem(error)

        async with open_background_nursery() as nursery:
            while True:
                nursery.start_soon(lead, await node.listener.accept())
