"""One HTTP request for a server's health or its metrics, and the answer, on h11 without I/O.

A connection has one request and ends after its answer (``Connection: close``).  A monitor that asks every ten seconds
does not need a persistent connection, and idle connections would hold memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, final

import h11

from .metrics import CONTENT_TYPE, Statistics, exposition

__all__ = ["HealthRequest", "Pages"]

_PLAIN: Final = "text/plain; charset=utf-8"
_METHODS: Final = ("GET", "HEAD")


@final
@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: str
    content_type: str = _PLAIN
    more: tuple[tuple[str, str], ...] = ()


@final
class Pages:
    """The pages that can be requested.

    Args:
      statistics: returns what the servers have counted.
      draining: returns whether they are being shut down.
      wall_time: returns Unix seconds.
    """

    def __init__(
        self,
        statistics: Callable[[], Iterable[Statistics]],
        draining: Callable[[], bool],
        wall_time: Callable[[], float],
    ) -> None:
        self._statistics = statistics
        self._draining = draining
        self.wall_time: Final = wall_time

    def answer(self, method: str, target: str) -> _Answer:
        """The answer to a request; `target`: the request target as sent (RFC 9112 §3.2)."""
        page = {"/healthz": self._health, "/metrics": self._metrics}.get(_path(target))
        if page is None:
            return _Answer(HTTPStatus.NOT_FOUND, "there are /healthz and /metrics\n")
        if method not in _METHODS:
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", ", ".join(_METHODS)))
        return page()

    def _health(self) -> _Answer:
        if self._draining():
            return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, "shutting down\n")
        return _Answer(HTTPStatus.OK, "ok\n")

    def _metrics(self) -> _Answer:
        return _Answer(HTTPStatus.OK, exposition(self._statistics()), CONTENT_TYPE)


@final
class HealthRequest:
    """One request, from its first byte to the answer.

    Args:
      pages: the pages that can be requested.
      head: the most bytes of the request without its body.
    """

    def __init__(self, pages: Pages, head: int) -> None:
        self._pages = pages
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=head)

    def receive(self, data: bytes) -> bytes | None:
        """Process received bytes; ``b""`` is the end of the stream.

        Returns the whole answer, after which nothing more is processed; None while the request is incomplete; or
        ``b""`` if the stream ended without a request, so that there is nothing to answer.
        """
        self._http.receive_data(data)
        method = "GET"
        try:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if not isinstance(event, h11.Request):
                return b""
            method, target = event.method.decode("ascii"), event.target.decode("ascii")
            answer = self._pages.answer(method, target)
        except h11.RemoteProtocolError as error:
            if not data:
                return b""
            answer = _refusal(HTTPStatus(error.error_status_hint))
        return self._encode(answer, with_body=method != "HEAD")

    def _encode(self, answer: _Answer, *, with_body: bool) -> bytes:
        body = answer.body.encode()
        headers = [
            ("Date", formatdate(self._pages.wall_time(), usegmt=True)),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *answer.more,
        ]
        events: list[h11.Event] = [
            h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase.encode()),
            *([h11.Data(data=body)] if with_body else []),
            h11.EndOfMessage(),
        ]
        return b"".join(self._http.send(event) or b"" for event in events)


def _refusal(status: HTTPStatus, *more: tuple[str, str]) -> _Answer:
    return _Answer(status, f"{status.phrase}\n", more=more)


def _path(target: str) -> str:
    """The path of a target in origin form, or in absolute form, which servers have to accept too."""
    scheme, found, rest = target.partition("://")
    if found and scheme.lower() in ("http", "https"):
        target = "/" + rest.partition("/")[2]
    return target.partition("?")[0]
