"""Relays behind an HTTP proxy: squid and tinyproxy in front of coturn and of our server, and proxies that refuse."""

from __future__ import annotations

import logging
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Final, NoReturn

import pytest
import trio

from tests.certificates import Authority
from tests.connect_proxy import serve_tunnel
from tests.coturn import coturn_relay
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import closed_port, loopback_node
from tests.ports import free_port
from tests.proxies import PASSWORD, USER, says, squid, tinyproxy
from warpgate_trio import ConnectError, NodeConfig, Servers
from warpgate_trio.config import Budgets, NetworkConfig, Proxies, TurnServer
from warpgate_trio.config import proxies as proxies_module
from warpgate_trio.config.server_url import parse_proxy_url
from warpgate_trio.errors import ConfigError, StunError
from warpgate_trio.names import Names
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.ports.datagrams import DatagramSocket
from warpgate_trio.report import ConnectReport, Outcome
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.servers.turn_limits import TurnLimits
from warpgate_trio.turn.relays import LOOKUP, Relays

NAME: Final = "relay.example"
"""The host name of a TURN server, which only squid can resolve."""
PROXIES = {"squid": squid, "tinyproxy": tinyproxy}
EXTERNAL: Final = "203.0.113.77"
"""The address that the relays report: behind a proxy, a loopback address is not accepted from a relay."""


@asynccontextmanager
async def open_relays(
    *urls: str, proxy: str, trust: Callable[[], ssl.SSLContext] = ssl.create_default_context, password: str = "secret"
) -> AsyncGenerator[Relays]:
    names = Names()
    made = Relays(
        [TurnServer(url, "user", password) for url in urls],
        names=names,
        trust=trust,
        proxies=Proxies(parse_proxy_url(proxy), {}),
    )
    with trio.fail_after(HANG):
        async with names.running(), trio.open_nursery() as nursery:
            async with made.running(nursery):
                yield made
    assert len(made) == 0


# --- real proxies, real servers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("turn_proxies"))


@pytest.fixture(scope="module", params=[pytest.param(each, marks=pytest.mark.needs(each)) for each in PROXIES])
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """A real proxy that wants a login: its URL, its name for this machine, and the ports that it lets through to."""
    port, allowed = free_port(), (free_port(), free_port())
    ports = " ".join(map(str, allowed))
    if request.param == "squid":
        with squid(port, allowed=ports, login=True, names=(NAME,)):
            yield f"http://{USER}:{PASSWORD}@127.0.0.1:{port}", NAME, allowed
    else:
        with tinyproxy(port, allowed=ports, login=True):
            yield f"http://{USER}:{PASSWORD}@127.0.0.1:{port}", "127.0.0.1", allowed


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes 127.0.0.1 count as another machine, to be reached by a proxy: tinyproxy knows the system's names only."""
    monkeypatch.setattr(proxies_module, "_is_this_machine", lambda host: False)


async def echo_through(relays: Relays) -> None:
    """Uses a primed allocation, and sends data both ways by channel and by indication."""
    await relays.prime()
    assert len(relays) == 1
    port = await relays.open(permit=["127.0.0.1"])
    assert len(relays) == 1
    assert port.local[0] == EXTERNAL
    peer = await DatagramSocket.bind(("127.0.0.1", 0))
    path = port.open_path(peer.local)
    await path.send([b"hello"])
    ((data, source),) = await peer.receive_batch()
    assert data == b"hello"
    await peer.send_batch([(b"answer", source)])
    assert await path.receive() == [b"answer"]
    path.close_nowait()
    port.release()
    peer.close()


@pytest.mark.slow("a real proxy is started, once for all of these")
@pytest.mark.parametrize("form", ["turn:{}:{}?transport=tcp", "turns:{}:{}"])
async def test_our_server_is_reached_through_a_proxy(
    form: str, proxied: tuple[str, str, tuple[int, int]], authority: Authority, elsewhere: None
) -> None:
    proxy, host, (port, tls_port) = proxied
    async with open_turn_server(
        TurnCredentials("example.org", {"user": "secret"}),
        port=port,
        ssl_context=authority.server(host),
        tls_port=tls_port,
        external_ips={4: EXTERNAL},
        allowed_peers=[ip_network("127.0.0.1/32")],
    ) as server:
        url = form.format(host, tls_port if form.startswith("turns") else port)
        async with open_relays(url, proxy=proxy, trust=authority.client) as relays:
            await echo_through(relays)
        assert server.statistics().allocations == 0


@pytest.mark.slow("a real proxy and coturn are started")
@pytest.mark.needs("linux", "turnserver", "ipv6")
@pytest.mark.parametrize("form", ["turn:{}:{}?transport=tcp", "turns:{}:{}"])
async def test_coturn_is_reached_through_a_proxy(
    form: str, proxied: tuple[str, str, tuple[int, int]], authority: Authority, elsewhere: None, tmp_path: Path
) -> None:
    proxy, host, (port, _) = proxied
    authority.server(host)
    certificate = authority.ca_file.with_name(f"{host}.pem")
    with coturn_relay(tmp_path, f"external-ip={EXTERNAL}/127.0.0.1", certificate=certificate, port=port):
        async with open_relays(form.format(host, port), proxy=proxy, trust=authority.client) as relays:
            await echo_through(relays)


@pytest.mark.slow("a real proxy is started, once for all of these")
async def test_what_a_real_proxy_refuses_is_said_in_its_name(
    proxied: tuple[str, str, tuple[int, int]], elsewhere: None
) -> None:
    proxy, host, (port, _) = proxied
    at = proxy.partition("@")[2]
    for by, to, said in (
        (f"http://{at}", port, "wants a login"),
        (f"http://{USER}:guess@{at}", port, f"does not accept the login of '{USER}'"),
        (proxy, 25, f"does not allow connections to {host}:25 (403"),
        (proxy, port, f"could not connect to {host}:{port} (50"),
    ):
        assert f"TURN server turns:{host}:{to} cannot be reached: the proxy {at} {said}" in await refusal(
            f"turns:{host}:{to}", by
        )


# --- whose refusal it is ----------------------------------------------------------------------------------------------


async def refusal(url: str, proxy: str, **options: str) -> str:
    """The reported reason why there is no relay."""
    async with open_relays(url, proxy=proxy, **options) as relays:  # type: ignore[arg-type]
        await relays.prime()  # its failure is not reported
        with relays.noting_failures() as failures, pytest.raises(StunError) as refused:
            await relays.open()
        (said,) = failures
        assert str(refused.value) == f"no TURN server gave a relayed address: {said}"
        return said


FORMS = (f"turn:{NAME}?transport=tcp", f"turns:{NAME}:443")


@pytest.mark.parametrize("url", FORMS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "wants a login"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow connections to relay.example"),
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", "wants a login"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "could not connect to relay.example"),
        (b"\xff\x00garbage\r\n\r\n", "does not answer in HTTP"),
        (None, "closed the connection without an answer"),
    ],
)
async def test_what_a_proxy_says_is_said_in_its_name(url: str, answer: bytes | None, said: str) -> None:
    async with says(answer) as port:
        told = await refusal(url, f"http://127.0.0.1:{port}")
        assert told.startswith(f"TURN server {url} cannot be reached: the proxy 127.0.0.1:{port} {said}")


async def test_a_proxy_that_is_not_there_is_said() -> None:
    port = await closed_port()
    assert f"the proxy 127.0.0.1:{port} cannot be reached" in await refusal(FORMS[0], f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("url", "answer", "said"),
    [
        (FORMS[0], b"SSH-2.0-nobody", "the stream carries neither STUN messages nor ChannelData"),
        (FORMS[0], None, "the server closed the connection"),
        (FORMS[1], b"HTTP/1.1 403 Forbidden\r\n\r\n", "TLS handshake failed"),
    ],
)
async def test_what_comes_through_a_proxy_is_the_servers(url: str, answer: bytes | None, said: str) -> None:
    async with says(b"HTTP/1.1 200 OK\r\n\r\n", answer) as port:
        told = await refusal(url, f"http://127.0.0.1:{port}")
        assert url in told
        assert said in told
        assert "proxy" not in told


@pytest.mark.parametrize(
    ("options", "password", "said"),
    [
        ({}, "wrong", "401 Unauthorized"),
        ({"limits": TurnLimits(allocations=0)}, "secret", "486 Allocation Quota Reached"),
    ],
)
async def test_a_servers_own_no_through_a_proxy_has_its_name(
    options: dict[str, TurnLimits], password: str, said: str, elsewhere: None
) -> None:
    """The message does not have the server's address, which only the proxy knows."""
    credentials = TurnCredentials("example.org", {"user": "secret"})
    async with open_turn_server(credentials, **options) as server, connect_proxy() as proxy:  # type: ignore[arg-type]
        url = f"turn:127.0.0.1:{server.address[1]}?transport=tcp"
        assert await refusal(url, proxy, password=password) == f"TURN server {url}: {said}"


@pytest.mark.parametrize(
    ("answers", "who"), [((), " from the proxy 127.0.0.1:{}"), ((b"HTTP/1.1 200 OK\r\n\r\n",), "")]
)
@pytest.mark.parametrize("url", FORMS)
@pytest.mark.usefixtures("jumping_clock")
async def test_a_proxy_that_holds_the_line_is_told_from_a_silent_server(
    url: str, answers: tuple[bytes, ...], who: str
) -> None:
    async with says(*answers) as port, open_relays(url, proxy=f"http://127.0.0.1:{port}") as relays:
        with relays.noting_failures() as failures, trio.move_on_after(0.05) as scope:
            await relays.open()
        assert scope.cancelled_caught
        assert failures == [f"TURN server {url}: no answer{who.format(port)}"]


@pytest.mark.slow("the next server is asked after a quarter of a second")
async def test_a_server_that_gives_an_address_leaves_no_failure_behind(elsewhere: None) -> None:
    credentials = TurnCredentials("example.org", {"user": "secret"})
    async with (
        says() as silent,
        open_turn_server(credentials, external_ips={4: EXTERNAL}) as server,
        connect_proxy() as proxy,
    ):
        urls = [f"turn:127.0.0.1:{port}?transport=tcp" for port in (silent, server.address[1])]
        async with open_relays(*urls, proxy=proxy) as relays:
            with relays.noting_failures() as failures:
                port = await relays.open()
            assert port.name == urls[1]
            assert failures == []
            port.release()


@asynccontextmanager
async def connect_proxy() -> AsyncGenerator[str]:
    """The URL of a proxy that lets everybody through to every target."""
    async with open_background_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, partial(serve_tunnel, []), [listener]))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"


# --- a resolver that hangs --------------------------------------------------------------------------------------------


@pytest.mark.slow("a resolver is waited for, for a quarter of a second")
@pytest.mark.usefixtures("jumping_clock")
async def test_a_name_that_hangs_keeps_nobody_from_the_server_behind_the_proxy(elsewhere: None) -> None:
    """A machine behind a proxy may be unable to resolve any name but the proxy's, with its DNS queries dropped."""

    class Hangs(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: object, *_: object, **__: object) -> NoReturn:
            await trio.sleep_forever()
            raise AssertionError("unreachable")

        async def getnameinfo(self, sockaddr: object, flags: int) -> NoReturn:
            raise NotImplementedError

    credentials = TurnCredentials("example.org", {"user": "secret"})
    async with open_turn_server(credentials, external_ips={4: EXTERNAL}) as server, connect_proxy() as proxy:
        previous = trio.socket.set_custom_hostname_resolver(Hangs())
        try:
            url = f"turn:127.0.0.1:{server.address[1]}?transport=tcp"
            async with open_relays("turn:nobody.example", url, proxy=proxy) as relays:
                began = trio.current_time()
                port = await relays.open()
                assert trio.current_time() - began < LOOKUP / 2
                port.release()
        finally:
            trio.socket.set_custom_hostname_resolver(previous)


# --- over UDP ---------------------------------------------------------------------------------------------------------


async def test_over_udp_a_server_is_asked_directly_and_the_log_says_so(
    own_logging: None, caplog: pytest.LogCaptureFixture, elsewhere: None
) -> None:
    caplog.set_level(logging.INFO, "warpgate_trio.turn.relays")
    nowhere = f"http://ann:hunter2@127.0.0.1:{await closed_port()}"
    async with open_turn_server(TurnCredentials("example.org", {"user": "secret"})) as server:
        url = f"turn:127.0.0.1:{server.address[1]}"
        async with open_relays(url, *FORMS, proxy=nowhere) as relays:
            (await relays.open()).release()
    shown = nowhere.partition("@")[2]
    assert f"TURN server {url}: directly, because the proxy {shown} does not carry UDP" in caplog.text
    for url in FORMS:
        assert f"TURN server {url}: connecting through the proxy {shown}" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_socks_proxy_without_its_package_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(ConfigError, match=r"warpgate-trio\[socks\]"):
        async with open_relays(FORMS[0], proxy="socks5://127.0.0.1:9"):
            pass


# --- the report -------------------------------------------------------------------------------------------------------


async def report_of_a_call(proxy: str) -> ConnectReport:
    """The report of a walk that has only a relay, behind this proxy; the signal server is on this machine."""
    budgets = Budgets(direct_min=0.1, direct_max=0.1, signal=0.2, relay_base=0.1, goodbye=0.1)
    async with open_rendezvous() as signals, loopback_node(BOB, servers(signals.url, budgets)) as bob:
        config = servers(signals.url, budgets, turn=[TurnServer(FORMS[1], "user", "secret")], proxy=proxy)
        async with loopback_node(ALICE, config) as alice:
            await alice.wait_signals()
            with pytest.raises(ConnectError) as failed:
                await alice.auto_connect(bob.address, phases=["relay"])
            return failed.value.report
    raise AssertionError("unreachable")


def servers(signals: str, budgets: Budgets, *, turn: list[TurnServer] | None = None, proxy: str = "none") -> NodeConfig:
    return NodeConfig(
        servers=Servers(websocket=[signals], turn=turn or []),
        network=NetworkConfig(proxy=proxy),
        budgets=budgets,
    )


@pytest.mark.slow("two nodes, and a walk that fails")
@pytest.mark.parametrize(
    ("answers", "outcome", "said"),
    [
        ([b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n"], Outcome.FAILED, "cannot be reached: {} wants a"),
        ([], Outcome.TIMED_OUT, "no answer from {}"),
        ([b"HTTP/1.1 200 OK\r\n\r\n"], Outcome.TIMED_OUT, "no answer"),
    ],
)
@pytest.mark.usefixtures("jumping_clock")
async def test_the_report_says_who_it_was(answers: list[bytes], outcome: Outcome, said: str) -> None:
    async with says(*answers) as port:
        report = await report_of_a_call(f"http://127.0.0.1:{port}")
    (row,) = [row for row in report.combos if row.plugin == "turn"]
    assert row.outcome is outcome
    assert row.error is not None
    proxy = f"the proxy 127.0.0.1:{port}"
    assert said.format(proxy) in row.error
    assert (proxy in row.error) is ("{}" in said)


async def test_the_name_of_a_server_behind_a_proxy_is_the_proxys_affair() -> None:
    urls = ("turn:by-udp.example", "turn:by-tcp.example?transport=tcp", "turns:by-tls.example")
    async with open_relays(*urls, proxy="http://127.0.0.1:1") as relays:
        assert relays.names == ["by-udp.example"]
