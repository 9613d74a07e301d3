"""The serving side: it connects peers to the targets that it exposes, and listens on ports for them."""

from __future__ import annotations

import logging
from contextlib import suppress

import trio

from ..errors import PeerRefused, TargetRefused
from ..link import Pipe
from ..nurseries import open_background_nursery, reason_of
from ..ports.accepting import accept_connections, rebind
from ..sockaddr import show_address, socket_family
from .copying import copy_both_ways, resetting
from .opening import open_pipe_for
from .reaching import TARGET_PATIENCE, reach
from .targets import Bindable, Exposed, Target
from .wire import BIND, BOUND, TCP, Answer, asked_target, encode_answer

__all__ = ["handle_forward"]

logger: logging.Logger = logging.getLogger(__name__)


async def handle_forward(
    pipe: Pipe, *, exposed: Exposed, bindable: Bindable | None = None, patience: float = TARGET_PATIENCE
) -> None:
    """Serve the request in a Pipe's label until it ends: a handler for Pipes for which `is_forward` is true.

    The peer is sent the reason of a refusal.  The caller closes the Pipe.

    Args:
      exposed: the targets to which the peer may connect.
      bindable: the ports on which this side listens for the peer; None: none.
      patience: seconds for looking up the target's name and connecting.

    Raises:
      trio.BrokenResourceError: the Pipe or the connection to the target broke.
    """
    try:
        if pipe.label.startswith(TCP):
            connection = await reach(asked_target(pipe.label, TCP), exposed, patience, peer_id=pipe.peer_id)
            async with resetting(connection):
                answer = encode_answer(Answer.DONE)  # without an address: a connection already closed has none
                await copy_both_ways(connection, pipe, greeting=answer)
        else:
            await _listen_for(pipe, asked_target(pipe.label, BIND), bindable or Bindable())
    except TargetRefused as refused:
        logger.info("%s… asked for %s: %s", pipe.peer_id[:8], pipe.label, refused)
        with suppress(trio.BrokenResourceError):  # the peer closes the Pipe when it has the answer
            await pipe.send_all(encode_answer(Answer(refused.answer), str(refused)))
            await pipe.send_eof()
            await _wait_end(pipe)


async def _wait_end(pipe: Pipe) -> None:
    """Read to the end of the stream, and drop the data."""
    async for _ in pipe:
        pass


# --- a port of this side that leads to the peer ---


async def _listen_for(pipe: Pipe, target: Target, bindable: Bindable) -> None:
    if not bindable.allows(target):
        raise TargetRefused(Answer.NOT_EXPOSED, f"listening on {target} is not allowed here")
    listener = trio.socket.socket(socket_family(target.host))
    with listener:
        try:
            rebind(listener)
            await listener.bind((target.host, target.port))
            listener.listen()
        except OSError as error:
            raise TargetRefused(Answer.UNREACHABLE, f"{target}: {reason_of(error)}") from error
        await pipe.send_all(encode_answer(Answer.DONE, show_address(listener.getsockname()[:2])))
        async with open_background_nursery() as nursery:
            nursery.start_soon(_bring_all, listener, pipe, target)
            await _wait_end(pipe)


async def _bring_all(listener: trio.socket.SocketType, pipe: Pipe, target: Target) -> None:
    async with open_background_nursery() as nursery:
        await accept_connections(
            listener, lambda sock, _: nursery.start_soon(_bring, trio.SocketStream(sock), pipe, target)
        )
        await trio.sleep_forever()


async def _bring(connection: trio.SocketStream, pipe: Pipe, target: Target) -> None:
    """Forward a connection to the port on a new Pipe to the peer."""
    try:
        async with resetting(connection), await open_pipe_for(connection, pipe, f"{BOUND}{target}") as further:
            await copy_both_ways(connection, further)
    except (PeerRefused, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        logger.info("a connection to %s ended: %s", target, error)
    except Exception:
        logger.exception("a connection to %s failed unexpectedly", target)
