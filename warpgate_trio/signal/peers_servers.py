"""Servers that a peer names in its address: what of such a URL is used, and where a connection to one may lead.

Whoever writes an address chooses its URLs, and a node that connects to them sends a request wherever they say.  So of
a URL that is not in the node's own configuration no login, no query and no path is used; a server that needs one is
reached by who has it configured.  And where it leads is judged after the name was resolved: the connection goes to an
address that was judged, so that a name cannot lead to another one a moment later.  The name stays what TLS compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from ..config.server_url import ServerUrl
from ..names import open_first_tcp_stream
from ..sockaddr import IpAddress, parse_ip

__all__ = ["MAX_ADDRESSES", "MayConnect", "is_plain", "open_judged_stream"]

MayConnect: TypeAlias = Callable[[IpAddress], bool]
"""Whether a connection may be opened to an address for the peer in question."""
MAX_ADDRESSES: Final = 4
"""Addresses of one name that are tried."""


def is_plain(url: ServerUrl) -> bool:
    """Whether a URL is a server and nothing else: without login, path and query."""
    return url.username is None and url.path in ("", "/") and not url.params


async def open_judged_stream(host: str, port: int, *, may_connect: MayConnect) -> trio.SocketStream:
    """Connect to a host at an address of its that may be connected to; the caller bounds the time.

    Raises:
      OSError: none may, or none can be reached.
    """
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    addresses = dict.fromkeys(parse_ip(str(name[0])) for _, _, _, _, name in found)
    judged = [each for each in addresses if may_connect(each)][:MAX_ADDRESSES]
    if not judged:
        raise OSError(f"{host} leads to {', '.join(map(str, addresses))}, where this peer may not send us")
    return await open_first_tcp_stream(map(str, judged), port, host=host)
