"""The client's side of HTTP CONNECT through a proxy (RFC 9110 section 9.3.6), without I/O.

A client asks a proxy to connect to a host and port.  After a 2xx response, the connection leads there.  Any other
response comes from the proxy and not from the server.  The error says so: it names the proxy, quotes the response, and
says what to do.

There are no timers: the caller has to limit the time for a proxy that never answers.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Final, final

import h11

from ..config import ServerUrl
from ..errors import ProxyError, printable
from ..sockaddr import bracketed

__all__ = ["MAX_ANSWER", "ConnectRequest", "name_of"]

MAX_ANSWER: Final = 16384
"""Bytes that a proxy may send until its response header is complete: that of a login page has some two kilobytes of
cookies and policies."""
_MAX_SAID: Final = 80  # characters that are shown of a proxy's reason phrase, or of the login schemes it accepts
_START: Final = b"HTTP/"
_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*)(?=\s|,|$)")  # of a challenge, RFC 9110 11.6.1


def name_of(proxy: ServerUrl) -> str:
    """A proxy's name for messages: its host and port, without its login."""
    return f"the proxy {bracketed(proxy.host)}:{proxy.port}"


@final
class ConnectRequest:
    """Asks `proxy` for a connection to `port` of `host`, a name or an IP address.

    Attributes:
      rest: the bytes that followed the proxy's response, once `receive` has returned True: the server's first bytes.
    """

    def __init__(self, proxy: ServerUrl, host: str, port: int) -> None:
        self._proxy = proxy
        self._target = f"{bracketed(host)}:{port}"
        self._room = MAX_ANSWER
        self._start = b""
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
        headers = [("Host", self._target)]
        if proxy.username is not None:
            login = f"{proxy.username}:{proxy.password or ''}".encode()
            headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(login).decode()}"))
        request = h11.Request(method="CONNECT", target=self._target, headers=headers)
        self._to_send = (self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b"")
        self.rest: bytes = b""

    def transmit(self) -> bytes:
        """The bytes of the request; empty from the second call on."""
        data, self._to_send = self._to_send, b""
        return data

    def receive(self, data: bytes) -> bool:
        """Take bytes from the proxy, empty for the end of its stream.

        Returns:
          Whether the connection leads to the target now.

        Raises:
          ProxyError: the proxy refused, or its response is no HTTP.
        """
        name = name_of(self._proxy)
        if not data:
            raise ProxyError(f"{name} closed the connection without an answer; does it allow CONNECT?")
        fed, beyond = data[: self._room], data[self._room :]
        self._room -= len(fed)
        self._start = (self._start + fed)[: len(_START)]
        if not _START.startswith(self._start):  # do not wait for the end of a header that never comes
            raise self._no_proxy()
        try:
            self._http.receive_data(fed)
            while isinstance(event := self._http.next_event(), h11.InformationalResponse):
                pass
        except h11.RemoteProtocolError as error:
            raise self._no_proxy() from error
        if isinstance(event, h11.Response):
            if not 200 <= event.status_code < 300:
                raise ProxyError(self._refusal(event))
            self.rest = self._http.trailing_data[0] + beyond
            return True
        if not self._room:
            raise ProxyError(f"{name} sent {MAX_ANSWER // 1024} KiB without a complete response header")
        return False

    def _no_proxy(self) -> ProxyError:
        return ProxyError(
            f"{name_of(self._proxy)} does not answer in HTTP; is it an HTTP proxy, and is the port right?"
        )

    def _refusal(self, answer: h11.Response) -> str:
        name, status = name_of(self._proxy), answer.status_code
        reason = printable(answer.reason.decode("latin-1").strip(), _MAX_SAID)
        said = f"{status} {reason}" if reason else str(status)
        if status in (401, 407):
            return f"{name} {self._login_refused(answer)} ({said})"
        if status == 403:
            return (
                f"{name} does not allow connections to {self._target} ({said}): many proxies allow only port 443; "
                "use a server at that port, or ask the administrator of the proxy"
            )
        if status >= 500:
            return f"{name} could not connect to {self._target} ({said}): check the server's name and port"
        return f"{name} did not connect to {self._target} ({said}); is it an HTTP proxy that allows CONNECT?"

    def _login_refused(self, answer: h11.Response) -> str:
        schemes = _schemes([value for key, value in answer.headers if key.endswith(b"-authenticate")])
        if schemes and "basic" not in map(str.lower, schemes):
            return f"wants a login by {printable(' or '.join(schemes), _MAX_SAID)}, but only Basic is supported"
        if self._proxy.username is None:
            return "wants a login: put it into the proxy's URL, as http://name:password@host:port"
        return f"does not accept the login of {self._proxy.username!r}: check name and password in the proxy's URL"


def _schemes(challenges: Sequence[bytes]) -> list[str]:
    """The login schemes that a proxy accepts: the first word of each challenge."""
    found = (each for value in challenges for each in _SCHEME.findall(value.decode("latin-1")))
    return list(dict.fromkeys(found))
