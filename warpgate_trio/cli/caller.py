"""The side that calls: its identity, and a call whose walk is shown."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .exits import UsageProblem

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..config import NodeConfig
    from ..contacts import Callee
    from ..identity import Identity
    from ..link import Pipe
    from ..node import Node
    from ..plugin import Phase
    from .options import Settings

__all__ = ["call_peer", "caller_identity", "own_address_is_misuse"]

logger: logging.Logger = logging.getLogger(__name__)


def caller_identity(config: NodeConfig, peer: PeerAddress | Callee) -> Identity:
    """The identity of the configuration; a new one if the called peer has the user's default key.

    `listen` and `connect` of one user on one machine therefore need no second key.  A key that the configuration or the
    command line names is never replaced.

    Raises:
      IdentityError: the key file cannot be used.
      UsageProblem: the called peer has the key that was named.
    """
    from ..identity import Identity, default_key_file

    wanted = config.identity
    if wanted.ephemeral:
        return Identity.generate()
    identity = Identity.load_or_create(wanted.key_file or default_key_file())
    if identity.public_key != peer.public_key:
        return identity
    if wanted.key_file is not None:
        raise UsageProblem(
            "this is the node's own address: the peer uses the same key file; use another --key-file or --ephemeral"
        )
    logger.info("the peer uses this user's default key, so this call uses a temporary identity")
    return Identity.generate()


@contextmanager
def own_address_is_misuse() -> Generator[None]:
    """Around a call: turn the ValueError with which a node refuses its own address into a `UsageProblem`."""
    from ..errors import WarpgateError

    try:
        yield
    except ValueError as error:
        if isinstance(error, WarpgateError):
            raise
        raise UsageProblem(str(error)) from error


async def call_peer(
    settings: Settings,
    node: Node,
    config: NodeConfig,
    peer: Callee,
    *,
    phases: Sequence[Phase] | None,
    timeout: float | None,
) -> Pipe:
    """Call a peer, and show its walk.  Raises as `Node.auto_connect`; `UsageProblem` for the node's own address."""
    from .render import watching_walk

    async with watching_walk(settings) as on_event:
        with own_address_is_misuse():
            pipe = await node.auto_connect(
                peer.address or peer.peer_id,
                phases=phases,
                timeout=timeout,
                relay_first=config.paths.relay_first is not False,
                on_event=on_event,
            )
    path = pipe.path
    settings.say(f"connected by {path.plugin}, IPv{path.af} {path.route_type}")
    return pipe
