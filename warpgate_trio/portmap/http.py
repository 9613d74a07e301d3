"""One HTTP request to a gateway, and its bounded answer, on h11."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import h11
import trio

from ..errors import PortMapMalformed, PortMapTimeout
from ..sockaddr import IpAddress, socket_family
from .ssdp import Url
from .xml import MAX_DOCUMENT

__all__ = ["PATIENCE", "request"]

PATIENCE: Final = 10.0
"""Seconds for one request: some gateways take four to map a port."""
_CHUNK: Final = 16384


async def request(
    local: IpAddress,
    method: str,
    url: Url,
    *,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Send a request from `local`; returns the status and the body of the answer.

    Raises:
      PortMapMalformed: the answer is no HTTP, or longer than `MAX_DOCUMENT`.
      PortMapTimeout: it took more than `PATIENCE`.
      ConnectionError: the connection was refused, or broke.
      OSError: the gateway is unreachable.
    """
    try:
        with trio.fail_after(PATIENCE), trio.socket.socket(socket_family(str(local)), trio.socket.SOCK_STREAM) as sock:
            await sock.bind((str(local), 0))
            await sock.connect(url.address)
            return await _talk(trio.SocketStream(sock), method, url, headers, body)
    except trio.TooSlowError:
        raise PortMapTimeout(f"{url.authority} does not answer") from None
    except trio.BrokenResourceError as error:
        raise ConnectionError(f"the connection to {url.authority} broke") from error
    except h11.ProtocolError as error:
        raise PortMapMalformed(f"{url.authority} does not speak HTTP: {error}") from None


async def _talk(
    stream: trio.SocketStream, method: str, url: Url, headers: Sequence[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    length = [("Content-Length", str(len(body)))] if body else []
    head = h11.Request(
        method=method,
        target=url.target,
        headers=[("Host", url.authority), *length, *headers, ("Connection", "Close")],
    )
    data = connection.send(head) or b""
    if body:
        data += connection.send(h11.Data(data=body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    status, answer = 0, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > MAX_DOCUMENT:
                raise PortMapMalformed(f"{url.authority} sent an answer of more than {MAX_DOCUMENT} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return status, answer
        elif isinstance(event, h11.ConnectionClosed):
            raise PortMapMalformed(f"{url.authority} closed the connection without an answer")
