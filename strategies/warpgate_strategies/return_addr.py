"""``return_addr``: send a peer our present address over the signal channel.

It is the counterpart of ``get_addr`` without a question: a node that has moved tells the peers that will look for it.
The peer stores the address only if it admits the sender.
"""

from __future__ import annotations

from typing import final

from warpgate_trio.plugin import Message, Plugin, register

__all__ = ["NewAddress", "ReturnAddr"]


@final
class NewAddress(Message, frozen=True):
    """The sender's present address, which is in the envelope."""


@final
@register(phase=None)
class ReturnAddr(Plugin):
    name = "return_addr"
    timeout = 10.0
    proto_messages = (NewAddress,)

    async def run(self, reply: Message | None = None) -> None:
        if not self.inbound:
            await self.send_signal(NewAddress())
