"""``direct_connect``: plain TCP to an address that the peer listens on.

It works where the peer has a public address or a mapped port, within a LAN, and on one host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from warpgate_trio.carrier import TlsCarrier
from warpgate_trio.plugin import IP4, TCP, Message, Plugin, RouteType, register
from warpgate_trio.ports.segments import clamp_segments

if TYPE_CHECKING:
    from warpgate_trio.carrier import Carrier

__all__ = ["DirectConnect", "dial"]


async def dial(plugin: Plugin) -> Carrier:
    """Connect to the attempt's target and pin the peer's key.  The socket is closed on failure and cancellation."""
    family = trio.socket.AF_INET if plugin.af == IP4 else trio.socket.AF_INET6
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        clamp_segments(sock, str(plugin.dest.ip))
        if plugin.src is not None:
            await sock.bind((str(plugin.src), 0))
        await sock.connect((str(plugin.dest.ip), plugin.dest.port))
    except BaseException:
        sock.close()
        raise
    return await TlsCarrier.dial(sock, plugin.node.tls, peer_key=plugin.peer.public_key)


@final
@register(phase="direct")
class DirectConnect(Plugin):
    name = "direct_connect"
    transport = TCP
    route_types = frozenset(RouteType)
    timeout = 10.0

    async def run(self, reply: Message | None = None) -> Carrier:
        return await dial(self)
