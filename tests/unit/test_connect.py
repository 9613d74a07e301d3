"""A proxy's answers to CONNECT: success, its refusals, and nonsense, cut at any byte."""

from __future__ import annotations

import base64

import pytest

from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ProxyError
from warpgate_trio.ports.connect import MAX_ANSWER, ConnectRequest

PROXY = ServerUrl("http", "proxy.example", 3128)
LOGIN = ServerUrl("http", "proxy.example", 3128, "ann", "s3cret:ä")
WORDS = {
    "the way": b"HTTP/1.1 200 Connection established\r\n\r\n",
    "of an old one": b"HTTP/1.0 200 OK\r\nVia: tinyproxy\r\n\r\n",
    "with a length, which means nothing here": b"HTTP/1.1 204 Sure\r\nContent-Length: 7\r\n\r\n",
    "after a pause": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
}


def ask(proxy: ServerUrl = PROXY, host: str = "signal.example.org", port: int = 443) -> ConnectRequest:
    request = ConnectRequest(proxy, host, port)
    request.transmit()
    return request


def refusal(answer: bytes, proxy: ServerUrl = PROXY) -> str:
    with pytest.raises(ProxyError) as refused:
        ask(proxy).receive(answer)
    return str(refused.value)


class TestTheRequest:
    def test_names_the_target_and_is_handed_out_once(self) -> None:
        request = ConnectRequest(PROXY, "signal.example.org", 443)
        assert request.transmit() == b"CONNECT signal.example.org:443 HTTP/1.1\r\nHost: signal.example.org:443\r\n\r\n"
        assert request.transmit() == b""

    def test_has_an_ipv6_address_in_brackets(self) -> None:
        assert ConnectRequest(PROXY, "2001:db8::1", 5349).transmit().startswith(b"CONNECT [2001:db8::1]:5349 HTTP/1.1")

    def test_has_the_login(self) -> None:
        expected = base64.b64encode("ann:s3cret:ä".encode())
        assert b"\r\nProxy-Authorization: Basic " + expected + b"\r\n" in ConnectRequest(LOGIN, "a", 1).transmit()


class TestTheWay:
    @pytest.mark.parametrize("answer", WORDS.values(), ids=WORDS)
    def test_what_came_behind_the_answer_is_the_servers(self, answer: bytes) -> None:
        request = ask()
        assert request.receive(answer + b"\x16\x03\x03")
        assert request.rest == b"\x16\x03\x03"

    @pytest.mark.parametrize("answer", WORDS.values(), ids=WORDS)
    def test_byte_by_byte(self, answer: bytes) -> None:
        request = ask()
        said = [request.receive(bytes([byte])) for byte in answer]
        assert said == [False] * (len(answer) - 1) + [True]
        assert request.rest == b""

    def test_the_servers_bytes_are_not_counted_as_the_proxys(self) -> None:
        request = ask()
        assert request.receive(WORDS["the way"] + b"x" * 2 * MAX_ANSWER)
        assert request.rest == b"x" * 2 * MAX_ANSWER


class TestRefusals:
    def test_a_login_is_wanted(self) -> None:
        said = refusal(b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n')
        assert said == (
            "the proxy proxy.example:3128 wants a login: put it into the proxy's URL, as "
            "http://name:password@host:port (407 Proxy Authentication Required)"
        )

    @pytest.mark.parametrize("status", [401, 407])
    def test_a_login_is_wrong(self, status: int) -> None:
        said = refusal(f"HTTP/1.0 {status} Unauthorized\r\n\r\n".encode(), LOGIN)
        assert "does not accept the login of 'ann'" in said
        assert f"({status} Unauthorized)" in said
        assert "s3cret" not in said

    def test_a_login_of_another_kind_is_wanted(self) -> None:
        said = refusal(
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n"
            b'Proxy-Authenticate: NTLM abc, Digest realm="x"\r\n\r\n',
            LOGIN,
        )
        assert "wants a login by Negotiate or NTLM or Digest, but only Basic is supported (407 No)" in said

    def test_basic_among_others_will_do(self) -> None:
        said = refusal(b'HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate, basic realm="a, b"\r\n\r\n')
        assert "wants a login: put it into the proxy's URL" in said

    def test_a_port_is_forbidden(self) -> None:
        said = refusal(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert "does not allow connections to signal.example.org:443 (403 Forbidden)" in said
        assert "allow only port 443" in said

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_the_server_cannot_be_reached(self, status: int) -> None:
        said = refusal(f"HTTP/1.1 {status} Bad luck\r\n\r\n".encode())
        assert f"could not connect to signal.example.org:443 ({status} Bad luck)" in said

    @pytest.mark.parametrize("status", [302, 400, 404, 405])
    def test_anything_else(self, status: int) -> None:
        assert f"did not connect to signal.example.org:443 ({status})" in refusal(f"HTTP/1.1 {status}\r\n\r\n".encode())

    def test_what_it_says_moves_no_cursor_and_has_an_end(self) -> None:
        said = refusal(b"HTTP/1.1 403 " + b"\xc2\x85\xe2\x80\xae" + b"long " * 1000 + b"\r\n\r\n")
        assert said.isprintable()
        assert len(said) < 400


class TestNonsense:
    @pytest.mark.parametrize(
        "answer",
        [b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail.example ESMTP\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b"\0", b"HTTP/x"],
        ids=["ssh", "mail", "tls", "nul", "almost"],
    )
    def test_is_no_proxy_at_once(self, answer: bytes) -> None:
        if answer == b"HTTP/x":
            answer += b" 200 OK\r\n\r\n"
        assert "does not answer in HTTP" in refusal(answer)

    def test_a_switch_of_protocols_that_nobody_asked_for(self) -> None:
        assert "does not answer in HTTP" in refusal(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")

    @pytest.mark.parametrize("before", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\n"])
    def test_its_end(self, before: bytes) -> None:
        request = ask()
        if before:
            assert not request.receive(before)
        with pytest.raises(ProxyError, match="closed the connection without an answer"):
            request.receive(b"")

    @pytest.mark.parametrize(
        "piece", [b"X-Filler: " + b"x" * 90 + b"\r\n", b"x" * 100, b"X: y\r\nHTTP/1.1 100 C\r\n\r\n"]
    )
    def test_a_header_without_end_is_not_read_to_it(self, piece: bytes) -> None:
        request = ask()
        taken = 0
        with pytest.raises(ProxyError, match=r"(without a complete response header|does not answer in HTTP)"):
            request.receive(b"HTTP/1.1 100 Continue\r\n")
            while taken < 10 * MAX_ANSWER:
                taken += len(piece)
                request.receive(piece)
        assert taken < MAX_ANSWER + len(piece)

    def test_nor_is_what_comes_in_one_piece(self) -> None:
        pauses = b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_ANSWER // 20)
        with pytest.raises(ProxyError, match=r"(without a complete response header|does not answer in HTTP)"):
            ask().receive(pauses + WORDS["the way"])
