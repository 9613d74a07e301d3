"""Requests for health and metrics, byte for byte, and other input from strangers."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.servers.health_core import HealthRequest, Pages
from warpgate_trio.servers.ntp_core import NtpStatistics

WALL = 1_800_000_000.0
HEAD = 1024


def pages(*, draining: bool = False) -> Pages:
    return Pages(lambda: [NtpStatistics(answered=3, ignored=0, limited=0)], lambda: draining, lambda: WALL)


def ask(data: bytes, *, draining: bool = False) -> bytes | None:
    return HealthRequest(pages(draining=draining), HEAD).receive(data)


def read(data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """A whole response as h11 reads it: status, headers, body."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert isinstance(client.next_event(), h11.ConnectionClosed), "one answer, and the end"
    return response.status_code, {name.decode(): value.decode() for name, value in response.headers}, body


def get(target: str, *, method: str = "GET", draining: bool = False) -> tuple[int, dict[str, str], bytes]:
    answer = ask(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), draining=draining)
    assert answer
    return read(answer, method)


def test_health() -> None:
    status, headers, body = get("/healthz")
    assert (status, body) == (200, b"ok\n")
    assert headers == {
        "date": "Fri, 15 Jan 2027 08:00:00 GMT",
        "content-type": "text/plain; charset=utf-8",
        "content-length": "3",
        "cache-control": "no-store",
        "connection": "close",
    }


def test_health_while_the_servers_are_shut_down() -> None:
    status, _, body = get("/healthz", draining=True)
    assert (status, body) == (503, b"shutting down\n")


def test_metrics_also_while_the_servers_are_shut_down() -> None:
    for draining in (False, True):
        status, headers, body = get("/metrics", draining=draining)
        assert status == 200
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\nwarpgate_ntp_answered_requests_total 3\n" in body


@pytest.mark.parametrize("target", ["/healthz", "/metrics"])
def test_head_is_get_without_the_body(target: str) -> None:
    status, headers, body = get(target, method="HEAD")
    assert (status, body) == (200, b"")
    assert headers == get(target)[1]


@pytest.mark.parametrize(
    "target", ["/healthz?full", "http://10.0.0.1:9100/healthz", "HTTPS://x/healthz?a=b", "/healthz?"]
)
def test_other_forms_of_a_target(target: str) -> None:
    assert get(target)[0] == 200


@pytest.mark.parametrize("target", ["/", "/health", "/healthz/", "/metrics/../healthz", "http://x", "*", "//healthz"])
def test_other_pages_are_not_there(target: str) -> None:
    assert get(target)[0] == 404
    assert get(target, method="DELETE")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get"])
def test_other_methods_are_not_allowed(method: str) -> None:
    status, headers, _ = get("/healthz", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"CONNECT relay.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n", 200),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 405),
    ],
)
def test_who_wants_more_of_http_gets_one_answer_and_the_end(data: bytes, status: int) -> None:
    answer = ask(data)
    assert answer
    assert read(answer)[0] == status


def test_http_1_0_is_answered_too() -> None:
    answer = ask(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert answer
    assert read(answer)[0] == 200


def test_a_request_in_pieces() -> None:
    request = HealthRequest(pages(), HEAD)
    for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r":
        assert request.receive(bytes([byte])) is None
    answer = request.receive(b"\n")
    assert answer
    assert read(answer)[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", 400),  # a TLS ClientHello
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # without a Host header
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /" + b"x" * HEAD, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * HEAD, 431),
    ],
)
def test_what_is_no_request_is_told_so(data: bytes, status: int) -> None:
    answer = ask(data)
    assert answer
    assert read(answer)[0] == status


def test_who_leaves_before_the_request_is_whole_is_not_answered() -> None:
    for data in (b"", b"GET /healthz HTTP/1.1\r\nHost"):
        request = HealthRequest(pages(), HEAD)
        if data:
            assert request.receive(data) is None
        assert request.receive(b"") == b""


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=12))
def test_nothing_that_a_stranger_sends_raises(pieces: list[bytes]) -> None:
    request = HealthRequest(pages(), HEAD)
    for piece in [*pieces, b""]:
        if request.receive(piece) is not None:
            return
    raise AssertionError("neither answered nor over")
