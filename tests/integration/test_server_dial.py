"""Connections to servers by a proxy: squid, tinyproxy, and proxies that misbehave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.ports import free_port
from tests.proxies import PASSWORD, USER, says, squid, tinyproxy
from warpgate_trio import names as names_module
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ProxyError
from warpgate_trio.names import Names
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.ports.server_dial import ServerDial

PROGRAMS = {"squid": squid, "tinyproxy": tinyproxy}


def by(port: int, username: str | None = None, password: str | None = None) -> ServerDial:
    return ServerDial(ServerUrl("http", "127.0.0.1", port, username, password))


ECHO = free_port()
"""The port on which the real proxies' target listens."""


@asynccontextmanager
async def target() -> AsyncGenerator[None]:
    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with open_background_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, echo, ECHO, host="127.0.0.1"))
        yield


async def check_echo(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"hello" * 1000)
        got = b""
        while len(got) < 5000:
            got += await stream.receive_some()
        assert got == b"hello" * 1000


async def refusal(dial: ServerDial, host: str = "127.0.0.1", port: int = 443) -> str:
    with trio.fail_after(HANG):
        with pytest.raises(ProxyError) as refused:
            await dial(host, port)
    assert dial.silence == ""
    return str(refused.value)


@pytest.fixture(scope="module", params=[pytest.param(each, marks=pytest.mark.needs(each)) for each in PROGRAMS])
def proxies(request: pytest.FixtureRequest) -> Iterator[tuple[int, int, int]]:
    """Three ports: a real proxy's, one of the same kind that wants a login, and an unused target port.

    Both proxies let through to that port and to the echo server's, and to no other.
    """
    run = PROGRAMS[request.param]
    plain, locked, nobody = free_port(), free_port(), free_port()
    allowed = f"{ECHO} {nobody}"
    with run(plain, allowed=allowed), run(locked, allowed=allowed, login=True):
        yield plain, locked, nobody


@pytest.mark.slow("two real proxies are started, once for all of these")
class TestRealProxies:
    async def test_lets_through(self, proxies: tuple[int, int, int]) -> None:
        async with target():
            with trio.fail_after(HANG):
                await check_echo(await by(proxies[0])("127.0.0.1", ECHO))

    async def test_lets_through_who_has_the_login(self, proxies: tuple[int, int, int]) -> None:
        async with target():
            with trio.fail_after(HANG):
                await check_echo(await by(proxies[1], USER, PASSWORD)("127.0.0.1", ECHO))

    async def test_a_login_is_wanted(self, proxies: tuple[int, int, int]) -> None:
        assert "wants a login: put it into the proxy's URL" in await refusal(by(proxies[1]), port=ECHO)

    async def test_a_login_is_wrong(self, proxies: tuple[int, int, int]) -> None:
        said = await refusal(by(proxies[1], USER, "guess"), port=ECHO)
        assert f"does not accept the login of '{USER}'" in said
        assert "guess" not in said

    async def test_a_port_is_forbidden(self, proxies: tuple[int, int, int]) -> None:
        assert "does not allow connections to 127.0.0.1:25 (403" in await refusal(by(proxies[0]), port=25)

    async def test_a_target_refuses(self, proxies: tuple[int, int, int]) -> None:
        said = await refusal(by(proxies[0]), port=proxies[2])
        assert f"could not connect to 127.0.0.1:{proxies[2]} (50" in said

    async def test_a_name_is_unknown(self, proxies: tuple[int, int, int]) -> None:
        assert "could not connect to nobody.invalid" in await refusal(by(proxies[0]), "nobody.invalid", ECHO)


@pytest.mark.needs("squid")
@pytest.mark.slow("squid is started")
async def test_the_name_is_the_proxys_to_resolve() -> None:
    port = free_port()
    with squid(port, allowed=str(ECHO), names=["target.example"]):
        async with target():
            with trio.fail_after(HANG):
                await check_echo(await by(port)("target.example", ECHO))  # only squid's hosts file has this name


class TestStrangeProxies:
    async def test_what_came_along_is_the_servers(self) -> None:
        here, there = trio.testing.memory_stream_pair()

        async def open_stream(host: str, port: int) -> trio.abc.Stream:
            await there.send_all(b"HTTP/1.1 200 OK\r\n\r\nfirst")
            return here

        async with await ServerDial(ServerUrl("http", "proxy.example", 3128), open_stream)("a.example", 443) as stream:
            await there.send_all(b"second")
            assert [await stream.receive_some(3), await stream.receive_some(3)] == [b"fir", b"st"]
            assert await stream.receive_some() == b"second"
            assert (await there.receive_some()).startswith(b"CONNECT")
            await stream.wait_send_all_might_not_block()
            await stream.send_all(b"x")
            assert await there.receive_some() == b"x"
        assert await there.receive_some() == b""

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "wants a login"),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow connections to a.example:443"),
            (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", "wants a login"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "could not connect to a.example:443"),
            (b"\xff\x00garbage\r\n\r\n", "does not answer in HTTP"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "sent 16 KiB without a complete response header"),
        ],
    )
    async def test_its_answer_is_its_own(self, answer: bytes, said: str) -> None:
        async with says(answer) as port:
            assert f"the proxy 127.0.0.1:{port} {said}" in await refusal(by(port), "a.example")

    async def test_it_hangs_up(self) -> None:
        async with says(None) as port:
            assert "closed the connection without an answer" in await refusal(by(port), "a.example")

    async def test_it_is_not_there(self) -> None:
        said = await refusal(by(free_port()), "a.example")
        assert "cannot be reached: " in said
        assert ": Connection refused; the proxy is set by [network] proxy, or by HTTPS_PROXY in" in said

    async def test_its_name_is_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = Names()
        async with names.running():
            dial = ServerDial(ServerUrl("http", "proxy.invalid", 3128), names.open_tcp_stream)
            said = await refusal(dial, "a.example")
        assert said.startswith("the proxy proxy.invalid:3128 cannot be reached: the name cannot be resolved: ")

    async def test_it_holds_the_line_for_as_long_as_its_caller_likes(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        here, there = trio.testing.memory_stream_pair()

        async def open_stream(host: str, port: int) -> trio.abc.Stream:
            assert (host, port) == ("proxy.example", 3128)
            return here

        dial = ServerDial(ServerUrl("http", "proxy.example", 3128), open_stream)
        with trio.move_on_after(1e6) as scope:
            await dial("a.example", 443)
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(1e6)
        assert dial.silence == " from the proxy proxy.example:3128"
        assert (await there.receive_some()).startswith(b"CONNECT a.example:443 ")
        assert await there.receive_some() == b""  # the connection was closed

    async def test_it_breaks_off(self) -> None:
        here, there = trio.testing.memory_stream_pair()
        await there.aclose()

        async def open_stream(host: str, port: int) -> trio.abc.Stream:
            return here

        said = await refusal(ServerDial(ServerUrl("http", "proxy.example", 3128), open_stream), "a.example")
        assert said.startswith("the proxy proxy.example:3128 broke the connection off")


async def test_the_proxys_name_is_looked_up_once_and_kept_and_the_servers_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds even if the remembered addresses are due for a new lookup, and the resolver hangs."""
    monkeypatch.setattr(names_module, "FRESH", 0.0)
    asked: list[str] = []

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, *_: Any, **__: Any) -> Any:
            asked.append(host.decode() if isinstance(host, bytes) else host)
            if len(asked) > 2:  # one query for each family
                await trio.sleep_forever()
            return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    previous = trio.socket.set_custom_hostname_resolver(Resolver())
    names = Names()
    try:
        async with says(b"HTTP/1.1 200 OK\r\n\r\n") as port, names.running():
            dial = ServerDial(ServerUrl("http", "proxy.example", port), names.open_tcp_stream)
            with trio.fail_after(HANG):
                for _ in range(3):
                    await trio.aclose_forcefully(await dial("a.example", 443))
    finally:
        trio.socket.set_custom_hostname_resolver(previous)
    assert set(asked) == {"proxy.example"}
    assert len(asked) == 4  # two more queries of a lookup in the background, still under way


async def test_without_a_proxy_it_is_a_plain_connection() -> None:
    async with target():
        dial = ServerDial(None)
        await check_echo(await dial("127.0.0.1", ECHO))
        assert dial.silence == ""
    with pytest.raises(OSError, match="all attempts to connect"):
        await ServerDial(None)("127.0.0.1", free_port())


async def test_cancelled_anywhere_it_closes_what_it_opened() -> None:
    async with says(b"HTTP/1.1 200 ", b"OK\r\n\r\n") as port:
        for cut in cuts():
            with cut:
                stream = await by(port)("a.example", 443)
                await trio.aclose_forcefully(stream)
    # The fixture that looks for open sockets would find one that was left.
