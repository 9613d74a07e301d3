"""Servers that a peer names in its address: which of its URLs are used, and where a connection to one may lead.

The author of an address chooses its URLs, and a node that connects to them sends requests wherever they point.  So a
URL that is not in the node's own configuration is used only without login, query and path.  A server that needs one of
these is reached only by nodes that have it configured.

Where a URL leads is judged after its name was resolved, and the connection goes to an IP address that was judged.  So
the name cannot lead elsewhere a moment later (DNS rebinding).  TLS still verifies the name.

A proxy is likewise asked for the judged IP address, never for the name, and only if the address is public: what a
private address means in the proxy's network cannot be judged from here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias, final

import trio

from ..address.scope import is_public
from ..config import Proxies, ServerUrl
from ..errors import ProxyError
from ..names import open_first_tcp_stream
from ..ports.server_dial import Dial, ServerDial
from ..sockaddr import IpAddress, parse_ip

__all__ = ["MAX_ADDRESSES", "JudgedDial", "MayConnect", "is_plain"]

MayConnect: TypeAlias = Callable[[IpAddress], bool]
"""Whether a connection may be opened to an address for the peer in question."""
MAX_ADDRESSES: Final = 4
"""IP addresses of one name that are tried."""


def is_plain(url: ServerUrl) -> bool:
    """Whether a URL names only a server, without login, path and query."""
    return url.username is None and url.path in ("", "/") and not url.params


@final
class JudgedDial:
    """Opens connections to a server that a peer names, at addresses that are allowed: a `Dial`.

    Args:
      url: the server.
      may_connect: whether an IP address of the server may be connected to.
      proxies: says by which proxy the server is reached.
      open_stream: opens the connection to that proxy.

    Attributes:
      address: the IP address that the last connection leads to; None before the first.
    """

    def __init__(
        self, url: ServerUrl, may_connect: MayConnect, *, proxies: Proxies, open_stream: Dial = trio.open_tcp_stream
    ) -> None:
        self._url = url
        self._may_connect = may_connect
        self._proxies = proxies
        self._open_stream = open_stream
        self._by_proxy = ServerDial(None)
        self.address: IpAddress | None = None

    @property
    def silence(self) -> str:
        """As `ServerDial.silence`."""
        return self._by_proxy.silence

    async def __call__(self, host: str, port: int) -> trio.abc.Stream:
        """Connect to an allowed address of the host; the caller bounds the time.

        Raises:
          OSError: no address is allowed, or none can be reached.
          ProxyError: the proxy connects to none of them.
          ConfigError: the proxy cannot be used.
        """
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        addresses = dict.fromkeys(parse_ip(str(name[0])) for _, _, _, _, name in found)
        judged = [each for each in addresses if self._may_connect(each)][:MAX_ADDRESSES]
        if not judged:
            where = ", ".join(map(str, addresses))
            raise OSError(f"{host} resolves to {where}, and this node does not connect there for this peer")
        proxy = self._proxies.to(self._url)
        if proxy is None or not all(map(is_public, judged)):
            stream = await open_first_tcp_stream(map(str, judged), port, host=host)
            self.address = parse_ip(stream.socket.getpeername()[0])
            return stream
        self._by_proxy = ServerDial(proxy, self._open_stream)
        for each in judged[:-1]:
            with suppress(ProxyError):
                return await self._reach(each, port)
        return await self._reach(judged[-1], port)

    async def _reach(self, address: IpAddress, port: int) -> trio.abc.Stream:
        stream = await self._by_proxy(str(address), port)
        self.address = address
        return stream
