"""SOCKS5 proxies (RFC 1928), with or without name and password (RFC 1929): the only module that imports python-socks.

The package is an extra, ``pip install warpgate-trio[socks]``, and is imported when a SOCKS5 proxy is first used.  It is
given an open connection to the proxy, so the proxy's name is resolved like every other name.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Final, final

import trio

from ..config import ServerUrl
from ..errors import ConfigError, ProxyError, printable
from .connect import name_of

__all__ = ["ask_socks", "check_available"]

_MAX_SAID: Final = 80  # characters that are shown of the package's message
_FORBIDDEN, _UNREACHABLE, _REFUSED = 2, (3, 4, 6), 5  # replies, RFC 1928 section 6


def check_available() -> None:
    """Check that the package is installed, without importing it.

    Raises:
      ConfigError: it is not installed.
    """
    if importlib.util.find_spec("python_socks") is None:
        raise ConfigError("a SOCKS5 proxy needs the package python-socks: pip install 'warpgate-trio[socks]'")


async def ask_socks(stream: trio.abc.Stream, proxy: ServerUrl, host: str, port: int) -> None:
    """Have the proxy at the other end of `stream` connect to `host`, a name or an IP address.  There is no timeout.

    Raises:
      ProxyError: it refuses, or does not speak SOCKS5.
      trio.BrokenResourceError: the connection broke.
    """
    from python_socks import ProxyError as SocksRefused
    from python_socks import ProxyType
    from python_socks.async_.trio.v2 import Proxy

    client = Proxy(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        username=proxy.username,
        password=(proxy.password or "") if proxy.username is not None else None,
        rdns=True,
        forward=_Opened(stream),  # type: ignore[arg-type]  # the package uses no more of a forwarding proxy
    )
    try:
        await client.connect(host, port, timeout=math.inf)
    except SocksRefused as error:
        raise ProxyError(f"{name_of(proxy)} {_refusal(error.error_code, str(error), f'{host}:{port}')}") from error
    except trio.BrokenResourceError:
        raise
    except Exception as error:  # any error of the package for bytes that are not SOCKS5
        raise ProxyError(f"{name_of(proxy)} does not speak SOCKS5; is the port right?") from error


def _refusal(code: int | None, said: str, target: str) -> str:
    said = printable(said, _MAX_SAID)
    if code == _FORBIDDEN:
        return f"does not allow connections to {target} ({said}): ask the administrator of the proxy"
    if code == _REFUSED or code in _UNREACHABLE:
        return f"could not connect to {target} ({said}): check the server's name and port"
    return f"did not connect to {target} ({said}); is it a SOCKS5 proxy, and is the login in its URL right?"


@final
class _Opened:
    """An open connection in the form in which python-socks accepts a forwarding proxy."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def connect(self, dest_host: str, dest_port: int) -> _Opened:
        return self

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def read_exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = await self._stream.receive_some(n - len(data))
            if not piece:
                raise trio.BrokenResourceError("it hung up")
            data += piece
        return data

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)
