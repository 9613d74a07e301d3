"""Who is called: whom `listen` and `receive` let in, and from when on peers can reach them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from ..config import NodeConfig
    from ..node import Node
    from .options import Settings

__all__ = ["allowed_peers", "wait_reachable"]

SIGNAL_PATIENCE: Final = 3.0
"""Seconds to wait for a signal server before the address is printed all the same."""
NAT_PATIENCE: Final = 1.0
"""Seconds more for the NATs to be measured, of which peers would else have to ask."""


def allowed_peers(settings: Settings, texts: Iterable[str]) -> frozenset[str]:
    """The peer ids of those that --allow names: contacts, peer ids and addresses.

    Raises:
      click.UsageError: one of them is nobody.
    """
    from ..errors import AddressError, ContactError, PeerIdError
    from .peers import find_peer

    allowed: set[str] = set()
    for text in texts:
        try:
            allowed.add(find_peer(settings, text)[0].peer_id)
        except (AddressError, ContactError, PeerIdError) as error:
            raise click.UsageError(f"--allow {text}: {error}") from error
    return frozenset(allowed)


async def wait_reachable(settings: Settings, node: Node, config: NodeConfig) -> list[str]:
    """Wait until peers can reach a node by its address, and that says what they need to know, but not for ever.

    Returns the URLs of the signal servers that are connected.
    """
    import trio

    from ..signal import ServerState

    if config.servers.signal:
        with trio.move_on_after(SIGNAL_PATIENCE) as patience:
            await node.wait_signals()
        if patience.cancelled_caught:
            reasons = "; ".join(f"{server.url}: {server.last_error or 'no answer'}" for server in node.signal_servers)
            settings.warn(f"no signal server answers yet, only direct paths work until one does ({reasons})")
    with trio.move_on_after(NAT_PATIENCE):
        await node.wait_published()
    return [server.url for server in node.signal_servers if server.state is ServerState.CONNECTED]
