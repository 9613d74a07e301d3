"""TCP connections to servers: directly, or by the proxy that the configuration names (`warpgate_trio.config.Proxies`).

A server's name is passed to the proxy unresolved: a host behind a proxy may be able to resolve only the proxy's name.
Failures of the proxy, and failures to reach it, are a `ProxyError`.  Failures that come through it, such as a refused
certificate, are the server's.  Nothing here has a timeout.  After giving up, the caller can ask `ServerDial.silence`
whether it was the proxy that did not answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, final

import trio

from ..config import ServerUrl
from ..errors import ProxyError
from ..nurseries import reason_of
from .connect import ConnectRequest, name_of
from .socks import ask_socks, check_available

__all__ = ["Dial", "ServerDial"]

Dial: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a connection to a host and port; resolves the name itself, or leaves that to a proxy."""
_RECEIVE: Final = 4096


@final
class ServerDial:
    """A `Dial` that opens connections to servers through one proxy, or directly.

    Args:
      proxy: the proxy; None for direct connections.
      open_stream: opens the connection to the proxy, or to the server itself.

    Raises:
      ConfigError: it is a SOCKS5 proxy, and the package python-socks is not installed.
    """

    def __init__(self, proxy: ServerUrl | None, open_stream: Dial = trio.open_tcp_stream) -> None:
        if proxy is not None and proxy.scheme != "http":
            check_available()
        self._proxy = proxy
        self._open_stream = open_stream
        self._waiting = False

    def __str__(self) -> str:
        return "a connection of its own" if self._proxy is None else name_of(self._proxy)

    @property
    def by_proxy(self) -> bool:
        """Whether there is a proxy."""
        return self._proxy is not None

    @property
    def silence(self) -> str:
        """The end of a sentence, naming the proxy if the last call was cancelled while waiting for it; else empty."""
        return f" from {name_of(self._proxy)}" if self._proxy is not None and self._waiting else ""

    async def __call__(self, host: str, port: int) -> trio.abc.Stream:
        """Connect to a server.

        Raises:
          OSError: there is no proxy, and the server cannot be reached.
          ProxyError: the proxy cannot be reached, or does not connect to the server.
        """
        if self._proxy is None:
            return await self._open_stream(host, port)
        self._waiting = True  # stays True when this call is cancelled
        stream = await self._through(self._proxy, host, port)
        self._waiting = False
        return stream

    async def _through(self, proxy: ServerUrl, host: str, port: int) -> trio.abc.Stream:
        try:
            stream = await self._open_stream(proxy.host, proxy.port)
        except OSError as error:
            self._waiting = False
            raise ProxyError(
                f"{name_of(proxy)} cannot be reached: {reason_of(error)}; the proxy is set by [network] proxy, "
                "or by HTTPS_PROXY in the environment"
            ) from error
        try:
            return await _connect(stream, proxy, host, port)
        except BaseException as error:
            self._waiting = isinstance(error, trio.Cancelled)
            await trio.aclose_forcefully(stream)
            raise


async def _connect(stream: trio.abc.Stream, proxy: ServerUrl, host: str, port: int) -> trio.abc.Stream:
    try:
        if proxy.scheme != "http":
            await ask_socks(stream, proxy, host, port)
            return stream
        request = ConnectRequest(proxy, host, port)
        await stream.send_all(request.transmit())
        while not request.receive(bytes(await stream.receive_some(_RECEIVE))):
            pass
    except trio.BrokenResourceError as error:
        raise ProxyError(f"{name_of(proxy)} broke the connection off: {error.__cause__ or error}") from error
    return _Tunnel(stream, request.rest) if request.rest else stream


@final
class _Tunnel(trio.abc.Stream):
    """A connection whose first bytes have already been read, together with the proxy's response."""

    def __init__(self, stream: trio.abc.Stream, first: bytes) -> None:
        self._stream = stream
        self._first = first

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._first:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        data, self._first = self._first[:max_bytes], b"" if max_bytes is None else self._first[max_bytes:]
        return data

    async def aclose(self) -> None:
        self._first = b""
        await self._stream.aclose()
