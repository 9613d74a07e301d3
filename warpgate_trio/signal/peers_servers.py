"""Servers that a peer names in its address: what of such a URL is used, and where a connection to one may lead.

Whoever writes an address chooses its URLs, and a node that connects to them sends a request wherever they say.  So of
a URL that is not in the node's own configuration no login, no query and no path is used; a server that needs one is
reached by who has it configured.  And where it leads is judged after the name was resolved: the connection goes to an
address that was judged, so that a name cannot lead to another one a moment later.  The name stays what TLS compares.

A proxy is asked for the address that was judged, too, never for the name, and only for a public one: what a private
address means where the proxy stands, nobody here can judge.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias, final

import trio

from ..config import Proxies, ServerUrl
from ..errors import ProxyError
from ..names import open_first_tcp_stream
from ..ports.server_dial import Dial, ServerDial
from ..sockaddr import IpAddress, parse_ip

__all__ = ["MAX_ADDRESSES", "JudgedDial", "MayConnect", "is_plain"]

MayConnect: TypeAlias = Callable[[IpAddress], bool]
"""Whether a connection may be opened to an address for the peer in question."""
MAX_ADDRESSES: Final = 4
"""Addresses of one name that are tried."""


def is_plain(url: ServerUrl) -> bool:
    """Whether a URL is a server and nothing else: without login, path and query."""
    return url.username is None and url.path in ("", "/") and not url.params


@final
class JudgedDial:
    """Opens connections to a server that a peer names, where they may lead: a `Dial`.

    Args:
      url: the server.
      may_connect: judges its addresses.
      proxies, open_stream: by which proxy it is reached, and what opens the connection to that one.

    Attributes:
      address: where the last connection leads.
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
        """Connect to an address of the host that may be connected to; the caller bounds the time.

        Raises:
          OSError: none may, or none can be reached.
          ProxyError: the proxy leads to none.
          ConfigError: the proxy cannot be used.
        """
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        addresses = dict.fromkeys(parse_ip(str(name[0])) for _, _, _, _, name in found)
        judged = [each for each in addresses if self._may_connect(each)][:MAX_ADDRESSES]
        if not judged:
            raise OSError(f"{host} leads to {', '.join(map(str, addresses))}, where this peer may not send us")
        proxy = self._proxies.to(self._url)
        if proxy is None or not all(each.is_global for each in judged):
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
