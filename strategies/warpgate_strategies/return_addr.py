"""``return_addr``: tell a peer, over the signal channel, where we are now.

The counterpart of ``get_addr``, unasked: a node that has moved tells those who will look for it.  The peer takes it to
heart only if it would let us in.
"""

from __future__ import annotations

from typing import final

from warpgate_trio.plugin import Message, Plugin, register

__all__ = ["NewAddress", "ReturnAddr"]


@final
class NewAddress(Message, frozen=True):
    """I am where the envelope says."""


@final
@register(phase=None)
class ReturnAddr(Plugin):
    name = "return_addr"
    timeout = 10.0
    proto_messages = (NewAddress,)

    async def run(self, reply: Message | None = None) -> None:
        if not self.inbound:
            await self.send_signal(NewAddress())
