"""``reverse_connect``: ask the peer, over the signal channel, to connect to us directly.

It is for pairs of which only the initiator can be reached.  The request names one of our own endpoints.  The peer's
node judges it by the same rules as its own combos before this plugin dials it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from warpgate_trio.plugin import TCP, Aim, Message, PathRequest, Plugin, RouteType, register

from .direct_connect import dial

if TYPE_CHECKING:
    from warpgate_trio.carrier import Carrier
    from warpgate_trio.link import Link

__all__ = ["DialMe", "ReverseConnect"]


@final
class DialMe(PathRequest, frozen=True):
    """A request to connect to one of the sender's endpoints, for this session and attempt."""


@final
@register(phase="direct")
class ReverseConnect(Plugin):
    name = "reverse_connect"
    transport = TCP
    route_types = frozenset(RouteType)
    timeout = 10.0
    proto_messages = (DialMe,)
    aim = Aim.OURS

    async def run(self, reply: Message | None = None) -> Carrier | Link:
        if self.inbound:
            return await dial(self)
        dest = self.dest
        await self.send_signal(DialMe(af=dest.af, route_type=self.route_type, address=dest.address, port=dest.port))
        return await self.wait_inbound()
