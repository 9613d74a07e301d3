"""``get_addr``: ask a peer, over the signal channel, for its present address.

Every signal carries its sender's current signed address, which the receiving node stores, so question and answer are
empty.  A node asks before a walk when the address that it has is not valid now, and a walk asks when it takes a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from warpgate_trio.errors import AttemptFailed
from warpgate_trio.plugin import Message, Plugin, register

if TYPE_CHECKING:
    from warpgate_trio.address import PeerAddress

__all__ = ["AddressIs", "AskAddress", "GetAddr"]


@final
class AskAddress(Message, frozen=True):
    """The question for the peer's present address."""


@final
class AddressIs(Message, frozen=True):
    """The answer; the address is in the envelope."""


@final
@register(phase=None)
class GetAddr(Plugin):
    name = "get_addr"
    timeout = 10.0
    proto_messages = (AskAddress, AddressIs)

    async def run(self, reply: Message | None = None) -> PeerAddress | None:
        if self.inbound:
            await self.send_signal(AddressIs())
            return None
        await self.send_signal(AskAddress())
        await self.receive_signal()
        fresh = self.node.known_address(self.peer.public_key)
        if fresh is None:
            raise AttemptFailed("the peer answered without a usable address")
        return fresh
