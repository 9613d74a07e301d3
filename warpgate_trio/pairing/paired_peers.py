"""An `Authorize` rule that lets in paired peers only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import trio

from .handshake import Paired

__all__ = ["PairedPeers"]


@final
class PairedPeers:
    """An `Authorize` rule that pairing fills::

        friends = PairedPeers()
        async with open_node(config, authorize=friends) as node:
            async with node.offer_code(on_paired=friends.add) as offer:
                print(offer.code)
                await offer.wait_paired()
            pipe = await node.listener.accept()

    Args:
      peer_ids: the peers that are let in from the beginning.
    """

    def __init__(self, peer_ids: Iterable[str] = ()) -> None:
        self._peer_ids = set(peer_ids)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._peer_ids

    def add(self, paired: Paired) -> None:
        """Let a peer in from now on."""
        self._peer_ids.add(paired.peer_id)

    async def __call__(self, peer_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return peer_id in self
