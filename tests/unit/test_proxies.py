"""Which client a reverse proxy names: the PROXY protocol, Forwarded, X-Forwarded-For, and hostile bytes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.websocket.proxies import MAX_FORWARDED, MAX_PROXY_HEADER, ProxyHeader, ProxyReader, TrustedProxies

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([0x20 | command, family]) + len(body).to_bytes(2, "big") + body


V4 = bytes([198, 51, 100, 7, 203, 0, 113, 1]) + (50000).to_bytes(2, "big") + (443).to_bytes(2, "big")
V6 = ip_address("2001:db8::7").packed + ip_address("2001:db8::1").packed + b"\xc3\x50\x01\xbb"
HEADERS = [
    (b"PROXY TCP4 198.51.100.7 203.0.113.1 50000 443\r\n", ("198.51.100.7", 50000)),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n", ("2001:db8::7", 50000)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    (v2(1, 0x11, V4), ("198.51.100.7", 50000)),
    (v2(1, 0x21, V6), ("2001:db8::7", 50000)),
    (v2(1, 0x11, V4 + b"\x20\x00\x10" + bytes(16)), ("198.51.100.7", 50000)),  # with an extension (TLV)
    (v2(0, 0x00, b""), None),  # a health check
    (v2(0, 0x11, V4), None),
    (v2(1, 0x31, bytes(216)), None),  # a client on a UNIX socket
]


@pytest.mark.parametrize(("header", "source"), HEADERS)
@pytest.mark.parametrize("rest", [b"", b"\x16\x03\x01 the client's own"])
def test_the_proxy_protocol(header: bytes, source: tuple[str, int] | None, rest: bytes) -> None:
    at_once = ProxyReader()
    assert at_once.feed(header + rest)
    assert (at_once.source, at_once.rest) == (source, rest)
    byte_by_byte = ProxyReader()
    assert [byte_by_byte.feed(header[i : i + 1]) for i in range(len(header))] == [False] * (len(header) - 1) + [True]
    assert (byte_by_byte.source, byte_by_byte.rest) == (source, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 198.51.100.7 203.0.113.1 50000\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 50000 443\r\n",
        b"PROXY TCP5 198.51.100.7 203.0.113.1 50000 443\r\n",
        b"PROXY TCP4 198.51.100.7 203.0.113.1 65536 443\r\n",
        b"PROXY TCP4 198.51.100.7 203.0.113.1 -1 443\r\n",
        b"PROXY TCP4 localhost 203.0.113.1 1 443\r\n",
        b"PROXY \xff\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 " + b"1" * 200,
        SIGNATURE + b"\x11\x11\x00\x0c" + V4,  # version 1 in the binary form
        SIGNATURE + b"\x22\x11\x00\x0c" + V4,  # an unknown command
        SIGNATURE + b"\x21\x11\xff\xff",  # longer than anybody needs
        v2(1, 0x11, V4[:-1]),
        v2(1, 0x21, V4),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ProxyReader().feed(data)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: SIGNATURE + b"\x21" + data))
def test_hostile_headers(data: bytes) -> None:
    reader = ProxyReader()
    try:
        complete = reader.feed(data)
    except RemoteProtocolError:
        return
    assert complete or len(reader.rest) <= MAX_PROXY_HEADER
    if reader.source is not None:
        ip_address(reader.source[0])


PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.1"], ProxyHeader.FORWARDED)


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        *(("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("192.0.2.1", True), ("192.0.2.2", False)),
        *(("2001:db8:ffff::1", True), ("2001:db8::1", False), ("fe80::1%eth0", False)),
    ],
)
def test_who_is_trusted(host: str, trusted: bool) -> None:
    assert PROXIES.covers(host) == trusted


def test_networks_that_are_none() -> None:
    for wrong in ("10.0.0.0/33", "proxy.example", ""):
        with pytest.raises(ValueError, match="does not appear to be"):
            TrustedProxies([wrong], ProxyHeader.PROXY)


FORWARDED = b"Forwarded"
FOR = b"X-Forwarded-For"


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([], "10.0.0.1"),
        ([(FOR, b"198.51.100.7")], "198.51.100.7"),
        ([(FOR, b"203.0.113.66, 198.51.100.7")], "198.51.100.7"),  # the client's own header stands to the left
        ([(FOR, b"203.0.113.66"), (FOR, b"198.51.100.7, 10.0.0.2")], "198.51.100.7"),
        ([(FOR, b"10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ([(FOR, b"198.51.100.7:50000")], "198.51.100.7"),
        ([(FOR, b"2001:db8::7")], "2001:db8::7"),
        ([(FOR, b"[2001:db8::7]:50000")], "2001:db8::7"),
        ([(FOR, b"203.0.113.66, nonsense")], "10.0.0.1"),
        ([(FOR, b"203.0.113.66, unknown, 10.0.0.2")], "10.0.0.2"),
        ([(FOR, b"")], "10.0.0.1"),
        ([(FORWARDED, b"for=198.51.100.7")], "198.51.100.7"),
        ([(FORWARDED, b'For="[2001:db8::7]:4711";proto=https;by=10.0.0.1')], "2001:db8::7"),
        ([(FORWARDED, b'for=203.0.113.66;host="a, b", for=198.51.100.7 , for="10.0.0.2:80"')], "198.51.100.7"),
        ([(FORWARDED, b'for=203.0.113.66, for="_hidden"')], "10.0.0.1"),
        ([(FORWARDED, b"for=203.0.113.66, by=10.0.0.1")], "10.0.0.1"),
        ([(FORWARDED, b"for=198.51.100.7"), (FOR, b"198.51.100.7")], "198.51.100.7"),
        ([(FORWARDED, b"")], "10.0.0.1"),
    ],
)
def test_the_rightmost_that_is_not_trusted(headers: list[tuple[bytes, bytes]], client: str) -> None:
    assert PROXIES.client("10.0.0.1", headers) == client


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        # The client made up one of the two, and its proxy passes the header that it does not write itself.
        ([(FORWARDED, b"for=203.0.113.66"), (FOR, b"198.51.100.7")], "different clients"),
        ([(FORWARDED, b"for=a for=b")], "malformed"),
        ([(FORWARDED, b'for="unfinished')], "malformed"),
        ([(FORWARDED, b"\xff")], "malformed"),
        ([(FOR, b"1.1.1.1," * 1000)], f"more than {MAX_FORWARDED} characters"),
    ],
)
def test_headers_that_are_not_believed(headers: list[tuple[bytes, bytes]], words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        PROXIES.client("10.0.0.1", headers)


@given(st.lists(st.tuples(st.sampled_from([FORWARDED, FOR]), st.binary(max_size=80)), max_size=3))
def test_hostile_forwarding(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        client = PROXIES.client("10.0.0.1", headers)
    except RemoteProtocolError:
        return
    ip_address(client)
